"""Who takes part: a sample of those who are there, the fastest of those who are asked, and the same once more."""

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from halfback.controllers.fixed import Fixed
from halfback.controllers.protocol import Observation
from halfback.engine import attendance
from halfback.engine.attendance import Attended
from halfback.engine.federation import Federation
from halfback.engine.remote.frames import Frame, Longest
from halfback.engine.remote.paces import Paces
from halfback.engine.remote.presence import Came, Terms
from halfback.engine.remote.server import RemoteServer
from halfback.errors import UserError
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback.testing.remote import Sockets, deployed
from halfback.wire.messages import Slopes
from halfback.wire.packing import unpack


def machine(**changes: Any) -> Federation:
    given = {"algorithm__directions": 2, "bottom__optimizer": "adamw", "batch_size": 4}
    return small.built(small.images("ho_sfl", **given | {"clients": 5, "sampled_clients": 2} | changes)).federation


class Uneven(Sockets):
    """Sockets to clients of which some reply behind the others, and some say nothing to some questions."""

    slow: frozenset[int] = frozenset()
    mute: Callable[[int, Frame, Frame], bool] = staticmethod(lambda number, question, reply: False)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._owed: set[int] = set()  # have not replied when nobody listened any more

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Came], None, None]:
        for number in self._owed & questions.keys():
            self._owed.discard(number)
            self._reply(number, longest)
        in_order = {n: questions[n] for n in sorted(questions, key=lambda n: (n in self.slow, n))}
        waiting = list(in_order)
        try:
            for number, came in super().ask(in_order, seconds, longest):
                waiting.remove(number)
                is_mute = isinstance(came, Frame) and self.mute(number, questions[number], came)
                yield number, "it says nothing" if is_mute else came
        finally:
            self._owed |= {*waiting}


def ran(
    folder: Path, terms: Terms, rounds: int, *, slow: set[int] | None = None, mute: Any = None, **changes: Any
) -> tuple[Federation, list[dict[str, Any]]]:
    """A server after so many rounds with such clients, and what happened."""
    server, events = machine(**changes), list[dict[str, Any]]()
    carrier = Uneven(lambda n: machine(**changes).client(n), server.server.sampling.clients, folder)
    carrier.slow = frozenset(slow or ())
    if mute is not None:
        carrier.mute = mute
    try:
        deployment = deployed(server, carrier, terms, events.append)
        for number in range(rounds):
            until = time.monotonic() + 60
            while number and len(deployment._presence.ready) < server.server.sampling.clients:  # who was left is back
                assert time.monotonic() < until
                deployment._presence._look_around()
                time.sleep(0.01)
            deployment.run_round(Round(number, 1, number), measure_memory=False)
    finally:
        carrier.close()
    return server, events


def attended(events: list[dict[str, Any]]) -> list[Attended]:
    told = [event for event in events if event["event"] == "took part"]
    return [Attended(event["round"], tuple(event["cohort"]), event["left"]) for event in told]


def repeated(rounds: list[Attended], **changes: Any) -> Federation:
    """The same in one process."""
    federation = machine(**changes)
    federation.attendance = dict(enumerate(rounds))
    small.run(federation, len(rounds))
    return federation


def assert_same(one: Federation, other: Federation) -> None:
    for federation in (one, other):
        federation.server.agreed_bottom()
        federation.server.party.agreed.settle()
    rows, others = (f.server.party.agreed.rows for f in (one, other))
    assert len(rows) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(rows, others, strict=True))
    mine, theirs = (f.state()[0] for f in (one, other))
    names = [name for name in mine if name.startswith(("bottom", "top"))]
    assert names
    assert [name for name in names if not torch.equal(mine[name], theirs[name])] == []


def test_a_cohort_is_a_sample_of_those_who_are_there(tmp_path: Path) -> None:
    """Of four among six, each pair is as likely as the other: χ² with five degrees of freedom, at one in a million."""
    present, rounds = {0, 1, 3, 5}, 3000

    class There(Sockets):
        def reachable(self) -> set[int]:
            return present

    federation = machine(clients=6, sampled_clients=2)
    carrier = There(lambda _: machine().client(0), 6, tmp_path)  # which nobody asks anything
    deployment = deployed(federation, carrier, Terms(60.0, 1, 60.0), lambda _: None)
    deployment._presence.ready |= present
    pairs = Counter(tuple(gathered(deployment, number)) for number in range(rounds))
    assert {client for pair in pairs for client in pair} == present
    assert {len(pair) for pair in pairs} == {2}
    assert len(pairs) == 6
    assert sum((count - rounds / 6) ** 2 / (rounds / 6) for count in pairs.values()) < 35.9


def gathered(deployment: RemoteServer, number: int) -> list[int]:
    wanted = deployment._side.cohort(number)
    order = Round(number, 1, number)
    return deployment._presence.gather(number, wanted, lambda ready: deployment._substitutes(order, wanted, ready))


@pytest.mark.parametrize("codecs", [[], ["temporal"]], ids=["plain", "greeting"])
def test_the_slowest_of_those_who_are_asked_is_left_behind_and_is_back(tmp_path: Path, codecs: list[str]) -> None:
    """It says where it stands, as all do, and no work of it is waited for."""
    changes = {"codecs__activations_up": codecs, "clients": 4}
    server, events = ran(tmp_path, Terms(60.0, 1, 60.0, spare=1), 6, slow={1}, **changes)
    rounds, openings = attended(events), 1 + len(codecs)
    assert {len(each.cohort) for each in rounds} == {3}
    with_it = [each for each in rounds if 1 in each.cohort]
    assert len(with_it) > 1
    assert all(dict(each.left) == {1: openings} for each in with_it)
    assert all(list(each.left.values()) == [openings] for each in rounds if each not in with_it)
    assert sorted(event["client"] for event in events if event["event"] == "joined") == [0, 1, 2, 3]
    assert not [event for event in events if event["event"] in ("dropped", "returned")]
    assert_same(server, repeated(rounds, **changes))


