"""Batch norm that trains: a forward pass takes its batch's own mean and variance, and running ones follow these.

Evaluation takes the running ones, as every pass does where batch norm is frozen.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norms of a module, by name, whose statistics follow each batch by a share of its own."""
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats and norm.momentum is not None
    }


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of a module's batch norms, by name."""
    return {f"{name}.{of}": getattr(norm, of) for name, norm in batch_norms(module).items() for of in _STATISTICS}


@contextmanager
def training(norms: Iterable[nn.BatchNorm2d]) -> Iterator[None]:
    """While this context is open, these batch norms train."""
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()
