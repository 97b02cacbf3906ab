"""Clients that are late, gone, back, confused or hostile; devices in threads at the far ends of real sockets."""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from halfback.engine import checkpoint
from halfback.engine.client_side import ClientSide
from halfback.engine.federation import Federation
from halfback.engine.remote.client import RemoteClient
from halfback.engine.remote.frames import Frame, Longest, Open, Save, Say, frame, read_question, read_reply
from halfback.engine.remote.presence import Came, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.errors import CohortLost, PeerError, UserError
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback.testing.remote import Sockets, deployed
from halfback.testing.small import among
from halfback.wire.messages import Slopes
from halfback.wire.packing import pack, unpack

LINEAGE = "0123456789abcdef"
P = 3
Change = Callable[[int, Frame, Frame], Frame | str]  # client, question, reply → what arrives in its place


def config(**changes: Any) -> Any:
    settings = {"algorithm__directions": P, "bottom__optimizer": "adamw", "clients": 3, "sampled_clients": 3}
    return small.images("ho_sfl", **settings | changes)


def machine(**changes: Any) -> Federation:
    return small.built(config(**changes)).federation


@dataclass
class Faulty:
    """A carrier between the engine and real sockets, with what a network and its clients may do."""

    inner: Sockets
    absent: set[int] = field(default_factory=set)
    change: Change = lambda number, question, reply: reply
    asked: list[tuple[int, str]] = field(default_factory=list)

    def reachable(self) -> set[int]:
        return self.inner.reachable() - self.absent

    def is_there(self, client: int) -> bool:
        return client not in self.absent

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        there = {number: question for number, question in questions.items() if number not in self.absent}
        self.asked += [(number, question.header) for number, question in there.items()]
        for number in questions.keys() - there.keys():
            yield number, "no reply came"
        for number, reply in self.inner.ask(there, seconds, longest):
            yield number, reply if isinstance(reply, PeerError) else self.change(number, questions[number], reply)


@dataclass
class World:
    """A server, its clients, and what happened to them."""

    server: Federation
    carrier: Faulty
    deployment: RemoteServer
    events: list[dict[str, Any]]

    def run(self, rounds: int, *, first: int = 0, steps: int = 1) -> list[float]:
        return [
            self.deployment.run_round(Round(number, steps, number * steps), measure_memory=False)
            for number in range(first, first + rounds)
        ]

    def happened(self, kind: str) -> list[Any]:
        return [event.get("client") for event in self.events if event["event"] == kind]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    open_ones: list[Sockets] = []

    def make(
        *,
        min_cohort: int | None = 1,
        patience: float = 60.0,
        absent: set[int] | None = None,
        alter: Callable[[int, ClientSide], None] = lambda number, side: None,
        **changes: Any,
    ) -> World:
        def client(number: int) -> ClientSide:
            side = machine(**changes).client(number)
            alter(number, side)
            return side

        server = machine(**changes)
        sockets = Sockets(client, server.server.sampling.clients, tmp_path / "clients")
        open_ones.append(sockets)
        carrier, events, lock = Faulty(sockets, absent or set()), [], threading.Lock()

        def take(event: dict[str, Any]) -> None:
            with lock:
                events.append(event)

        deployment = deployed(server, carrier, Terms(60.0, min_cohort, patience), take)
        return World(server, carrier, deployment, events)

    yield make
    for sockets in open_ones:
        sockets.close()


def assert_same(one: Federation, other: Federation) -> None:
    for simulation in (one, other):
        simulation.server.party.agreed.settle()
    assert len(one.server.party.agreed.rows) == len(other.server.party.agreed.rows)
    assert all(
        torch.equal(a, b) for a, b in zip(one.server.party.agreed.rows, other.server.party.agreed.rows, strict=True)
    )
    for simulation in (one, other):
        simulation.server.agreed_bottom()
    mine, theirs = (s.state()[0] for s in (one, other))
    names = [name for name in mine if name.startswith(("bottom", "top"))]
    assert names
    assert [name for name in names if not torch.equal(mine[name], theirs[name])] == []


def test_a_client_that_never_comes_is_not_in_the_mean(make_world: Callable[..., World]) -> None:
    world = make_world(absent={1}, min_cohort=2)
    world.run(3, steps=2)
    expected = among(machine(), lambda _: [0, 2])
    small.run(expected, 3, steps=2)
    assert_same(world.server, expected)


