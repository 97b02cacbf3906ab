"""A gateway beside peers that say anything at all: it lives, counts them, and an honest device is served as before."""

import asyncio
import json
import logging
import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra nvflare is not installed")

from websockets.exceptions import ConnectionClosed

from halfback.deploy.door import Pace
from halfback.deploy.relay import WorkerLost
from halfback.engine.remote.frames import Frame, Longest
from halfback.errors import PeerError
from tests.deploy.gateway_fuzz import Made, fuzzed, open_files, resident, settled
from tests.deploy.gateways import Place, heard, plain_package, plain_page, said

SEED = 19
LONGEST = Longest(1 << 16, 1 << 14)
READY = '{"kind":"ready","fits":true,"takes":100000,"rows":1}'


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A gateway without limits on how often somebody may come, which have tests of their own."""
    page = plain_page(tmp_path / "dist")
    made = Place(tmp_path / "site", plain_package(tmp_path / "package"), page=page)
    gateway = made.gateway
    gateway._joins, gateway._wrong, gateway._door._pace, gateway._door._strangers = (Pace(1e9, 1e9) for _ in range(4))
    assert gateway._page is not None
    gateway._page._pace, gateway._page._strangers = Pace(1e12, 1e12), Pace(1e12, 1e12)
    yield made
    gateway.close()


@pytest.fixture
def faults(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What went wrong inside, whoever says so: we, the event loop, the library of WebSocket, a thread or an object."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # The library's word for a handshake of a stranger's that was none.
            if record.getMessage() != "opening handshake failed":
                found.append(self.format(record))

    for name in ("", "halfback.deploy.gateway.websockets"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, Kept(logging.ERROR)])
    logging.getLogger("halfback.deploy.gateway.websockets").setLevel(logging.ERROR)
    monkeypatch.setattr(threading, "excepthook", lambda given: found.append(repr(given)))
    monkeypatch.setattr("sys.unraisablehook", lambda given: found.append(repr(given)))
    return found


class Honest(threading.Thread):
    """A device that says each question back, and is asked all the time; what came back is looked at."""

    def __init__(self, place: Place, token: str, seat: int) -> None:
        super().__init__(daemon=True)
        self.place, self.seat, self.over, self.right = place, seat, threading.Event(), 0
        self.line = place.at_work(token)
        threading.Thread(target=self._echo, daemon=True).start()
        assert settled(lambda: seat in place.gateway.present())
        assert place.gateway.exchange(seat, Frame('{"kind":"prepare"}'), 10.0, LONGEST).header == READY

    def _echo(self) -> None:
        with suppress(ConnectionClosed, TimeoutError):
            while True:
                header, body = heard(self.line, 60.0)
                said(self.line, READY if header["kind"] == "prepare" else json.dumps(header), body)

    def says(self, body: bytes) -> None:
        """Asks it to say this, which it does."""
        asked = Frame(json.dumps({"kind": "say"}), body)
        assert self.place.gateway.exchange(self.seat, asked, 10.0, LONGEST) == asked

    def run(self) -> None:
        dice = random.Random(self.seat)
        while not self.over.is_set():
            body = dice.randbytes(dice.randrange(5000))
            self.says(body)
            self.right += 1
            time.sleep(0.05)


class Asking(threading.Thread):
    """Asks whichever of the fuzzer's places are at work, whose replies are wrong."""

    def __init__(self, place: Place, faults: list[str]) -> None:
        super().__init__(daemon=True)
        self.place, self.faults, self.over, self.asked = place, faults, threading.Event(), 0

    def run(self) -> None:
        with ThreadPoolExecutor(4) as threads:
            while not self.over.wait(0.01):
                list(threads.map(self._ask, [seat for seat in self.place.gateway.present() if seat != 0]))

    def _ask(self, seat: int) -> None:
        try:
            self.place.gateway.exchange(seat, Frame('{"kind":"prepare"}'), 2.0, LONGEST)
            self.asked += 1
        except (WorkerLost, PeerError):
            self.asked += 1
        except BaseException as error:
            self.faults.append(repr(error))


def held(place: Place, faults: list[str], fuzzing: Callable[[list[str]], list[Made]]) -> None:
    """What must hold while somebody fuzzes, with these tokens, and behind it."""
    tokens, gateway = [place.token() for _ in range(place.seats)], place.gateway
    honest, asking = Honest(place, tokens.pop(0), 0), Asking(place, faults)
    honest.start()
    asking.start()
    fuzzed(gateway.port, SEED - 1, tokens, 100, 300)  # until it is warm
    assert settled(lambda: not gateway._door._waiting and list(gateway._seated) == [0])
    memory, files, before = resident(), open_files(), gateway.counts()
    fuzzes = fuzzing(tokens)
    made, codes = (sum(found, Counter()) for found in zip(*((one.made, one.codes) for one in fuzzes), strict=True))
    more = (resident() - memory) / 1e6
    print(f"seed {SEED}: {dict(made)}; it closed with {dict(codes)}; {honest.right} right replies and {asking.asked}")
    print(f"questions to fuzzers meanwhile; {more:.1f} MB more than before; {gateway.counts()}")
    for thread in (honest, asking):
        thread.over.set()
        thread.join(15)
    honest.says(b"still")
    assert not faults
    assert not {500, 1011} & set(codes)  # faults of the gateway's own; others may be the fuzzer's own, said back
    assert {200, 404, 405, 1002, 1008, 1009} <= set(codes)
    assert min(honest.right, asking.asked) > 10
    assert more < 64
    assert settled(lambda: list(gateway._seated) == [0])
    assert settled(lambda: not gateway._door._waiting)
    assert settled(lambda: open_files() <= files + 5)
    assert _in_or_refused(gateway.counts()) - _in_or_refused(before) == sum(one.connections for one in fuzzes)
    assert asyncio.run_coroutine_threadsafe(_tasks(), gateway._loop).result(5) < 10
    honest.line.close()


def _in_or_refused(counts: dict[str, float]) -> float:
    return sum(
        count for name, count in counts.items() if name.startswith(("joined_total", "refused_total", "page_total"))
    )


async def _tasks() -> int:
    return len(asyncio.all_tasks())


def test_whatever_comes_a_gateway_goes_on(place: Place, faults: list[str]) -> None:
    held(place, faults, lambda tokens: [fuzzed(place.gateway.port, SEED, tokens, 400, 1600)])


@pytest.mark.slow
def test_whatever_comes_a_gateway_goes_on_for_long(place: Place, faults: list[str]) -> None:
    """From four processes, each with a place of its own to begin with."""

    def fuzzing(tokens: list[str]) -> list[Made]:
        with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as processes:
            given = [(place.gateway.port, SEED + number, tokens, 15_000, 36_000) for number in range(4)]
            return [one.result() for one in [processes.submit(fuzzed, *each) for each in given]]

    held(place, faults, fuzzing)
