"""Inputs of the tiny models."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ENCODERS
from torch import Tensor


@pytest.fixture
def left() -> dict[str, Tensor]:
    """Three rows of 11 tokens at most, padded on the left."""
    return _tokens(left_padded=True)


@pytest.fixture
def right() -> dict[str, Tensor]:
    """Three rows of 11 tokens at most, padded on the right."""
    return _tokens(left_padded=False)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs_of(left: dict[str, Tensor], right: dict[str, Tensor], images: Tensor) -> Callable[[str], dict[str, Tensor]]:
    """Those that a tiny model takes, by a name that begins with the model's."""

    def inputs(name: str) -> dict[str, Tensor]:
        if name.startswith(("vit", "resnet")):
            return {"pixel_values": images}
        return right if name.startswith(tuple(ENCODERS)) else left

    return inputs


def _tokens(*, left_padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 11, dtype=torch.bool)
    for row, padding in enumerate((4, 1, 0)):
        mask[row, slice(0, padding) if left_padded else slice(11 - padding, 11)] = False
    return {"input_ids": ids.where(mask, 0), "attention_mask": mask}
