"""The weights that a run begins with, on both sides: what a client holds of a model, told apart by a digest."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from halfback.engine.bounds import model_bound
from halfback.engine.held import held
from halfback.engine.tensors import feed
from halfback.errors import PeerError
from halfback.parties.checks import check_tensors
from halfback.wire.messages import Weights
from halfback.wire.packing import most_bytes, unpack


def at_the_beginning(parts: Sequence[nn.Module], theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `held` finds, with copies of all that is trained: it stays what it is now."""
    trained = {
        f"{place}.{name}"
        for place, part in enumerate(parts)
        for name, parameter in part.named_parameters()
        if parameter.requires_grad
    } | {f"0.{name}" for name in theta}
    return {name: tensor.clone() if name in trained else tensor for name, tensor in held(parts, theta).items()}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """One text that differs where a name, a shape, a dtype or a bit does."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        feed(sha, name, tensors[name])
    return sha.hexdigest()


def longest_body(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the longest message that may hold these weights."""
    return most_bytes(model_bound(tensors))


@torch.no_grad()
def take_weights(tensors: Mapping[str, Tensor], body: bytes) -> None:
    """Puts the server's weights to begin with in the place of a client's own.

    Raises:
        PeerError: the body is no message with these tensors.
    """
    message = unpack(body, model_bound(tensors))
    if not isinstance(message, Weights):
        raise PeerError("", type(message).__name__, "Weights is allowed", sender="server")
    check_tensors("Weights.tensors", message.tensors, tensors, sender="server")
    for tensor, theirs in zip(tensors.values(), message.tensors, strict=True):
        tensor.copy_(theirs)
