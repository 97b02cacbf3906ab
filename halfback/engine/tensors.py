"""What parties hold, as named tensors: for checkpoints, for the meters of memory, and for digests."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from halfback.optimizers.table import held, take
from halfback.parties.server import Server
from halfback.zeroth.replay import Replica


def trained_above(server: Server) -> dict[str, Tensor]:
    """The tensors that are the server's to move, the devices' head among them; parts share no name."""
    return server.top.trained | (server.top.head or {})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def moments(prefix: str, replica: Replica) -> dict[str, Tensor]:
    """The moments of a replica's optimiser."""
    return {f"{prefix}.{m}.{name}": t for m, by_name in replica.moments.items() for name, t in by_name.items()}


def load_moments(prefix: str, replica: Replica, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `moments` took."""
    for moment, by_name in replica.moments.items():
        for name, tensor in by_name.items():
            tensor.copy_(tensors[f"{prefix}.{moment}.{name}"])


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors: `prefix.<parameter number>.<entry>`."""
    return {f"{prefix}.{name}": tensor for name, tensor in held(optimizer).items()}


def load_optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` took."""
    take(optimizer, under(f"{prefix}.", tensors))


class Digest(Protocol):
    """A hash that is fed piece by piece, of `hashlib` or of xxhash."""

    def update(self, data: Any, /) -> None: ...


def feed(digest: Digest, name: str, tensor: Tensor) -> None:
    """Enters a tensor into a digest: its name, dtype, shape and bytes."""
    flat = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