def test_who_comes_late_without_the_weights_gets_those_of_the_beginning(make_world: Callable[..., World]) -> None:
    """In the U-shape they are a part of what the server has trained since."""

    def cohorts(number: int) -> list[int]:
        return [0] if number < 2 else [0, 1]

    def alter(number: int, side: ClientSide) -> None:
        for tensor in side.held().values():
            tensor += number  # of client 1 all are others

    changes: dict[str, Any] = {"clients": 2, "sampled_clients": 2, "model__head": 0}
    world = make_world(absent={1}, min_cohort=None, alter=alter, **changes)
    among(world.server, cohorts)
    head = world.server.server.party.top.head or {}
    before = {name: parameter.detach().clone() for name, parameter in head.items()}
    world.run(2)
    assert any(not torch.equal(before[name], parameter) for name, parameter in head.items())
    world.carrier.absent.clear()
    world.run(2, first=2)
    assert world.happened("was sent weights") == [1]
    expected = among(machine(**changes), cohorts)
    small.run(expected, 4)
    assert_same(world.server, expected)


def test_an_empty_seat_that_is_sampled_is_taken_by_a_client_that_is_there(make_world: Callable[..., World]) -> None:
    """Otherwise a run with seats to spare would wait for nobody."""
    world = make_world(absent={2}, min_cohort=2, clients=3, sampled_clients=2)
    world.run(6)
    sampled = [machine(clients=3, sampled_clients=2).server.cohort(number) for number in range(6)]
    assert any(2 in cohort for cohort in sampled)
    expected = among(machine(clients=3, sampled_clients=2), lambda _: [0, 1])
    small.run(expected, 6)
    assert_same(world.server, expected)


def test_a_client_that_is_late_for_the_slopes_is_not_in_their_mean(make_world: Callable[..., World]) -> None:
    """It was in the mean of the top's gradient, and is not in that of the slopes: each has the scale of those in it."""
    world = make_world(min_cohort=2)
    means = []

    def late(number: int, question: Frame, reply: Frame) -> Frame | str:
        if reply.body and isinstance(message := unpack(reply.body), Slopes):
            if number == 1 and message.step == 1:
                return "it needs longer"
            means.append((message.step, message.values))
        return reply

    world.carrier.change = late
    world.run(3)
    assert world.happened("dropped") == [1]
    for step, row in enumerate(world.server.server.party.agreed.rows):
        rows = torch.stack([values for at, values in means if at == step])
        assert step != 1 or len(rows) == 2
        assert torch.equal(row, rows.double().mean(dim=0).float())
    assert sorted(world.happened("joined")) == [0, 1, 2]


