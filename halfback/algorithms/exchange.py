"""What several algorithms say and answer alike: the upload of a batch, the step of the top, the mean of slopes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from halfback.algorithms.protocol import Batch, Client, Server
from halfback.algorithms.replies import all_finite
from halfback.errors import Diverged, PeerError, UserError
from halfback.wire.messages import Activations, History, Join, Slopes

NO_LOSS = -100  # the label of tokens that have no loss


@torch.no_grad()
def forward(client: Client, batch: Batch) -> Tensor:
    """Activations at the cut, (B, T, H) or (B, C, H, W), without a graph."""
    return client.bottom(batch.inputs)


def upload(batch: Batch, hidden: Tensor, *, repeated: bool = False) -> Activations:
    """The message that carries one batch's activations; `repeated`: mask and labels were sent earlier in the step."""
    return Activations(
        hidden=hidden,
        mask=None if repeated else batch.inputs.get("attention_mask"),
        labels=None if repeated else batch.labels.to(torch.int32),
        sample_ids=batch.sample_ids.to(torch.int32),
    )


def unexpected(messages: Mapping[int, Any]) -> PeerError:
    """The error for messages that have no place in an algorithm's conversation."""
    client, message = next(iter(messages.items()))
    return PeerError(f"client {client}: {type(message).__name__}: this algorithm expects no such message")


def check_probes(directions: int, radius: float | None) -> None:
    """Refuses options of a zeroth-order algorithm that mean nothing.

    Raises:
        UserError: names the option and what is allowed.
    """
    if directions < 1:
        raise UserError(f"algorithm.directions={directions}: 1 or more are allowed")
    if radius is not None and not (radius > 0 and math.isfinite(radius)):
        raise UserError(f"algorithm.radius={radius:g}: a positive number is allowed, or null for the measured default")


def missed_slopes(server: Server, messages: Mapping[int, Join]) -> dict[int, History]:
    """The answer to a client that joins: the agreed slopes of the steps that it has not replayed.

    Raises:
        PeerError: a client says that it replayed steps which were never taken.
    """
    for client, join in messages.items():
        if not 0 <= join.position <= len(server.history):
            raise PeerError(
                f"client {client}: Join.position: {join.position} came, 0 to {len(server.history)} are allowed"
            )
    return {client: History(join.position, server.missed(join.position)) for client, join in messages.items()}


def check_activations(server: Server, client: int, message: Activations) -> None:
    """Refuses activations that the top can't take.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: the activations are not finite.
    """
    hidden, labels, mask = message.hidden, message.labels, message.mask
    length, *sizes = server.hidden_shape
    fits = hidden.ndim == len(sizes) + 2 and list(hidden.shape[2:]) == sizes
    fits = fits and (hidden.shape[1] <= length if server.has_texts else hidden.shape[1] == length)
    if not fits or hidden.numel() == 0 or hidden.dtype != server.hidden_dtype:
        wanted = ("any", f"up to {length}" if server.has_texts else length, *sizes)
        raise PeerError(
            f"client {client}: Activations.hidden: {hidden.dtype} {tuple(hidden.shape)} came, "
            f"{server.hidden_dtype} of shape ({', '.join(map(str, wanted))}) is allowed"
        )
    for name, tensor in (("mask", mask), ("labels", labels)):
        if tensor is not None and (tensor.shape[:1] != hidden.shape[:1] or tensor.is_floating_point()):
            raise PeerError(
                f"client {client}: Activations.{name}: {tensor.dtype} {tuple(tensor.shape)} came, "
                f"integers for a batch of {len(hidden)} are allowed"
            )
    if mask is not None and mask.shape != hidden.shape[:2]:
        raise PeerError(
            f"client {client}: Activations.mask: {tuple(mask.shape)} came, {tuple(hidden.shape[:2])} is allowed"
        )
    if not all_finite(hidden):
        raise Diverged(
            f"step {server.steps}: Activations.hidden of client {client} is not finite; lower bottom.lr or bottom.clip"
        )


def loss_of(server: Server, client: int, hidden: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
    """The loss of one client's batch through the top, a scalar.

    Raises:
        PeerError: the mask is missing or belongs to another batch, or a label is outside the classes of the top.
        Diverged: the loss is not finite.
    """
    if server.has_texts and (mask is None or mask.shape != hidden.shape[:2]):
        came = "none" if mask is None else tuple(mask.shape)
        raise PeerError(f"client {client}: Activations.mask: {came} came, {tuple(hidden.shape[:2])} is needed")
    logits = server.top(hidden, mask)
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


def backpropagate_top(server: Server, messages: Mapping[int, Activations]) -> dict[int, Tensor]:
    """One backward of the top a client: leaves the mean gradient in the top and returns λ = ∂ℓ/∂z by client."""
    optimizer = _optimizer(server)
    optimizer.zero_grad(set_to_none=True)
    gradients, losses = {}, []
    for client, message in messages.items():
        check_activations(server, client, message)
        hidden = message.hidden.detach().requires_grad_()
        loss = loss_of(server, client, hidden, message.mask, _labels(client, message))
        loss.backward()
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
    optimizer = _optimizer(server)
    if all(parameter.grad is None for parameter in _parameters(optimizer)):
        raise PeerError(f"step {server.steps}: the cohort wants the step taken, but has sent no batch for it")
    if server.clip is not None:
        nn.utils.clip_grad_norm_(_parameters(optimizer), server.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    server.steps += 1


def mean_slopes(server: Server, messages: Mapping[int, Slopes], directions: int) -> Tensor:
    """v̄ = the mean over the cohort: (P,) float32.

    Raises:
        PeerError: a client's slopes belong to another step or are not P floats.
        Diverged: a slope is not finite.
    """
    step = len(server.history)
    for client, message in messages.items():
        values = message.values
        if message.step != step:
            raise PeerError(f"client {client}: Slopes.step: {message.step} came, {step} is allowed")
        if values.shape != (directions,) or values.dtype != torch.float32:
            raise PeerError(
                f"client {client}: Slopes.values: {values.dtype} {tuple(values.shape)} came, "
                f"torch.float32 ({directions},) is allowed"
            )
        if not all_finite(values):
            raise Diverged(
                f"step {step}: Slopes.values of client {client} are not finite; lower bottom.lr or set algorithm.radius"
            )
    return torch.stack([message.values for message in messages.values()]).double().mean(dim=0).float()


def _labels(client: int, message: Activations) -> Tensor:
    if message.labels is None:
        raise PeerError(f"client {client}: Activations.labels: none came, integers are needed for the loss")
    return message.labels


def _optimizer(server: Server) -> torch.optim.Optimizer:
    assert server.optimizer is not None, "an algorithm with top_update 'backpropagated' gets an optimiser"
    return server.optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
