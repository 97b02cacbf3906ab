"""What a message must be before anyone computes on it: bytes from a peer are a claim until checked."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from halfback.errors import Diverged, Peer, PeerError
from halfback.parties.server import Server
from halfback.wire.messages import Activations, Exact, HandOver, HeadGradient, Slopes, Weights

_PIECE = 1 << 16  # values


def check_activations(server: Server, client: int, message: Activations) -> None:
    """Refuses activations that the top can't take.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: the activations are not finite.
    """
    hidden, labels, lengths = message.hidden, message.labels, message.lengths
    form = server.top.of(client).form
    sizes = form.shape[1:] if form.has_texts else form.shape
    if hidden.shape[1:] != sizes or hidden.numel() == 0 or hidden.dtype != form.dtype:
        came, allowed = f"{hidden.dtype} {tuple(hidden.shape)}", f"({', '.join(map(str, ('any', *sizes)))})"
        raise PeerError("Activations.hidden", came, f"{form.dtype} of shape {allowed} is allowed", sender=client)
    if lengths is not None:
        _check_lengths(server, client, lengths, len(hidden))
    count = len(hidden) if lengths is None or server.top.scores_tokens else len(lengths)
    # One dtype alone: in another, -100 may be equal to a label.
    if labels is not None and (labels.shape != (count,) or labels.dtype != torch.int32):
        came, allowed = f"{labels.dtype} {tuple(labels.shape)}", f"torch.int32 ({count},) is allowed"
        raise PeerError("Activations.labels", came, allowed, sender=client)
    if not all_finite(hidden):
        cure = "lower bottom.lr or bottom.clip"
        raise Diverged("Activations.hidden", "is not finite", cure, step=server.steps, sender=client)


def _check_lengths(server: Server, client: int, lengths: Tensor, tokens: int) -> None:
    form = server.top.of(client).form
    if not form.has_texts:
        raise PeerError("Activations.lengths", "some", "none are allowed for images", sender=client)
    if (found := sum(tokens_of(lengths, form.shape[0], sender=client))) != tokens:
        came, needed = f"texts of {found} tokens", f"{tokens}, one for each row of hidden, are needed"
        raise PeerError("Activations.lengths", came, needed, sender=client)


def tokens_of(
    lengths: Tensor | None, longest: int, *, samples: int | None = None, sender: Peer = None
) -> tuple[int, ...]:
    """How many tokens each text of a batch has, by what a message says of it; `samples`: how many texts, if known.

    Raises:
        PeerError: they are no such lengths, or one is outside of 1 to `longest`.
    """
    count = samples if samples is not None or lengths is None else lengths.numel()
    if lengths is None or lengths.shape != (count,) or lengths.dtype != torch.int32:
        came = "none" if lengths is None else f"{lengths.dtype} {tuple(lengths.shape)}"
        allowed = f"torch.int32 ({'samples' if samples is None else samples},) is allowed"
        raise PeerError("Activations.lengths", came, allowed, sender=sender)
    tokens = tuple(lengths.tolist())
    if outside := [length for length in tokens if not 1 <= length <= longest]:
        raise PeerError("Activations.lengths", outside[0], f"1 to {longest} are allowed", sender=sender)
    return tokens


def check_slopes(server: Server, client: int, message: Slopes, count: int, *, step: int | None = None) -> None:
    """Refuses slopes of another step, number or dtype. `step`: the one that is due; by default the history's next.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: a slope is not finite.
    """
    step = len(server.agreed.rows) if step is None else step
    values = message.values
    if message.step != step:
        raise PeerError("Slopes.step", message.step, f"{step} is allowed", sender=client)
    if values.shape != (count,) or values.dtype != torch.float32:
        came = f"{values.dtype} {tuple(values.shape)}"
        raise PeerError("Slopes.values", came, f"torch.float32 ({count},) is allowed", sender=client)
    if not all_finite(values):
        cure = "lower bottom.lr or set algorithm.radius"
        raise Diverged("Slopes.values", "are not finite", cure, step=step, sender=client)


def check_exact(sender: Peer, message: Exact, count: int, step: int) -> None:
    """Refuses exact gradients of another number or dtype, from either side.

    Raises:
        PeerError: names the sender, the field, what came and what is allowed.
        Diverged: a value is not finite.
    """
    values = message.values
    if values.shape != (count,) or values.dtype != torch.float32:
        came = f"{values.dtype} {tuple(values.shape)}"
        raise PeerError("Exact.values", came, f"torch.float32 ({count},) is allowed", sender=sender)
    if not all_finite(values):
        cure = "lower bottom.lr or top.lr"
        raise Diverged("Exact.values", "are not finite", cure, step=step, sender=sender)


def check_weights(sender: Peer, message: Weights | HandOver, agreed: Mapping[str, Tensor], step: int) -> None:
    """Refuses weights that are not those of θ, from either side.

    Raises:
        PeerError: names the sender, the parameter, what came and what is allowed.
        Diverged: a weight is not finite.
    """
    field = f"{type(message).__name__}.tensors"
    check_tensors(field, message.tensors, agreed, sender=sender)
    for name, tensor in zip(agreed, message.tensors, strict=True):
        if not all_finite(tensor):
            raise Diverged(f"{field}, {name}", "is not finite", "lower bottom.lr", step=step, sender=sender)


def check_head_gradient(server: Server, client: int, message: HeadGradient, hidden: Tensor) -> None:
    """Refuses gradients that don't belong to the activations `hidden` at the second cut and the server's head.

    Raises:
        PeerError: names the client, the field, what came and what is allowed.
        Diverged: a gradient or the loss is not finite.
    """
    head = server.top.head or {}
    check_tensors("HeadGradient.gradient", (message.gradient,), {"the second cut": hidden}, sender=client)
    loss = torch.empty(1, dtype=torch.float32)
    check_tensors("HeadGradient.loss", (message.loss,), {"the batch": loss}, sender=client)
    check_tensors("HeadGradient.head", message.head, head, sender=client)
    if not all(all_finite(tensor) for tensor in (message.gradient, message.loss, *message.head)):
        cure = "lower the learning rates (top.lr, bottom.lr) or clip the top (top.clip)"
        raise Diverged("HeadGradient", "is not finite", cure, step=server.steps, sender=client)


def check_tensors(field: str, tensors: Sequence[Tensor], agreed: Mapping[str, Tensor], *, sender: Peer) -> None:
    """Refuses tensors that differ from the agreed ones in number, shape or dtype.

    Raises:
        PeerError: names the sender, the field and the tensor, what came and what is allowed.
    """
    if len(tensors) != len(agreed):
        raise PeerError(field, len(tensors), f"{len(agreed)} are allowed", sender=sender)
    for (name, wanted), tensor in zip(agreed.items(), tensors, strict=True):
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            came, allowed = (f"{each.dtype} {tuple(each.shape)}" for each in (tensor, wanted))
            raise PeerError(f"{field}, {name}", came, f"{allowed} is allowed", sender=sender)


def all_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; looked at in pieces, because a device has no memory for a second such tensor."""
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.detach().reshape(-1).split(_PIECE))
