"""Replay: the same bits for everyone, and the update that the text defines."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.telemetry.meters import MemoryMeter
from halfback.zeroth.directions import PACK_WIDTH, Directions, Law, direction_of, seed_for
from halfback.zeroth.replay import Replica, RowForm
from halfback.zeroth.update import UpdateRule

SHAPES = {"bias": (7,), "weight": (33, 129), "scalar": (), "none": (0, 4), "table": (300, 500), "tail": (1000,)}
P = 3
RULES = {
    "plain": UpdateRule(lr=1e-2),
    "normalize": UpdateRule(lr=1e-2, normalize=True),
    "clip": UpdateRule(lr=1e-2, clip=5.0),
    "decay": UpdateRule(lr=1e-2, weight_decay=0.1),
}


def seed_of(step: int, p: int) -> int:
    return seed_for(11, "direction", step, p)


def parameters(dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def slopes(steps: int, directions: int = P) -> Tensor:
    return torch.randn(steps, directions, generator=torch.Generator().manual_seed(1))


def replica(rule: UpdateRule, held: Mapping[str, Tensor], law: Law = "rademacher") -> Replica:
    return Replica(held, rule, Directions(seed_of, law))


def assert_same(one: Replica, other: Replica) -> None:
    assert one.position == other.position
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name
    assert one.moments.keys() == other.moments.keys()
    for moment, tensors in one.moments.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.moments[moment][name]), (moment, name)


def one_at_a_time(taken: Replica, rows: Tensor) -> Replica:
    for row in rows:
        taken.replay(taken.position, row.unsqueeze(0))
    return taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_one_pass_is_one_row_at_a_time(optimizer: str, rule: str, dtype: torch.dtype) -> None:
    chosen, rows = dataclasses.replace(RULES[rule], optimizer=optimizer), slopes(5)
    assert sum(math.prod(shape) for shape in SHAPES.values()) > PACK_WIDTH
    single = one_at_a_time(replica(chosen, parameters(dtype)), rows)
    whole = replica(chosen, parameters(dtype))
    whole.replay(0, rows)
    assert whole.position == 5
    assert_same(whole, single)
    before = parameters(dtype)
    assert all(whole.parameters[name].dtype == dtype for name in before)
    moved = [name for name in before if not torch.equal(before[name], whole.parameters[name])]
    if dtype == torch.float32:  # 16 bits round a clipped step of a few numbers away
        assert moved == [name for name in before if before[name].numel()]
    assert moved


def test_many_rows_of_small_parameters() -> None:
    """More rows than directions are made for at once."""
    shapes, rows = {"a": (130,), "b": (3,)}, slopes(600, 2)
    rule = UpdateRule("adamw", lr=1e-2)
    single = one_at_a_time(replica(rule, parameters(shapes=shapes)), rows)
    whole = replica(rule, parameters(shapes=shapes))
    whole.replay(0, rows)
    assert PACK_WIDTH < 600 * 2 * 384
    assert_same(whole, single)


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_a_client_that_was_away(optimizer: str, law: Law) -> None:
    """It kept its weights and moments of step 2 and gets the history, some of which it knows."""
    rule, history = UpdateRule(optimizer, lr=1e-2, clip=5.0), slopes(9)
    stayed = one_at_a_time(replica(rule, parameters(torch.bfloat16), law), history)
    away = one_at_a_time(replica(rule, parameters(torch.bfloat16), law), history[:2])
    away.replay(1, history[1:6])
    away.replay(6, history[6:7])
    away.replay(0, history[:7])  # nothing new
    away.replay(0, history)
    assert_same(away, stayed)
    newcomer = replica(rule, parameters(torch.bfloat16), law)
    newcomer.replay(0, history)
    assert_same(newcomer, stayed)


def test_known_rows_change_nothing() -> None:
    taken = replica(UpdateRule("momentum"), parameters())
    taken.replay(0, slopes(3))
    before = {name: parameter.clone() for name, parameter in taken.parameters.items()}
    for first, rows in ((0, slopes(3)), (1, slopes(2)), (2, slopes(1)), (3, slopes(1)[:0]), (0, torch.zeros(0, 0))):
        taken.replay(first, rows)
    assert taken.position == 3
    for name, parameter in taken.parameters.items():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize(
    ("first", "rows", "message"),
    [
        (4, torch.ones(2, P), "rows begin at step 4, but this replica is at step 3"),
        (2**62, torch.ones(2, P), "rows begin at step"),
        (4, torch.ones(0, P), "rows begin at step 4"),
        (-1, torch.ones(9, P), "from step -1"),
        (3, torch.ones(P), r"\(3,\) from step 3 came, \(steps, P\)"),
        (3, torch.ones(1, P, 1), r"\(1, 3, 1\) from step 3 came"),
        (3, torch.ones(2, 0), r"\(2, 0\) from step 3 came"),
        (3, torch.ones(()), r"\(\) from step 3 came"),
    ],
)
def test_gaps_and_other_shapes_are_refused(first: int, rows: Tensor, message: str) -> None:
    taken = replica(UpdateRule(), parameters())
    taken.replay(0, slopes(3))
    before = {name: parameter.clone() for name, parameter in taken.parameters.items()}
    with pytest.raises(PeerError, match=message):
        taken.replay(first, rows)
    assert taken.position == 3
    for name, parameter in taken.parameters.items():
        assert torch.equal(parameter, before[name])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_same_for_any_number_of_threads(optimizer: str) -> None:
    rule = UpdateRule(optimizer, lr=1e-2)
    both = replica(rule, parameters())
    both.replay(0, slopes(3))
    torch.set_num_threads(1)
    single = replica(rule, parameters())
    single.replay(0, slopes(3))
    assert_same(both, single)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_packing_is_irrelevant(optimizer: str) -> None:
    """Parameters in another order, and each on its own, lie in other packs and move alike."""
    rule = UpdateRule(optimizer, lr=1e-2)
    taken = replica(rule, parameters())
    turned = replica(rule, dict(reversed(parameters().items())))
    for each in (taken, turned):
        each.replay(0, slopes(4))
    assert_same(taken, turned)
    for name, parameter in parameters().items():
        alone = replica(rule, {name: parameter})
        alone.replay(0, slopes(4))
        assert torch.equal(parameter, taken.parameters[name])


def test_each_parameter_keeps_its_own_dtype() -> None:
    """Float32 adapters beside bfloat16 weights are rounded to float32 only, whoever comes first."""
    rule = UpdateRule("adamw", lr=1e-3)
    for dtypes in ([torch.bfloat16, torch.float32], [torch.float32, torch.bfloat16]):
        mixed = {str(i): torch.full((40,), 1 / 3).to(dtype) for i, dtype in enumerate(dtypes)}
        together = replica(rule, {name: parameter.clone() for name, parameter in mixed.items()})
        together.replay(0, slopes(6))
        for name, parameter in mixed.items():
            alone = replica(rule, {name: parameter})
            alone.replay(0, slopes(6))
            assert torch.equal(together.parameters[name], parameter)
            assert together.parameters[name].dtype == dtypes[int(name)]


def gradient(like: Mapping[str, Tensor], step: int, row: Tensor, law: Law) -> dict[str, Tensor]:
    """ĝ = (1/P) Σ v̄_p u_p, dense."""
    return {
        name: sum(v * direction_of(seed_of(step, p), name, parameter.detach(), law=law) for p, v in enumerate(row))
        / len(row)
        for name, parameter in like.items()
    }


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
@pytest.mark.parametrize(
    "rule",
    [
        UpdateRule("sgd", lr=1e-2),
        UpdateRule("momentum", lr=1e-2, momentum=0.8),
        UpdateRule("adamw", lr=1e-2, weight_decay=0.1),
        UpdateRule("adamw", lr=1e-3, betas=(0.8, 0.95), eps=1e-3),
    ],
)
def test_the_update_is_that_of_torch_optim(rule: UpdateRule, law: Law) -> None:
    rows, taken = slopes(8), replica(rule, parameters(), law)
    taken.replay(0, rows)
    held = {name: torch.nn.Parameter(parameter) for name, parameter in parameters().items()}
    if rule.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            held.values(), lr=rule.lr, betas=rule.betas, eps=rule.eps, weight_decay=rule.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(held.values(), lr=rule.lr, momentum=rule.momentum if rule.moments() else 0.0)
    for step, row in enumerate(rows):
        for name, dense in gradient(held, step, row, law).items():
            held[name].grad = dense
        optimizer.step()
    for name, parameter in held.items():
        # Eight float32 steps whose sums and divisions stand in another order: each step may round a weight of up to 4
        # by 2^-22, and AdamW divides a mean by the root of a square, which magnifies where the mean cancels.
        torch.testing.assert_close(taken.parameters[name], parameter.detach(), rtol=0, atol=4e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_weight_decay_is_decoupled(optimizer: str) -> None:
    """Without slopes weights shrink by 1 - lr · decay a step, whatever the optimiser."""
    rule = UpdateRule(optimizer, lr=0.5, weight_decay=0.25)
    taken = replica(rule, parameters())
    taken.replay(0, torch.zeros(3, P))
    for name, parameter in parameters().items():
        # Three float32 products.
        torch.testing.assert_close(taken.parameters[name], parameter * 0.875**3, rtol=4 * 2**-23, atol=0)


def test_coefficients_are_the_mean() -> None:
    assert UpdateRule().coefficients([3.0, -6.0, 0.0], 1000) == [1.0, -2.0, 0.0]
    assert UpdateRule().coefficients([5.0], 1) == [5.0]


def test_normalized_coefficients() -> None:
    rule = UpdateRule(normalize=True, clip=1e-9)  # nothing is left for clip to bound
    for row in ([3.0, 4.0], [1e-30], [1e30, -1e30, 0.0], slopes(1, 50)[0].tolist()):
        coefficients = rule.coefficients(row, 1000)
        assert math.hypot(*coefficients) == pytest.approx(1, rel=1e-12)
        assert all(math.copysign(1, c) == math.copysign(1, v) for c, v in zip(coefficients, row, strict=True) if v)
    assert rule.coefficients([3.0, -4.0], 10**6) == [0.6, -0.8]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_zero_slopes(optimizer: str) -> None:
    for rule in (UpdateRule(optimizer, normalize=True), UpdateRule(optimizer, clip=0.5), UpdateRule(optimizer)):
        assert rule.coefficients([0.0, 0.0], 10) == [0.0, 0.0]
        taken = replica(rule, parameters())
        taken.replay(0, torch.zeros(2, P))
        assert taken.position == 2
        for name, parameter in parameters().items():
            assert torch.equal(taken.parameters[name], parameter)


def test_with_normalize_lr_is_the_move_of_a_coordinate() -> None:
    rule = UpdateRule(lr=1e-2, normalize=True)
    start = {"w": torch.zeros(10_000)}
    taken = replica(rule, start)
    taken.replay(0, torch.tensor([[123.0]]))
    assert torch.equal(start["w"].abs(), torch.full((10_000,), 1e-2))  # one direction: every coordinate
    start["w"].zero_()
    taken.replay(1, torch.tensor([[3.0, -4.0, 12.0]]))
    # Three directions of 10^4 signs are orthogonal up to 1e-2.
    assert start["w"].square().mean().sqrt().item() == pytest.approx(1e-2, rel=0.03)


def test_clip() -> None:
    row, dimension = [3.0, -4.0], 400
    length = 5 / 2 * 20  # ‖v̄‖ / P · √d
    exact = UpdateRule().coefficients(row, dimension)
    assert UpdateRule(clip=length * 1.001).coefficients(row, dimension) == exact
    halved = UpdateRule(clip=length / 2).coefficients(row, dimension)
    assert halved == pytest.approx([c / 2 for c in exact], rel=1e-12)
    assert UpdateRule(clip=1e-3).coefficients(row, dimension) == pytest.approx(
        [c * 1e-3 / length for c in exact], rel=1e-12
    )


def test_clip_bounds_the_length_of_the_gradient() -> None:
    start = {"a": torch.zeros(6000), "b": torch.zeros(50, 80)}
    replica(UpdateRule(lr=1.0, clip=2.0), start).replay(0, torch.tensor([[30.0, -40.0, 7.0]]))
    moved = math.sqrt(sum(tensor.square().sum().item() for tensor in start.values()))
    assert moved == pytest.approx(2, rel=0.03)  # directions of 10^4 signs are orthogonal up to 1e-2


def test_seeds_are_those_of_the_next_step() -> None:
    taken = replica(UpdateRule(), parameters())
    assert taken.seeds(3).numbers == tuple(seed_of(0, p) for p in range(3))
    taken.replay(0, slopes(4))
    assert taken.seeds(2).numbers == tuple(seed_of(4, p) for p in range(2))


def test_moments() -> None:
    held = parameters(torch.bfloat16)
    for optimizer, names in (("sgd", []), ("momentum", ["velocity"]), ("adamw", ["mean", "square"])):
        taken = replica(UpdateRule(optimizer), held)
        assert list(taken.moments) == names
        for tensors in taken.moments.values():
            assert {name: tensor.shape for name, tensor in tensors.items()} == {n: p.shape for n, p in held.items()}
            assert all(tensor.dtype == torch.float32 and not tensor.any() for tensor in tensors.values())


def test_replay_moves_live_parameters_and_builds_no_graph() -> None:
    live = torch.nn.Parameter(torch.ones(5))
    taken = replica(UpdateRule("momentum", lr=0.1), {"w": live})
    taken.replay(0, slopes(1))
    assert taken.parameters["w"] is live
    assert live.is_leaf
    assert live.requires_grad
    assert not torch.equal(live, torch.ones(5))
    assert not taken.moments["velocity"]["w"].requires_grad


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "sign", "adamw"])
def test_a_step_rounds_as_ieee_arithmetic_does(optimizer: Any) -> None:
    """Each sum, product, quotient and root is the nearest float32, as NumPy's are: so any device can take the step."""
    rule, rng = UpdateRule(optimizer, lr=1e-2, weight_decay=0.1), np.random.default_rng(0)
    values = rng.standard_normal(10_000).astype(np.float32)
    moments = {name: np.zeros_like(values) for name in rule.moments()}
    ours, of_ours = torch.from_numpy(values.copy()), [torch.from_numpy(each.copy()) for each in moments.values()]
    for count in range(1, 4):
        gradient = rng.standard_normal(10_000).astype(np.float32)
        rule.step(ours, torch.from_numpy(gradient.copy()), of_ours, count, 1e-2)
        f = np.float32
        values = values * f(1 - 1e-2 * 0.1)
        if optimizer == "adamw":
            moments["mean"] = moments["mean"] * f(0.9) + gradient * f(1 - 0.9)
            moments["square"] = moments["square"] * f(0.999) + gradient * gradient * f(1 - 0.999)
            root = np.sqrt(moments["square"] * f(1 / (1 - 0.999**count))) + f(1e-8)
            gradient = moments["mean"] * f(1 / (1 - 0.9**count)) / root
        elif optimizer == "momentum":
            moments["velocity"] = gradient = moments["velocity"] * f(0.9) + gradient
        elif optimizer == "sign":
            gradient = np.sign(gradient)
        values = values - gradient * f(1e-2)
    assert np.array_equal(ours.numpy(), values)
    assert all(np.array_equal(mine.numpy(), each) for mine, each in zip(of_ours, moments.values(), strict=True))


