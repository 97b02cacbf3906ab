"""Replay, directions and slopes against the reference's, on what chance comes up with, and within a bounded memory."""

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from reference import given
from torch import nn

from halfback.zeroth.directions import Directions as TheirDirections
from halfback.zeroth.directions import seeds_under as their_seeds_under
from halfback.zeroth.replay import Replica as TheirReplica
from halfback.zeroth.replay import RowForm as TheirForm
from halfback.zeroth.replay import schedule as their_schedule
from halfback.zeroth.slopes import inner as their_inner
from halfback.zeroth.slopes import perturbed as their_perturbed
from halfback.zeroth.update import UpdateRule as TheirRule
from halfback_device.directions import PACK_WIDTH, direction, gaussian_table
from halfback_device.errors import Diverged, PeerError
from halfback_device.messages import Array, Both, Exact, History, Join, Message
from halfback_device.party import join
from halfback_device.replay import Replica, RowForm
from halfback_device.seeds import Directions, Seeds, seed_for, seeds_under
from halfback_device.slopes import Cotangent, Probe, default_radius, estimate, inner, perturbed
from halfback_device.update import UpdateRule, schedule

PATH = (17, "direction", "bottom")


def pair(
    shapes: dict[str, tuple[int, ...]], rule: dict[str, Any], law: Any = "rademacher", **form: Any
) -> tuple[Replica, TheirReplica]:
    """A replica and the reference's, at one start."""
    dice = np.random.default_rng(3)
    start = {name: dice.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    mine = Replica(
        {name: values.copy() for name, values in start.items()},
        UpdateRule(**rule),
        Directions(seeds_under(*PATH), law),
        schedule=schedule("cosine", warmup=3, total=300),
        form=RowForm(**form),
    )
    other = TheirReplica(
        {name: given(values) for name, values in start.items()},
        TheirRule(**rule),
        TheirDirections(their_seeds_under(*PATH), law),
        schedule=their_schedule("cosine", warmup=3, total=300),
        form=TheirForm(**form),
    )
    return mine, other


def assert_same(mine: Replica, other: TheirReplica) -> None:
    assert mine.position == other.position
    states = [("theta", mine.parameters, other.parameters)]
    states += [(moment, held, other.moments[moment]) for moment, held in mine.moments.items()]
    for what, held, held_there in states:
        for name, values in held.items():
            assert np.array_equal(values.view(np.int32), held_there[name].numpy().view(np.int32)), (what, name)


@pytest.mark.parametrize("seed", range(40))
def test_random_replays_have_the_references_bits(seed: int) -> None:
    dice, numbers = random.Random(seed), np.random.default_rng(seed)
    sizes = [(dice.choice((1, 5, 127, 128, 129, 1000, PACK_WIDTH, PACK_WIDTH + 7)),) for _ in range(dice.randint(1, 5))]
    shapes = {f"block.{place}.weight": size for place, size in enumerate(sizes)}
    names = list(shapes)
    exact = names[-1:] if len(names) > 1 and dice.random() < 0.3 else []
    rest = [name for name in names if name not in exact]
    groups = [rest[:1], [*rest[1:], "of another device"]] if dice.random() < 0.4 else None
    rule = {
        "optimizer": dice.choice(("sgd", "momentum", "sign", "adamw")),
        "lr": dice.choice((1e-3, 0.1)),
        "weight_decay": dice.choice((0.0, 0.01)),
        "normalize": dice.random() < 0.3,
        "clip": dice.choice((None, 1e-3, 10.0)),
    }
    mine, other = pair(shapes, rule, dice.choice(("rademacher", "gaussian")), groups=groups, exact=exact)
    rows = numbers.standard_normal((dice.randint(1, 6), mine.width(dice.randint(1, 4))), dtype=np.float32)
    other.replay(0, given(rows))
    first = dice.randint(0, len(rows))
    mine.replay(0, rows[:first])
    mine.replay(max(first - 1, 0), rows[max(first - 1, 0) :])  # a row that comes twice changes nothing
    assert_same(mine, other)


def test_two_hundred_steps_of_adamw_and_a_restart_have_the_references_bits() -> None:
    mine, other = pair({"a": (1000,), "b": (33, 129)}, {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01})
    rows = np.random.default_rng(5).standard_normal((200, 2), dtype=np.float32)
    for step in range(100):
        mine.replay(step, rows[step : step + 1])
    arrays, values = mine.state()
    again, _ = pair({"a": (1000,), "b": (33, 129)}, {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01})
    again.load_state({name: kept.copy() for name, kept in arrays.items()}, dict(values))
    again.replay(0, rows)
    other.replay(0, given(rows))
    assert_same(again, other)


SHAPES = {"a": (40,), "b": (5, 5), "c": (7,)}


def test_the_state_of_exact_parameters_comes_in_their_place() -> None:
    (mine, other), rule = pair(SHAPES, {"optimizer": "adamw"}, exact=["b", "c"]), {"optimizer": "adamw"}
    rows = _some(6, 2 + 32)
    other.replay(0, given(rows))
    late, _ = pair(SHAPES, rule, exact=["b", "c"])
    late.take_state(0, rows[:, :2], [tensor.numpy() for tensor in other.exact_state().values()])
    assert_same(late, other)
    assert list(mine.exact_state()) == list(other.exact_state())


def _joined(theta: Replica, answer: Message) -> None:
    conversation = join(theta, 2)
    assert next(conversation) == Join(0)
    with pytest.raises(StopIteration):
        conversation.send(answer)


@pytest.mark.parametrize("missed", [1, 2, 6])
def test_the_missed_rows_of_exact_parameters_come_behind_their_slopes(missed: int) -> None:
    (mine, other), rows = pair(SHAPES, {"optimizer": "adamw"}, exact=["b", "c"]), _some(missed, 2 + 32)
    other.replay(0, given(rows))
    _joined(mine, Both(History(0, rows[:, :2]), Exact(rows[:, 2:].reshape(-1))))
    assert_same(mine, other)


@pytest.mark.parametrize(
    ("slopes", "values", "error", "says"),
    [
        ((3, 2), (2 * 32,), PeerError, r"Exact.values: float32 \(64,\) came, float32 \(96,\) is allowed"),
        ((3, 2), (4 * 32,), PeerError, r"Exact.values: float32 \(128,\) came"),
        ((3, 2), (3, 32), PeerError, r"Exact.values: float32 \(3, 32\) came"),
        ((0, 2), (32,), PeerError, r"Exact.values: float32 \(32,\) came, float32 \(0,\) is allowed"),
        ((3, 3), (3 * 32,), PeerError, r"slopes float32 \(3, 3\) came"),
        ((6,), (3 * 32,), PeerError, r"slopes float32 \(6,\) came"),
        ((3, 2), (3 * 32,), Diverged, "are not finite"),
    ],
)
def test_what_are_no_missed_rows_moves_nothing(slopes: Any, values: Any, error: Any, says: str) -> None:
    mine, untouched = pair(SHAPES, {"optimizer": "adamw"}, exact=["b", "c"])
    of_exact = _some(*values)
    if error is Diverged:
        of_exact[-1] = np.inf
    with pytest.raises(error, match=says):
        _joined(mine, Both(History(0, _some(*slopes)), Exact(of_exact)))
    assert_same(mine, untouched)


def _some(*shape: int) -> Array:
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("first", "shape", "says"),
    [
        (1, (1, 2), "rows begin at step 1"),
        (0, (3,), r"\(steps, P\) from step 0"),
        (-1, (1, 2), "from step -1"),
        (0, (1, 0), r"\(1, 0\)"),
    ],
)
def test_what_are_no_rows_is_refused(first: int, shape: tuple[int, ...], says: str) -> None:
    mine, _ = pair({"a": (4,)}, {})
    with pytest.raises(PeerError, match=says):
        mine.replay(first, np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_catching_up_and_probing_take_far_less_than_a_copy_of_the_parameters(law: Any) -> None:
    theta = {"large": np.zeros(1_500_000, dtype=np.float32)} | {f"{n}": np.zeros(999, np.float32) for n in range(400)}
    replica = Replica(theta, UpdateRule("adamw"), Directions(seeds_under(*PATH), law))
    replica.seeds(1)
    gaussian_table()
    tracemalloc.start()
    try:
        replica.replay(0, np.ones((8, 4), dtype=np.float32))
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        kept = tracemalloc.get_traced_memory()[0]
        moved = perturbed(theta, theta, replica.seeds(1), 0, 1e-4)("large")
        probed = tracemalloc.get_traced_memory()[1] - moved.nbytes - kept
    finally:
        tracemalloc.stop()
    # Packs of 2^16 values: values, moments, gradient, direction, what AdamW needs, a quarter of a megabyte each; twelve
    # of them (3.1e6) were seen. A copy of the parameters would be 7.6e6; other threads' objects may count here too.
    copy = sum(values.nbytes for values in theta.values())
    assert taken < 0.6 * copy, taken
    assert probed < 0.3 * copy, probed


class _Weights(nn.Module):
    """Shows the weights that it runs with."""

    def __init__(self, held: dict[str, Array]) -> None:
        super().__init__()
        self.held = nn.ParameterDict({name: nn.Parameter(given(values)) for name, values in held.items()})
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self) -> None:
        self.seen = {name: parameter.clone() for name, parameter in self.held.items()}


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_a_probe_runs_with_the_references_weights(law: Any) -> None:
    dice = np.random.default_rng(1)
    held = {
        n: dice.standard_normal(s, dtype=np.float32) for n, s in {"a": (3, 50), "b": (PACK_WIDTH,), "c": ()}.items()
    }
    seeds, module = Seeds((seed_for(1), seed_for(2)), law), _Weights(held)
    with torch.no_grad(), their_perturbed(module, dict(module.held.items()), seeds.numbers[1], -3e-4, law=law):
        module()
    weight = perturbed(held, {name: held[name] for name in held if name != "c"}, seeds, 1, -3e-4)
    for name in ("b", "a", "b"):  # in whatever order a graph asks
        assert np.array_equal(weight(name), module.seen[name].numpy())
        assert weight(name) is not held[name]
    assert weight("c") is held["c"]


