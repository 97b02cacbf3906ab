"""Aims: the same direction wherever it is made, the same bits for everyone, and what each of them is for."""

import math
from collections.abc import Mapping

import pytest
import torch
from probed_models import transformer
from torch import Tensor

from halfback.zeroth.aims import Blocks, Curvature, Guided
from halfback.zeroth.directions import Aim, direction_of, direction_rows, directions_of
from halfback.zeroth.perturb import perturbed
from halfback.zeroth.replay import MakeAim, Replica, UpdateRule
from halfback.zeroth.seeds import seed_for

SHAPES = {"first": (20, 30), "table": (50, 12), "large": (600, 300), "bias": (9000,)}
BLOCKS = [["first", "table"], ["large"], ["bias"], ["none of these"]]
P = 4
AIMS: dict[str, MakeAim] = {
    "blocks": lambda parameters: Blocks(parameters, BLOCKS),
    "guided": Guided,
    "curvature": Curvature,
}
RULES = {
    "sgd": UpdateRule(lr=1e-2, clip=5.0),
    "adamw": UpdateRule(optimizer="adamw", lr=1e-2),
    "momentum": UpdateRule(optimizer="momentum", lr=1e-2, normalize=True),
}


def seed_of(step: int, p: int) -> int:
    return seed_for(3, "direction", step, p)


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def rows(steps: int) -> Tensor:
    return torch.randn(steps, P, generator=torch.Generator().manual_seed(1))


def replica(aim: str, rule: str = "adamw", dtype: torch.dtype = torch.float32, **more: float) -> Replica:
    return Replica(parameters(dtype), rule=RULES[rule], seed_of=seed_of, make_aim=AIMS[aim], **more)  # type: ignore[arg-type]


def aim_of(taken: Replica) -> Aim:
    assert taken.aim is not None
    return taken.aim


def moved(aim: str, steps: int = 6) -> Replica:
    """A replica whose aim has seen some steps."""
    taken = replica(aim)
    taken.replay(0, rows(steps))
    return taken


def flat(directions: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in directions.values()])


