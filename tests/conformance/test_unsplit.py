"""What the maths says is the same training, held bit for bit against plain loops on the uncut model."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfback.algorithms import algorithms
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.models.adapters import trainable
from halfback.models.cut import install
from halfback.testing import small
from halfback.testing.table import ROWS
from halfback.testing.test_wire import assert_equal_models
from halfback.zeroth.directions import Directions
from halfback.zeroth.replay import Replica
from halfback.zeroth.update import UpdateRule

World = Callable[..., RunConfig]


@pytest.fixture(params=["images", "texts"])
def world(request: pytest.FixtureRequest) -> World:
    """(algorithm, changes) → configuration."""

    def config(name: str, **changes: Any) -> RunConfig:
        if request.param == "images":
            return small.images(name, **changes)
        return small.texts(name, *(request.getfixturevalue(each) for each in ("tiny_bert", "sentences")), **changes)

    return config


def test_every_registered_algorithm_has_a_row() -> None:
    ours = {name for name, kind in algorithms().items() if kind.__module__.startswith("halfback.")}
    assert {row.name for row in ROWS.values()} == ours


def test_checkpointing_has_the_bits_of_storing_everything(world: World) -> None:
    stored, recomputed = (
        small.built(world("split_lora", algorithm__checkpointing=enabled)).federation for enabled in (False, True)
    )
    assert small.run(stored, 4, steps=2) == small.run(recomputed, 4, steps=2)
    small.assert_equal_states(stored, recomputed, but=("forward_passes",))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_split_lora_with_one_client_is_unsplit_training(world: World, optimizer: str) -> None:
    """Bit for bit: the same kernels run in the same order on either side of the cut, and the wire rounds nothing."""
    changes = {"clients": 1, "sampled_clients": 1, "bottom__optimizer": optimizer, "bottom__clip": None}
    split, whole = (small.built(world("split_lora", **changes)) for _ in range(2))
    losses = small.run(split.federation, 4, steps=2)

    bottom, top = (list(trainable(half).values()) for half in (whole.model.bottom, whole.model.top))
    optimizers = [
        _plain_optimizer(optimizer, bottom, whole.config.bottom.lr),
        torch.optim.AdamW(top, whole.config.top.lr, weight_decay=0.0),
    ]
    plain = [
        _plain_step(whole, optimizers, whole.federation.client(0).party.feed.data.batch(number)) for number in range(8)
    ]
    assert losses == [(plain[place] + plain[place + 1]) / 2 for place in range(0, 8, 2)]
    assert_equal_models(split, whole)


def _plain_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    return torch.optim.SGD(parameters, lr, momentum=0.9 if name == "momentum" else 0.0)


def _plain_step(whole: Built, optimizers: list[torch.optim.Optimizer], batch: Any) -> float:
    """A step on the uncut model, and the loss before it.

    On texts with its parts behind one another, which run without the padding that it has itself: so the bits are equal.
    """
    texts = "lengths" in batch.inputs
    output = whole.model.logits(batch.inputs) if texts else whole.model.whole(batch.inputs["pixel_values"])
    loss = nn.functional.cross_entropy(output if isinstance(output, Tensor) else output.logits, batch.labels)
    for each in optimizers:
        each.zero_grad()
    loss.backward()
    for each in optimizers:
        each.step()
    return loss.item()


@pytest.mark.parametrize("name", ["sfl_v1", "sfl_v2", "vanilla_split", "fedavg", "centralised"])
def test_one_client_is_unsplit_training(world: World, name: str) -> None:
    """Bit for bit. SGD for the top: an SFL-V1 server's copies keep no moments beyond a round."""
    changes = {"clients": 1, "sampled_clients": 1, "bottom__optimizer": "adamw", "bottom__lr": 1e-3}
    split, whole = (small.built(world(name, top__optimizer="sgd", top__lr=1e-2, **changes)) for _ in range(2))
    losses = small.run(split.federation, 4, steps=2)

    bottom, top = (list(trainable(half).values()) for half in (whole.model.bottom, whole.model.top))
    if split.federation.server.algorithm.needs.holds == "whole":
        optimizers = [_plain_optimizer("adamw", [*bottom, *top], 1e-3)]
    else:
        optimizers = [_plain_optimizer("adamw", bottom, 1e-3), _plain_optimizer("sgd", top, 1e-2)]
    plain = [
        _plain_step(whole, optimizers, whole.federation.client(0).party.feed.data.batch(number)) for number in range(8)
    ]
    assert losses == [(plain[place] + plain[place + 1]) / 2 for place in range(0, 8, 2)]
    assert_equal_models(split, whole)


