"""A client on a machine of its own has its part of the model alone, to the bit, and needs no file of the weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from halfback.assembly import build_client
from halfback.assembly.sources import Seat
from halfback.config import RunConfig
from halfback.engine.remote.weights import at_the_beginning, digest_of, take_weights
from halfback.errors import UserError
from halfback.models.running import LocalModel
from halfback.testing import small
from halfback.testing.table import ROWS
from halfback.wire.messages import Weights
from halfback.wire.packing import pack

# What a client holds, in each of the ways that there are.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bottom": ("ho_sfl", {}),
    "shallow": ("ho_sfl", {"model__cut": [1, 2]}),
    "bottom-and-head": ("ho_sfl", {"model__head": 1}),
    "bottom-and-copy": ("heron_sfl", {"model__auxiliary": 1}),
    "bottom-and-linear": ("cse_fsl", {"model__auxiliary": "linear"}),
    "whole": ("fedavg", {}),
}


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest, tiny_bert: Path, sentences: Path, tmp_path: Path) -> RunConfig:
    """On a copy of the model, whose files a test may take away."""
    algorithm, changes = VARIANTS[request.param]
    shutil.copytree(tiny_bert, tmp_path / "model")
    return small.texts(algorithm, tmp_path / "model", sentences, **changes)


def test_it_holds_what_it_would_hold_in_one_process(config: RunConfig) -> None:
    federation = small.built(config).federation
    for number in (0, 1):
        alone, beside = small.alone(config, number), federation.client(number)
        mine, theirs = alone.held(), beside.held()
        assert list(mine) == list(theirs)
        assert [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])] == []
        own = {name: tensor for name, tensor in alone.party.theta.parameters.items() if f"0.{name}" in mine}
        assert own.keys() == alone.party.theta.parameters.keys()
        assert list(alone.party.theta.measured) == list(beside.party.theta.measured)
        assert len(alone.party.theta.replica.groups) == len(beside.party.theta.replica.groups)


def test_nothing_else_of_the_model_is_there(config: RunConfig) -> None:
    side = small.alone(config, 0)
    part = side.part.bottom if isinstance(side.part, LocalModel) else side.part
    deeper = [name for name, parameter in part.body.named_parameters() if parameter.is_meta]
    assert bool(deeper) is not isinstance(config.model.cut, int)
    assert all(not tensor.is_meta for tensor in side.held().values())


def test_without_a_file_of_the_weights_it_takes_the_servers(config: RunConfig) -> None:
    """Before they are there it fits nobody; with them it has every bit."""
    built = small.built(config)
    weights = at_the_beginning(built.ground.parts(0), built.federation.server.party.agreed.replica.parameters)
    for file in Path(config.model.name).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        small.built(config)
    side = small.alone(config, 0)
    assert digest_of(side.held()) != digest_of(weights)
    take_weights(side.held(), pack(Weights(tuple(weights.values()))).data)
    assert digest_of(side.held()) == digest_of(weights)
    beside = built.federation.client(0)
    inputs = beside.party.feed.data.batch(0).inputs
    assert torch.equal(side.party.bottom(inputs), beside.party.bottom(inputs))


def test_rows_to_validate_on_are_of_no_account(tiny_bert: Path, sentences: Path) -> None:
    """Nobody validates on a client: what it keeps of its rows is the same with others."""
    config = small.texts("ho_sfl", tiny_bert, sentences)
    found = build_client(config, Seat(0, False, ())).fingerprint
    other = small.texts("ho_sfl", tiny_bert, sentences, task__validation_rows=5)
    assert build_client(other, Seat(0, False, ())).fingerprint == found


def test_the_table_has_a_row_of_each_kind_of_part() -> None:
    assert {row.needs.holds for row in ROWS.values()} == {"bottom", "auxiliary", "whole"}
