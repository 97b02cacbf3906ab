"""What several algorithms do alike with the server's part of the model: its loss, its backward pass, its step."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from halfback.algorithms.checks import all_finite, check_activations, check_head_gradient
from halfback.algorithms.descent import set_rate
from halfback.algorithms.parties import Server
from halfback.errors import Diverged, PeerError
from halfback.wire.messages import Activations, HeadGradient, Message, MiddleActivations

NO_LOSS = -100  # the label of tokens that have no loss


def loss_of(server: Server, client: int, hidden: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
    """The loss of one client's batch through the top, a scalar.

    Raises:
        PeerError: the mask is missing or belongs to another batch, or a label is outside the classes of the top.
        Diverged: the loss is not finite.
    """
    logits = _through_top(server, client, hidden, mask)
    if labels.shape != logits.shape[:-1]:
        raise PeerError(
            f"client {client}: Activations.labels: {tuple(labels.shape)} came, {tuple(logits.shape[:-1])} is allowed"
        )
    unscored = (labels == NO_LOSS) & (labels.ndim == 2)  # only a token may go without a loss
    if outside := labels[(labels >= logits.shape[-1]) | ((labels < 0) & ~unscored)].tolist():
        raise PeerError(
            f"client {client}: Activations.labels: {outside[0]} came, 0 to {logits.shape[-1] - 1} are allowed"
        )
    loss = server.loss(logits, labels.long())
    if not torch.isfinite(loss):
        raise Diverged(
            f"step {server.steps}: the loss of client {client} is {loss.item()}; "
            "lower the learning rates (top.lr, bottom.lr) or clip the top (top.clip)"
        )
    return loss


def middle_activations(server: Server, messages: Mapping[int, Activations]) -> dict[int, Message]:
    """U-shape: what the middle makes of each client's activations, and the head's weights; the graph is kept.

    Raises:
        PeerError: the middle can't take the activations, or labels came with them.
    """
    answers: dict[int, Message] = {}
    for client, message in messages.items():
        check_activations(server, client, message)
        if message.labels is not None:
            raise PeerError(f"client {client}: Activations.labels: some came, none are allowed where devices keep them")
        hidden = message.hidden.detach().requires_grad_()
        out = _through_top(server, client, hidden, message.mask)
        server.passes[client] = (hidden, out)
        answers[client] = MiddleActivations(out.detach(), tuple(p.detach() for p in (server.head or {}).values()))
    return answers


def backpropagate_top(server: Server, messages: Mapping[int, Activations | HeadGradient]) -> dict[int, Tensor]:
    """One backward of the top a client: leaves the mean gradient in the top and returns λ = ∂ℓ/∂z by client.

    In the U-shape the backward pass goes through the middle, from the gradients that the clients took of their loss;
    those of the head's tensors are averaged like the middle's own.
    """
    optimizer = _optimizer(server)
    optimizer.zero_grad(set_to_none=True)
    gradients, losses = {}, []
    for client, message in messages.items():
        if isinstance(message, HeadGradient):
            hidden = _backpropagate_middle(server, client, message)
            losses.append(message.loss.item())
        else:
            check_activations(server, client, message)
            hidden = message.hidden.detach().requires_grad_()
            loss = loss_of(server, client, hidden, message.mask, _labels(client, message))
            loss.backward(inputs=_leaves(server, client, hidden))
            losses.append(loss.item())
        gradients[client] = cast(Tensor, hidden.grad)
        if not all_finite(gradients[client]):
            raise Diverged(
                f"step {server.steps}: the cut gradient of client {client} is not finite; "
                "lower top.lr or clip the top (top.clip)"
            )
    for parameter in _parameters(optimizer):
        if parameter.grad is not None:
            parameter.grad /= len(messages)
    server.losses += losses
    return gradients


def step_top(server: Server) -> None:
    """One optimiser step of the top, on the gradient that `backpropagate_top` left and which is then used up.

    Raises:
        PeerError: no batch came since the last step.
    """
    _move_top(server)
    server.steps += 1


def step_top_by_client(server: Server, messages: Mapping[int, Activations]) -> dict[int, Tensor]:
    """One optimiser step of the top on each client's batch, client after client; returns λ = ∂ℓ/∂z by client.

    Together they are one step of the run. Raises as `backpropagate_top` does.
    """
    gradients: dict[int, Tensor] = {}
    for client, message in messages.items():
        gradients |= backpropagate_top(server, {client: message})
        _move_top(server)
    server.steps += 1
    return gradients


def _move_top(server: Server) -> None:
    optimizer = _optimizer(server)
    if all(parameter.grad is None for parameter in _parameters(optimizer)):
        raise PeerError(f"step {server.steps}: the cohort wants the step taken, but has sent no batch for it")
    if server.clip is not None:
        nn.utils.clip_grad_norm_(_parameters(optimizer), server.clip)
    set_rate(optimizer, server.schedule(server.steps))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    server.passes = {}  # their graphs belong to the weights of before


def _through_top(server: Server, client: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
    if server.has_texts and (mask is None or mask.shape != hidden.shape[:2]):
        came = "none" if mask is None else tuple(mask.shape)
        raise PeerError(f"client {client}: Activations.mask: {came} came, {tuple(hidden.shape[:2])} is needed")
    if server.above:
        server.catch_up()  # blocks of θ stand between the cuts
    return server.of(client).top(hidden, mask)


def _leaves(server: Server, client: int, hidden: Tensor) -> list[Tensor] | None:
    """Where a backward pass ends: None for everywhere, unless it goes through blocks of θ, which have no gradients."""
    return [hidden, *_parameters(_optimizer(server))] if client in server.above else None


def _backpropagate_middle(server: Server, client: int, message: HeadGradient) -> Tensor:
    """The activations that came, with their gradient; the head's gradients are added to its tensors'."""
    if client not in server.passes:
        raise PeerError(f"client {client}: HeadGradient: it came before the batch that it belongs to")
    hidden, out = server.passes[client]
    check_head_gradient(server, client, message, out)
    del server.passes[client]
    out.backward(message.gradient, inputs=_leaves(server, client, hidden))
    for parameter, gradient in zip((server.head or {}).values(), message.head, strict=True):
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
    return hidden


def _labels(client: int, message: Activations) -> Tensor:
    if message.labels is None:
        raise PeerError(f"client {client}: Activations.labels: none came, integers are needed for the loss")
    return message.labels


def _optimizer(server: Server) -> torch.optim.Optimizer:
    assert server.optimizer is not None, "an algorithm with top_update 'backpropagated' gets an optimiser"
    return server.optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
