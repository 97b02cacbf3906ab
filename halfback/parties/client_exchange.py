"""What a device says of a batch, and what it takes from the server, checked.

Bytes from a peer are a claim, also when the peer is the server.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

from halfback.errors import Diverged, PeerError
from halfback.parties.checks import all_finite
from halfback.parties.holdings import Batch
from halfback.wire.messages import Activations, Both, CutGradient, Losses, kinds_of, name_of

Kind = TypeVar("Kind")
Other = TypeVar("Other")


def upload(batch: Batch, hidden: Tensor, *, repeated: bool = False, labels: bool = True) -> Activations:
    """The message that carries one batch's activations.

    `repeated`: all but these were sent earlier in the step; `labels=False`: they stay on the device.
    """
    return Activations(
        hidden=hidden,
        lengths=None if repeated else lengths_of(batch),
        labels=batch.labels.to(torch.int32) if labels and not repeated else None,
        sample_ids=None if repeated else batch.sample_ids.to(torch.int32),
    )


def lengths_of(batch: Batch) -> Tensor | None:
    """How many tokens each text of a batch has, (B,) int32; None for images."""
    lengths = batch.inputs.get("lengths")
    return None if lengths is None else lengths.to(torch.int32)


def received(reply: Any, kind: type[Kind]) -> Kind:
    """The server's message, which must be of this kind.

    Raises:
        PeerError: it is another one.
    """
    if not isinstance(reply, kind):
        raise PeerError("", name_of(kinds_of(reply)), f"{kind.__name__} is allowed", sender="server")
    return reply


def received_both(reply: Any, first: type[Kind], second: type[Other]) -> tuple[Kind, Other]:
    """The two messages in the server's, which must be of these kinds; raises as `received` does."""
    if isinstance(reply, Both) and isinstance(reply.first, first) and isinstance(reply.second, second):
        return reply.first, reply.second
    came = name_of(kinds_of(reply))
    raise PeerError("", came, f"{first.__name__}And{second.__name__} is allowed", sender="server")


def cut_gradient(reply: Any, hidden: Tensor) -> Tensor:
    """λ for the activations `hidden`, in their shape and dtype.

    Raises:
        PeerError: another shape or dtype came.
        Diverged: λ is not finite.
    """
    gradient = received(reply, CutGradient).gradient
    if gradient.shape != hidden.shape or gradient.dtype != hidden.dtype:
        came, allowed = (f"{each.dtype} {tuple(each.shape)}" for each in (gradient, hidden))
        raise PeerError("CutGradient.gradient", came, f"{allowed} is allowed", sender="server")
    if not all_finite(gradient):
        cure = "lower top.lr or clip the top (top.clip)"
        raise Diverged("CutGradient.gradient", "is not finite", cure, sender="server")
    return gradient


def loss_value(reply: Any) -> float:
    """The loss that answers a probe.

    Raises:
        PeerError: it is no single float32.
        Diverged: it is not finite.
    """
    values = received(reply, Losses).values
    if values.shape != (1,) or values.dtype != torch.float32:
        came = f"{values.dtype} {tuple(values.shape)}"
        raise PeerError("Losses.values", came, "torch.float32 (1,) is allowed", sender="server")
    if not all_finite(values):
        cure = "lower the learning rates (top.lr, bottom.lr)"
        raise Diverged("Losses.values", "is not finite", cure, sender="server")
    return float(values)
