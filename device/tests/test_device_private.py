"""Activations with noise on a device: clipped, drowned, counted before they go, refused where it would be vain."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfback_device.codecs import make_receiver, make_sender
from halfback_device.codecs.private import Private, Releases, delta_of, gaussian, noise_for
from halfback_device.codecs.protocol import Samples
from halfback_device.errors import DeviceError, PackageError
from halfback_device.forms import HiddenForm
from halfback_device.link import End
from halfback_device.messages import Activations

WHERE, WIDTH = "codecs.activations_up", 8
SILENT = {"name": "private", "clip": 2.0, "noise": 1e-3}


def rows(count: int, size: float = 1.0, seed: int = 0) -> Any:
    return (size * np.random.default_rng(seed).standard_normal((count, WIDTH))).astype(np.float32)


def test_noise_for_epsilon_is_that_of_the_accountant() -> None:
    """What dp-accounting 0.6 says: get_sigma_gaussian(ε, δ)."""
    for epsilon, delta, noise in (
        (8.0, 1e-5, 0.6002290721989517),
        (4.0, 1e-5, 1.0811618495202397),
        (1.0, 1e-5, 3.7306316348159374),
        (0.1, 1e-6, 36.304690426195194),
        (100.0, 1e-5, 0.0946699070147445),
        (1000.0, 1e-5, 0.02458178335165422),
    ):
        assert noise_for(epsilon, delta) == pytest.approx(noise, rel=1e-6)
        assert delta_of(epsilon, noise_for(epsilon, delta)) <= delta


def test_a_sample_is_clipped_as_one_vector_and_noise_has_the_deviation_that_was_asked_for() -> None:
    matrix = rows(6, 30.0)
    (came,) = make_sender([SILENT], WIDTH, WHERE).encode(matrix, Samples((1, 2), (4, 2)))
    for piece, meant in zip(np.split(came, [4]), np.split(matrix, [4]), strict=True):
        exact = meant.astype(np.float64) * min(1.0, 2.0 / np.linalg.norm(meant.astype(np.float64)))
        assert np.abs(piece - exact).max() < 5.5 * 2 * 2.0 * 1e-3
    count = 20_000
    loud = make_sender([{"name": "private", "clip": 0.5, "noise": 3.0}], WIDTH, WHERE)
    (added,) = loud.encode(np.zeros((count, WIDTH), np.float32), Samples((1,), (count,)))
    normal = added.astype(np.float64).ravel() / 3
    assert abs(normal.mean()) < 4 / math.sqrt(normal.size)
    assert abs(np.square(normal).mean() - 1) < 4 * math.sqrt(2 / normal.size)
    assert gaussian(15).shape == (15,)
    assert not np.array_equal(gaussian(9), gaussian(9))


def end(folder: Path, *chain: Any) -> End:
    forms: dict[str, Any] = {"activations_up": HiddenForm((4, WIDTH), True)}

    class _Bounds:
        def receiving(self, forms: Any, receivers: Any) -> dict[str, Any]:
            return {}

    return End({"activations_up": list(chain)}, forms, _Bounds(), None, Releases(folder / "released.txt"))  # type: ignore[arg-type]


def said(ids: list[int] | None, *lengths: int) -> Activations:
    if ids is None:
        return Activations(rows(sum(lengths)), None, None, None)
    return Activations(rows(sum(lengths)), *(np.array(each, np.int32) for each in (lengths, [0] * len(ids), ids)))


def test_what_goes_out_is_counted_and_no_state_takes_it_back(tmp_path: Path) -> None:
    near = end(tmp_path, {"name": "temporal", "every": 3}, SILENT)
    before = near.state()
    for _ in range(4):
        near.hello()
        near.send(said([1, 2], 2, 1))
        near.send(said(None, 2, 1))  # the same samples again: never skipped, so always counted
    file = tmp_path / "released.txt"
    assert (Releases(file).of(1), Releases(file).of(2)) == (6, 6)
    file.write_bytes(file.read_bytes() + b"1")  # killed while it wrote
    again = end(tmp_path, {"name": "temporal", "every": 3}, SILENT)
    again.load_state(*json.loads(json.dumps(({}, before[1]))))
    again.send(said([1], 2))
    assert (Releases(file).most, Releases(file).of(2)) == (7, 6)
    file.write_bytes(b"1 x\n")
    with pytest.raises(DeviceError, match="numbers of samples"):
        Releases(file)


def test_a_sample_beyond_its_budget_gets_noise_alone_or_what_is_remembered() -> None:
    private = {"name": "private", "clip": 1.0, "epsilon": 2.0, "budget": 2.5}
    stage = Private(WIDTH, np.dtype(np.float32), clip=1.0, epsilon=2.0, budget=2.5)
    assert stage.limit == 1
    chain = [{"name": "temporal", "every": 1}, private]
    near, far = make_sender(chain, WIDTH, WHERE), make_receiver(chain, WIDTH, WHERE, None)
    maps = []
    for _ in range(3):
        parts = near.encode(rows(2), Samples((1, 2), (1, 1)))
        far.decode(parts, Samples((1, 2), (1, 1)))
        maps.append(parts[1].tolist())
    assert maps == [[False, False], [True, True], [True, True]]


@pytest.mark.parametrize(
    ("where", "chain", "says"),
    [
        (WHERE, ["temporal", SILENT], "behind temporal with every alone"),
        ("codecs.gradient_up", [SILENT], "private is for activations_up"),
        (WHERE, [SILENT, "sign"], "without feedback"),
        (WHERE, [SILENT, SILENT], "once"),
        (WHERE, ["int8", SILENT], "private takes floats"),
        (WHERE, [{"name": "private", "clip": 1.0}], "one of noise and epsilon is needed"),
        (WHERE, [{"name": "private", "clip": 0, "noise": 1}], "clip=0 is not allowed"),
        (WHERE, [{"name": "private", "clip": 1, "noise": "1"}], "noise='1' is not allowed"),
        (WHERE, [{"name": "private", "clip": 1, "epsilon": 2, "budget": 1}], "budget=1 is less than one release takes"),
        (WHERE, [{"name": "private", "clip": 1, "noise": 1, "more": 2}], "codec private: "),
        (WHERE, [{"name": "temporal", "every": 0}], "every=0 is not allowed"),
    ],
)
def test_what_would_promise_nothing_is_refused(where: str, chain: list[Any], says: str) -> None:
    with pytest.raises(PackageError, match=says):
        make_sender(chain, WIDTH, where)
