"""What several algorithms do alike with the server's part of the model: to the loss, back, and a step.

In the U-shape the loss is taken on the devices: then through the middle and back.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor

from halfback.errors import Diverged, PeerError
from halfback.models.objectives import scored
from halfback.parties.checks import all_finite, check_activations, check_head_gradient
from halfback.parties.server import Server
from halfback.wire.messages import Activations, HeadGradient, Message, MiddleActivations

NO_LOSS = -100  # the label of tokens that have no loss


def loss_of(server: Server, client: int, hidden: Tensor, lengths: Tensor | None, labels: Tensor) -> Tensor:
    """The loss of one client's batch through the top, a scalar.

    Raises:
        PeerError: lengths are missing or belong to another batch, or a label is outside the classes of the top.
        Diverged: the loss is not finite.
    """
    of_tokens = scored(labels) if server.top.scores_tokens else None
    return _loss(server, client, _through_top(server, client, hidden, lengths, of_tokens), labels)


def _loss(server: Server, client: int, logits: Tensor, labels: Tensor) -> Tensor:
    unscored = (labels == NO_LOSS) & server.top.scores_tokens
    if outside := labels[(labels >= logits.shape[-1]) | ((labels < 0) & ~unscored)].tolist():
        allowed = f"0 to {logits.shape[-1] - 1} are allowed"
        raise PeerError("Activations.labels", outside[0], allowed, sender=client)
    loss = server.top.loss(logits, labels.long())
    if not torch.isfinite(loss):
        cure = "lower the learning rates (top.lr, bottom.lr) or clip the top (top.clip)"
        raise Diverged("the loss", f"is {loss.item()}", cure, step=server.steps, sender=client)
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
            allowed = "none are allowed where devices keep them"
            raise PeerError("Activations.labels", "some", allowed, sender=client)
        hidden = message.hidden.detach().requires_grad_()
        out = _through_top(server, client, hidden, message.lengths)
        server.top.passes[client] = (hidden, out)
        answers[client] = MiddleActivations(out.detach(), tuple(p.detach() for p in (server.top.head or {}).values()))
    return answers


def _through_top(
    server: Server, client: int, hidden: Tensor, lengths: Tensor | None, of_tokens: Tensor | None = None
) -> Tensor:
    if server.top.form.has_texts and lengths is None:
        raise PeerError("Activations.lengths", "none", "integers (samples,) are needed", sender=client)
    if server.top.above:
        server.agreed.catch_up()  # blocks of θ stand between the cuts
    module = server.top.of(client).module
    return module(hidden, lengths) if of_tokens is None else module(hidden, lengths, of_tokens)


def backpropagate_middle(server: Server, client: int, message: HeadGradient, weight: float) -> Tensor:
    """The activations that came, with `weight` times their gradient; so much of the head's is added to its tensors'."""
    if client not in server.top.passes:
        raise PeerError("HeadGradient", "it came before the batch that it belongs to", sender=client)
    hidden, out = server.top.passes[client]
    check_head_gradient(server, client, message, out)
    del server.top.passes[client]
    gradient, *of_head = (g if weight == 1 else g * weight for g in (message.gradient, *message.head))
    out.backward(gradient, inputs=leaves(server, client, hidden))
    for parameter, own in zip((server.top.head or {}).values(), of_head, strict=True):
        parameter.grad = own.clone() if parameter.grad is None else parameter.grad + own
    return hidden


def leaves(server: Server, client: int, hidden: Tensor) -> list[Tensor] | None:
    """Where a backward pass ends: None for everywhere, unless it goes through blocks of θ, which have no gradients."""
    return [hidden, *server.top.first_order.parameters] if client in server.top.above else None


def backpropagate_top(server: Server, messages: Mapping[int, Activations | HeadGradient]) -> dict[int, Tensor]:
    """One backward of the top a client: leaves the mean gradient in the top and returns λ = ∂ℓ/∂z by client.

    The mean is by the clients' shares; a client's λ is that of its own loss. In the U-shape the backward pass goes
    through the middle, from the gradients that the clients took of their loss; those of the head's tensors are averaged
    like the middle's own. With `Top.one_pass` there is one backward for all.
    """
    count = len(messages)
    weights = [share * count for share in server.cohort.shares(messages) or []] or [1.0] * count
    found = _in_one_pass(server, messages, weights) if server.top.one_pass and count > 1 else None
    gradients, losses = found or _one_by_one(server, messages, weights)
    server.losses += losses
    return gradients


def _one_by_one(
    server: Server, messages: Mapping[int, Activations | HeadGradient], weights: Sequence[float]
) -> tuple[dict[int, Tensor], list[float]]:
    """λ by client, and the losses; the mean of so much of each client's gradient is left in the top."""
    descent, count = server.top.first_order, len(messages)
    descent.begin()
    gradients: dict[int, Tensor] = {}
    losses = []
    for weight, (client, message) in zip(weights, messages.items(), strict=True):
        ends = descent.last_pass(server.steps, count) if len(gradients) == count - 1 else nullcontext()
        if isinstance(message, HeadGradient):
            with ends:
                hidden = backpropagate_middle(server, client, message, weight)
            losses.append(message.loss.item())
        else:
            check_activations(server, client, message)
            hidden = message.hidden.detach().requires_grad_()
            loss = loss_of(server, client, hidden, message.lengths, _labels(client, message))
            with ends:
                loss.backward(None if weight == 1 else loss.new_tensor(weight), inputs=leaves(server, client, hidden))
            losses.append(loss.item())
        gradient = cast(Tensor, hidden.grad)
        gradients[client] = gradient if weight == 1 else gradient / weight
        if not all_finite(gradients[client]):
            cure = "lower top.lr or clip the top (top.clip)"
            raise Diverged("the cut gradient", "is not finite", cure, step=server.steps, sender=client)
    return gradients, losses


