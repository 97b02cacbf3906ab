"""Who attacks a gateway, and what honest devices have left of their pace meanwhile.

    OMP_NUM_THREADS=1 python benchmarks/gateway_attack.py [--repeats 5] [--seconds 3] [--only NAME…]

Eight honest devices are asked all the time, each of which thinks for 20 ms and replies with 20 kB. The gateway, they
and those who attack have a process each. Each attack is made in turns with peace, so many times; printed are the
medians of pace in the attack over pace in the peace before and behind it, and what the gateway counted. Addresses are
127.0.x.y.
"""

import argparse
import asyncio
import json
import logging
import random
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from gateway_process import Proxy, gateway
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

HONEST, THINKS, BODY, SEATS = 8, 0.02, bytes(20_000), 100
READY = '{"kind":"ready","fits":true,"takes":16777216,"rows":1}'
MANY = 250  # addresses
PING, EMPTY = b"\x89\x80\0\0\0\0", b"\x00\x80\0\0\0\0"  # frames


def packed(header: str, body: bytes = b"") -> bytes:
    """A message."""
    return struct.pack("<I", len(header)) + header.encode() + body


HELLO = packed('{"kind":"hello","protocol":1,"version":"0","package":""}')
AT_WORK = packed('{"kind":"ready"}')


class Attacker:
    """Whoever has some tokens, and a loop."""

    def __init__(self, port: int, authority: Path, tokens: list[str], bad: list[str]) -> None:
        """`tokens` are good; `bad` were once, or never."""
        self.port, self.tokens, self.bad = port, tokens, bad
        self.tls = ssl.create_default_context(cafile=authority)
        self.done = Counter[str]()
        self.kept: list[object] = []

    def _from(self, number: int, many: bool) -> tuple[str, int]:
        return (f"127.0.{1 + number % MANY // 250}.{2 + number % 250}" if many else "127.0.0.1", 0)

    async def always(self, work: Callable[[int], Awaitable[None]], at_once: int) -> None:
        """Does it again and again, so many at a time; whatever comes of it."""

        async def one(number: int) -> None:
            while True:
                try:
                    await work(number)
                except (OSError, TimeoutError, ConnectionClosed, asyncio.IncompleteReadError, EOFError):
                    self.done["closed"] += 1
                    await asyncio.sleep(0.01)
                number += at_once

        await asyncio.gather(*(one(number) for number in range(at_once)))

    async def tcp(self, number: int, many: bool = False) -> None:
        """Connects and says nothing."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=self._from(number, many))
        await _until_closed(reader, writer)

    async def secret(self, number: int, many: bool = False) -> None:
        """Connects, does what TLS asks for, and says nothing."""
        there = {"ssl": self.tls, "server_hostname": "localhost", "local_addr": self._from(number, many)}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **there)
        await _until_closed(reader, writer)

    def _upgraded(self, token: str, address: tuple[str, int] = ("127.0.0.1", 0)) -> connect:
        given = {"additional_headers": {"Authorization": f"Bearer {token}"}, "ping_interval": None, "max_size": None}
        given |= {"ssl": self.tls, "compression": None, "close_timeout": 1, "local_addr": address, "max_queue": 1}
        return connect(f"wss://localhost:{self.port}/halfback/1", host="127.0.0.1", **given)

    async def silent(self, number: int) -> None:
        """Comes in with a good token, and says nothing more."""
        async with self._let_in(self.tokens[number % len(self.tokens)]) as line:
            self.done["in"] += 1
            await line.wait_closed()

    def _let_in(self, token: str) -> connect:
        return _Patient(self._upgraded(token))

    async def slow(self, number: int) -> None:
        """Asks for the package again and again, and reads nothing."""
        async with self._let_in(self.tokens[number % len(self.tokens)]) as line:
            self.done["in"] += 1
            line.transport.pause_reading()
            await line.send(HELLO)
            for _ in range(2000):
                await line.send(packed('{"kind":"piece","file":"manifest.json","offset":0}'))
            await asyncio.sleep(30)

    async def two(self, number: int) -> None:
        """One of two that take each other's place."""
        async with self._let_in(self.tokens[0]) as line:
            self.done["in"] += 1
            await line.send(HELLO)
            await line.wait_closed()

    async def flood(self, number: int, frame: bytes) -> None:
        """Comes in with a good token, and sends this frame as often as it can."""
        there = {"ssl": self.tls, "server_hostname": "localhost"}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **there)
        try:
            writer.write(_request(self.tokens[number % len(self.tokens)]))
            self.done[(await reader.readline())[9:12].decode() or "closed"] += 1
            writer.write(b"\x02\x80\0\0\0\0")  # a message begins
            while not writer.is_closing():
                writer.write(frame * (1 << 14))
                await writer.drain()
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
        finally:
            writer.transport.abort()

    async def wrong(self, number: int, many: bool = False) -> None:
        """Comes with a token that is wrong, was revoked, or was replaced."""
        await self._refused(self.bad[number % len(self.bad)], self._from(number, many))

    async def good(self, number: int) -> None:
        """Comes with a good token, from many addresses, and goes."""
        await self._refused(self.tokens[number % len(self.tokens)], self._from(number, True))

    async def _refused(self, token: str, address: tuple[str, int]) -> None:
        there = {"ssl": self.tls, "server_hostname": "localhost", "local_addr": address}
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **there)
        try:
            writer.write(_request(token))
            self.done[(await reader.readline())[9:12].decode() or "closed"] += 1
        finally:
            writer.transport.abort()

    async def garbage(self, number: int) -> None:
        """Says what is no TLS, from many addresses."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=self._from(number, True))
        try:
            writer.write(b"\x16\x03\x01\x00\xff" + random.randbytes(255))
            await reader.read()
            self.done["said"] += 1
        finally:
            writer.transport.abort()


def _request(token: str) -> bytes:
    return (
        f"GET /halfback/1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )


class _Patient:
    """A connection of the library's, which waits a moment before it raises that it is not let in."""

    def __init__(self, given: connect) -> None:
        self._given = given

    async def __aenter__(self) -> ClientConnection:
        try:
            return await self._given.__aenter__()
        except Exception as error:
            await asyncio.sleep(0.05)
            raise ConnectionError from error

    async def __aexit__(self, *why: object) -> None:
        await self._given.__aexit__(*why)


