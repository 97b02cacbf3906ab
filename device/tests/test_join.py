"""A device that connects to a gateway by itself: the same bits over it, and nothing that a gateway says is trusted."""

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from gateway_here import FILES, PIECE, TOKEN, Gateway, Seats, came_to, files_of, idle, listing, packed, terms
from mixed import DEVICE, adapted, run_of, served, shared_rows, world
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from halfback.engine.remote.server import RemoteServer
from halfback.errors import CohortLost
from halfback.parties.holdings import Round
from halfback.testing import small
from halfback_device import join, line
from halfback_device.cli import main
from halfback_device.errors import DeviceError, PeerError
from halfback_device.fetch import read_listing
from halfback_device.frames import Frame, parsed
from halfback_device.join import Joining
from halfback_device.line import Lost, Unwelcome, address, event_loop, unpacked

pytestmark = pytest.mark.xdist_group("device package")  # it takes a while to be made: once is enough

STEPS = 2
SETTINGS: dict[str, Any] = {
    "clients": 2,
    "sampled_clients": 2,
    "batch_size": 16,
    "bottom__optimizer": "adamw",
    "codecs__activations_up": [{"name": "temporal"}, "int8"],
}


@contextlib.contextmanager
def joined(url: str, folder: Path, rows: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A device's process; it is killed at the end if it is there still."""
    (folder / "token").write_text(TOKEN + "\n")
    columns = ("--data", str(rows), "--text", "text", "--label", "label", "--shared")
    own = ("--token-file", str(folder / "token"), "--ca", str(folder / "ca.pem"), "--folder", str(folder / "device"))
    command = [sys.executable, "-m", "halfback_device", "join", url, *own, *columns, *more]
    environment = os.environ | {"PYTHONPATH": str(DEVICE)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def package(base: Path, tiny_bert: Path, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joining") / "package"
    adapted(base, run_of("ho_sfl", tiny_bert, sentences, **SETTINGS), folder)
    return folder


def _rounds(server: RemoteServer, first: int, count: int) -> None:
    for number in range(first, first + count):
        server.run_round(Round(number, STEPS, number * STEPS), measure_memory=False)


def test_killed_and_come_again_a_device_has_the_same_bits(
    base: Path, tiny_bert: Path, sentences: Path, tmp_path: Path
) -> None:
    """Two devices over TLS, one of which is killed in a round, and the run in one process."""
    config = run_of("ho_sfl", tiny_bert, sentences, **SETTINGS)
    opened, rows = adapted(base, config, tmp_path / "package"), shared_rows(sentences)
    unbroken = world(config, ["device", "device"], rows, tmp_path / "unbroken", lambda client: opened)
    unbroken.run(5, steps=STEPS)
    seats, files = Seats(2), files_of(tmp_path / "package")
    with contextlib.ExitStack() as stack:
        devices = []
        for place in range(2):
            folder = tmp_path / f"place-{place}"
            folder.mkdir()
            url = stack.enter_context(Gateway(files, seats.at_work(place)).serving(folder))
            devices.append(stack.enter_context(joined(url, folder, sentences)))
        seats.wait(2)
        federation, server = served(config, seats)
        _rounds(server, 0, 2)
        saved, begun = copy.deepcopy(server.state()), seats.asked

        def kill(asked: int) -> None:
            if asked == begun + 3:
                devices[1].kill()
                devices[1].wait()

        seats.before = kill
        with pytest.raises(CohortLost):
            _rounds(server, 2, 1)
        server.load_state(*saved)
        stack.enter_context(joined(url, folder, sentences))
        seats.wait(2)
        _rounds(server, 2, 3)
        devices[0].send_signal(signal.SIGTERM)
        said = devices[0].communicate(timeout=60)[1]
        assert devices[0].returncode == 0, said
        assert "connected to wss://127.0.0.1" in said
        assert said.splitlines()[-1].endswith("stopped")
    small.assert_equal_states(federation, unbroken.federation, but=("peaks",))


def test_only_the_right_authority_hears_the_token(sentences: Path, tmp_path: Path) -> None:
    gateway = Gateway(FILES, idle)
    with gateway.serving(tmp_path) as url, event_loop() as loop:
        trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")  # another one's
        with pytest.raises(Lost, match="certificate isn't trusted"):
            Joining(terms(url, tmp_path, sentences))._take_part(loop)
    assert gateway.let_in == []


def test_a_refused_token_ends_it(sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    gateway = Gateway(FILES, idle)
    with gateway.serving(tmp_path) as url:
        given = ["--data", str(sentences), "--text", "text", "--label", "label", "--ca", str(tmp_path / "ca.pem")]
        with pytest.raises(SystemExit) as end:
            main(["join", url, "--token", TOKEN[:-1] + "b", "--folder", str(tmp_path / "device"), *given])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "halfback-device: the gateway doesn't take this token: this token is not good here\n"
    )
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_revoked_token_ends_it(package: Path, sentences: Path, tmp_path: Path) -> None:
    gateway = Gateway(files_of(package), lambda line: line.close(4003, "this token was revoked"))
    with gateway.serving(tmp_path) as url, pytest.raises(Unwelcome, match="this token was revoked"):
        Joining(terms(url, tmp_path, sentences)).work()
    assert len(gateway.met) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://there", "--token", TOKEN), "no gateway's address"),
        (("wss://there", "--token", "hb1.0.0"), "no token"),
        (("wss://there", "--token-file", "nowhere"), "--token-file nowhere: No such file"),
        (("wss://there", "--token", TOKEN, "--ca", "nowhere"), "--ca nowhere: No such file"),
        (("wss://there", "--token", TOKEN, "--ca", __file__), "it holds no certificate"),
        (("wss://there", "--token", TOKEN, "--data", "nowhere.csv"), "--data nowhere.csv: there is no such file"),
        (("wss://there", "--token", TOKEN, "--folder", __file__), "can't be made"),
    ],
)
def test_what_can_t_work_is_said_at_once(
    arguments: tuple[str, ...], said: str, sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["join", "--data", str(sentences), "--folder", str(tmp_path / "device"), *arguments])
    came = capsys.readouterr().err
    assert (end.value.code, len(came.splitlines())) == (2, 1)
    assert said in came


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("wss://there:8443", "wss://there:8443/halfback/1"),
        ("wss://there/", "wss://there/halfback/1"),
        ("wss://[::1]:1/behind/a/proxy", "wss://[::1]:1/behind/a/proxy"),
    ],
)
def test_an_address_has_a_path(url: str, whole: str) -> None:
    assert address(url) == whole


