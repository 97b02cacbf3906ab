"""Every algorithm × what a run must do: learn, move what it says it moves, and take any division of the data."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from halfback.config import RunConfig
from halfback.models import packing
from halfback.testing import small
from halfback.testing.observed import ROUNDS, STEPS, Observed
from halfback.testing.table import Row

World = Callable[..., RunConfig]


def test_the_loss_falls(row: Row, world: World) -> None:
    """Two clients with eight rows each and batches of eight: no luck of the draw is left in the loss.

    Most rows get there in ten rounds, the slowest take thirty.
    """
    learns = {key.replace(".", "__"): value for key, value in row.learns.items()}
    run = small.built(world(row, **{"clients": 2, "task__train_rows": 16, "top__lr": 1e-2, **learns}))
    losses: list[float] = []
    for first in (0, 10, 20):
        losses += small.run(run.federation, 10, first=first)
        # The slowest row, zeroth order on both parts of a text model, falls by 1 %; a loss is rounded at 1e-5 % of it.
        if losses[-1] < 0.995 * losses[0]:
            return
    raise AssertionError(losses)


@pytest.mark.rows(lambda row: not row.brief, on=["images"])
def test_two_runs_of_a_seed_are_equal_and_another_seed_differs(row: Row, observed: Observed) -> None:
    same, other = (small.built(small.images(row.name, **row.changes(seed=seed))).federation for seed in (0, 1))
    assert small.run(same, ROUNDS, steps=STEPS) == observed.losses
    small.assert_equal_states(observed.federation, same)
    assert small.run(other, 1, steps=STEPS) != observed.losses[:1]


@pytest.mark.rows(lambda row: not row.brief, on=["images"])
def test_measuring_memory_changes_no_bit(row: Row, observed: Observed) -> None:
    measured = small.built(small.images(row.name, **row.changes())).federation
    losses = small.run(measured, 2, steps=STEPS, measure=True) + small.run(measured, ROUNDS - 2, first=2, steps=STEPS)
    assert losses == observed.losses
    measured.server.meters.client_peak_bytes = measured.server.meters.client_inference_peak_bytes = 0
    measured.server.meters.server_peak_bytes = 0
    small.assert_equal_states(observed.federation, measured)


@pytest.mark.rows(lambda row: not row.brief, on=["texts"])
def test_packed_and_padded_rows_come_to_the_same(row: Row, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All texts in one row, and a row for each, filled up and masked: sums of another length, and no more.

    A loss is rounded at 1e-7 of it; zeroth order divides such differences by 2e-4 and moves θ by them (3e-6 at most was
    seen). In a new model hardly anything depends on attention, so its weights are made larger.
    """
    layouts: list[Callable[[Sequence[int], int], tuple[tuple[int, ...], ...]]] = [
        lambda lengths, _: (tuple(range(len(lengths))),),
        lambda lengths, _: tuple((text,) for text in range(len(lengths))),
    ]
    losses = []
    for layout in layouts:
        monkeypatch.setattr(packing, "_shared_out", layout)
        run = small.built(world(row))
        for parameter in run.model.whole.parameters():
            parameter.data *= 5
        losses.append(small.run(run.federation, 2)[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.rows(lambda row: row.needs.agreement.name != "frozen")
def test_the_bottom_moves(observed: Observed) -> None:
    assert _moved(observed)


@pytest.mark.rows(lambda row: row.needs.agreement.name == "frozen")
def test_a_frozen_bottom_never_moves(observed: Observed) -> None:
    assert not _moved(observed)


def _moved(run: Observed) -> bool:
    after = run.federation.server.agreed_bottom().state_dict()
    return any(not torch.equal(before, after[name]) for name, before in run.before.items())


@pytest.mark.rows(lambda row: not row.brief)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"partition__name": "dirichlet", "partition__alpha": 0.3, "clients": 6}, id="unequal-clients"),
        pytest.param({"clients": 120, "sampled_clients": 3}, id="one-sample-each"),
        pytest.param({"clients": 1, "sampled_clients": 1}, id="one-client"),
        pytest.param({"sampled_clients": 4}, id="all-clients"),
    ],
)
def test_any_division_of_the_data(row: Row, changes: dict[str, Any]) -> None:
    run = small.built(small.images(row.name, **row.changes(**changes)))
    simulation = run.federation
    losses = small.run(simulation, 2, steps=2)
    assert all(0 < loss < 20 for loss in losses)  # finite, and of the size of a cross-entropy of ten classes
    cohorts = {client for number in range(2) for client in simulation.server.cohort(number)}
    assert set(simulation.clients) == cohorts
    assert all(side.party.feed.cursor in (2, 4) for side in simulation.clients.values())
    sizes = {len(source) for source in small.sources(run)}
    if row.needs.agreement.name == "alone":
        assert sizes == {120}, "one machine holds the rows of all clients"
    elif "partition__name" in changes:
        assert len(sizes) > 2
    else:
        assert sizes == {120 // changes.get("clients", 4)}
