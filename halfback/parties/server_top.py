"""What several algorithms do alike with the server's part of the model: its backward pass and its step."""

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn

from halfback.errors import Diverged, PeerError
from halfback.parties.checks import all_finite, check_activations
from halfback.parties.client_descent import set_rate
from halfback.parties.server import Server
from halfback.parties.server_passes import backpropagate_middle, leaves, loss_of, optimizer_of, parameters_of
from halfback.wire.messages import Activations, HeadGradient


def backpropagate_top(server: Server, messages: Mapping[int, Activations | HeadGradient]) -> dict[int, Tensor]:
    """One backward of the top a client: leaves the mean gradient in the top and returns λ = ∂ℓ/∂z by client.

    The mean is by the clients' shares; a client's λ is that of its own loss. In the U-shape the backward pass goes
    through the middle, from the gradients that the clients took of their loss; those of the head's tensors are averaged
    like the middle's own.
    """
    optimizer = optimizer_of(server)
    optimizer.zero_grad(set_to_none=True)
    gradients, losses, count = {}, [], len(messages)
    weights = [share * count for share in server.shares(messages) or []] or [1.0] * count
    for weight, (client, message) in zip(weights, messages.items(), strict=True):
        if isinstance(message, HeadGradient):
            hidden = backpropagate_middle(server, client, message, weight)
            losses.append(message.loss.item())
        else:
            check_activations(server, client, message)
            hidden = message.hidden.detach().requires_grad_()
            loss = loss_of(server, client, hidden, message.mask, _labels(client, message))
            loss.backward(None if weight == 1 else loss.new_tensor(weight), inputs=leaves(server, client, hidden))
            losses.append(loss.item())
        gradient = cast(Tensor, hidden.grad)
        gradients[client] = gradient if weight == 1 else gradient / weight
        if not all_finite(gradients[client]):
            raise Diverged(
                f"step {server.steps}: the cut gradient of client {client} is not finite; "
                "lower top.lr or clip the top (top.clip)"
            )
    for parameter in parameters_of(optimizer):
        if parameter.grad is not None:
            parameter.grad /= count
    server.losses += losses
    return gradients


def step_top(server: Server, asked_by: Iterable[int]) -> None:
    """One optimiser step of the top, on the gradient that `backpropagate_top` left and which is then used up.

    Raises:
        PeerError: no batch came since the last step; names one of the clients that want it taken all the same.
    """
    if all(parameter.grad is None for parameter in parameters_of(optimizer_of(server))):
        raise PeerError(f"client {min(asked_by)}: it wants step {server.steps} taken, but no batch came for it")
    _move_top(server)
    server.steps += 1


def step_top_by_client(server: Server, messages: Mapping[int, Activations], *, every: int = 1) -> dict[int, Tensor]:
    """One optimiser step of the top on each client's batch, client after client; returns λ = ∂ℓ/∂z by client.

    Together they are one step of the run: the next one whose number is a multiple of `every`, where devices upload at
    these alone. Raises as `backpropagate_top` does.
    """
    server.steps = -(-server.steps // every) * every
    gradients: dict[int, Tensor] = {}
    for client, message in messages.items():
        gradients |= backpropagate_top(server, {client: message})
        _move_top(server)
    server.steps += 1
    return gradients


def _move_top(server: Server) -> None:
    optimizer = optimizer_of(server)
    if server.clip is not None:
        nn.utils.clip_grad_norm_(parameters_of(optimizer), server.clip)
    set_rate(optimizer, server.schedule(server.steps))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    server.passes = {}  # their graphs belong to the weights of before


def _labels(client: int, message: Activations) -> Tensor:
    if message.labels is None:
        raise PeerError(f"client {client}: Activations.labels: none came, integers are needed for the loss")
    return message.labels