def test_who_was_away_catches_up_bit_for_bit_and_pays_for_the_rows(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    """110 steps: at most 110 · (8P + 16) bytes."""
    world = make_world(absent={1}, min_cohort=1, steps=160, batch_size=2)
    world.run(11, steps=10)
    before = _history_bytes(world.server)
    world.carrier.absent.clear()
    wait_until_back(world, 1, first=110)
    catch_up = _history_bytes(world.server) - before
    assert catch_up <= 110 * (8 * P + 16)
    assert catch_up >= 110 * 4 * P
    world.deployment.state()
    server = world.server
    server.server.agreed_bottom()
    for client in range(3):
        found = checkpoint.load(tmp_path / "clients" / str(client))
        assert found is not None
        assert found[2]["position"] == len(server.server.party.agreed.rows)
        for name, parameter in server.server.party.agreed.replica.parameters.items():
            assert torch.equal(found[1][f"theta.{name}"], parameter)


def wait_until_back(world: World, client: int, *, first: int) -> None:
    """Rounds of one step until a client takes part again."""
    for number in range(first, first + 49):
        world.deployment.run_round(Round(number, 1, number), measure_memory=False)
        if client in world.happened("joined") + world.happened("returned"):
            world.deployment.run_round(Round(number + 1, 1, number + 1), measure_memory=False)
            return
    raise AssertionError(f"client {client} did not come back: {world.events}")


def _history_bytes(server: Federation) -> int:
    return sum(server.server.ledger.bytes_by_kind["down"].get("History", {}).values())


BY_SIGNS = {"algorithm__exact_blocks": "all", "algorithm__directions": 0, "model__cut": 2, "bottom__lr": 1e-3}
BY_SIGNS |= {"codecs__slopes_up": ["sign"], "codecs__slopes_down": ["sign"]}


@pytest.mark.parametrize("changes", [{}, BY_SIGNS], ids=["slopes", "signs-with-feedback"])
def test_a_run_that_goes_back_has_the_bits_of_an_unbroken_one(
    make_world: Callable[..., World], changes: dict[str, Any]
) -> None:
    """Every client is needed; one is silent once in the middle of a round, which is then void.

    What error feedback has kept on either side since the checkpoint belongs to what is then void.
    """
    world = make_world(min_cohort=None, **changes)
    world.run(2, steps=2)
    kept = world.deployment.state()
    kept = ({name: tensor.clone() for name, tensor in kept[0].items()}, kept[1])
    silent = [2]  # once

    def change(number: int, question: Frame, reply: Frame) -> Frame | str:
        if number in silent and '"round":3' in question.header and '"say"' in question.header:
            silent.remove(number)
            return "gone"
        return reply

    world.carrier.change = change
    with pytest.raises(CohortLost, match="client 2: gone"):
        world.run(2, first=2, steps=2)
    world.deployment.load_state(*kept)
    world.run(3, first=2, steps=2)
    expected = machine(**changes)
    small.run(expected, 5, steps=2)
    assert_same(world.server, expected)
    assert world.happened("returned") == [2]


def test_who_left_between_two_rounds_is_waited_for_and_not_asked(make_world: Callable[..., World]) -> None:
    """No round is lost where no client may be missing: client 2 has done nothing since its state was written down."""
    world = make_world(min_cohort=None)
    world.run(1)
    world.deployment.state()
    world.carrier.absent = {2}
    asked, back = len(world.carrier.asked), threading.Timer(0.3, world.carrier.absent.clear)
    back.start()
    world.run(1, first=1)
    back.join()
    assert world.happened("dropped") == [2]
    assert world.happened("returned") == [2]
    assert (
        read_question(next(header for number, header in world.carrier.asked[asked:] if number == 2)).kind == "prepare"
    )
    expected = machine()
    small.run(expected, 2)
    assert_same(world.server, expected)


def test_who_left_with_what_it_remembers_is_asked_all_the_same(make_world: Callable[..., World]) -> None:
    """It may be back as another process, without what it did since the last checkpoint: the run has to go back."""
    world = make_world(min_cohort=None)
    world.run(1)
    world.carrier.absent = {2}
    with pytest.raises(CohortLost, match="round 1: client 2: no reply came"):
        world.run(1, first=1)


def test_who_left_does_not_stand_in_for_one_who_is_missing(make_world: Callable[..., World]) -> None:
    world = make_world(min_cohort=2, clients=4, sampled_clients=2)
    among(world.server, lambda _: [0, 1])
    number = 0
    while len(world.happened("joined")) < 4:
        world.run(1, first=number)
        number += 1
    world.carrier.absent, asked = {1, 2}, len(world.carrier.asked)
    world.run(1, first=number)
    assert world.happened("dropped") == [1]
    assert {client for client, _ in world.carrier.asked[asked:]} == {0, 3}


def test_a_client_that_sends_rubbish_is_expelled_and_the_others_go_on(make_world: Callable[..., World]) -> None:
    world = make_world(min_cohort=1)
    world.carrier.change = lambda n, _, reply: Frame(reply.header, b"HB rubbish") if n == 0 and reply.body else reply
    world.run(3)
    assert world.happened("expelled") == [0]
    expected = among(machine(), lambda _: [1, 2])
    small.run(expected, 3)
    assert_same(world.server, expected)


@pytest.mark.parametrize("header", ["", "{}", '{"kind":"done"}', "[" * 10_000, '{"kind":"said","lineage":"x"}'])
def test_a_client_with_a_header_that_says_nothing_is_expelled(make_world: Callable[..., World], header: str) -> None:
    world = make_world(min_cohort=1, clients=2, sampled_clients=2)
    world.carrier.change = lambda n, q, reply: Frame(header) if n == 0 and '"open"' in q.header else reply
    world.run(1)
    assert world.happened("expelled") == [0]
    assert len(world.server.server.party.agreed.rows) == 1


def test_numbers_that_are_not_finite_void_the_round_and_expel_who_sent_them(make_world: Callable[..., World]) -> None:
    world = make_world(min_cohort=1)

    def poison(number: int, question: Frame, reply: Frame) -> Frame:
        if number == 1 and reply.body and isinstance(message := unpack(reply.body), Slopes):
            return Frame(reply.header, pack(Slopes(message.step, message.values * float("nan"))).data)
        return reply

    world.carrier.change = poison
    kept = world.deployment.state()
    with pytest.raises(CohortLost, match=r"Slopes.values of client 1 are not finite"):
        world.run(1)
    world.deployment.load_state(*kept)
    world.run(3)
    expected = among(machine(), lambda _: [0, 2])
    small.run(expected, 3)
    assert_same(world.server, expected)


def test_a_run_stops_with_a_name_where_too_few_come(make_world: Callable[..., World]) -> None:
    world = make_world(absent={2}, min_cohort=None, patience=1.0)
    with pytest.raises(
        UserError, match=r"round 0 needs 3 of the clients \[0, 1, 2\] and waited 1 s .*client 2: not conn"
    ):
        world.run(1)


def test_a_run_stops_with_the_reason_where_who_is_needed_is_expelled(make_world: Callable[..., World]) -> None:
    world = make_world(min_cohort=None)
    world.carrier.change = lambda n, _, reply: Frame(reply.header, b"") if n == 0 and reply.body else reply
    with pytest.raises(CohortLost, match="client 0"):
        world.run(1)
    with pytest.raises(PeerError, match="round 0 needs 3 clients, and one is expelled: client 0: header"):
        world.run(1)


def test_a_client_that_cannot_write_its_state_stops_a_run_that_needs_it(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world(min_cohort=None)
    world.run(1)
    for folder in (tmp_path / "clients" / "1", tmp_path / "clients"):
        folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "clients" / "1").rmdir()
    (tmp_path / "clients" / "1").write_text("a file stands where the folder should be")
    with pytest.raises(UserError, match="client 1: checkpoint of round 1"):
        world.deployment.state()


def test_a_client_that_replies_nonsense_when_states_are_written_is_dropped(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.run(1)
    world.carrier.change = lambda n, _, reply: Frame("{}") if n == 1 else reply
    world.deployment.state()
    assert world.happened("dropped") == [1]


# What comes twice, late or out of turn.


@pytest.fixture
def client(tmp_path: Path) -> RemoteClient:
    return RemoteClient(machine().client(0), tmp_path)


def opening(round: int, lineage: str = LINEAGE, **changes: Any) -> Open:
    values = {"ancestry": (), "first": round, "steps": 1, "cursor": 0, "measure": False}
    return Open(lineage=lineage, round=round, **values | changes)


def test_a_message_that_comes_twice_or_late_changes_nothing(client: RemoteClient) -> None:
    server = machine().server
    first = client.reply(opening(0), b"")
    join = server.hear(0, first.body)
    history = server.say(0, server.answers({0: join})[0])
    say = Say(lineage=LINEAGE, round=0, exchange=0)
    activations = client.reply(say, history)
    assert read_reply(activations.header).kind == "said"
    for late in (say, Say(lineage=LINEAGE, round=0, exchange=5), Say(lineage="f" * 16, round=0, exchange=1)):
        reply = read_reply(client.reply(late, history).header)
        assert (reply.kind, getattr(reply, "why", "")) == ("refused", "stale")
    gradient = server.say(0, server.answers({0: server.hear(0, activations.body)})[0])
    slopes = client.reply(Say(lineage=LINEAGE, round=0, exchange=1), gradient)
    assert isinstance(unpack(slopes.body), Slopes)
    assert read_reply(client.reply(Save(lineage="f" * 16, rounds=1), b"").header).kind == "refused"


def test_the_server_may_send_anything(client: RemoteClient) -> None:
    client.reply(opening(0), b"")
    reply = read_reply(client.reply(Say(lineage=LINEAGE, round=0, exchange=0), b"rubbish").header)
    assert reply.kind == "refused"
    assert getattr(reply, "error", "").startswith("server: ")
    assert read_reply(client.reply(opening(1), b"").header).kind == "said"


def test_a_new_process_finds_the_state_that_lies_on_the_servers_way(tmp_path: Path) -> None:
    """Of three states on disk, only that of an earlier round than the step back counts."""
    before, again, other = (machine().client(0) for _ in range(3))
    client = RemoteClient(before, tmp_path)
    client.reply(opening(0), b"")
    for rounds in (3, 4):
        before.party.theta.position = rounds
        assert read_reply(client.reply(Save(lineage=LINEAGE, rounds=rounds), b"").header).kind == "saved"
    values = [checkpoint.load(tmp_path, number) for number in checkpoint.rounds(tmp_path)]
    assert [(found[2]["lineage"], found[2]["rounds"]) for found in values if found] == [(LINEAGE, 3), (LINEAGE, 4)]
    client, ancestry = RemoteClient(again, tmp_path), ({"lineage": LINEAGE, "rounds": 3},)
    client.reply(opening(3, lineage="b" * 16, ancestry=ancestry), b"")
    assert again.party.theta.position == 3
    again.party.theta.position = 5
    client.reply(opening(4, lineage="b" * 16, ancestry=ancestry), b"")
    assert again.party.theta.position == 5  # what is in memory lies on the way
    client = RemoteClient(other, tmp_path)
    other.party.theta.position = 5
    client.reply(opening(9, lineage="c" * 16), b"")
    assert other.party.theta.position == 0  # of another way: it begins anew


def test_a_question_has_the_same_text_wherever_it_is_read() -> None:
    question = opening(2, ancestry=({"lineage": LINEAGE, "rounds": 1},))
    assert frame(question) == frame(Open.model_validate_json(frame(question).header))


def test_more_steps_than_a_round_of_the_recipe_has(tmp_path: Path) -> None:
    """A method that takes its steps by itself would take them all before it says a word."""
    client = RemoteClient(machine().client(0), tmp_path, most_steps=2)
    order = opening(0, steps=1 << 60, measure=True)
    reply = read_reply(client.reply(order, b"").header)
    assert getattr(reply, "error", "") == f"server: Open.steps: {1 << 60} came, up to 2 are allowed"
    assert read_reply(client.reply(opening(0, steps=2), b"").header).kind == "said"
