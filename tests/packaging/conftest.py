"""Packages that several tests look at: to write one takes seconds."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "models"))  # of its tiny models

from packed import Packed, cut_model, packed


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """With LoRA, and exact gradients of both blocks."""
    return packed(cut_model("bert", "lora"), tmp_path_factory.mktemp("packages") / "bert")