@pytest.mark.parametrize("url", ["", "ws://a", "wss://", "wss://a:0", "wss://a:99999", "wss://u:p@a", "wss://a/\n"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(DeviceError, match="no gateway's address"):
        address(url)


def test_it_works_while_the_command_says_so(
    sentences: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(join, "_MAY", 0.3)  # seconds; half a minute would be long for a test
    monkeypatch.setattr(join, "_LOOK", 0.1)
    caplog.set_level("INFO")
    plugged, visits = tmp_path / "plugged", []

    def at_work(line: ServerConnection) -> None:
        visits.append(line)
        plugged.unlink()
        with pytest.raises(ConnectionClosed):
            line.recv(20)
        if len(visits) == 2:
            device.stop()
        plugged.touch()

    with Gateway(files_of(package), at_work).serving(tmp_path) as url:
        device = Joining(terms(url, tmp_path, sentences, only_when=f"test -e {plugged}"))
        plugged.touch()
        device.work()
    assert [line.close_code for line in visits] == [1000, 1000]
    assert [line.close_reason[:26] for line in visits] == ["not now, says --only-when:"] * 2


def test_a_device_that_waits_ends_when_it_is_told(package: Path, sentences: Path, tmp_path: Path) -> None:
    with (
        Gateway(files_of(package), idle).serving(tmp_path) as url,
        joined(url, tmp_path, sentences) as process,
    ):
        assert process.stderr is not None
        line = ""
        while "connected" not in line:
            line = process.stderr.readline()
            assert line
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def _garbled(dice: random.Random, honest: bytes) -> str | bytes:
    """A message that a gateway would not say."""
    changed = bytearray(honest)
    match dice.randrange(6):
        case 0:
            return "text"
        case 1:
            return dice.randbytes(dice.randrange(64))
        case 2:
            changed[:4] = dice.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\x40\0", dice.randbytes(4)))
        case 3:
            del changed[dice.randrange(len(changed)) :]
        case 4:
            for _ in range(dice.randint(1, 4)):
                changed[dice.randrange(min(len(changed), 400))] = dice.randrange(256)
        case _:
            at = dice.randrange(4, min(len(changed), 400))
            changed[at:at] = dice.choice((b"{", b'"', b"[" * 100_000, b"1" * 5000, b'"kind":1,', b"NaN", b"\\ud800"))
            if dice.random() < 0.7:  # of the header's length to the byte, so that its JSON is read
                changed[:4] = (len(changed) - 4).to_bytes(4, "little")
    return bytes(changed)


def test_what_is_no_message_is_one_line() -> None:
    dice = random.Random(3)
    honest = packed(json.dumps({"kind": "welcome", "protocol": 1, "place": 0, "package": listing(FILES)}))
    said = []
    for _ in range(4000):
        try:
            told = parsed(unpacked(_garbled(dice, honest)).header)
            read_listing(told["package"] if isinstance(told, dict) and "package" in told else told)
        except PeerError as error:
            said.append(str(error))
    assert len(said) > 3000  # a number of bytes may be another one, and a key of the welcome is not asked for here
    assert all(one.isprintable() and len(one) < 400 for one in said)


def _frames(dice: random.Random, honest: bytes) -> bytes:
    """Bytes that no WebSocket server sends, or in an order that it doesn't."""

    def one(first: int, body: bytes, size: int | None = None) -> bytes:
        size = len(body) if size is None else size
        if size < 126:
            return bytes([first, size]) + body
        return bytes([first, 127]) + size.to_bytes(8, "big") + body

    match dice.randrange(7):
        case 0:
            return dice.randbytes(dice.randrange(1, 200))
        case 1:  # reserved bits, and opcodes that there are none of
            return one(dice.randrange(256), honest)
        case 2:  # as a client sends it
            return bytes([0x82, 0x80 | 5]) + dice.randbytes(9)
        case 3:
            return one(0x82, honest, dice.choice((1 << 63, (1 << 64) - 1, 1 << 40, len(honest) + 9)))
        case 4:  # fragments without a beginning, within another, or in another kind's
            return b"".join(one(dice.choice((0, 1, 2, 0x80, 0x81)), honest[:40]) for _ in range(3))
        case 5:  # a message in very many fragments, with pings between them
            return one(2, honest[:9]) + (one(0x89, b"") + one(0, b"")) * 300 + one(0x81, b"")
        case _:  # control frames that are too long, in fragments, or close for no reason that there is
            return one(dice.choice((0x88, 0x08, 0x89, 0x09)), dice.choice((b"\0", b"\0\0", b"\x03\xed", bytes(126))))


def _met_with_hostility(package: Path, sentences: Path, folder: Path, seed: int, visits: tuple[int, int, int]) -> None:
    """So many visits to a gateway that is hostile in its welcome, in what it hands out, and in what it asks."""
    dice, gateway = random.Random(seed), Gateway(files_of(package), idle)
    threads = threading.active_count()

    def hostile(at: ServerConnection, message: bytes) -> None:
        if dice.random() < 0.4:
            at.close_timeout = 0.2  # seconds: what comes may have swallowed the goodbye
            at.socket.sendall(_frames(dice, message))
        else:
            at.send(_garbled(dice, message))
        at.close()

    def hands_out(at: ServerConnection, welcome: bytes) -> None:
        at.send(packed(json.dumps({"kind": "welcome", "protocol": 1, "place": 0, "package": listing(FILES)})))
        hostile(at, packed(unpacked(at.recv()).header, bytes(100)))

    def visited(device: Joining, loop: asyncio.AbstractEventLoop, times: int) -> None:
        for _ in range(times):
            with pytest.raises((Lost, DeviceError)) as error:
                device._take_part(loop)
            assert str(error.value).isprintable()

    gateway.welcome = hostile
    with gateway.serving(folder) as url, event_loop() as loop:
        device = Joining(terms(url, folder, sentences))
        visited(device, loop, visits[0])
        gateway.welcome = hands_out
        visited(device, loop, visits[1])
        gateway.welcome = None
        gateway.at_work = lambda at: hostile(at, packed('{"kind":"open","round":1}', bytes(100)))
        visited(device, loop, visits[2])
    assert {path.name for path in folder.iterdir()} == {"ca.pem", "device"}
    assert {path.name for path in (folder / "device").iterdir()} <= {"lock", "package", "states"}
    assert threading.active_count() <= threads


def test_a_hostile_gateway_gets_a_closed_connection(package: Path, sentences: Path, tmp_path: Path) -> None:
    """In every phase, over real sockets: the device goes away, with one line, and comes again."""
    _met_with_hostility(package, sentences, tmp_path, 5, (250, 50, 100))


@pytest.mark.slow
def test_a_hostile_gateway_gets_nowhere_in_the_long_run(package: Path, sentences: Path, tmp_path: Path) -> None:
    _met_with_hostility(package, sentences, tmp_path, 19, (10_000, 5_000, 5_000))


def test_more_than_is_due_is_not_read(package: Path, sentences: Path, tmp_path: Path) -> None:
    """A body longer than the device takes ends the connection, before it is there as a whole."""
    most = (1 << 22) + PIECE + 4
    said = []

    def at_work(line: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            line.send(iter([packed("{}", bytes(most // 2)), bytes(most), bytes(1 << 26)]))
            line.recv(20)  # a reply, of one who has read it all
        line.close()
        said.append(line.close_code)

    gateway = Gateway(files_of(package), at_work)
    (lost,) = came_to(gateway, tmp_path, sentences)
    assert isinstance(lost, Lost)
    assert said == [1009]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of silence as they are, divided by forty: a test has no minute."""
    for module, name, seconds in [(line, "_PING", 0.5), (line, "_SILENT", 1.0), (line, "_LOOK", 0.1)]:
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(join, "_LOOK", 0.1)


@pytest.mark.usefixtures("hasty")
def test_a_gateway_without_a_sign_of_life_is_left(package: Path, sentences: Path, tmp_path: Path) -> None:
    """One that has nothing to ask replies to pings, and is stayed with."""
    begun = []

    def at_work(at: ServerConnection) -> None:
        begun.append(time.monotonic())
        time.sleep(2.5)
        at.recv_flow_control.acquire()  # it reads nothing more, so no ping either
        begun.append(time.monotonic())
        time.sleep(2)
        at.recv_flow_control.release()

    (lost,) = came_to(Gateway(files_of(package), at_work), tmp_path, sentences)
    assert str(lost) == "nothing came from it for 1 s"
    assert len(begun) == 2


@pytest.mark.usefixtures("hasty")
def test_a_gateway_that_does_not_read_is_left(tmp_path: Path) -> None:
    """Else its device would wait for it for ever, with what it has to say in memory."""

    def reads_not(at: ServerConnection, welcome: bytes) -> None:
        at.recv_flow_control.acquire()
        time.sleep(3)
        at.recv_flow_control.release()

    gateway = Gateway(FILES, idle)
    gateway.welcome = reads_not
    with gateway.serving(tmp_path) as url, event_loop() as loop:
        one = line.opened(loop, address(url), TOKEN, line.tls(tmp_path / "ca.pem"))
        one.send(Frame("{}"))
        time.sleep(0.2)
        begun = time.monotonic()
        with pytest.raises(Lost, match="cut"):
            one.send(Frame("{}", bytes(1 << 26)))
        assert time.monotonic() - begun < 3
