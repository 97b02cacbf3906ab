"""How many threads an operation gets."""

from collections.abc import Iterator

import pytest
import torch

from halfback.testing import small


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("alone", [False, True])
def test_a_recipe_says_how_many(alone: bool) -> None:
    for threads, wanted in ((3, 3), (None, 3), (1, 1)):
        config = small.images("ho_sfl", threads=threads)
        small.alone(config, 0) if alone else small.built(config)
        assert torch.get_num_threads() == wanted
