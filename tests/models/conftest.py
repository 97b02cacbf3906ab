"""Inputs of the tiny models."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def texts() -> dict[str, Tensor]:
    """Three texts of 7, 10 and 11 tokens."""
    lengths = torch.tensor([7, 10, 11])
    return {"input_ids": torch.randint(3, 99, (28,), generator=torch.Generator().manual_seed(0)), "lengths": lengths}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs_of(texts: dict[str, Tensor], images: Tensor) -> Callable[[str], dict[str, Tensor]]:
    """Those that a tiny model takes, by a name that begins with the model's."""

    def inputs(name: str) -> dict[str, Tensor]:
        if name.startswith(("vit", "resnet")):
            return {"pixel_values": images}
        return texts

    return inputs
