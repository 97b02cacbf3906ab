"""Whole runs of the reference's server with clients of PyTorch, of the device, and of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed import Kind, packages, shared_rows, world

from halfback.testing import small

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ho_sfl": ("ho_sfl", {"bottom__optimizer": "adamw", "bottom__lr": 1e-3}),
    "exact": ("ho_sfl", {"algorithm__exact_blocks": "all", "algorithm__directions": 0}),
    "hosl": ("hosl", {"algorithm__directions": 2}),
    "zo_sfl": ("zo_sfl", {"algorithm__directions": 2, "bottom__optimizer": "sign", "bottom__lr": 1e-4}),
    "pipelined": ("ho_sfl_pipelined", {"bottom__optimizer": "momentum"}),
    "mixed cuts": ("ho_sfl", {"model__cut": [1, 2, 2]}),
}
MIXTURES: dict[str, list[Kind]] = {
    "torch": ["torch", "torch", "torch"],
    "device": ["device", "device", "device"],
    "both": ["device", "torch", "device"],
}


@pytest.mark.parametrize("method", METHODS)
def test_theta_of_all_parties_has_the_same_bits(method: str, tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    name, changes = METHODS[method]
    given = {"model__cut": 2, "clients": 3, "sampled_clients": 3, "steps_per_round": 2, "seed": 5} | changes
    config = small.texts(name, tiny_bert, sentences, **given)
    of, ends, begin = packages(config, tmp_path), {}, None
    for mixture, kinds in MIXTURES.items():
        run = world(config, kinds, shared_rows(sentences), tmp_path / mixture, of)
        _, begin = next(run.thetas())
        run.run(10)
        (position, first), *others = run.thetas()
        same = [theta for at, theta in others if at == position]
        # Where clients take turns, those who spoke first take the others' steps when they come again.
        assert len(others) == 3
        assert len(same) == (1 if method == "hosl" else 3)
        for theta in same:
            assert all(np.array_equal(theta[name], first[name]) for name in theta)
        ends[mixture] = first
    assert begin is not None
    for mixture in ("device", "both"):
        # Of how far θ has come, what rounding in another order may change of it: slopes divide it by μ.
        moved = max(np.abs(ends["torch"][n] - begin[n]).max() for n in begin)
        apart = max(np.abs(ends["torch"][n] - ends[mixture][n]).max() for n in begin)
        assert moved > 0
        assert apart <= 0.02 * moved