def test_a_relay_of_three_clients_is_plain_training_on_the_sequence_of_their_batches(world: World) -> None:
    changes = {"clients": 3, "sampled_clients": 3, "top__optimizer": "sgd", "top__lr": 1e-2}
    split, whole = (small.built(world("vanilla_split", **changes)) for _ in range(2))
    losses = small.run(split.federation, 3)

    optimizers = [
        _plain_optimizer("sgd", list(trainable(half).values()), 1e-2) for half in (whole.model.bottom, whole.model.top)
    ]
    turns = [(number, client) for number in range(3) for client in range(3)]
    plain = [
        _plain_step(whole, optimizers, whole.federation.client(m).party.feed.data.batch(number)) for number, m in turns
    ]
    assert losses == [sum(plain[place : place + 3]) / 3 for place in range(0, 9, 3)]
    assert_equal_models(split, whole)


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_local_steps_of_one_client_are_those_of_one_machine(world: World, estimator: str) -> None:
    """DeComFL with one client and L local steps moves as MeZO does in L steps: same batches, same seeds, same bits."""
    changes = {"clients": 1, "sampled_clients": 1, "algorithm__directions": 2, "algorithm__estimator": estimator}
    local, alone = (
        small.built(world(name, bottom__optimizer="momentum", bottom__lr=1e-3, **changes))
        for name in ("decomfl", "mezo")
    )
    assert small.run(local.federation, 2, steps=3) == small.run(alone.federation, 2, steps=3)
    assert_equal_models(local, alone)
    mine, theirs = (run.federation.server.party.agreed.replica.moments["velocity"] for run in (local, alone))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_heron_with_one_client_is_the_plain_loop_on_bottom_and_head(world: World) -> None:
    """θ ± μu by hand, where the package perturbs one layer at a time in a scratch copy and sums row by row."""
    changes = {"clients": 1, "sampled_clients": 1, "algorithm__estimator": "central", "algorithm__radius": 1e-2}
    run, plain = (small.built(world("heron_sfl", bottom__lr=0.1, **changes)).federation for _ in range(2))
    small.run(run, 2, steps=2)

    replica, local = plain.client(0).party.theta.replica, plain.client(0).party.local
    assert local is not None
    install(plain.server.part, replica.parameters)
    start = _flat(replica)
    with torch.no_grad():
        for step in range(4):
            batch, moves = plain.client(0).party.feed.data.batch(step), []
            for p in range(2):
                u = _direction(replica, replica.directions.seed_of(step, p))
                losses = []
                for side in (1e-2, -1e-2):
                    kept = {name: tensor.clone() for name, tensor in replica.parameters.items()}
                    for name, tensor in replica.parameters.items():
                        tensor += side * u[name]
                    losses.append(local.of(batch).item())
                    for name, tensor in replica.parameters.items():
                        tensor.copy_(kept[name])
                moves.append({name: (losses[0] - losses[1]) / 2e-2 * each for name, each in u.items()})
            for name, tensor in replica.parameters.items():
                tensor -= 0.1 * (moves[0][name] + moves[1][name]) / 2
    moved, wanted = _flat(run.server.party.agreed.replica) - start, _flat(replica) - start
    assert wanted.norm() > 0
    # A loss of about 1 is rounded at 1e-7, its slope by μ at 1e-5; slopes are about 0.01 on texts.
    assert (moved - wanted).norm() < 0.01 * wanted.norm()


