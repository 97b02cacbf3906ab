"""Clients on device packages, in the place of clients on PyTorch: they agree, and go on from a checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from halfback import config as configuration
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.engine.remote.server import RemoteServer
from halfback.parties.holdings import Round
from halfback.runs import devices
from halfback.testing import small
from halfback.testing.observed import ROUNDS, STEPS, Observed
from halfback.testing.table import Row

pytest.importorskip("halfback_device", reason="halfback-device is not installed")
pytest.importorskip("onnx", reason="the extra package is not installed")

World = Callable[..., RunConfig]
_ROWS = pytest.mark.rows(lambda row: row.devices, on=["texts"])


_made: dict[str, Path] = {}  # by configuration, the folder with its packages


def begun(row: Row, world: World, folder: Path) -> tuple[Built, RemoteServer]:
    """A run in this folder, with the packages of another one of the same configuration where there is one."""
    config = world(row, client__runtime="device", steps_per_round=STEPS)
    first = _made.setdefault(configuration.dump(config), folder) / devices.FOLDER
    if first.exists() and not (folder / devices.FOLDER).exists():
        shutil.copytree(first, folder / devices.FOLDER, ignore=shutil.ignore_patterns("states"))
    built = small.built(config)
    return built, devices.engine(built, folder)


def trained(engine: RemoteServer, first: int, rounds: int) -> list[float]:
    return [
        engine.run_round(Round(number, STEPS, number * STEPS), measure_memory=True)
        for number in range(first, first + rounds)
    ]


@_ROWS
def test_devices_agree_to_the_bit_and_with_the_reference_up_to_rounding(
    row: Row, world: World, observed: Observed, tmp_path: Path
) -> None:
    """Losses: float32 sums in another order, a few 1e-7, which slopes divide by μ and an optimiser carries on."""
    built, engine = begun(row, world, tmp_path)
    losses = trained(engine, 0, ROUNDS)
    assert losses == pytest.approx(observed.losses, rel=1e-3)
    reference, server = observed.federation.server, built.federation.server
    assert server.ledger.bytes_by_kind == reference.ledger.bytes_by_kind
    assert server.meters.forward_passes == reference.meters.forward_passes
    assert server.meters.client.seconds > 0
    tensors, _ = engine.state()
    agreed = {name.removeprefix("bottom."): tensor for name, tensor in tensors.items() if name.startswith("bottom.")}
    spoke = server.cohort(ROUNDS - 1)
    for number in spoke:
        newest = max((tmp_path / devices.FOLDER).glob(f"states/*/client-{number}/states/round-*"))
        held = load_file(newest / "arrays.safetensors")
        assert all(torch.equal(held[f"theta.{name}"], tensor) for name, tensor in agreed.items())


@_ROWS
def test_a_resumed_run_on_devices_has_the_bits_of_an_unbroken_one(row: Row, world: World, tmp_path: Path) -> None:
    """The second half in other objects, with the states that the first half's devices have left."""
    built, engine = begun(row, world, tmp_path / "whole")
    expected, half = trained(engine, 0, ROUNDS), ROUNDS // 2
    _, engine_before = begun(row, world, tmp_path / "broken")
    assert trained(engine_before, 0, half) == expected[:half]
    checkpoint.save(tmp_path / "checkpoint", half, *engine_before.state())
    trained(engine_before, half, 1)  # beyond the checkpoint: what is in memory and on disk is not on the way then
    resumed, engine_after = begun(row, world, tmp_path / "broken")
    found = checkpoint.load(tmp_path / "checkpoint")
    assert found is not None
    engine_after.load_state(*found[1:])
    assert trained(engine_after, half, ROUNDS - half) == expected[half:]
    assert differing(engine, engine_after) == []
    assert resumed.federation.server.ledger.bytes_by_kind == built.federation.server.ledger.bytes_by_kind


def differing(one: RemoteServer, other: RemoteServer) -> list[str]:
    """The tensors of two states that differ by a bit, or are in one of them alone."""
    (mine, _), (theirs, _) = one.state(), other.state()
    return [n for n in {**mine, **theirs} if n not in mine or n not in theirs or not torch.equal(mine[n], theirs[n])]