def _in_one_pass(
    server: Server, messages: Mapping[int, Activations | HeadGradient], weights: Sequence[float]
) -> tuple[dict[int, Tensor], list[float]] | None:
    """What `_one_by_one` gives, from all activations as one batch, up to the order of float32 sums.

    None where the clients must be taken one by one: each has its own blocks or a head, or something is wrong with one
    of them, and then it is to be found which.
    """
    top, batches = server.top, {m: message for m, message in messages.items() if isinstance(message, Activations)}
    if top.above or top.head is not None or len(batches) < len(messages):
        return None
    try:
        for client, message in batches.items():
            check_activations(server, client, message)
        hidden = torch.cat([message.hidden for message in batches.values()]).detach().requires_grad_()
        lengths = [message.lengths for message in batches.values() if message.lengths is not None]
        if len(lengths) not in (0, len(batches)):
            return None
        labels = [_labels(client, message) for client, message in batches.items()]
        counts, of_tokens = [len(own) for own in labels], None
        if top.scores_tokens:
            places = [scored(own) for own in labels]
            firsts = [0, *accumulate(counts)]
            of_tokens = torch.cat([own + first for own, first in zip(places, firsts, strict=False)])
            counts = [len(own) for own in places]
        logits = _through_top(server, next(iter(batches)), hidden, torch.cat(lengths) if lengths else None, of_tokens)
        of_clients = zip(batches, logits.split(counts), labels, strict=True)
        losses = [_loss(server, client, own, its_labels) for client, own, its_labels in of_clients]
    except (PeerError, Diverged):
        return None
    top.first_order.begin()
    with top.first_order.last_pass(server.steps, len(messages)):
        torch.stack([loss * weight for loss, weight in zip(losses, weights, strict=True)]).sum().backward()
    if hidden.grad is None or not all_finite(hidden.grad):
        return None  # the run ends; one by one says at whose batch, or at the first where weights have moved already
    gradients = hidden.grad.split([len(message.hidden) for message in batches.values()])
    by_client = {m: g if w == 1 else g / w for m, g, w in zip(batches, gradients, weights, strict=True)}
    return by_client, torch.stack(losses).tolist()


def step_top(server: Server, asked_by: Iterable[int]) -> None:
    """One optimiser step of the top, on the gradient that `backpropagate_top` left and which is then used up.

    Raises:
        PeerError: no batch came since the last step; names one of the clients that want it taken all the same.
    """
    if not server.top.first_order.has_gradients:
        wants = f"it wants step {server.steps} taken, but no batch came for it"
        raise PeerError("", wants, sender=min(asked_by))
    server.top.move(server.steps)
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
        server.top.move(server.steps)
    server.steps += 1
    return gradients


def _labels(client: int, message: Activations) -> Tensor:
    if message.labels is None:
        raise PeerError("Activations.labels", "none", "integers are needed for the loss", sender=client)
    return message.labels
