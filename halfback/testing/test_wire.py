"""Every algorithm × the wire: what is counted is what was sent, and a socket carries the same bits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.planning.methods import formula_of
from halfback.planning.traffic import greeting, reused, tensor
from halfback.testing import small
from halfback.testing.observed import ROUNDS, STEPS, Arrived, Observed
from halfback.testing.remote import run_over_sockets
from halfback.testing.table import Row
from halfback.wire.fields import FIELDS
from halfback.wire.messages import Encoded, HandOver, parts_of
from halfback.wire.packing import unpack

World = Callable[..., RunConfig]


def counted(arrived: Arrived) -> dict[str, int]:
    """Bytes by direction; a hand-over, which the server passes on, where a device sent it."""
    sent = {"up": 0, "down": 0}
    for _, direction, data in arrived:
        if direction == "up" or not isinstance(unpack(data), HandOver):
            sent[direction] += len(data)
    return sent


def test_the_ledger_holds_the_bytes_that_arrived(row: Row, observed: Observed) -> None:
    ledger = observed.federation.server.ledger
    assert {side: ledger.total(side) for side in ("up", "down")} == counted(observed.arrived)
    assert bool(observed.arrived) is (row.needs.agreement.name != "alone")


def test_the_bytes_are_those_of_the_closed_form(row: Row, observed: Observed) -> None:
    """Two counts that were made apart: the ledger's, and the formula.

    Where a link reuses what it remembers, the formula is that of the plain row with the size of each encoded field in
    place of its tensor's: all of it follows from the skip map, which is read off the wire.
    """
    config = observed.built.config
    formula = formula_of(row.name, observed.built.ground.algorithm, head=config.model.head is not None)
    if formula is None:
        pytest.skip("nobody said what its bytes are in closed form")
    expected, skipped = {"up": 0, "down": 0}, 0
    for work in (work for of_round in observed.work for work in of_round):
        for side, count in zip(expected, formula(replace(work, codes=row.codes)), strict=True):
            expected[side] += count
        if row.reuses:
            for side, count in zip(expected, greeting(len(row.reuses)), strict=True):
                expected[side] += count
    lengths: dict[int, Tensor] = {}
    for client, side, data in observed.arrived:
        for part in parts_of(unpack(data)):
            if isinstance(of_texts := getattr(part, "lengths", None), Tensor):
                lengths[client] = of_texts
            for name, (role, _) in FIELDS[type(part)].items():
                link, value = f"{role}_{side}", getattr(part, name)
                if isinstance(value, Encoded) and link not in row.codes:
                    saved, skips = _saved(row, link, value, lengths.get(client))
                    expected[side] -= saved
                    skipped += skips
    assert {side: observed.federation.server.ledger.total(side) for side in ("up", "down")} == expected
    assert (skipped > 0) is bool(row.reuses)


def _saved(row: Row, link: str, value: Encoded, lengths: Tensor | None) -> tuple[int, int]:
    """How much smaller an encoded field is than its tensor, and how many samples were skipped."""
    skipped = value.parts[1]
    plain: tuple[int, ...]
    if lengths is not None:
        plain, width, rows = (int(lengths.sum()), 16), 16, lengths
    else:  # at the second cut, behind the last of three blocks, or at the first
        plain = (len(skipped), *((64, 4, 4) if link in ("activations_down", "gradient_up") else (16, 16, 16)))
        width, rows = plain[2] * plain[3], torch.full((len(skipped),), plain[1])
    encoded = reused(len(skipped), int(rows[~skipped].sum()), row.reuses[link](width))
    return tensor(*plain) - encoded, int(skipped.sum())


@pytest.mark.rows(lambda row: row.needs.agreement.name != "alone")
def test_a_socket_carries_the_same_bits(row: Row, world: World, observed: Observed, tmp_path: Path) -> None:
    """The deployment engine; clients that have their part of the model alone, each at the far end of a socket."""
    local, server, machine = observed.built, small.built(world(row)), partial(small.alone, world(row))
    losses = run_over_sockets(server.federation, machine, rounds=ROUNDS, steps=STEPS, folder=tmp_path)
    assert losses == observed.losses
    assert server.federation.server.ledger.bytes_by_kind == local.federation.server.ledger.bytes_by_kind
    assert server.federation.server.meters.forward_passes == local.federation.server.meters.forward_passes
    assert_equal_models(local, server)
    for run in (local, server):
        run.federation.server.party.agreed.settle()  # as another check's look at the state of `observed` may have done
    for one, other in zip(
        local.federation.server.party.agreed.rows, server.federation.server.party.agreed.rows, strict=True
    ):
        assert torch.equal(one, other)


def assert_equal_models(one: Built, other: Built) -> None:
    """Every bit of what the federation has agreed on, and of the server's part."""
    for run in (one, other):
        run.federation.server.agreed_bottom()
    mine, theirs = ([*(b.model.bottom, b.model.top), b.federation.server.part] for b in (one, other))
    for half, same in zip(mine, theirs, strict=True):
        named = dict(same.named_parameters())
        assert [n for n, p in half.named_parameters() if not torch.equal(p, named[n])] == []