async def _until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    finally:
        writer.transport.abort()


ATTACKS: dict[str, tuple[str, Callable[[Attacker], Awaitable[None]]]] = {
    "tcp": ("1,000 that connect and say nothing", lambda a: a.always(a.tcp, 1000)),
    "tcp-many": ("the same from 250 addresses", lambda a: a.always(lambda n: a.tcp(n, True), 1000)),
    "tls": ("1,000 that do TLS and say nothing", lambda a: a.always(a.secret, 1000)),
    "tls-many": ("the same from 250 addresses", lambda a: a.always(lambda n: a.secret(n, True), 1000)),
    "silent": ("80 good tokens, silent once they are in", lambda a: a.always(a.silent, 80)),
    "slow": ("80 that ask for the package and don't read", lambda a: a.always(a.slow, 80)),
    "pings": ("one with a good token that sends pings", lambda a: a.always(lambda n: a.flood(0, PING), 1)),
    "fragments": ("one that sends empty fragments", lambda a: a.always(lambda n: a.flood(0, EMPTY), 1)),
    "two": ("two at one seat", lambda a: a.always(a.two, 2)),
    "wrong": ("wrong, revoked and replaced tokens, 64 at a time", lambda a: a.always(a.wrong, 64)),
    "wrong-many": ("the same from 250 addresses", lambda a: a.always(lambda n: a.wrong(n, True), 64)),
    "good-many": ("good tokens that come and go, from 250 addresses", lambda a: a.always(a.good, 64)),
    "garbage": ("what is no TLS, from 250 addresses, 64 at a time", lambda a: a.always(a.garbage, 64)),
}


async def echo(port: int, authority: Path, tokens: list[str]) -> None:
    """The honest devices."""
    me = Attacker(port, authority, tokens, [])

    async def one(token: str) -> None:
        async with me._upgraded(token) as line:
            await line.send(HELLO)
            await line.recv()
            await line.send(AT_WORK)
            async for asked in line:
                await asyncio.sleep(THINKS)
                ready = b'"prepare"' in asked[:40]
                await line.send(packed(READY) if ready else packed('{"kind":"said"}', BODY))

    await asyncio.gather(*map(one, tokens))