def test_golden_replay() -> None:
    """The bits that an old history must still give."""
    start = {"w": torch.zeros(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    replica(UpdateRule("adamw", lr=0.1, weight_decay=0.5), start).replay(0, torch.tensor([[1.0, -2.0], [0.5, 0.25]]))
    assert [value.hex() for value in start["w"].tolist()] == [
        "-0x1.6caa980000000p-3",
        "-0x1.57f9ce0000000p-3",
        "0x1.a9b51e0000000p-4",
    ]
    assert start["b"].tolist() == [0.734375, 0.7109375]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("size", [300, 40_000, 3 * PACK_WIDTH])
def test_catching_up_needs_no_more_memory_than_one_step(size: int, optimizer: str) -> None:
    """A device that was away has the memory of one that was not."""
    peaks = []
    for steps in (1, 50):
        away = replica(UpdateRule(optimizer), {"w": torch.zeros(size)})  # type: ignore[arg-type]
        rows = slopes(steps)
        away.replay(0, slopes(0))
        meter = MemoryMeter([])
        with meter.running():
            away.replay(0, rows)
        peaks.append(meter.peak_bytes)
    assert peaks[1] <= peaks[0]


def group_rows(groups: int, steps: int = 4) -> Tensor:
    return torch.randn(steps, groups * P, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("rule", ["plain", "normalize", "clip"])
def test_groups_are_replicas_of_their_own(optimizer: str, rule: str) -> None:
    """Parameters that share slopes move as if they were all there is; directions depend on their names alone."""
    chosen = dataclasses.replace(RULES[rule], optimizer=optimizer)  # type: ignore[arg-type]
    names = [["weight", "scalar"], ["bias", "none", "table"], ["tail"]]
    rows = group_rows(len(names))
    together = Replica(parameters(), chosen, Directions(seed_of), form=RowForm(names))
    together.replay(0, rows)
    for number, own in enumerate(names):
        held = {name: tensor for name, tensor in parameters().items() if name in own}
        alone = replica(chosen, held)
        alone.replay(0, rows[:, number * P : (number + 1) * P])
        for name in own:
            assert torch.equal(alone.parameters[name], together.parameters[name]), name


def test_rows_that_don_t_divide_among_the_groups_are_refused() -> None:
    grouped = Replica(parameters(), UpdateRule(), Directions(seed_of), form=RowForm([["weight"], ["bias"]]))
    with pytest.raises(PeerError, match=r"\(1, 3\) from step 0 came, \(steps, 2 · P\) from step 0 is allowed"):
        grouped.replay(0, slopes(1))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_what_is_rehearsed_is_undone_to_the_bit(optimizer: str) -> None:
    rule = UpdateRule(optimizer=optimizer, lr=0.1)  # type: ignore[arg-type]
    rehearsed, plain = (one_at_a_time(replica(rule, parameters()), slopes(3)) for _ in range(2))

    def interrupted() -> None:
        with rehearsed.rehearsal():
            rehearsed.replay(3, slopes(5))
            assert rehearsed.position == 8
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_same(rehearsed, plain)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_a_schedule_is_a_rate_of_its_own_in_each_step(optimizer: str) -> None:
    rate = {0: 1.0, 1: 0.5, 2: 0.25}
    rule = UpdateRule(optimizer=optimizer, lr=0.1, weight_decay=0.1)  # type: ignore[arg-type]
    scheduled = Replica(parameters(), rule, Directions(seed_of), schedule=rate.__getitem__)
    scheduled.replay(0, slopes(3))
    by_hand = replica(rule, parameters())
    for step, row in enumerate(slopes(3)):
        by_hand.rule = dataclasses.replace(rule, lr=0.1 * rate[step])
        by_hand.replay(step, row.unsqueeze(0))
    assert_same(scheduled, by_hand)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_rows_at_their_own_pace_take_the_rates_of_the_steps_that_are_told(optimizer: str) -> None:
    """Their numbers still give directions and the moments' age; what was taken already is skipped with its step."""
    rate, steps = {4: 1.0, 5: 0.5, 9: 0.25}, [4, 5, 4, 5, 9]
    rule = UpdateRule(optimizer=optimizer, lr=0.1, weight_decay=0.1)  # type: ignore[arg-type]
    told = Replica(parameters(), rule, Directions(seed_of), schedule=rate.__getitem__, own_pace=True)
    told.replay(0, slopes(5)[:2], steps[:2])
    told.replay(0, slopes(5), steps)
    by_hand = replica(rule, parameters())
    for row, (slope, step) in enumerate(zip(slopes(5), steps, strict=True)):
        by_hand.rule = dataclasses.replace(rule, lr=0.1 * rate[step])
        by_hand.replay(row, slope.unsqueeze(0))
    assert_same(told, by_hand)


def test_rows_at_their_own_pace_are_not_taken_without_their_steps() -> None:
    before = parameters()
    untold = Replica(parameters(), UpdateRule(), Directions(seed_of), own_pace=True)
    for taker in (untold, untold.alike(parameters())):
        with pytest.raises(ValueError, match="steps"):
            taker.replay(0, slopes(1))
        with pytest.raises(ValueError, match="1 steps are given for 2 rows"):
            taker.replay(0, slopes(2), [0])
        assert all(torch.equal(before[name], tensor) for name, tensor in taker.parameters.items())


def exact_rows(steps: int = 5) -> Tensor:
    """Three slopes for the rest of θ, then the gradient of `bias` and `weight`."""
    return torch.randn(steps, 3 + 7 + 33 * 129, generator=torch.Generator().manual_seed(4))


def with_exact(rule: UpdateRule, dtype: torch.dtype = torch.float32) -> Replica:
    return Replica(parameters(dtype), rule, Directions(seed_of), form=RowForm(exact=("bias", "weight")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "sign"])
def test_exact_gradients_are_replayed_in_one_pass(optimizer: str, dtype: torch.dtype) -> None:
    rule, rows = UpdateRule(optimizer, lr=1e-2, clip=3.0), exact_rows()  # type: ignore[arg-type]
    together, singly = with_exact(rule, dtype), with_exact(rule, dtype)
    together.replay(0, rows)
    assert_same(together, one_at_a_time(singly, rows))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_exact_gradients_move_as_torch_optim_does(optimizer: str) -> None:
    rule, rows = UpdateRule(optimizer, lr=1e-2), exact_rows()  # type: ignore[arg-type]
    taken = with_exact(rule)
    taken.replay(0, rows)
    held = {name: torch.nn.Parameter(parameters()[name]) for name in ("bias", "weight")}
    if optimizer == "adamw":
        reference: torch.optim.Optimizer = torch.optim.AdamW(held.values(), lr=1e-2, weight_decay=0)
    else:
        reference = torch.optim.SGD(held.values(), lr=1e-2, momentum=rule.momentum if rule.moments() else 0.0)
    for row in rows:
        held["bias"].grad, held["weight"].grad = row[3:10], row[10:].view(33, 129)
        reference.step()
    for name, parameter in held.items():  # as in the test of directions above
        torch.testing.assert_close(taken.parameters[name], parameter.detach(), rtol=0, atol=4e-6)


def test_the_rest_of_theta_moves_as_if_it_were_all() -> None:
    rule, rows = UpdateRule("adamw", lr=1e-2, clip=1.0), exact_rows()
    taken = with_exact(rule)
    taken.replay(0, rows)
    rest = replica(rule, {name: tensor for name, tensor in parameters().items() if name not in ("bias", "weight")})
    rest.replay(0, rows[:, :3])
    for name, tensor in rest.parameters.items():
        assert torch.equal(taken.parameters[name], tensor)


def test_without_directions_only_the_exact_ones_move() -> None:
    taken = with_exact(UpdateRule("adamw", lr=1e-2))
    taken.replay(0, exact_rows()[:, 3:])
    moved = {name for name, tensor in parameters().items() if not torch.equal(tensor, taken.parameters[name])}
    assert moved == {"bias", "weight"}


def test_clip_and_normalize_bound_an_exact_gradient() -> None:
    gradient = torch.tensor([3.0, -4.0])
    assert UpdateRule(clip=1.0).exact_scale(gradient) == pytest.approx(0.2)
    assert UpdateRule(clip=10.0).exact_scale(gradient) == 1.0
    assert UpdateRule(normalize=True).exact_scale(gradient) == pytest.approx(
        math.sqrt(2) / 5
    )  # a root mean square of 1
    assert UpdateRule(normalize=True).exact_scale(torch.zeros(2)) == 0.0


@pytest.mark.parametrize("width", [1, 7 + 33 * 129 - 1])
def test_rows_without_room_for_the_exact_gradients_are_refused(width: int) -> None:
    with pytest.raises(PeerError, match=r"history: \(1, \d+\) from step 0 came, \(steps, P \+ 4264\)"):
        with_exact(UpdateRule()).replay(0, torch.zeros(1, width))


def test_the_sign_of_the_estimate_moves_every_coordinate_alike() -> None:
    taken = replica(UpdateRule("sign", lr=0.25), {"w": torch.zeros(300)})
    taken.replay(0, torch.tensor([[-1e-3]]))
    assert torch.equal(taken.parameters["w"], 0.25 * direction_of(seed_of(0, 0), "w", torch.zeros(300)))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_who_was_away_takes_the_state_for_the_exact_gradients(optimizer: str) -> None:
    rule, rows = UpdateRule(optimizer, lr=1e-2), exact_rows()  # type: ignore[arg-type]
    present, away = with_exact(rule), with_exact(rule)
    present.replay(0, rows)
    away.replay(0, rows[:2])
    away.take_state(2, rows[2:, :3], [tensor.clone() for tensor in present.exact_state().values()])
    assert_same(present, away)
    away.take_state(2, rows[2:, :3], [torch.zeros_like(tensor) for tensor in present.exact_state().values()])
    assert_same(present, away)  # a repeated message is harmless
    with pytest.raises(PeerError, match="rows begin at step 9, but this replica is at step 5"):
        away.take_state(9, rows[:1, :3], [])