def whole(taken: Replica, seed: int) -> Tensor:
    return flat({n: direction_of(seed, n, p, aim=taken.aim) for n, p in taken.parameters.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("aim", AIMS)
def test_catching_up_has_the_bits_of_one_step_at_a_time(aim: str, rule: str, dtype: torch.dtype) -> None:
    given = rows(9)
    at_once, one_by_one, late = (replica(aim, rule, dtype, average=0.9) for _ in range(3))
    at_once.replay(0, given)
    for step, row in enumerate(given):
        one_by_one.replay(step, row.unsqueeze(0))
    late.replay(0, given[:2])
    late.replay(0, given[:7])  # some of them a second time
    late.replay(5, given[5:])
    for other in (one_by_one, late):
        assert all(torch.equal(p, other.parameters[name]) for name, p in at_once.parameters.items())
        for moment, by_name in at_once.moments.items():
            assert all(torch.equal(tensor, other.moments[moment][name]) for name, tensor in by_name.items()), moment
    assert not torch.equal(flat(at_once.parameters), flat(parameters(dtype)))


@pytest.mark.parametrize("aim", AIMS)
def test_a_step_goes_along_the_directions_that_are_probed(aim: str) -> None:
    taken = moved(aim)
    sgd = Replica(parameters(), rule=UpdateRule(lr=0.5), seed_of=seed_of, make_aim=AIMS[aim])
    sgd.replay(0, rows(6))
    slopes, before = torch.tensor([0.5, -1.0, 2.0, 0.25]), flat(sgd.parameters).double()
    expected = sum(v * whole(sgd, seed).double() for v, seed in zip(slopes.tolist(), sgd.seeds(P), strict=True)) / P
    sgd.replay(6, slopes.unsqueeze(0))
    # float32 sums of four directions of size up to ten.
    torch.testing.assert_close(before - flat(sgd.parameters).double(), 0.5 * expected, rtol=1e-4, atol=2e-5)
    assert not torch.equal(whole(taken, 5), whole(replica(aim), 5)), "past slopes changed nothing"


@pytest.mark.parametrize("aim", AIMS)
def test_a_direction_is_the_same_wherever_it_is_made(aim: str) -> None:
    taken, seeds = moved(aim), [7, 8, 10**18 + 1]
    reshaping, parameter = aim_of(taken), taken.parameters["table"]
    together = directions_of(seeds, "table", parameter, aim=reshaping)
    places = torch.tensor([3, 0, 49])
    for seed, mine in zip(seeds, together, strict=True):
        assert torch.equal(mine, direction_of(seed, "table", parameter, aim=reshaping))
        assert torch.equal(mine[places], direction_rows(seed, "table", places, 12, aim=reshaping))


@pytest.mark.parametrize("name", ["opt", "bert"])  # with an embedding table that is perturbed row by row
@pytest.mark.parametrize("aim", AIMS)
def test_a_probe_sees_the_direction(aim: str, name: str) -> None:
    model, run = transformer(name)
    theta = dict(model.named_parameters())
    make: MakeAim = (lambda held: Blocks(held, [[n] for n in held])) if aim == "blocks" else AIMS[aim]
    taken = Replica(theta, rule=UpdateRule(lr=1e-3), seed_of=seed_of, make_aim=make)
    taken.replay(0, rows(3))
    probed = []
    for seed in range(8):  # with blocks, each moves another tensor
        with torch.no_grad(), perturbed(model, theta, seed, 0.01, aim=taken.aim):
            probed.append(run())
        kept = {n: p.detach().clone() for n, p in theta.items()}
        with torch.no_grad():
            for n, p in theta.items():
                p += 0.01 * direction_of(seed, n, p, aim=taken.aim)
            # The same sums in the same order, but for a product that is rounded once more or less.
            torch.testing.assert_close(probed[-1], run(), rtol=1e-4, atol=1e-5)
            for n, p in theta.items():
                p.copy_(kept[n])
    assert any(not torch.allclose(one, run().detach(), rtol=1e-3) for one in probed)


def test_blocks_move_one_block_and_estimate_the_gradient() -> None:
    """E[v u] is the gradient, whatever the odds; and each seed leaves all blocks but one where they are."""
    held = {"first": torch.zeros(3, 4), "table": torch.zeros(2), "large": torch.zeros(8), "bias": torch.zeros(2)}
    aim, fresh = Blocks(held, BLOCKS), Blocks(held, BLOCKS)
    for step, row in enumerate(rows(30).tolist()):
        aim.learn([seed_of(step, p) for p in range(P)], row, row)
    assert max(abs(q - size) for q, size in zip(aim.odds(), fresh.odds(), strict=True)) > 0.1
    assert math.isclose(sum(aim.odds()), 1)
    gradient, count = torch.linspace(-1, 1, 24), 20_000
    seeds = [seed_for("unbiased", n) for n in range(count)]
    directions = torch.cat([directions_of(seeds, n, p, aim=aim).flatten(1) for n, p in held.items()], dim=1)
    own = torch.tensor([0] * 14 + [1] * 8 + [2] * 2)
    drawn = torch.tensor([aim.drawn(seed) for seed in seeds])
    assert torch.equal(directions != 0, drawn.unsqueeze(1) == own)
    estimates = (directions @ gradient).unsqueeze(1) * directions
    errors = estimates.std(0) / math.sqrt(count)
    assert ((estimates.mean(0) - gradient).abs() < 4 * errors).all()


@pytest.mark.parametrize("many", [8, 64])
@pytest.mark.parametrize("aim", AIMS)
def test_normalised_and_bounded_steps_have_the_length_they_say(aim: str, many: int) -> None:
    """Also where all slopes have one sign, and directions lie along one guide."""
    held = {"first": torch.zeros(100, 200), "large": torch.zeros(30_000)}
    gradient = torch.linspace(-1, 1, 50_000)
    for rule, size in ((UpdateRule(lr=1e-3, normalize=True), 1e-3), (UpdateRule(lr=1.0, clip=1e-3), 1e-3)):
        taken = Replica({name: p.clone() for name, p in held.items()}, rule=rule, seed_of=seed_of, make_aim=AIMS[aim])
        for step in range(12):
            slopes = [float(whole(taken, seed) @ gradient) for seed in taken.seeds(many)]
            before = flat(taken.parameters)
            taken.replay(step, torch.tensor([slopes]))
            moved = (flat(taken.parameters) - before).double().norm().item()
        # 12 · 64 directions in 50,000 dimensions are orthogonal to √(768 / 50,000) = 0.12 at worst.
        wanted = size * math.sqrt(50_000) if rule.normalize else size
        assert math.isclose(moved, wanted, rel_tol=0.1), rule


def test_directions_that_nobody_measured_say_nothing_of_the_energy() -> None:
    """The rest of a row counts for as many more, and is taken for what was measured."""
    held, row = {"first": torch.zeros(16), "large": torch.zeros(16)}, [0.5, -2.0, 1.0, 3.0, 0.1, 7.0, -0.3, 2.0]
    few, padded = (Blocks(held, [["first"], ["large"]]) for _ in range(2))
    seeds = [seed_of(0, p) for p in range(16)]
    few.learn(seeds[:8], row, row)
    padded.learn(seeds, [2 * slope for slope in row] + [0.0] * 8, row)
    assert torch.equal(few.moments()["energy"]["blocks"], padded.moments()["energy"]["blocks"])
    assert few.odds() != [0.5, 0.5]


def test_a_long_silence_ends_the_guide() -> None:
    """0.9 to the power of 2,000 is less than the least float32; nothing becomes infinite on the way there."""
    taken = Replica({"few": torch.zeros(8)}, rule=UpdateRule(lr=1.0), seed_of=seed_of, make_aim=Guided)
    taken.replay(0, rows(1))
    before = taken.parameters["few"].clone()
    taken.replay(1, torch.zeros(2000, P))
    assert torch.equal(taken.parameters["few"], before)
    assert torch.equal(direction_of(3, "few", before, aim=taken.aim), direction_of(3, "few", before))
    taken.replay(2001, rows(3))
    assert taken.parameters["few"].isfinite().all()


def test_groups_of_their_own_slopes_have_no_aim() -> None:
    with pytest.raises(ValueError, match="share their slopes"):
        Replica(
            parameters(),
            rule=UpdateRule(),
            seed_of=seed_of,
            make_aim=Guided,
            groups=[["first"], ["table", "large", "bias"]],
        )


def test_odds_follow_the_energy() -> None:
    """With slopes of a gradient that is all in one block, that block is drawn more, and its energy is found."""
    held = {"first": torch.zeros(16), "large": torch.zeros(16)}
    taken = Replica(
        held,
        rule=UpdateRule(lr=1e-3),
        seed_of=seed_of,
        make_aim=lambda given: Blocks(given, [["first"], ["large"]]),
    )
    aim = aim_of(taken)
    assert isinstance(aim, Blocks)
    assert aim.odds() == [0.5, 0.5]
    gradient = torch.cat([torch.full((16,), 0.5), torch.full((16,), 0.01)])
    for step in range(200):
        slopes = [float(whole(taken, seed) @ gradient) for seed in taken.seeds(P)]
        taken.replay(step, torch.tensor([slopes]))
    first, second = aim.moments()["energy"]["blocks"].tolist()
    # A running mean of ten or twenty squares of sums of 16 signs, each of which varies by √2 of itself.
    assert 2 < first < 8, "16 · 0.5² = 4"
    assert second < 0.01, "16 · 0.01² = 0.0016"
    # 0.75 · √4 / (√4 + √0.0016) + 0.25 / 2 = 0.86 with the right energies
    assert 0.82 < aim.odds()[0] < 0.88


def test_a_guided_direction_lies_half_along_past_updates() -> None:
    taken = moved("guided", steps=20)
    guide = flat(taken.moments["guide"]).double()
    d = guide.numel()
    length = float(taken.moments["guide_length"]["all"])
    # The recurrence takes directions for orthogonal; 80 of them in 181,809 dimensions are to √(80/d) = 0.02.
    assert math.isclose(length, guide.norm().item(), rel_tol=0.03)
    for seed in range(6):
        direction = whole(taken, seed).double()
        cosine = torch.dot(direction, guide) / (direction.norm() * guide.norm())
        assert math.isclose(abs(cosine.item()), math.sqrt(0.5), rel_tol=0.03)
        assert (cosine > 0) == (seed % 2 == 0)
        assert math.isclose(direction.norm().item(), math.sqrt(d), rel_tol=0.03)
    plain = replica("guided")
    expected = flat({n: direction_of(1, n, p) for n, p in plain.parameters.items()})
    assert torch.equal(whole(plain, 1), expected), "there is no past yet"


def test_curvature_finds_what_moves_more() -> None:
    """Of noise it makes nothing; a coordinate with a large gradient is probed less far."""
    noise = moved("curvature", steps=60)
    mean = flat(noise.moments["curvature"])
    # 60 steps at a rate of 0.05 weigh as 40: their chi-squared mean varies by √(2/40) = 0.22 about 1.
    assert math.isclose(mean.mean().item(), 1, rel_tol=0.02)
    assert mean.std() < 0.3
    taken = Replica({"few": torch.zeros(8)}, rule=UpdateRule(lr=1e-3), seed_of=seed_of, make_aim=AIMS["curvature"])
    gradient = torch.tensor([10.0, *[0.1] * 7])
    for step in range(100):
        slopes = [float(whole(taken, seed) @ gradient) for seed in taken.seeds(P)]
        taken.replay(step, torch.tensor([slopes]))
    found = taken.moments["curvature"]["few"]
    assert found[0] > 1.2 * found[1:].max()
    size = direction_of(1, "few", taken.parameters["few"], aim=taken.aim).abs()
    torch.testing.assert_close(size, found.rsqrt(), rtol=1e-6, atol=0)


def test_the_mean_of_theta_is_apart_from_theta() -> None:
    plain, averaging = (Replica(parameters(), rule=RULES["adamw"], seed_of=seed_of, average=a) for a in (None, 0.75))
    mean = {name: p.double() for name, p in plain.parameters.items()}
    for step, row in enumerate(rows(5)):
        plain.replay(step, row.unsqueeze(0))
        mean = {name: 0.75 * old + 0.25 * plain.parameters[name].double() for name, old in mean.items()}
    averaging.replay(0, rows(5))
    for name, p in plain.parameters.items():
        assert torch.equal(p, averaging.parameters[name])
        # float32 sums of six terms against float64 ones.
        torch.testing.assert_close(averaging.averaged()[name].double(), mean[name], rtol=1e-5, atol=1e-6)
    assert plain.averaged() is plain.parameters


@pytest.mark.parametrize("aim", AIMS)
def test_a_rehearsal_leaves_no_trace(aim: str) -> None:
    taken, other = moved(aim), moved(aim)
    with taken.rehearsal():
        taken.replay(6, rows(3))
    taken.replay(6, rows(2))
    other.replay(6, rows(2))
    assert torch.equal(whole(taken, 1), whole(other, 1))
    assert torch.equal(flat(taken.parameters), flat(other.parameters))
