"""A gateway beside peers that say anything at all: it lives, counts them, and an honest device is served as before."""

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra nvflare is not installed")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from halfback.deploy.door import Pace
from halfback.deploy.relay import WorkerLost
from halfback.engine.remote.frames import Frame, Longest
from halfback.errors import PeerError
from tests.deploy.gateway_fuzz import Fuzz, open_files, resident, settled
from tests.deploy.gateways import Place, heard, plain_package, said

SEED = 19
LONGEST = Longest(1 << 16, 1 << 14)
READY = '{"kind":"ready","fits":true,"takes":100000,"rows":1}'
CLOSED = {1000, 1002, 1003, 1007, 1008, 1009, 4001}  # never 1011, which is a fault of the gateway's own
STATUS = {101, 400, 401, 404, 405, 414, 426, 431, 505}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A gateway without limits on how often somebody may come, which have tests of their own."""
    made = Place(tmp_path / "site", plain_package(tmp_path / "package"))
    gateway = made.gateway
    gateway._joins, gateway._wrong, gateway._door._pace = (Pace(1e9, 1e9) for _ in range(3))
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
            time.sleep(0.01)


def fuzzed(place: Place, faults: list[str], handshakes: int, messages: int) -> None:
    """So many of each, and what must hold behind them."""
    tokens = [place.token() for _ in range(place.seats)]
    honest = Honest(place, tokens.pop(0), 0)
    honest.start()
    fuzz, gateway = Fuzz(place, SEED, tokens), place.gateway
    threads = ThreadPoolExecutor(1)

    def ask() -> None:
        """A question to whichever of the fuzzer's places is at work, whose reply will be wrong."""
        places = [seat for seat in gateway.present() if seat != 0]
        if places:
            threads.submit(asked, places[0])

    def asked(seat: int) -> None:
        try:
            assert isinstance(gateway.exchange(seat, Frame('{"kind":"prepare"}'), 2.0, LONGEST), Frame)
        except (WorkerLost, PeerError):
            pass
        except BaseException as error:
            faults.append(repr(error))

    files = memory = 0
    while fuzz.made["messages"] < messages or sum(fuzz.made.values()) - fuzz.made["messages"] < handshakes:
        if sum(fuzz.made.values()) - fuzz.made["messages"] < handshakes:
            fuzz.handshake()
        if fuzz.made["messages"] < messages:
            fuzz.visit(ask if fuzz.dice.random() < 0.3 else None)
        if not memory and sum(fuzz.made.values()) > (handshakes + messages) / 5:  # it is warm
            memory, files = resident(), open_files()
    threads.shutdown()
    honest.over.set()
    honest.join(15)
    print(f"seed {SEED}: {dict(fuzz.made)}; closed with {dict(fuzz.codes)}; {honest.right} right replies meanwhile")
    assert not faults
    assert honest.right > 10
    honest.says(b"still")
    assert set(fuzz.codes) <= CLOSED | STATUS
    assert settled(lambda: list(gateway._seated) == [0])
    assert settled(lambda: not gateway._door._waiting)
    assert settled(lambda: open_files() <= files + 5)
    counted = gateway.counts()
    refused = sum(count for name, count in counted.items() if name.startswith("refused_total"))
    assert counted["joined_total"] + refused == fuzz.connections + 1  # the honest one's
    tasks = asyncio.run_coroutine_threadsafe(_tasks(), gateway._loop)
    assert tasks.result(5) < 10
    print(f"{(resident() - memory) / 1e6:.1f} MB more than behind the first fifth")
    assert resident() - memory < 64 << 20
    honest.line.close()


async def _tasks() -> int:
    return len(asyncio.all_tasks())


def test_whatever_comes_a_gateway_goes_on(place: Place, faults: list[str]) -> None:
    fuzzed(place, faults, 500, 2000)


@pytest.mark.slow
def test_whatever_comes_a_gateway_goes_on_for_long(place: Place, faults: list[str]) -> None:
    fuzzed(place, faults, 60_000, 140_000)
