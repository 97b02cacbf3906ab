"""Who sits where: a gateway has several clients of a run, and none of another site's, whatever it claims."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from nvflare.collab import CollabCallError

from halfback.deploy.flare import FlareCarrier, seats_of
from halfback.deploy.seats import Place, seated
from halfback.deploy.serving import Serving
from halfback.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seats.json"


def test_seats_go_round_so_that_who_claims_many_takes_no_other_sites(path: Path) -> None:
    seats = seated(path, {"a": 10_000, "b": 1, "c": 2}, 6)
    assert seats.given == {"a": [0, 3, 5], "b": [1], "c": [2, 4]}
    assert seats.here[5] == Place("a", 2)
    assert (seats.free, seats.alone, seats.known) == (0, {1}, ["a", "b", "c"])
    assert json.loads(path.read_text()) == seats.given


def test_who_had_a_seat_keeps_it_and_new_places_come_behind(path: Path) -> None:
    first = seated(path, {"a": 2, "b": 1}, 8)
    assert (first.given, first.free) == ({"a": [0, 2], "b": [1]}, 5)
    later = seated(path, {"c": 1, "a": 3}, 8)
    assert later.given == {"a": [0, 2, 3], "b": [1], "c": [4]}
    assert later.here == {0: Place("a", 0), 2: Place("a", 1), 3: Place("a", 2), 4: Place("c", 0)}
    fewer = seated(path, {"a": 1, "b": 1}, 8)
    assert fewer.given == later.given
    assert fewer.here == {0: Place("a", 0), 1: Place("b", 0)}


def test_one_site_a_client_sits_as_before(path: Path) -> None:
    assert seated(path, {"site-2": 1, "site-1": 1, "site-3": 1}, 2).given == {"site-1": [0], "site-2": [1]}


@pytest.mark.parametrize(
    "said", [[], {"a": 0}, {"a": [0, 0]}, {"a": [9]}, {"a": ["0"]}, {"a": []}, {"a": [0], "b": [0]}]
)
def test_a_file_that_gives_a_seat_twice_or_none_is_one_line(path: Path, said: Any) -> None:
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"must give each site clients of its own, 0 to 8, not"):
        seated(path, {"a": 1}, 9)


class Site:
    """What a server sees of a site: whatever it says of who is there."""

    def __init__(self, said: Any) -> None:
        self.said = said
        self.asked = 0

    def __call__(self, timeout: float) -> "Site":
        return self

    def present(self) -> Any:
        self.asked += 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.mark.parametrize(
    "said",
    [
        None,
        "x",
        [2],
        [0, [], {}],
        [-1, [], {}],
        [True, [0], {}],
        [10_001, [], {}],
        [2, [2], {}],
        [2, [-1], {}],
        [2, ["0"], {}],
        [2, [True], {}],
        [2, [0, 1, 0], {}],
        [2, 7, {}],
        [2, [0]],
        [2, [0], {}, 0],
        [2, [0], 0],
        [2, [0], {"late_total": "1"}],
        [2, [0], {"late_total": float("nan")}],
        [2, [0], {"n" * 101: 1.0}],
        [2, [0], {str(number): 1.0 for number in range(101)}],
        CollabCallError("site", "present", "timed out"),
    ],
)
def test_a_site_that_says_what_can_not_be_is_not_there(said: Any) -> None:
    sites = {"odd": Site(said), "good": Site([3, [0, 2], {"devices": 2.0}])}
    assert seats_of(sites) == {"odd": 1, "good": 3}
    carrier = FlareCarrier(sites, {0: Place("odd", 0), 1: Place("good", 0), 2: Place("good", 1), 3: Place("good", 2)})
    assert carrier.reachable() == {1, 3}
    assert carrier.counts() == {"good": {"devices": 2.0}}
    assert [carrier.is_there(number) for number in range(4)] == [False, True, False, True]


def test_a_gateway_that_does_not_reply_is_away_and_one_without_devices_is_not(tmp_path: Path) -> None:
    """Whoever follows the run starts the job anew for the first: a site that was away can't enter one that runs."""
    sites = {"cut-off": Site([2, [0, 1], {}]), "empty": Site([2, [0], {}]), "alone": Site([1, [0], {}])}
    serving = Serving(tmp_path, {"cut-off": 2, "empty": 2, "alone": 1}, 5)
    carrier = FlareCarrier(sites, serving.seats.here)
    serving.silent = carrier.silent
    assert carrier.reachable() == set(range(5)) - {serving.seats.given["empty"][1]}
    assert serving.reply({})["away"] == []
    sites["cut-off"].said = CollabCallError("site", "present", "timed out")
    sites["empty"].said = [2, [], {}]
    for number in range(5):
        carrier.is_there(number)
    for number in serving.seats.given["empty"] + serving.seats.given["cut-off"]:
        serving.event({"event": "dropped", "client": number, "why": "no reply came"})
    assert serving.reply({})["away"] == ["cut-off"]
    sites["cut-off"].said = [2, [0, 1], {}]  # it was slow, and is here again
    carrier.is_there(serving.seats.given["cut-off"][0])
    assert serving.reply({})["away"] == []


def test_what_a_site_said_first_does_not_take_the_place_of_what_it_said_later() -> None:
    """A look that was slow tells of a moment before the one of a look that has ended by then."""
    held, begun = threading.Event(), threading.Event()

    class Slow(Site):
        def present(self) -> Any:
            said = super().present()
            if self.asked == 2:
                begun.set()
                held.wait(10)
            return said

    site = Slow([1, [], {}])
    carrier = FlareCarrier({"slow": site}, {0: Place("slow", 0)})
    assert carrier.reachable() == set()
    first = threading.Thread(target=carrier.is_there, args=(0,))
    first.start()
    assert begun.wait(10)
    site.said = [1, [0], {}]
    assert carrier.is_there(0)
    held.set()
    first.join()
    assert carrier.reachable() == {0}


def test_who_is_there_is_looked_up_once_a_second_and_a_silent_site_holds_up_no_other() -> None:
    held = threading.Event()

    class Silent(Site):
        def present(self) -> Any:
            if self.asked:
                held.wait(10)
            return super().present()

    quick, silent = Site([1, [0], {}]), Silent([1, [0], {}])
    carrier = FlareCarrier({"quick": quick, "silent": silent}, {0: Place("quick", 0), 1: Place("silent", 0)})
    assert carrier.reachable() == {0, 1}
    begun = time.monotonic()
    for _ in range(1000):
        carrier.reachable()
    assert time.monotonic() - begun < 0.9
    assert quick.asked == 1
    quick.said = [1, [], {}]
    time.sleep(1.1)
    while 0 in carrier.reachable():
        assert time.monotonic() - begun < 5
        time.sleep(0.01)
    assert carrier.reachable() == {1}  # as it said last
    held.set()
