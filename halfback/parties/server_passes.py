"""Passes through the server's part of the model: to the loss, and in the U-shape through the middle and back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from halfback.errors import Diverged, PeerError
from halfback.parties.checks import check_activations, check_head_gradient
from halfback.parties.server import Server
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


def _through_top(server: Server, client: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
    if server.has_texts and (mask is None or mask.shape != hidden.shape[:2]):
        came = "none" if mask is None else tuple(mask.shape)
        raise PeerError(f"client {client}: Activations.mask: {came} came, {tuple(hidden.shape[:2])} is needed")
    if server.above:
        server.catch_up()  # blocks of θ stand between the cuts
    return server.of(client).top(hidden, mask)


def backpropagate_middle(server: Server, client: int, message: HeadGradient, weight: float) -> Tensor:
    """The activations that came, with `weight` times their gradient; so much of the head's is added to its tensors'."""
    if client not in server.passes:
        raise PeerError(f"client {client}: HeadGradient: it came before the batch that it belongs to")
    hidden, out = server.passes[client]
    check_head_gradient(server, client, message, out)
    del server.passes[client]
    gradient, *of_head = (g if weight == 1 else g * weight for g in (message.gradient, *message.head))
    out.backward(gradient, inputs=leaves(server, client, hidden))
    for parameter, own in zip((server.head or {}).values(), of_head, strict=True):
        parameter.grad = own.clone() if parameter.grad is None else parameter.grad + own
    return hidden


def leaves(server: Server, client: int, hidden: Tensor) -> list[Tensor] | None:
    """Where a backward pass ends: None for everywhere, unless it goes through blocks of θ, which have no gradients."""
    return [hidden, *parameters_of(optimizer_of(server))] if client in server.above else None


def optimizer_of(server: Server) -> torch.optim.Optimizer:
    """The top's own."""
    assert server.optimizer is not None, "an algorithm whose top is backpropagated gets an optimiser"
    return server.optimizer


def parameters_of(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    """What an optimiser moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
