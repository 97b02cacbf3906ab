"""Whole runs of the reference's server with clients of PyTorch, of the device, and of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed import Kind, adapted, package_folder, run_of, shared_rows, world

from halfback.data.ink import digits
from halfback.data.sources import Preparation
from halfback.testing import small
from halfback.wire.messages import Both, Exact, History, Weights
from halfback.wire.packing import unpack
from halfback_device.data import Rows
from halfback_device.package import Package

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

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
    # Where a codec rounds, a value on the edge may go the other way.
    _assert_close(ends, begin, within=0.1 if method == "all exact" else 0.02)


def _assert_close(ends: dict[str, dict[str, np.ndarray]], begin: dict[str, np.ndarray], *, within: float) -> None:
    """Of how far θ has come, what rounding in another order may change of it: slopes divide it by μ."""
    theirs = ends["torch"]
    moved = max(np.abs(theirs[name] - begin[name]).max() for name in begin)
    assert moved > 0
    for mixture in ("device", "both"):
        assert max(np.abs(theirs[name] - ends[mixture][name]).max() for name in begin) <= within * moved


def _agreed(thetas: Any, *, taking_turns: bool = False) -> dict[str, np.ndarray]:
    """θ of the server, which all clients have that have taken all steps."""
    (position, first), *others = thetas
    same = [theta for at, theta in others if at == position]
    # Where clients take turns, those who spoke first take the others' steps when they come again.
    assert len(same) == (1 if taking_turns else len(others))
    for theta in same:
        assert all(np.array_equal(theta[name], first[name]) for name in theta)
    return first


@pytest.mark.parametrize("chain", [[], ["int8"], ["sign"]], ids=["plain", "int8", "sign"])
def test_who_was_away_takes_the_rows_of_exact_gradients_with_the_same_bits(
    chain: list[str], base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    """Two of five clients a step: after each, both have the server's θ, however many steps they had missed."""
    codecs = {"codecs__slopes_up": chain, "codecs__slopes_down": chain} if chain else {}
    changes = {"algorithm__exact_blocks": 1, "algorithm__directions": 1, "bottom__optimizer": "adamw", **codecs}
    config = run_of("ho_sfl", tiny_bert, sentences, clients=5, sampled_clients=2, batch_size=4, **changes)
    package, kinds = adapted(base, config, tmp_path / "package"), list[Kind](["device", "torch"] * 2 + ["device"])
    run = world(config, kinds, shared_rows(sentences), tmp_path, lambda client: package)
    heard: dict[Kind, dict[int, type]] = {"device": {}, "torch": {}}
    for number in range(20):
        asked = len(run.carrier.asked)
        run.run(1, first=number, steps=1)
        (position, agreed), *others = run.thetas()
        there = [theta for at, theta in others if at == position]
        assert len(there) == 2
        assert all(np.array_equal(theta[name], agreed[name]) for theta in there for name in agreed)
        for client, question in run.carrier.asked[asked:]:
            message: Any = unpack(question.body) if question.body and number else None
            if isinstance(message, Both) and isinstance(message.first, History) and len(message.first.slopes):
                heard[kinds[client]][len(message.first.slopes)] = type(message.second)
    most = 2 if not chain else 8  # rows without a codec that are fewer bytes than parameters and two moments
    for kind in heard:
        assert {1, 2} <= heard[kind].keys()
        assert max(heard[kind]) > 2
        assert all(told is (Exact if missed <= most else Weights) for missed, told in heard[kind].items())


def test_each_client_may_have_a_cut_of_its_own(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    config = run_of("ho_sfl", tiny_bert, sentences, model__cut=[1, 2, 2], bottom__optimizer="momentum")
    opened = [Package.open(package_folder(config, tmp_path / f"package-{n}", client=n)) for n in range(2)]
    of = {0: opened[0], 2: opened[1]}  # a package is for all clients with its cut
    run = world(config, ["device", "torch", "device"], shared_rows(sentences), tmp_path, of.__getitem__)
    run.run(4)
    first = _agreed(run.thetas())
    assert len(opened[0].theta()) < len(opened[1].theta()) == len(first)


def test_images_come_from_an_array(tmp_path: Path) -> None:
    given = {"clients": 2, "sampled_clients": 2, "steps_per_round": 2, "codecs__activations_up": ["int8"]}
    config = small.images("ho_sfl", **given)
    source, _ = digits()
    assert source.images is not None
    pixels = source.images(np.arange(source.size), Preparation()).numpy()
    np.savez(tmp_path / "digits.npz", images=pixels, labels=np.array(source.labels))
    package = Package.open(package_folder(config, tmp_path / "package"))
    rows = Rows(str(tmp_path / "digits.npz"), shared=True)
    run = world(config, ["device", "torch"], rows, tmp_path, lambda client: package)
    losses = run.run(4)
    alone = world(config, ["torch", "torch"], rows, tmp_path / "alone", lambda client: package)
    # The losses of the same batches: activations differ by rounding, by a step of the codec where they are on an edge.
    assert losses == pytest.approx(alone.run(4), rel=1e-3)
    _agreed(run.thetas())


def test_labels_stay_on_the_device_in_the_u_shape(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    config = run_of("ho_sfl", tiny_bert, sentences, model__head=0, model__cut=1, codecs__gradient_up=["cast"])
    package, ends = Package.open(package_folder(config, tmp_path / "package")), {}
    for mixture, kinds in MIXTURES.items():
        run = world(config, kinds, shared_rows(sentences), tmp_path / mixture, lambda client: package)
        run.run(4)
        ends[mixture] = _agreed(run.thetas())
    _assert_close(ends, package.theta(), within=0.02)


def test_the_server_hears_how_often_devices_released_a_sample(
    base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    chain = [{"name": "temporal", "every": 2}, {"name": "private", "clip": 5.0, "noise": 1.0}, "int8"]
    config = run_of("ho_sfl", tiny_bert, sentences, codecs__activations_up=chain, clients=2, sampled_clients=2)
    package = adapted(base, config, tmp_path / "package")
    run = world(config, ["device", "device"], shared_rows(sentences), tmp_path / "run", lambda client: package)
    run.run(12)
    files = list((tmp_path / "run").rglob("released.txt"))
    counts = [np.unique(np.array(file.read_text().split(), dtype=np.int64), return_counts=True)[1] for file in files]
    assert len(files) == 2
    assert run.federation.server.meters.releases == max(int(count.max()) for count in counts) > 1
    _agreed(run.thetas())