@pytest.mark.parametrize("codecs", [[], ["temporal"]], ids=["plain", "greeting"])
def test_a_round_that_a_client_left_in_the_middle_is_repeated_to_the_bit(tmp_path: Path, codecs: list[str]) -> None:
    """It was in the mean of the top's gradient, and is not in that of the slopes."""

    def mute(number: int, question: Frame, reply: Frame) -> bool:
        return number == 1 and bool(reply.body) and isinstance(said := unpack(reply.body), Slopes) and said.step == 2

    changes = {"codecs__activations_up": codecs, "clients": 3, "sampled_clients": 3}
    server, events = ran(tmp_path, Terms(60.0, 1, 60.0), 5, mute=mute, **changes)
    rounds = attended(events)
    assert [dict(each.left) for each in rounds][2] == {1: 2 + len(codecs)}
    assert_same(server, repeated(rounds, **changes))
    whole = machine(**changes)
    small.run(whole, 5)
    assert not torch.equal(whole.server.party.agreed.rows[2], server.server.party.agreed.rows[2])


def test_thresholds_are_steered_by_whoever_took_part(tmp_path: Path) -> None:
    """Client 1 stands in for client 2, which is away, in rounds that sample that one."""

    class Without(Uneven):
        def reachable(self) -> set[int]:
            return {0, 1}

    class Watching(Fixed):
        def observe(self, seen: Observation) -> None:
            found.append(seen)

    found: list[Observation] = []
    changes = {"clients": 3, "sampled_clients": 2, "codecs__activations_up": ["temporal"], "batch_size": 120}
    server = machine(**changes)
    server.server.controller = Watching({"activations_up": 0.5})
    carrier = Without(lambda n: machine(**changes).client(n), 3, tmp_path)
    try:
        deployment = deployed(server, carrier, Terms(60.0, 1, 60.0), lambda _: None)
        for number in range(4):
            order = Round(number, 1, number)
            deployment.run_round(order, measure_memory=False)
            server.server.steer(order, train_loss=1.0, validation_loss=None)
    finally:
        carrier.close()
    rows = sum(len(server.client(n).party.feed.data.batch(0).labels) for n in (0, 1))
    assert [seen.links["activations_up"].compared for seen in found] == [0, rows, rows, rows]


def test_a_client_has_as_long_as_its_own_pace_says() -> None:
    paces = Paces(Terms(100.0, 1, 60.0, pace=3.0))
    assert paces.allowed(0, 7) == 100.0  # it has never replied
    paces.took(0, 7, 2.0)
    paces.took(0, 7, 0.5)
    paces.took(1, 7, 0.01)
    assert paces.allowed(0, 7) == paces.allowed(0, 8) == 6.0
    assert paces.allowed(0, 12) == 30.0  # it has five steps to take first
    assert paces.allowed(0, 1000) == 100.0
    assert paces.allowed(1, 8) == 1.0
    for _ in range(20):
        paces.took(0, 8, 1.0)
    assert paces.allowed(0, 9) == 3.0
    paces.forget(0)
    assert paces.allowed(0, 9) == 100.0
    alike = Paces(Terms(100.0, 1, 60.0))
    alike.took(0, 0, 2.0)
    assert alike.allowed(0, 1) == 100.0


def test_who_took_part_is_kept_in_a_file_up_to_the_round_that_a_run_goes_on_from(tmp_path: Path) -> None:
    path = tmp_path / "cohorts.jsonl"
    rounds = [Attended(0, (0, 2)), Attended(1, (1, 2, 3), {2: 1}), Attended(2, (3,))]
    for each in rounds:
        attendance.add(path, each)
    assert attendance.rounds_of(path, 4) == rounds
    with path.open("a") as file:
        file.write('{"round": 3, "coh')  # a kill
    attendance.keep(path, 3)
    assert attendance.rounds_of(path, 4) == rounds
    attendance.keep(path, 1)
    attendance.add(path, rounds[1])
    assert attendance.rounds_of(path, 4) == rounds[:2]
    assert rounds[1].stay(0) == {1, 2, 3}
    assert rounds[1].stay(1) == rounds[1].stay(2) == {1, 3}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "line 2: line"),
        ("{}", "line 2: round"),
        ('{"round": 2, "cohort": [0]}', "round 1 is due"),
        ('{"round": 1, "cohort": []}', "round 1 is due"),
        ('{"round": 1, "cohort": [4]}', "of clients 0 to 3"),
        ('{"round": 1, "cohort": [-1]}', "of clients 0 to 3"),
        ('{"round": 1, "cohort": [1, 0]}', "in order"),
        ('{"round": 1, "cohort": [1, 1]}', "in order"),
        ('{"round": 1, "cohort": ["x"]}', "line 2: cohort.0"),
        ('{"round": 1, "cohort": [0], "left": {"x": 1}}', "line 2: left"),
        ("[" * 10_000, "line 2"),
    ],
)
def test_a_file_of_cohorts_that_is_none_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "cohorts.jsonl"
    path.write_text(f'{{"round": 0, "cohort": [0, 1]}}\n{line}\n')
    with pytest.raises(UserError, match=said) as caught:
        attendance.rounds_of(path, 4)
    assert len(str(caught.value).splitlines()) == 1