@pytest.mark.parametrize("lengths", [None, [3, 1, 6]])
def test_inner_products_are_the_references(lengths: list[int] | None) -> None:
    dice = np.random.default_rng(1)
    shape = (10, 700) if lengths else (4, 3, 50, 50)
    one, other = (dice.standard_normal(shape, dtype=np.float32) for _ in range(2))
    mine = inner(one, other, None if lengths is None else np.array(lengths))
    wanted = their_inner(given(one), given(other), None if lengths is None else torch.tensor(lengths))
    # Products of float32 are exact in float64, and sums of thousands of them good to 1e-12 of their largest.
    np.testing.assert_allclose(mine, wanted.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_slopes_are_directional_derivatives(estimator: Any, clip: float | None) -> None:
    dice = np.random.default_rng(1)
    theta = {n: dice.standard_normal(s, dtype=np.float32) for n, s in {"a": (6, 40), "b": (40, 5), "c": (5,)}.items()}
    x, cotangent = (dice.standard_normal((8, width), dtype=np.float32) for width in (6, 5))
    run = lambda weight: np.tanh(x @ weight("a")) @ weight("b") + weight("c")  # noqa: E731
    measured = {name: theta[name] for name in ("a", "b")}
    seeds = Directions(seeds_under(*PATH)).of(0, 3)
    probe = Probe(3, 1e-3, estimator, clip)
    made = estimate(run, theta, measured, Cotangent.at(cotangent, run(theta.__getitem__)), seeds, probe)
    for slope, seed in zip(made, seeds.numbers, strict=True):
        u = {name: direction(seed, name, values.shape).astype(np.float64) for name, values in measured.items()}
        inside = np.tanh(x.astype(np.float64) @ theta["a"])
        moved = (1 - inside**2) * (x @ u["a"]) @ theta["b"] + inside @ u["b"]
        own = (cotangent * moved).sum(axis=1)
        if clip is not None:
            own = np.clip(own, -clip / 8, clip / 8)
        # Rounding of z in float32, 1e-7 of 10, over a radius of 1e-3; the forward one also lacks μ/2 of curvature.
        assert slope == pytest.approx(own.sum(), rel=0, abs=0.05 if estimator == "forward" else 0.02)


def test_the_default_radius() -> None:
    assert default_radius({"a": np.zeros(1000)}) == 1e-4
    assert default_radius({"a": np.zeros(25_000_000)}) == pytest.approx(0.25 / 5000)
    assert Probe(1).settled({"a": np.zeros(10)}).moved == 1e-4
    assert Probe(1, 0.5).settled({"a": np.zeros(10)}).moved == 0.5
