"""What a client is sent of exact gradients that it missed: the newest as they went down, or the state behind them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError, UserError
from halfback.parties.agreed import rows_below_state
from halfback.parties.by_slopes import catch_up
from halfback.parties.client import Client, Theta
from halfback.testing import small
from halfback.wire.messages import Both, Encoded, Exact, History, Join, Weights, kinds_of
from halfback.wire.packing import pack
from halfback.zeroth.directions import Directions, seeds_under
from halfback.zeroth.replay import Replica, RowForm
from halfback.zeroth.update import UpdateRule

P = 2
AWAY = 2
# 384 values: a row of 256, and a part of one. Parameters and two moments are 4,608 bytes.
SETTINGS: dict[str, Any] = {
    "clients": 3,
    "sampled_clients": 2,
    "model__cut": 3,
    "algorithm__exact_blocks": 2,
    "algorithm__directions": P,
    "bottom__train": "norm",
    "bottom__optimizer": "adamw",
    "bottom__lr": 1e-3,
}
CHAINS: dict[str, list[Any]] = {"plain": [], "int8": ["int8"], "signs": ["sign"]}


def _world(chain: list[Any], **changes: Any) -> Federation:
    codecs = {"codecs__slopes_up": chain, "codecs__slopes_down": chain} if chain else {}
    return small.built(small.images("ho_sfl", **SETTINGS | codecs | changes)).federation


def _told(simulation: Federation, position: int) -> bytes:
    """What a client hears that has taken so many steps."""
    party = simulation.server.party
    return simulation.server.say(AWAY, simulation.server.algorithm.answer(party, {AWAY: Join(position)})[AWAY])


def _alone(simulation: Federation) -> Client:
    """A client with a θ of its own, in a run that has not begun."""
    agreed = simulation.server.party.agreed.replica
    own = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in agreed.parameters.items()}
    return replace(simulation.client(AWAY).party, theta=Theta(agreed.alike(own)))


@pytest.mark.parametrize("name", CHAINS)
def test_who_missed_some_has_the_bits_of_one_that_never_left(name: str) -> None:
    """After each of six steps: one who came every time, and those who missed two, three and all of them."""
    simulation = _world(CHAINS[name])
    agreed, near = simulation.server.party.agreed, simulation.client(AWAY).near
    most = {"plain": 2, "int8": 8, "signs": 63}[name]  # of 1,536, 520 and 72 bytes, below 4,608
    every, kinds = {each: _alone(simulation) for each in (1, 2, 3, 6)}, set[Any]()
    for taken in range(1, 7):
        small.run(simulation, 1, first=taken - 1)
        for each, client in ((each, client) for each, client in every.items() if taken % each == 0):
            data = _told(simulation, client.theta.position)
            message: Any = near.receive(data)
            kinds.add(kinds_of(message))
            assert kinds_of(message)[1] is (Exact if each <= most else Weights)
            state = Both(message.first, Weights(tuple(agreed.replica.exact_state().values())))
            assert len(data) <= len(pack(state).data)
            catch_up(client, message, P)
            assert client.theta.position == taken
            for mine, theirs in (
                (client.theta.replica.parameters, agreed.replica.parameters),
                *zip(client.theta.replica.moments.values(), agreed.replica.moments.values(), strict=True),
            ):
                assert all(torch.equal(tensor, theirs[n]) for n, tensor in mine.items())
    assert kinds == {(History, Exact), (History, Weights)} if name == "plain" else {(History, Exact)}
    assert len(agreed.recent) == min(most, 6)


def test_who_missed_nothing_is_sent_nothing() -> None:
    simulation = _world(["sign"])
    for taken in range(2):
        message: Any = simulation.client(AWAY).near.receive(_told(simulation, taken))
        assert message.second == Weights(())
        assert len(message.first.slopes) == 0
        small.run(simulation, 1, first=taken)


@pytest.mark.parametrize(
    ("moments", "row", "most"), [(2, 36, 20), (2, 260, 11), (0, 1024, 0), (2, 1024, 2), (0, 36, 20)]
)
def test_a_device_has_no_more_values_at_once_than_of_the_state_or_a_million(moments: int, row: int, most: int) -> None:
    """Rows of 256 values as signs, int8 and float32; twenty of 51,200 values are a million, and of 5,120,000 one is."""
    optimizer: Any = {0: "sgd", 2: "adamw"}[moments]
    found = []
    for rows in (200, 20_000):
        tensor = torch.zeros(rows * 256)
        replica = Replica({"a": tensor}, UpdateRule(optimizer), Directions(seeds_under(1)), form=RowForm(exact=["a"]))
        found.append(rows_below_state(replica, rows * row))
    assert found == [most, min(most, 1 + moments)]


def test_sgd_has_no_state_that_a_row_is_less_than() -> None:
    simulation = _world([], bottom__optimizer="sgd")
    small.run(simulation, 1)
    assert simulation.server.party.agreed.recent == []
    message: Any = simulation.client(AWAY).near.receive(_told(simulation, 0))
    assert len(message.second.tensors) == len(simulation.server.party.agreed.replica.exact)


@pytest.mark.parametrize("name", CHAINS)
def test_a_server_that_goes_on_says_the_same_bytes(name: str) -> None:
    simulation, other = (_world(CHAINS[name]) for _ in range(2))
    small.run(simulation, 4)
    other.load_state(*simulation.state())
    for federation in (simulation, other):
        small.run(federation, 1, first=4)
    assert [_told(simulation, taken) for taken in range(6)] == [_told(other, taken) for taken in range(6)]
    small.assert_equal_states(simulation, other)


def test_the_server_s_memory_has_what_it_keeps() -> None:
    simulation = _world(["sign"])
    small.run(simulation, 3)
    held = {id(tensor) for tensor in simulation.server.resident()}
    assert {id(part) for parts in simulation.server.party.agreed.recent for part in parts} <= held


DAMAGED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "fewer rows": (
        lambda t: t.update({"recent.0": t["recent.0"][1:]}),
        r"recent.0 is torch.uint8 \(2, 2, 32\)",
    ),
    "another dtype": (lambda t: t.update({"recent.1": t["recent.1"].double()}), "recent.1 is torch.float64"),
    "none": (lambda t: t.pop("recent.1"), "recent.1 is missing"),
    "one more": (lambda t: t.update({"recent.2": t["recent.1"]}), "recent.2 is there, and nothing has this name"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_checkpoint_of_other_rows_is_refused(what: str) -> None:
    simulation = _world(["sign"])
    small.run(simulation, 3)
    tensors, values = simulation.state()
    damage, says = DAMAGED[what]
    damage(tensors)
    with pytest.raises(UserError, match=says):
        _world(["sign"]).load_state(tensors, values)


def _values(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda m: replace(m, second=Exact(change(m.second.values)))


SPOILT: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a row less": (_values(lambda v: v[384:]), PeerError, r"Exact.values: torch.float32 \(384,\) came, .* \(768,\) is"),
    "a row more": (_values(lambda v: v.repeat(2)[: 3 * 384]), PeerError, r"Exact.values: torch.float32 \(1152,\) came"),
    "a value less": (_values(lambda v: v[1:]), PeerError, r"Exact.values: torch.float32 \(767,\) came"),
    "in rows": (_values(lambda v: v.view(2, 384)), PeerError, r"Exact.values: torch.float32 \(2, 384\) came"),
    "dtype": (_values(lambda v: v.double()), PeerError, r"Exact.values: torch.float64 \(768,\) came"),
    "not finite": (_values(lambda v: v / 0), Diverged, "Exact.values of server are not finite"),
    "no slopes": (lambda m: replace(m, first=History(0, torch.zeros(0, P))), PeerError, r"\(768,\) came, .* \(0,\) is"),
    "slopes": (lambda m: replace(m, first=History(0, torch.zeros(2, 3))), PeerError, r"slopes .* \(2, 3\) came"),
    "flat slopes": (lambda m: replace(m, first=History(0, torch.zeros(4))), PeerError, r"slopes .* \(4,\) came"),
    "step": (lambda m: replace(m, first=replace(m.first, first=1)), PeerError, "History: step 1 came, 0 is allowed"),
    "turned round": (lambda m: Both(m.second, m.first), PeerError, "HistoryAndWeights is allowed"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_device_checks_the_rows(what: str) -> None:
    simulation = _world([])
    client = _alone(simulation)
    small.run(simulation, 2)
    said: Any = simulation.server.algorithm.answer(simulation.server.party, {AWAY: Join(0)})[AWAY]
    spoil, error, message = SPOILT[what]
    before = {name: tensor.clone() for name, tensor in client.theta.replica.parameters.items()}
    with pytest.raises(error, match=message) as caught:
        catch_up(client, spoil(said), P)
    assert "server" in str(caught.value)
    assert all(torch.equal(tensor, client.theta.replica.parameters[name]) for name, tensor in before.items())
    catch_up(client, said, P)  # as it came, it is taken
    assert client.theta.position == 2


ROWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a row of a step less": (lambda part: part[1:], r"Exact.values: codec: payload"),
    "none": (lambda part: part[:0], "Exact.values: codec: payload"),
    "of no rows": (lambda part: part[0, 0], "Exact.values: codec: payload"),
    "rows without values": (lambda part: part.new_zeros(1 << 30, 0), "Exact.values: codec: payload"),
    "more steps than are fewer than the state": (lambda part: part.repeat(50, 1), "Exact.values.* bytes are allowed"),
}


@pytest.mark.parametrize("what", ROWS)
def test_encoded_rows_are_those_of_whole_steps(what: str) -> None:
    simulation = _world(["sign"])
    small.run(simulation, 3)
    said: Any = simulation.server.algorithm.answer(simulation.server.party, {AWAY: Join(0)})[AWAY]
    change, says = ROWS[what]
    parts = tuple(change(part) for part in said.second.values.parts)
    near, far = simulation.client(AWAY).near, simulation.server.end(AWAY)
    wrong: Any = Encoded(parts)
    with pytest.raises(PeerError, match=says):
        near.receive(far.send(replace(said, second=Exact(wrong))).data)
