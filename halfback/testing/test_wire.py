"""Every algorithm × the wire: what is counted is what was sent, and a socket carries the same bits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.engine.client_side import ClientSide
from halfback.engine.federation import Federation
from halfback.parties.server import Server
from halfback.testing import small
from halfback.testing.formulas import Work, greeting, reused, tensor
from halfback.testing.remote import run_over_sockets
from halfback.testing.table import Row
from halfback.wire.messages import FIELDS, Encoded, HandOver
from halfback.wire.packing import unpack

World = Callable[..., RunConfig]
Arrived = list[tuple[int, str, bytes]]  # client, direction, message


def tapped(federation: Federation) -> Arrived:
    """What reaches either end of every link, from now on."""
    arrived: Arrived = []
    federation.tap = lambda client, direction, data: arrived.append((client, direction, data))
    return arrived


def counted(arrived: Arrived) -> dict[str, int]:
    """Bytes by direction; a hand-over, which the server passes on, where a device sent it."""
    sent = {"up": 0, "down": 0}
    for _, direction, data in arrived:
        if direction == "up" or not isinstance(unpack(data), HandOver):
            sent[direction] += len(data)
    return sent


def test_the_ledger_holds_the_bytes_that_arrived(row: Row) -> None:
    simulation = small.built(small.images(row.name, **row.changes())).federation
    arrived = tapped(simulation)
    small.run(simulation, 3, steps=2)
    assert {side: simulation.server.ledger.total(side) for side in ("up", "down")} == counted(arrived)
    assert bool(arrived) is (row.needs.agreement.name != "alone")


def test_the_bytes_are_those_of_the_closed_form(row: Row, world: World) -> None:
    """Two counts that were made apart: the ledger's, and the formula.

    Where a link reuses what it remembers, the formula is that of the plain row with the size of each encoded field in
    place of its tensor's: all of it follows from the skip map, which is read off the wire.
    """
    if row.bytes_of_round is None:
        pytest.skip("nobody said what its bytes are in closed form")
    simulation = small.built(world(row)).federation
    arrived = tapped(simulation)
    expected, skipped = {"up": 0, "down": 0}, 0
    for number in range(4):
        for place, client in enumerate(simulation.server.cohort(number)):
            taken = 2 * place if row.needs.turns == "one_by_one" else 0  # by those whose turn comes before
            for side, count in zip(expected, row.bytes_of_round(_work(simulation, client, number, taken)), strict=True):
                expected[side] += count
            if row.reuses:
                for side, count in zip(expected, greeting(len(row.reuses)), strict=True):
                    expected[side] += count
        small.run(simulation, 1, first=number, steps=2)
    masks: dict[int, Tensor] = {}
    for client, side, data in arrived:
        message = unpack(data)
        if isinstance(mask := getattr(message, "mask", None), Tensor):
            masks[client] = mask
        for name, (role, _) in FIELDS[type(message)].items():
            if isinstance(value := getattr(message, name), Encoded):
                saved, skips = _saved(row, f"{role}_{side}", value, masks.get(client))
                expected[side] -= saved
                skipped += skips
    assert {side: simulation.server.ledger.total(side) for side in ("up", "down")} == expected
    assert (skipped > 0) is bool(row.reuses)


def _saved(row: Row, link: str, value: Encoded, mask: Tensor | None) -> tuple[int, int]:
    """How much smaller an encoded field is than its tensor, and how many samples were skipped."""
    skipped = value.parts[1]
    plain: tuple[int, ...]
    if mask is not None:
        plain, width, rows = (*mask.shape, 16), 16, mask.sum(dim=1)
    else:  # at the second cut, behind the last of three blocks, or at the first
        plain = (len(skipped), *((64, 4, 4) if link in ("activations_down", "gradient_up") else (16, 16, 16)))
        width, rows = plain[2] * plain[3], torch.full((len(skipped),), plain[1])
    encoded = reused(len(skipped), int(rows[~skipped].sum()), row.reuses[link](width))
    return tensor(*plain) - encoded, int(skipped.sum())


def _work(simulation: Federation, number: int, round_number: int, taken: int) -> Work:
    client, server = simulation.client(number).party, simulation.server.party
    batches, second = [], []
    for place in range(client.feed.cursor, client.feed.cursor + 2):
        inputs = client.feed.data.batch(place).inputs
        mask = inputs.get("attention_mask")
        hidden = (len(inputs["pixel_values"]), *server.top.form.shape) if mask is None else (*mask.shape, 16)
        batches.append((hidden, None if mask is None else tuple(mask.shape)))
        if client.head is not None:  # after the second of three blocks of a ResNet-8, or after the third
            sizes = (32, 8, 8) if len(client.head.module.state_dict()) > 2 else (64, 4, 4)
            second.append(hidden if mask is not None else (hidden[0], *sizes))
    rows, cohort = range(client.theta.position, len(server.agreed.rows) + taken), simulation.server.sampling.sampled
    return Work(
        first=2 * round_number,
        batches=batches,
        missed=len(rows),
        turns=simulation.server.algorithm.needs.turns == "one_by_one"
        and any(r // (2 * cohort) * 2 + r % 2 != r for r in rows),
        ever=bool(server.agreed.rows) or taken > 0,
        directions=simulation.server.algorithm.needs.directions,
        exact=server.agreed.replica.width(0),
        state=[tuple(tensor.shape) for tensor in server.agreed.replica.exact_state().values()],
        weights=[tuple(parameter.shape) for parameter in server.agreed.replica.parameters.values()],
        groups=len(server.agreed.replica.groups),
        above=_above(server, number),
        second=second,
        head=[tuple(parameter.shape) for parameter in (server.top.head or {}).values()],
    )


def _above(server: Server, client: int) -> list[tuple[int, ...]]:
    below = server.cohort.boundaries[client].below if server.cohort.boundaries else ()
    return [tuple(p.shape) for name, p in server.agreed.replica.parameters.items() if name not in below]


@pytest.mark.rows(lambda row: row.needs.agreement.name != "alone")
def test_a_socket_carries_the_same_bits(row: Row, world: World, tmp_path: Path) -> None:
    """The deployment engine; clients on a model, data and parameters of their own, each at the far end of a socket."""
    local, server = (small.built(world(row)) for _ in range(2))
    losses = small.run(local.federation, 4, steps=2)
    machine = partial(_made, world, row)
    assert run_over_sockets(server.federation, machine, rounds=4, steps=2, folder=tmp_path) == losses
    assert server.federation.server.ledger.bytes_by_kind == local.federation.server.ledger.bytes_by_kind
    assert server.federation.server.meters.forward_passes == local.federation.server.meters.forward_passes
    for one, other in zip(
        local.federation.server.party.agreed.rows, server.federation.server.party.agreed.rows, strict=True
    ):
        assert torch.equal(one, other)
    assert_equal_models(local, server)


def _made(world: World, row: Row, number: int) -> ClientSide:
    return small.built(world(row)).federation.client(number)


def assert_equal_models(one: Built, other: Built) -> None:
    """Every bit of what the federation has agreed on, and of the server's part."""
    for run in (one, other):
        run.federation.server.agreed_bottom()
    mine, theirs = ([*(b.model.bottom, b.model.top), b.federation.server.part] for b in (one, other))
    for half, same in zip(mine, theirs, strict=True):
        named = dict(same.named_parameters())
        assert [n for n, p in half.named_parameters() if not torch.equal(p, named[n])] == []
