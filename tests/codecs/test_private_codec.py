"""Activations with noise: what is clipped, what is added, what is counted, and what an attacker makes of it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matrices import random, samples
from temporal_links import WIDTH, carry, link
from torch import Tensor

from halfback.codecs import make_receiver, make_sender, parse
from halfback.codecs.private import Private
from halfback.codecs.protocol import Parts, Samples
from halfback.codecs.releases import Releases
from halfback.errors import UserError
from halfback.privacy.account import epsilon, noise_for
from halfback.privacy.noise import gaussian
from halfback.testing import check_codec

WHERE = "codecs.activations_up"
SILENT = {"name": "private", "clip": 2.0, "noise": 1e-3}


def sender(*chosen: Any, releases: Releases | None = None, client: int = 0, width: int = WIDTH) -> Any:
    shape: dict[str, Any] = {"width": width, "dtype": torch.float32, "where": WHERE}
    return make_sender(parse(list(chosen), WHERE), **shape, releases=releases, client=client)


def arrived(chosen: list[Any], matrix: Tensor, batch: Samples) -> Tensor:
    codecs, shape = parse(chosen, WHERE), {"width": WIDTH, "dtype": torch.float32, "where": WHERE}
    parts: Parts = sender(*chosen).encode(matrix, batch)
    return make_receiver(codecs, **shape, folder=None).decode(parts, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chain",
    [
        [{"name": "private", "clip": 3.0, "epsilon": 8.0}],
        [{"name": "projection", "size": 9}, {"name": "private", "clip": 3.0, "noise": 2.0}, "int8"],
        ["cast", {"name": "private", "clip": 3.0, "noise": 2.0}, {"name": "topk", "ratio": 0.2}, "int4"],
        [{"name": "temporal", "every": 3}, {"name": "private", "clip": 3.0, "epsilon": 1.0}],
    ],
)
def test_it_keeps_what_the_seam_promises_and_never_the_same_noise(chain: list[Any]) -> None:
    check_codec(chain)


def test_all_rows_of_a_sample_are_clipped_as_one_vector() -> None:
    matrix = torch.cat([3 * torch.ones(4, WIDTH), 0.01 * torch.ones(2, WIDTH), 40 * torch.ones(1, WIDTH)])
    came = arrived([SILENT], matrix, samples([5, 6, 7], 4, 2, 1))
    for piece, meant in zip(came.split([4, 2, 1]), matrix.split([4, 2, 1]), strict=True):
        exact = meant.double() * min(1.0, 2.0 / float(meant.double().norm()))
        # The noise has a deviation of 0.004, and 5.5 of them are exceeded by one value in 3e7.
        torch.testing.assert_close(piece.double(), exact, rtol=0, atol=5.5 * 2 * 2.0 * 1e-3)


def test_what_is_added_is_gaussian_of_twice_the_clip_times_the_noise() -> None:
    count = 400
    batch = samples(list(range(count)), *[20] * count)
    added = sender({"name": "private", "clip": 0.5, "noise": 3.0}).encode(torch.zeros(20 * count, WIDTH), batch)[0]
    normal = (added.double() / (2 * 0.5 * 3.0)).flatten()
    within = 4 / math.sqrt(len(normal))  # four standard errors
    assert abs(float(normal.mean())) < within
    assert abs(float(normal.square().mean()) - 1) < within * math.sqrt(2)
    # Kolmogorov and Smirnov: beyond 1.95 / √n with probability 0.001.
    exact = torch.special.ndtr(normal.sort().values)
    steps = torch.arange(len(normal) + 1, dtype=torch.float64) / len(normal)
    furthest = max(float((exact - steps[:-1]).max()), float((steps[1:] - exact).max()))
    assert furthest < 1.95 / math.sqrt(len(normal))
    beside = normal[:-1] @ normal[1:] / (len(normal) - 1)
    assert abs(float(beside)) < within


def shares_found(clip: float, scale: float, noise: float) -> tuple[float, float]:
    """Of an attacker who knows both rows that it may have been, and which is asked: true and false positives."""
    count, width = 4000, 8
    one = scale * torch.nn.functional.normalize(torch.ones(width), dim=0)
    batch = samples(list(range(count)), *[1] * count)
    private = {"name": "private", "clip": clip, "noise": noise}
    scores = [
        sender(private, width=width).encode(row.expand(count, width).contiguous(), batch)[0] @ one / scale
        for row in (one, -one)
    ]
    return tuple(float((score > 0).double().mean()) for score in scores)  # type: ignore[return-value]


@pytest.mark.parametrize("target", [0.5, 1.0, 4.0])
def test_the_best_test_between_two_rows_is_as_good_as_epsilon_allows_and_no_better(target: float) -> None:
    """Opposite rows of any size: the mean differs by 2 · clip, and noise by its multiplier of that."""
    noise = noise_for(target, 1e-5, 1)
    true, false = shares_found(1.0, 1e4, noise)
    exact = float(torch.special.ndtr(torch.tensor(0.5 / noise)))
    within = 4.5 * math.sqrt(exact * (1 - exact) / 4000)
    assert abs(true - exact) < within
    assert abs(false - (1 - exact)) < within
    assert true <= math.exp(target) * false + 1e-5 + within * (1 + math.exp(target))


def test_without_the_clip_the_same_attacker_is_always_right() -> None:
    count = 4000
    along = 1e4 + 2 * noise_for(1.0, 1e-5, 1) * torch.from_numpy(
        gaussian(count)
    )  # the same rows and noise, along the same line
    assert float((along > 0).double().mean()) == 1.0


def test_releases_are_those_of_the_account() -> None:
    private = Private(clip=1.0, epsilon=2.0)
    assert private.spent(1) == pytest.approx(2.0, rel=1e-6)
    assert private.spent(7) == pytest.approx(epsilon(7, private.multiplier, 1e-5))
    assert private.spent(0) == 0
    for budget in (2.0, 3.0, 9.0, 100.0):
        limit = Private(clip=1.0, epsilon=2.0, budget=budget).limit
        assert limit is not None
        assert private.spent(limit) <= budget * (1 + 1e-9) < private.spent(limit + 1)


def test_each_sample_of_each_client_counts_by_itself_and_probes_count_too() -> None:
    releases = Releases()
    one, other = (sender(SILENT, releases=releases, client=client) for client in (3, 4))
    for end, batch in (
        (one, samples([1, 2], 1, 1)),
        (one, Samples(None, (1, 1), (1, 2))),  # the same samples again, as a probe
        (one, samples([2, 7], 1, 1)),
        (other, samples([2, 9], 1, 1)),
    ):
        end.encode(random(2, WIDTH), batch)
    assert [releases.of(3, sample) for sample in (1, 2, 7, 9)] == [2, 3, 1, 0]
    assert [releases.of(4, sample) for sample in (1, 2, 9)] == [0, 1, 1]
    assert releases.most == 3


def test_what_is_on_the_disk_counts_whatever_a_checkpoint_says(tmp_path: Path) -> None:
    file = tmp_path / "released.txt"
    end = sender(SILENT, releases=Releases(file), client=2)
    before = end.state()
    for _ in range(3):
        end.encode(random(2, WIDTH), samples([1, 5], 1, 1))
    file.write_bytes(file.read_bytes() + b"2 1")  # killed while it wrote, before anything was sent
    found = Releases(file)
    again = sender(SILENT, releases=found, client=2)
    again.load_state(*before)
    assert found.most == 3
    again.encode(random(1, WIDTH), samples([1], 1))
    assert Releases(file).of(2, 1) == 4
    assert file.read_bytes().splitlines()[-1] == b"2 1"


@pytest.mark.parametrize("line", [b"2\n", b"2 x\n", b"\n", b"2  1\n", b"2 1e3\n", b"2 " + b"9" * 30 + b"\n"])
def test_a_count_that_nobody_wrote_is_refused(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "released.txt"
    file.write_bytes(b"0 1\n" + line)
    with pytest.raises(UserError, match=r"line 2: the numbers of a client and of samples"):
        Releases(file)


def test_nothing_is_sent_of_what_can_not_be_counted(tmp_path: Path) -> None:
    end = sender(SILENT, releases=Releases(tmp_path / "nowhere" / "released.txt"))
    with pytest.raises(UserError, match="nothing was sent"):
        end.encode(random(1, WIDTH), samples([1], 1))


def every(count: int, **private: Any) -> tuple[Any, Any, Releases]:
    """Both ends of a link behind `temporal`, and what was counted."""
    releases = Releases()
    codecs = parse([{"name": "temporal", "every": count, **private.pop("temporal", {})}, SILENT | private], WHERE)
    shape: dict[str, Any] = {"width": WIDTH, "dtype": torch.float32, "where": WHERE}
    return make_sender(codecs, **shape, releases=releases), make_receiver(codecs, **shape, folder=None), releases


def test_a_sample_that_is_not_sent_costs_nothing() -> None:
    near, far, releases = every(3)
    came, maps = [], []
    for _ in range(7):
        hidden, skipped = carry(near, far, random(3, WIDTH), samples([1, 2], 1, 2))
        came.append(hidden)
        maps.append(skipped.tolist())
    assert maps == [[visit % 3 != 0] * 2 for visit in range(7)]
    assert releases.of(0, 1) == releases.of(0, 2) == 3
    kept = came[0].bfloat16().float()
    assert torch.equal(came[1], kept)
    assert torch.equal(came[2], kept)
    assert not torch.equal(came[3].bfloat16().float(), kept)


def test_what_is_sent_follows_from_no_value() -> None:
    """The same visits with other rows: the same skip maps, and no similarity; comparing, it is not so."""
    told: dict[str, list[Any]] = {"counted": [], "compared": []}
    for seed in (1, 2):
        for name, options in (("counted", {"every": 2}), ("compared", {"cache": "float32"})):
            near, far = link((), **options)
            maps = []
            for visit in range(4):
                rows = random(4, WIDTH, seed=seed) + (0.0 if seed == 1 else float(visit))
                parts = near.encode(rows, samples([1, 2, 3], 1, 2, 1))
                far.decode(parts, samples([1, 2, 3], 1, 2, 1))
                maps.append(parts[1].tolist())
                assert name == "compared" or bool(parts[0].isnan().all())
            told[name].append(maps)
    assert told["counted"][0] == told["counted"][1]
    assert told["compared"][0] != told["compared"][1]


def test_a_sample_that_left_the_cache_is_sent_again_and_counted() -> None:
    near, far, releases = every(100, temporal={"cap_mb": 2 * WIDTH * 2 / 1e6})  # two samples of one row
    for sample in (1, 2, 3, 1, 1):  # 3 pushes 1 out, 1 pushes 2 out
        _, skipped = carry(near, far, random(1, WIDTH), samples([sample], 1))
    assert skipped.tolist() == [True]
    assert [releases.of(0, sample) for sample in (1, 2, 3)] == [2, 1, 1]


def test_a_memory_that_was_lost_is_sent_again_and_counted() -> None:
    near, far, releases = every(100)
    for _ in range(3):
        carry(near, far, random(2, WIDTH), samples([1, 2], 1, 1))
    assert releases.most == 1
    for end in (near, far):
        end.cache.clear()  # as both do where their digests differ
    carry(near, far, random(2, WIDTH), samples([1, 2], 1, 1))
    assert releases.of(0, 1) == releases.of(0, 2) == 2


def test_a_sample_beyond_its_budget_is_not_sent_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, budget = 2, 1.001 * epsilon(2, 1.0, 1e-5)
    near, far, releases = every(1, noise=1.0, budget=budget)
    assert Private(clip=2.0, noise=1.0, budget=budget).limit == limit
    for visit in range(5):
        _, skipped = carry(near, far, random(2, WIDTH), samples([1, 2], 1, 1))
        assert skipped.tolist() == [visit >= limit] * 2
    assert releases.most == limit
    for end in (near, far):
        end.cache.clear()
    monkeypatch.setattr("halfback.codecs.private.noised", lambda values, *_: values)
    came, skipped = carry(near, far, random(2, WIDTH), samples([1, 3], 1, 1))
    assert skipped.tolist() == [False, False]  # the server holds nothing of it any more
    assert torch.equal(came[0], torch.zeros(WIDTH))  # so it gets noise, here none, on nothing
    assert came[1].norm() > 0
    assert [releases.of(0, sample) for sample in (1, 3)] == [limit, 1]


def test_visits_are_in_the_state() -> None:
    near, far, _ = every(3)
    carry(near, far, random(1, WIDTH), samples([1], 1))
    carry(near, far, random(1, WIDTH), samples([1], 1))
    tensors, values = near.state()
    other, _, _ = every(3)
    other.load_state(tensors, values)
    for end, due in ((other, [False, True]), (near, [False, True])):
        skipped = [not bool(end.encode(random(1, WIDTH), samples([1], 1))[1]) for _ in range(2)]
        assert skipped == due


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        ([{"name": "private", "clip": 1.0}], "one of noise and epsilon is needed"),
        ([{"name": "private", "clip": 1.0, "noise": 1.0, "epsilon": 1.0}], "one of noise and epsilon is needed"),
        ([{"name": "private", "noise": 1.0}], "codec private: clip="),
        ([{"name": "private", "clip": -1.0, "noise": 1.0}], "clip=-1: a positive number is allowed"),
        ([{"name": "private", "clip": 1.0, "noise": 0.0}], "noise=0: 0.001 to 1e6 are allowed"),
        ([{"name": "private", "clip": 1.0, "epsilon": -1}], "epsilon=-1: 0.001 to 1000 are allowed"),
        ([{"name": "private", "clip": 1.0, "noise": 1.0, "delta": 1.0}], "delta=1: more than 0"),
        ([{"name": "private", "clip": 1.0, "epsilon": 2.0, "budget": 1.0}], "budget=1: one release takes ε = 2"),
        ([SILENT, SILENT], "private may be there only once"),
        ([SILENT, {"name": "topk", "feedback": True}], "feedback adds the next time what was lost"),
        ([SILENT, "sign"], "feedback adds the next time what was lost"),
        ([SILENT, "temporal"], "temporal must be the first"),
        ([{"name": "temporal", "every": 0}], "every=0: 1 or more are allowed"),
    ],
)
def test_what_would_promise_nothing_is_refused(chain: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(chain, WHERE)


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        (["topk", SILENT], "what comes before private may send nothing beside"),
        (["int8", SILENT], "private takes floats"),
    ],
)
def test_what_would_go_around_the_noise_is_refused(chain: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sender(*chain)
