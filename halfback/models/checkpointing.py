"""Activation checkpointing of the bottom's blocks: the fair competitor of forward-only clients."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from halfback.models.running import Bottom


@contextmanager
def checkpointed(bottom: Bottom, enabled: bool) -> Iterator[None]:
    """While this context is open, each block stores only its input, and computes the rest again in the backward pass.

    The backward pass may come after the context has closed.
    """
    blocks = bottom.blocks if enabled else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