def pace(site: Proxy, seconds: float) -> float:
    """Replies a second of all honest devices."""
    until, replies = time.monotonic() + seconds, Counter[int]()

    def ask(place: int) -> None:
        while time.monotonic() < until:
            why = site.exchange('{"kind":"say"}', BODY, 20.0, place, [1 << 20, 1 << 14])[2]
            assert why is None, why
            replies[place] += 1

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(HONEST)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies.total() / seconds


def started(kind: str, *given: object) -> subprocess.Popen[str]:
    """One of the other processes, of this file."""
    command = [sys.executable, __file__, "--as", json.dumps([kind, *map(_plain, given)])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    return process


def _plain(given: object) -> object:
    return str(given) if isinstance(given, Path) else given


def apart(kind: str, port: int, authority: str, tokens: list[str], bad: list[str]) -> None:
    """What such a process does, until its input ends."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # which says of each that was cut off that it was
    attacker = Attacker(port, Path(authority), tokens, bad)
    work = echo(port, Path(authority), tokens) if kind == "echo" else ATTACKS[kind][1](attacker)

    async def until_told() -> None:
        print("begun", flush=True)
        doing = asyncio.ensure_future(work)
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([doing, ended], return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        doing.cancel()

    with suppress(asyncio.CancelledError):
        asyncio.run(until_told())
    print(dict(attacker.done))


def packaged(place: Path) -> Path:
    """A small device package."""
    from device_sites import write_rows
    from worker_memory import write_model

    from halfback import config as configuration

    write_model(place / "model", blocks=2, hidden=32)
    write_rows(place / "rows.csv", 0, 40)
    said = [f"task.train={place / 'rows.csv'}", "task.name=csv", "task.text=note", "task.label=mood", "model.cut=1"]
    said += [
        f"model.name={place / 'model'}",
        "algorithm.name=ho_sfl",
        "bottom.train=lora",
        "device=cpu",
        "clients=2",
        "sampled_clients=2",
    ]
    (place / "recipe.yaml").write_text(configuration.dump(configuration.resolve(None, said)))
    command = [sys.executable, "-m", "halfback", "package", str(place / "recipe.yaml"), "--out", str(place / "package")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return place / "package"


def bad_ones(path: Path) -> list[str]:
    """Tokens of each kind that is not good."""
    from halfback.deploy.tokens import add, listed, revoke, rotate

    gone, turned = add(path, SEATS), add(path, SEATS)
    revoke(path, gone.split(".")[1])
    rotate(path, turned.split(".")[1])
    number = next(iter(listed(path)))
    return [gone, turned, f"hb1.{number}.{'A' * 43}", f"hb1.ffffffff.{'A' * 43}"]


def main() -> None:
    """A line for each attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*", default=list(ATTACKS))
    chosen = parser.parse_args()
    from halfback.deploy.tokens import add  # those who attack start quickly without

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        package = packaged(place)
        print("| who | pace over that in peace | in, refused |\n| --- | --- | --- |")
        for name in chosen.only:
            with gateway(place / name, package, SEATS) as (site, port, _):
                path, authority = place / name / "tokens.json", place / name / "ca.pem"
                honest, bad = [add(path, SEATS) for _ in range(HONEST)], bad_ones(path)
                tokens = [add(path, SEATS) for _ in range(80)]
                devices = started("echo", port, authority, honest, [])
                while len(site.present()[1]) < HONEST:
                    time.sleep(0.1)
                for seat in range(HONEST):
                    site.exchange('{"kind":"prepare"}', b"", 10.0, seat, [1 << 20, 1 << 14])
                ratios = []
                for _ in range(chosen.repeats):
                    before = pace(site, chosen.seconds)
                    attack = started(name, port, authority, tokens, bad)
                    time.sleep(1.0)
                    hurt = pace(site, chosen.seconds)
                    attack.communicate("")
                    ratios.append(2 * hurt / (before + pace(site, chosen.seconds)))
                counted = site.present()[2]
                told = {
                    key: int(value) for key, value in counted.items() if key.startswith(("joined", "refused", "closed"))
                }
                devices.communicate("")
            said = (place / name / "gateway.log").read_text()
            wrong = f"; {len(said.splitlines())} lines in its log" if said else ""
            middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
            print(f"| {ATTACKS[name][0]} | {middle:.2f} ({least:.2f}–{most:.2f}) | {told}{wrong} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        apart(*json.loads(sys.argv[2]))
    else:
        main()
