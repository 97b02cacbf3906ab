"""What the maths says is the same training, held bit for bit against plain loops on the uncut model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfback.algorithms import algorithms
from halfback.config import RunConfig
from halfback.conformance import small
from halfback.conformance.table import ROWS
from halfback.conformance.test_wire import assert_equal_models
from halfback.models.adapters import trainable
from halfback.zeroth.replay import Replica

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
        small.built(world("split_lora", algorithm__checkpointing=enabled)).simulation for enabled in (False, True)
    )
    assert small.run(stored, 4, steps=2) == small.run(recomputed, 4, steps=2)
    small.assert_equal_states(stored, recomputed, but=("forward_passes",))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_split_lora_with_one_client_is_unsplit_training(world: World, optimizer: str) -> None:
    """Bit for bit: the same kernels run in the same order on either side of the cut, and the wire rounds nothing."""
    changes = {"clients": 1, "sampled_clients": 1, "bottom__optimizer": optimizer, "bottom__clip": None}
    split, whole = (small.built(world("split_lora", **changes)) for _ in range(2))
    losses = small.run(split.simulation, 4, steps=2)

    model, config = whole.model.whole, whole.config
    bottom, top = (list(trainable(half).values()) for half in (whole.model.bottom, whole.model.top))
    optimizers = [
        _plain_optimizer(optimizer, bottom, config.bottom.lr),
        torch.optim.AdamW(top, config.top.lr, weight_decay=0.0),
    ]
    plain: list[float] = []
    for number in range(8):
        batch = whole.simulation.sources[0].batch(number)
        output = model(**{k: v.long() if v.dtype == torch.bool else v for k, v in batch.inputs.items()})
        loss = nn.functional.cross_entropy(output if isinstance(output, Tensor) else output.logits, batch.labels)
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
        plain.append(loss.item())
    assert losses == [(plain[place] + plain[place + 1]) / 2 for place in range(0, 8, 2)]
    assert_equal_models(split, whole)


def _plain_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    return torch.optim.SGD(parameters, lr, momentum=0.9 if name == "momentum" else 0.0)


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
        simulation = small.built(small.texts(name, tiny_bert, sentences, **changes)).simulation
        before = _flat(simulation.server.replica)
        small.run(simulation, 1)
        simulation.agreed_bottom()
        moves.append(_flat(simulation.server.replica) - before)
    exact, estimated = moves
    expected = (directions / (directions + len(exact) + 1)) ** 0.5
    cosine = torch.nn.functional.cosine_similarity(exact, estimated, dim=0).item()
    # Over seeds the cosine scatters by about (1 - expected²)/√(2·d) ≈ 0.01 around it: six of these.
    assert abs(cosine - expected) < 0.06, (cosine, expected, len(exact))
    # The length along the gradient is the gradient's: unbiased, with a standard error of √(2/P) ≈ 0.06 for Gaussians.
    assert abs(torch.dot(exact, estimated).item() / torch.dot(exact, exact).item() - 1) < 4 * (2 / directions) ** 0.5


def _flat(replica: Replica) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in replica.parameters.values()])