def _direction(replica: Replica, seed: int) -> dict[str, Tensor]:
    """u of a seed, as what a step of SGD with slope 1 takes off zeros."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in replica.parameters.items()}
    Replica(zeros, UpdateRule(lr=1.0), Directions(lambda *_: seed, replica.directions.law)).replay(0, torch.ones(1, 1))
    return {name: -tensor for name, tensor in zeros.items()}


RADIUS = 1e-2


def _difference(run: Built, batch: Any, u: Tensor, radius: float) -> float:
    """The central difference of the loss along `u`, (d,), in float64."""
    bottom, top = copy.deepcopy((run.model.bottom, run.model.top))
    names = run.federation.server.party.agreed.replica.parameters
    parameters = [dict(bottom.double().named_parameters())[name] for name in names]
    pieces = u.split([parameter.numel() for parameter in parameters])
    losses = []
    for move in (radius, -2 * radius):  # from one side to the other
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter += move * piece.view(parameter.shape)
            losses.append(nn.functional.cross_entropy(top.double()(bottom(batch.inputs), None), batch.labels).item())
    return (losses[0] - losses[1]) / (2 * radius)


@pytest.mark.parametrize("name", ["ho_sfl", "hosl", "zo_sfl", "mu_splitfed", "decomfl", "mezo", "heron_sfl"])
def test_slopes_are_those_of_the_gradient_of_the_uncut_model(name: str) -> None:
    """θ moves by -(1/P) Σ_p ⟨g, u_p⟩ u_p, with g = ∂ℓ/∂θ from backpropagation: no room for chance.

    Where losses are differenced, by the same differences in float64 instead: with a radius at which float32 can tell
    two losses apart, ReLUs switch and slopes are a tenth off the gradient's. As the radius falls, they are those of g.
    """
    changes: dict[str, Any] = {"clients": 1, "sampled_clients": 1, "bottom__lr": 1e-3, "algorithm__directions": 4}
    kind = algorithms()[name]
    exact = "estimator" in {option.name for option in dataclasses.fields(kind)}  # type: ignore[arg-type]
    changes |= {"algorithm__estimator": "forward_ad"} if exact else {"algorithm__radius": RADIUS}
    changes |= {"top__optimizer": "sgd", "top__lr": 1e-30}  # MU-SplitFed's top steps before its clients do
    run = small.built(small.images(name, **changes))
    simulation = run.federation
    replica, batch = simulation.client(0).party.theta.replica, run.federation.client(0).party.feed.data.batch(0)
    install(simulation.server.part, replica.parameters)
    own = kind().needs.holds == "auxiliary"  # a loss of the device's own, on its head
    logits = simulation.server.part(batch.inputs) if own else run.model.logits(batch.inputs)
    loss = nn.functional.cross_entropy(logits, batch.labels)
    parameters = list(replica.parameters.values())
    gradient = torch.cat([g.double().flatten() for g in torch.autograd.grad(loss, parameters)])
    units = [
        torch.cat([u.double().flatten() for u in _direction(replica, s).values()]) for s in replica.seeds(4).numbers
    ]
    slopes = [torch.dot(gradient, u).item() for u in units]
    if not exact:
        assert [_difference(run, batch, u, 1e-7) for u in units] == pytest.approx(slopes, rel=1e-3)
        slopes = [_difference(run, batch, u, RADIUS) for u in units]
    wanted = -1e-3 * torch.stack([slope * u for slope, u in zip(slopes, units, strict=True)]).mean(dim=0)
    before = _flat(replica)
    small.run(simulation, 1)
    simulation.server.agreed_bottom()
    moved = _flat(simulation.server.party.agreed.replica) - before
    # Forward mode is exact up to float32. A loss of 2.3 is rounded at 2e-7, so its slopes by 2μ at 1e-5, and these are
    # about 0.1 here.
    assert (moved - wanted).norm() < 1e-3 * wanted.norm()


def test_many_exact_slopes_point_where_backpropagation_does(tiny_bert: Path, sentences: Path) -> None:
    """d parameters, P directions: the estimate's cosine with the gradient is √(P/(P+d+1)) for Gaussian directions."""
    directions, moves = 600, []
    for name, options in (
        ("split_lora", {}),
        (
            "ho_sfl",
            {"algorithm__directions": directions, "algorithm__estimator": "forward_ad", "bottom__law": "gaussian"},
        ),
    ):
        changes = {"clients": 1, "sampled_clients": 1, "lora__rank": 1, "bottom__lr": 1.0, **options}
        simulation = small.built(small.texts(name, tiny_bert, sentences, **changes)).federation
        before = _flat(simulation.server.party.agreed.replica)
        small.run(simulation, 1)
        simulation.server.agreed_bottom()
        moves.append(_flat(simulation.server.party.agreed.replica) - before)
    exact, estimated = moves
    expected = (directions / (directions + len(exact) + 1)) ** 0.5
    cosine = torch.nn.functional.cosine_similarity(exact, estimated, dim=0).item()
    # Over seeds the cosine scatters by about (1 - expected²)/√(2·d) ≈ 0.01 around it: six of these.
    assert abs(cosine - expected) < 0.06, (cosine, expected, len(exact))
    # The length along the gradient is the gradient's: unbiased, with a standard error of √(2/P) ≈ 0.06 for Gaussians.
    assert abs(torch.dot(exact, estimated).item() / torch.dot(exact, exact).item() - 1) < 4 * (2 / directions) ** 0.5


def _flat(replica: Replica) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in replica.parameters.values()])
