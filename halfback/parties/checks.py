"""What a message must be before anyone computes on it: bytes from a peer are a claim until checked."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from halfback.errors import Diverged, PeerError
from halfback.parties.server import Server
from halfback.wire.messages import Activations, HandOver, HeadGradient, Slopes, Weights

_PIECE = 1 << 16  # values


def check_activations(server: Server, client: int, message: Activations) -> None:
    """Refuses activations that the top can't take.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: the activations are not finite.
    """
    hidden, labels, mask = message.hidden, message.labels, message.mask
    form = server.top.of(client).form
    length, *sizes = form.shape
    fits = hidden.ndim == len(sizes) + 2 and list(hidden.shape[2:]) == sizes
    fits = fits and (hidden.shape[1] <= length if form.has_texts else hidden.shape[1] == length)
    if not fits or hidden.numel() == 0 or hidden.dtype != form.dtype:
        wanted = ("any", f"up to {length}" if form.has_texts else length, *sizes)
        raise PeerError(
            f"client {client}: Activations.hidden: {hidden.dtype} {tuple(hidden.shape)} came, "
            f"{form.dtype} of shape ({', '.join(map(str, wanted))}) is allowed"
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


def check_slopes(server: Server, client: int, message: Slopes, count: int, *, step: int | None = None) -> None:
    """Refuses slopes of another step, number or dtype. `step`: the one that is due; by default the history's next.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: a slope is not finite.
    """
    step = len(server.agreed.rows) if step is None else step
    values = message.values
    if message.step != step:
        raise PeerError(f"client {client}: Slopes.step: {message.step} came, {step} is allowed")
    if values.shape != (count,) or values.dtype != torch.float32:
        raise PeerError(
            f"client {client}: Slopes.values: {values.dtype} {tuple(values.shape)} came, "
            f"torch.float32 ({count},) is allowed"
        )
    if not all_finite(values):
        raise Diverged(
            f"step {step}: Slopes.values of client {client} are not finite; lower bottom.lr or set algorithm.radius"
        )


def check_weights(sender: str, message: Weights | HandOver, agreed: Mapping[str, Tensor], step: int) -> None:
    """Refuses weights that are not those of θ, from either side.

    Raises:
        PeerError: names the sender, the parameter, what came and what is allowed.
        Diverged: a weight is not finite.
    """
    field = f"{type(message).__name__}.tensors"
    check_tensors(f"{sender}: {field}", message.tensors, agreed)
    for name, tensor in zip(agreed, message.tensors, strict=True):
        if not all_finite(tensor):
            raise Diverged(f"step {step}: {field}, {name} of {sender} is not finite; lower bottom.lr")


def check_head_gradient(server: Server, client: int, message: HeadGradient, hidden: Tensor) -> None:
    """Refuses gradients that don't belong to the activations `hidden` at the second cut and the server's head.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: a gradient or the loss is not finite.
    """
    sender, head = f"client {client}: HeadGradient", server.top.head or {}
    check_tensors(f"{sender}.gradient", (message.gradient,), {"the second cut": hidden})
    check_tensors(f"{sender}.loss", (message.loss,), {"the batch": torch.empty(1, dtype=torch.float32)})
    check_tensors(f"{sender}.head", message.head, head)
    if not all(all_finite(tensor) for tensor in (message.gradient, message.loss, *message.head)):
        raise Diverged(
            f"step {server.steps}: HeadGradient of client {client} is not finite; lower the learning rates (top.lr, "
            "bottom.lr) or clip the top (top.clip)"
        )


def check_tensors(field: str, tensors: Sequence[Tensor], agreed: Mapping[str, Tensor]) -> None:
    """Refuses tensors that differ from the agreed ones in number, shape or dtype.

    Raises:
        PeerError: begins with `field` and names the tensor, what came and what is allowed.
    """
    if len(tensors) != len(agreed):
        raise PeerError(f"{field}: {len(tensors)} came, {len(agreed)} are allowed")
    for (name, wanted), tensor in zip(agreed.items(), tensors, strict=True):
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise PeerError(
                f"{field}, {name}: {tensor.dtype} {tuple(tensor.shape)} came, "
                f"{wanted.dtype} {tuple(wanted.shape)} is allowed"
            )


def all_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; looked at in pieces, because a device has no memory for a second such tensor."""
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.detach().reshape(-1).split(_PIECE))
