"""Whole runs of the reference's server with clients of PyTorch, of the device, and of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed import Kind, adapted, packaged, shared_rows, world

from halfback.config import RunConfig
from halfback.testing import small
from halfback_device.package import Package

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ho_sfl": ("ho_sfl", {"bottom__optimizer": "adamw", "bottom__lr": 1e-3}),
    "exact": ("ho_sfl", {"algorithm__exact_blocks": 1, "algorithm__directions": 1}),
    "all exact": (
        "ho_sfl",
        {
            "algorithm__exact_blocks": "all",
            "algorithm__directions": 0,
            "codecs__slopes_up": ["sign"],
            "codecs__slopes_down": ["int8"],
            "codecs__activations_up": ["int8"],
            "client__rows_at_once": 3,
        },
    ),
    # Of the losses, which are float32, the difference is divided by a radius: a small one would make it noise.
    "hosl": ("hosl", {"algorithm__directions": 2, "algorithm__radius": 1e-2}),
    "zo_sfl": ("zo_sfl", {"algorithm__directions": 2, "algorithm__radius": 1e-2, "bottom__optimizer": "momentum"}),
    "pipelined": ("ho_sfl_pipelined", {"algorithm__estimator": "central"}),
}
MIXTURES: dict[str, list[Kind]] = {
    "torch": ["torch", "torch", "torch"],
    "device": ["device", "device", "device"],
    "both": ["device", "torch", "device"],
}


def run_of(name: str, tiny_bert: Path, sentences: Path, **changes: Any) -> RunConfig:
    given = {"model__cut": 2, "clients": 3, "sampled_clients": 3, "steps_per_round": 2, "seed": 5}
    return small.texts(name, tiny_bert, sentences, **given | changes)


@pytest.fixture(scope="module")
def base(tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with all graphs that a device may need of this model."""
    name, changes = METHODS["all exact"]
    return packaged(run_of(name, tiny_bert, sentences, **changes), tmp_path_factory.mktemp("packages") / "base")


@pytest.mark.parametrize("method", METHODS)
def test_theta_of_all_parties_has_the_same_bits(
    method: str, base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    name, changes = METHODS[method]
    config = run_of(name, tiny_bert, sentences, **changes)
    package = adapted(base, config, tmp_path / "package")
    begin, ends = package.theta(), {}
    for mixture, kinds in MIXTURES.items():
        run = world(config, kinds, shared_rows(sentences), tmp_path / mixture, lambda client: package)
        run.run(10)
        ends[mixture] = _agreed(run.thetas(), taking_turns=method == "hosl")
    for mixture in ("device", "both"):
        # Of how far θ has come, what rounding in another order may change: slopes divide it by μ, and where a codec
        # rounds, a value on the edge may go the other way.
        moved = max(np.abs(ends["torch"][n] - begin[n]).max() for n in begin)
        apart = max(np.abs(ends["torch"][n] - ends[mixture][n]).max() for n in begin)
        print(method, mixture, moved, apart / moved)
        assert moved > 0
        assert apart <= (0.1 if method == "all exact" else 0.02) * moved


def _agreed(thetas: Any, *, taking_turns: bool = False) -> dict[str, np.ndarray]:
    """θ of the server, which all clients have that have taken all steps."""
    (position, first), *others = thetas
    same = [theta for at, theta in others if at == position]
    # Where clients take turns, those who spoke first take the others' steps when they come again.
    assert len(others) == 3
    assert len(same) == (1 if taking_turns else 3)
    for theta in same:
        assert all(np.array_equal(theta[name], first[name]) for name in theta)
    return first


def test_each_client_may_have_a_cut_of_its_own(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    config = run_of("ho_sfl", tiny_bert, sentences, model__cut=[1, 2, 2], bottom__optimizer="momentum")
    opened = [Package.open(packaged(config, tmp_path / f"package-{n}", client=n)) for n in range(2)]
    run = world(config, ["device", "device", "torch"], shared_rows(sentences), tmp_path, opened.__getitem__)
    run.run(4)
    first = _agreed(run.thetas())
    assert len(opened[0].theta()) < len(opened[1].theta()) == len(first)
