"""A gateway for devices: who comes in, what they may say, and what it costs when they say something else."""

import hashlib
import json
import random
import re
import socket
import ssl
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra nvflare is not installed")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame as Piece
from websockets.frames import Opcode
from websockets.sync.client import ClientConnection

from halfback.deploy import counts, seated
from halfback.deploy import door as doors
from halfback.deploy import gateway as gateways
from halfback.deploy.door import Door, Pace, host_of, parsed
from halfback.deploy.gateway import Gateway, Terms
from halfback.deploy.relay import WorkerLost
from halfback.deploy.tokens import revoke, rotate
from halfback.engine.remote.frames import Frame, Longest, Ready, Said, frame
from halfback.errors import PeerError, UserError
from tests.deploy.gateways import Place, heard, hello, packed, plain_package, said

PREPARE = Frame('{"kind":"prepare"}')  # as far as a gateway looks at it
OPEN = Frame('{"kind":"open"}')
LONGEST = Longest(1 << 20, 1 << 14)
READY = frame(Ready(fits=True, takes=1 << 25, rows=3)).header


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "site", plain_package(tmp_path / "package"), metrics=0)
    yield made
    made.gateway.close()


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def end_of(line: ClientConnection, seconds: float = 5.0) -> tuple[int | None, str]:
    """How the gateway closed a connection, whatever it had said before."""
    try:
        while True:
            line.recv(timeout=seconds)
    except ConnectionClosed as closed:
        return (None, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)


def status_of(connecting: Callable[[], ClientConnection]) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        connecting().close()
    return refused.value.response.status_code, refused.value.response.body.decode()


def asked_behind(
    place: Place, asked: Frame = PREPARE, seconds: float = 5.0, longest: Longest = LONGEST, at: int = 0
) -> Any:
    """A question that is on its way in a thread of its own, as FLARE asks."""
    return ThreadPoolExecutor(1).submit(place.gateway.exchange, at, asked, seconds, longest)


def prepared(place: Place, line: ClientConnection, at: int = 0) -> None:
    """A device that has built its part of a run, as far as the gateway looks."""
    until(lambda: at in place.gateway.present())
    reply = asked_behind(place, at=at)
    heard(line)
    said(line, READY)
    reply.result()


def test_a_device_is_handed_the_package_in_pieces_and_then_replies(place: Place, tmp_path: Path) -> None:
    token = place.token()
    with place.connect(token) as line:
        said(line, hello())
        header, body = heard(line)
        assert (header["kind"], header["protocol"], header["place"], body) == ("welcome", 1, 0, b"")
        files = {entry["name"]: entry for entry in header["package"]["files"]}
        assert set(files) == {"manifest.json", "weights.safetensors", "empty.onnx"}
        lines = sorted(f"{name} {entry['sha256']}\n" for name, entry in files.items())
        assert header["package"]["digest"] == hashlib.sha256("".join(lines).encode()).hexdigest()
        for name, entry in files.items():
            data = b""
            while len(data) < entry["bytes"]:
                said(line, {"kind": "piece", "file": name, "offset": len(data)})
                answer, piece = heard(line)
                assert answer == {"kind": "piece", "file": name, "offset": len(data)}
                assert len(piece) == min(1 << 20, entry["bytes"] - len(data))
                data += piece
            assert data == (tmp_path / "package" / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert place.gateway.present() == []
        with pytest.raises(WorkerLost, match="no device is at place 0"):
            place.gateway.exchange(0, PREPARE, 1.0, LONGEST)
        said(line, {"kind": "ready"})
        until(lambda: place.gateway.present() == [0])
        reply = asked_behind(place)
        assert heard(line) == ({"kind": "prepare"}, b"")
        said(line, READY)
        assert reply.result() == Frame(READY, b"")
        assert place.gateway.longest(0) == Longest(1 << 25)
        later = asked_behind(place, Frame('{"kind":"say"}', b"down" * 1000))
        assert heard(line) == ({"kind": "say"}, b"down" * 1000)
        said(line, '{"kind":"said"}', b"up" * 1000)
        assert later.result() == Frame('{"kind":"said"}', b"up" * 1000)
    until(lambda: place.gateway.present() == [])


def test_wrong_unknown_revoked_and_rotated_tokens_get_the_same_line(place: Place) -> None:
    token, gone, turned = place.token(), place.token(), place.token()
    revoke(place.tokens, gone.split(".")[1])
    rotate(place.tokens, turned.split(".")[1])
    head, number, secret = token.split(".")
    wrong = [gone, turned, f"{head}.{number}.{secret[::-1]}", f"{head}.{'f' * 8}.{secret}", "", "x" * 4000]
    assert {status_of(lambda each=each: place.connect(each)) for each in wrong} == {
        (401, "this token is not good here\n")
    }
    assert status_of(lambda: place.connect(token, "/else"))[0] == 404
    place.connect(token).close()


def test_a_token_in_two_headers_or_elsewhere_is_none(place: Place) -> None:
    token = place.token()
    for headers in ([("Authorization", f"Bearer {token}")] * 2, {"Authorization": token}, {"Cookie": token}, {}):
        with pytest.raises(InvalidStatus, match="401"):
            gateway_connect(place, headers)


def gateway_connect(place: Place, headers: Any) -> ClientConnection:
    from websockets.sync.client import connect

    return connect(place.address, additional_headers=headers, ssl=place.tls, compression=None)


def test_who_tries_many_tokens_is_refused_for_a_while_whatever_comes_next(place: Place) -> None:
    token = place.token()
    found = [status_of(lambda: place.connect("hb1.00000000." + "A" * 43))[0] for _ in range(12)]
    assert found == [401] * 10 + [429] * 2
    assert status_of(lambda: place.connect(token)) == (429, "too many wrong tokens from here\n")
    assert place.gateway.counts()["refused_total:429"] == 3


def test_who_tries_many_paths_is_refused_too(place: Place) -> None:
    token = place.token()
    assert [status_of(lambda: place.connect(token, "/else"))[0] for _ in range(11)] == [404] * 10 + [429]


def test_a_place_beyond_the_seats_is_none(place: Place, tmp_path: Path) -> None:
    """A site's file that has fewer seats than when its tokens were made."""
    tokens = [place.token() for _ in range(2)]
    fewer = Terms("127.0.0.1", 0, place.certificate, place.key, 1)
    smaller = Gateway(fewer, place.tokens, tmp_path / "package")
    try:
        place.address = place.address.replace(str(place.gateway.port), str(smaller.port))
        place.connect(tokens[0]).close()
        assert status_of(lambda: place.connect(tokens[1])) == (503, "this site has fewer seats by now\n")
    finally:
        smaller.close()


def test_a_token_that_comes_in_too_often_waits(place: Place) -> None:
    token, other = place.token(), place.token()
    for _ in range(10):
        place.connect(token).close()
    assert status_of(lambda: place.connect(token))[0] == 429
    place.connect(other).close()  # nobody else does


def test_a_newer_connection_takes_the_place_of_an_older_one(place: Place) -> None:
    token = place.token()
    older = place.at_work(token)
    prepared(place, older)
    waiting = asked_behind(place, OPEN)
    heard(older)
    newer = place.at_work(token)
    assert end_of(older) == (4001, "another connection took this place")
    with pytest.raises(WorkerLost, match="the device at place 0 is gone"):
        waiting.result()
    until(lambda: place.gateway.present() == [0])
    # It knows nothing of a run: what the older one was told isn't said to it before it is prepared.
    with pytest.raises(WorkerLost, match="the device at place 0 is new here"):
        place.gateway.exchange(0, OPEN, 1.0, LONGEST)
    prepared(place, newer)
    newer.close()


def test_a_device_whose_token_is_revoked_is_sent_away_for_good(place: Place) -> None:
    token, other = place.token(), place.token()
    line, stays = place.at_work(token), place.at_work(other)
    revoke(place.tokens, token.split(".")[1])
    assert end_of(line) == (4003, "this token was revoked")
    assert place.gateway.present() == [1]
    stays.close()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("hello", "message: text came, binary messages are allowed"),
        (b"", "message: 0 bytes came, 4 or more are due"),
        (b"\xff\xff\xff\xff{}", "message: a header of 4294967295 bytes in a message of 6 came, at most 65536 are"),
        (b"\x02\0\0\0{}", "header: Unable to extract tag"),
        (b"\x01\0\0\0\xff", "message: a header came that is no UTF-8 text"),
        (packed("[" * 60_000), "header: Invalid JSON"),
        (packed(hello(protocol=2)), "hello.protocol: 2 came, 1 is allowed"),
        (packed(hello(protocol=True)), "header.hello.protocol: Input should be a valid integer"),
        (packed(hello(more=1)), "header.hello.more: Extra inputs are not permitted"),
        (packed(hello(version="v" * 101)), "header.hello.version: String should have at most 100"),
        (packed(hello(), b"x"), "message: a body of 1 bytes came, none is allowed before a question"),
        (packed({"kind": "ready"}), "ready came, hello is due first"),
        (packed({"kind": "piece", "file": "manifest.json", "offset": 0}), "piece came, hello is due first"),
        (packed({"kind": "welcome"}), "header: Input tag 'welcome' found"),
    ],
)
def test_whatever_is_not_a_greeting_ends_the_connection(place: Place, message: str | bytes, why: str) -> None:
    with place.connect(place.token()) as line:
        line.send(message)
        code, said_why = end_of(line)
    assert code == 1008
    assert said_why.startswith(why)


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        ({"file": "secret.txt"}, "piece.file: 'secret.txt' came, a name of the listing is allowed"),
        ({"file": "../site/key.pem"}, "piece.file: '../site/key.pem' came"),
        ({"file": "/etc/passwd"}, "piece.file: '/etc/passwd' came"),
        ({"file": "manifest.json\0"}, "piece.file: "),
        ({"offset": 1 << 40}, "piece.offset: 1099511627776 came, less than"),
        ({"offset": -1}, "header.piece.offset: Input should be greater"),
        ({"offset": 1 << 70}, "header.piece.offset: "),
        ({"offset": "0"}, "header.piece.offset: "),
        ({"kind": "hello", "protocol": 1}, "header.hello."),
    ],
)
def test_no_file_is_handed_out_but_those_listed(place: Place, piece: dict[str, Any], why: str) -> None:
    with place.connect(place.token()) as line:
        said(line, hello())
        heard(line)
        said(line, {"kind": "piece", "file": "manifest.json", "offset": 0} | piece)
        code, said_why = end_of(line)
    assert code == 1008
    assert said_why.startswith(why)


def test_one_connection_fetches_no_more_than_twice_the_package(place: Place) -> None:
    with place.connect(place.token()) as line:
        said(line, hello())
        size = sum(entry["bytes"] for entry in heard(line)[0]["package"]["files"])
        came = 0
        with suppress(ConnectionClosed):
            while came <= 3 * size:
                said(line, {"kind": "piece", "file": "weights.safetensors", "offset": 0})
                came += len(heard(line)[1])
        assert came <= 2 * size


def test_a_reply_that_is_not_due_ends_the_connection(place: Place) -> None:
    early = place.at_work(place.token())
    said(early, READY)
    assert end_of(early)[:1] == (1008,)
    twice = place.at_work(place.token())
    until(lambda: 1 in place.gateway.present())
    reply = asked_behind(place, at=1)
    heard(twice)
    said(twice, READY)
    said(twice, READY)
    reply.result()
    code, why = end_of(twice)
    assert code == 1008
    assert re.fullmatch(r"reply: one of \d+ bytes came, none is due", why)
    until(lambda: place.gateway.present() == [])


def test_nothing_larger_than_what_is_due_is_taken_in(place: Place) -> None:
    before = place.at_work(place.token())
    with suppress(ConnectionClosed):  # in its middle
        before.send(bytes(1 << 17))  # none is due
    assert end_of(before)[0] == 1009
    line = place.at_work(place.token())
    until(lambda: 1 in place.gateway.present())
    reply = asked_behind(place, longest=Longest(1 << 18, 1 << 14), at=1)
    heard(line)
    # A frame that announces a gigabyte, and brings little of it.
    line.socket.sendall(struct.pack("!BBQ", 0x82, 0x80 | 127, 1 << 30) + bytes(4 + 1000))
    assert end_of(line)[0] == 1009
    with pytest.raises(WorkerLost, match="is gone"):
        reply.result()
    third = place.at_work(place.token())
    until(lambda: 2 in place.gateway.present())
    reply = asked_behind(place, longest=Longest(8, 1 << 14), at=2)
    heard(third)
    said(third, READY, bytes(9))
    with pytest.raises(PeerError, match=r"a body of 9 came, at most 65536 and 8 are allowed"):
        reply.result()
    third.close()


def test_what_is_due_is_due_once(place: Place) -> None:
    """Behind a reply nothing long is read any more; and no room for a body is room for a header."""
    longest = Longest(1 << 18, 1 << 20)
    line, other = place.at_work(place.token()), place.at_work(place.token())
    prepared(place, line)
    with suppress(ConnectionClosed):
        line.send(bytes(1 << 17))
    assert end_of(line)[0] == 1009
    until(lambda: place.gateway.present() == [1])
    reply = asked_behind(place, longest=longest, at=1)
    heard(other)
    said(other, READY + " " * (1 << 16))
    with pytest.raises(WorkerLost, match="is gone"):
        reply.result()
    assert re.match(r"message: a header of \d+ bytes in a message of \d+ came, at most 65536", end_of(other)[1])


def test_what_comes_with_the_request_and_is_no_message_is_refused(place: Place) -> None:
    """The library takes it for the end of the connection, and then can't end it any more."""
    request = (
        "GET /halfback/1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {place.token()}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", place.gateway.port), timeout=5) as plain:
        line = place.tls.wrap_socket(plain, server_hostname="localhost")
        line.sendall(request.encode() + b"\xff\xff")
        with suppress(ConnectionError, ssl.SSLError):
            assert b"101" not in line.recv(1000)
    until(lambda: sum(n for name, n in place.gateway.counts().items() if name.startswith("refused_total")) == 1)
    assert place.gateway.counts()["joined_total"] == 0


def test_hello_is_said_once(place: Place) -> None:
    with place.connect(place.token()) as line:
        said(line, hello())
        heard(line)
        said(line, hello())
        assert end_of(line) == (1008, "hello came, piece or ready is due")


def test_nothing_is_packed_on_the_way(place: Place) -> None:
    """What unpacks to any size would not be bounded by the bytes that came."""
    with place.connect(place.token(), compression="deflate") as line:
        assert line.protocol.extensions == []


@pytest.mark.parametrize(
    "frame", [Piece(Opcode.PING, b""), Piece(Opcode.PONG, b"x"), Piece(Opcode.CONT, b"", fin=False)]
)
def test_small_frames_without_end_cost_their_sender_the_connection(place: Place, frame: Piece) -> None:
    """Each costs the event loop far more than its bytes; a device in between keeps its pace."""
    steady, odd = place.at_work(place.token()), place.connect(place.token())
    prepared(place, steady)
    odd.socket.sendall(Piece(Opcode.BINARY, b"", fin=False).serialize(mask=True))
    many = frame.serialize(mask=True) * 50_000
    began = time.monotonic()
    with suppress(OSError):
        odd.socket.sendall(many)
    assert end_of(odd)[0] is None
    reply = asked_behind(place)
    heard(steady)
    said(steady, READY)
    reply.result()
    assert time.monotonic() - began < 3.0
    until(lambda: place.gateway.counts().get("closed_total:1008") == 1)
    steady.close()


def test_a_message_in_small_fragments_is_taken_in(place: Place) -> None:
    with place.at_work(place.token()) as line:
        for _ in range(30):
            until(lambda: place.gateway.present() == [0])
            reply = asked_behind(place)
            heard(line)
            line.send(iter([packed(READY), *[b"x"] * 80]))
            assert reply.result().body == b"x" * 80


def test_a_question_longer_than_a_device_takes_is_not_sent(place: Place) -> None:
    with place.at_work(place.token()) as line:
        until(lambda: place.gateway.present() == [0])
        with pytest.raises(PeerError, match="a body of 1 came, at most 16777216 and 0 are allowed"):
            place.gateway.exchange(0, Frame(PREPARE.header, b"x"), 1.0, LONGEST)
        prepared(place, line)
        with pytest.raises(PeerError, match="at most 16777216 and 33554432 are allowed"):
            place.gateway.exchange(0, Frame(OPEN.header, bytes((1 << 25) + 1)), 1.0, LONGEST)


def test_a_late_reply_goes_to_nobody_and_silence_for_two_questions_ends_the_connection(place: Place) -> None:
    with place.at_work(place.token()) as line:
        prepared(place, line)
        with pytest.raises(WorkerLost, match=r"the device needs longer than 0\.2 s"):
            place.gateway.exchange(0, OPEN, 0.2, LONGEST)
        heard(line)
        next_one = asked_behind(place, Frame('{"kind":"say"}'))
        said(line, "late")
        assert heard(line)[0] == {"kind": "say"}
        said(line, "due")
        assert next_one.result().header == "due"
        for why in (r"the device needs longer than 0\.2 s", "silent for two questions; its connection is closed"):
            with pytest.raises(WorkerLost, match=why):
                place.gateway.exchange(0, OPEN, 0.2, LONGEST)
        assert end_of(line) == (None, "") or place.gateway.present() == []
    until(lambda: place.gateway.present() == [])
    assert place.gateway.counts()["late_total"] == 3


def test_a_device_that_does_not_read_its_question_is_dropped_and_others_are_not_held_up(place: Place) -> None:
    slow, quick = place.at_work(place.token(), max_queue=1), place.at_work(place.token())
    for at, line in ((0, slow), (1, quick)):
        prepared(place, line, at)
    held = threading.Event()
    slow.protocol.receive_data = lambda data: held.wait(10)  # a peer whose program has stopped reading
    stuck = asked_behind(place, Frame(OPEN.header, bytes(1 << 25)), seconds=1.5)  # more than the system's buffers hold
    began = time.monotonic()
    reply = asked_behind(place, Frame(OPEN.header, bytes(1 << 22)), at=1)
    assert len(heard(quick)[1]) == 1 << 22
    said(quick, READY)
    reply.result()
    assert time.monotonic() - began < 1.0
    with pytest.raises(WorkerLost, match="the device doesn't read its question; its connection is closed"):
        stuck.result()
    until(lambda: place.gateway.present() == [1])
    held.set()
    quick.close()


def test_pings_of_a_peer_that_does_not_read_fill_no_memory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for a pong, which waits until the peer reads: 60 MB of them are sent, and not taken in."""
    monkeypatch.setattr(doors, "_SMALL", 0)  # bytes: however many come, and in whatever time
    line = place.connect(place.token())
    held = threading.Event()
    line.protocol.receive_data = lambda data: held.wait(20)
    line.socket.settimeout(0.5)
    ping = Piece(Opcode.PING, bytes(125)).serialize(mask=True) * 1000
    sent = 0
    with suppress(TimeoutError):
        while sent < 60 << 20:
            line.socket.sendall(ping)
            sent += len(ping)
    assert sent < 60 << 20
    (device,) = place.gateway._seated.values()
    assert device.line.transport.get_write_buffer_size() < 1 << 20
    held.set()


def test_connections_that_say_nothing_cost_no_place_and_no_pace(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device at work keeps its pace beside them, and they are gone in the end."""
    with place.at_work(place.token()) as line:
        prepared(place, line)

        def pace() -> float:
            began = time.monotonic()
            for _ in range(100):
                reply = asked_behind(place)
                heard(line)
                said(line, READY)
                reply.result()
            return time.monotonic() - began

        alone = min(pace() for _ in range(3))
        silent = [socket.create_connection(("127.0.0.1", place.gateway.port)) for _ in range(400)]
        until(lambda: place.gateway.counts().get("refused_total:crowd", 0) >= 400 - 128)
        assert min(pace() for _ in range(3)) < 2 * alone
        for one in silent:
            one.close()


def at_the_door(door: Door, address: str, count: int) -> list[socket.socket]:
    """So many connections, which the door has looked at."""
    made = []
    for _ in range(count):
        made.append(socket.create_connection(door.getsockname(), source_address=(address, 0)))
        with suppress(ConnectionAbortedError):
            made.append(door.accept()[0])
    return made


def test_a_door_holds_so_many_that_have_not_said_who_they_are() -> None:
    """128 from one address, 256 in all; whoever goes, or says who it is, makes room."""
    refused: list[str] = []
    with Door("127.0.0.1", 0, Pace(1e9, 1e9), Pace(1e9, 1e9), refused.append) as door:
        door.listen(200)
        made = at_the_door(door, "127.0.0.1", 130)
        assert refused == ["crowd"] * 2
        made += at_the_door(door, "127.0.0.2", 127)
        assert refused == ["crowd"] * 2
        made += at_the_door(door, "127.0.0.3", 2)
        assert refused == ["crowd"] * 3
        assert door.passed(made[0].getsockname())
        assert not door.passed(made[0].getsockname())
        made[3].close()  # the second of them, as the event loop closes it
        assert refused == ["crowd"] * 3 + ["handshake"]
        made += at_the_door(door, "127.0.0.3", 3)
        assert refused == ["crowd"] * 3 + ["handshake", "crowd"]
        for one in made:
            one.close()


def test_a_door_lets_an_address_come_so_often() -> None:
    refused: list[str] = []
    with Door("127.0.0.1", 0, Pace(3, 0.0), Pace(1e9, 1e9), refused.append) as door:
        door.listen()
        made = at_the_door(door, "127.0.0.1", 5) + at_the_door(door, "127.0.0.2", 1)
        assert refused == ["crowd"] * 2
        for one in made:
            one.close()


def test_strangers_come_so_often_together_and_keep_no_device_out() -> None:
    """However many addresses they have."""
    refused: list[str] = []
    with Door("127.0.0.1", 0, Pace(1e9, 1e9), Pace(4, 0.0), refused.append) as door:
        door.listen()
        door.know("127.0.0.9")
        made = [one for number in range(6) for one in at_the_door(door, f"127.0.0.{2 + number}", 1)]
        assert refused == ["crowd"] * 2
        made += at_the_door(door, "127.0.0.9", 3)
        assert refused == ["crowd"] * 2
        for number in range(20_000):
            door.know(str(number))
        assert len(door._known) == 10_000
        for one in made:
            one.close()


def test_who_does_not_say_who_it_is_is_closed(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before TLS, within a request, and where TLS is all that comes."""
    for module in (gateways, doors):  # for TLS, and for the request
        monkeypatch.setattr(module, "HANDSHAKE", 0.5)
    hasty = Gateway(Terms("127.0.0.1", 0, place.certificate, place.key, 1), place.tokens, tmp_path / "package")
    try:
        lines = [socket.create_connection(("127.0.0.1", hasty.port), timeout=5) for _ in range(3)]
        lines[1:] = [place.tls.wrap_socket(line, server_hostname="localhost") for line in lines[1:]]
        lines[2].sendall(b"GET /halfback/1 HTTP/1.1\r\nHost: ")
        assert [line.recv(100) for line in lines] == [b""] * 3
        until(lambda: hasty.counts()["refused_total:handshake"] == 3)
        assert not hasty._door._waiting
    finally:
        hasty.close()


def test_a_device_that_does_not_read_what_it_fetches_is_sent_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seated, "IDLE", 0.5)
    line = place.connect(place.token(), max_queue=1)
    said(line, hello())
    heard(line)
    held = threading.Event()
    line.protocol.receive_data = lambda data: held.wait(10)
    for _ in range(6):  # more than the system's buffers hold
        said(line, {"kind": "piece", "file": "weights.safetensors", "offset": 0})
    until(lambda: place.gateway.counts().get("closed_total:1008") == 1)
    held.set()


def test_a_device_that_says_nothing_after_it_came_in_is_sent_away(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seated, "IDLE", 0.3)
    with place.connect(place.token()) as line:
        assert end_of(line)[0] == 1008
    with place.connect(place.token()) as line:
        said(line, hello())
        heard(line)
        assert end_of(line)[0] == 1008
    assert place.gateway.counts()["closed_total:1008"] == 2


def test_a_device_that_gives_no_sign_of_life_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "_PING", 0.2)
    monkeypatch.setattr(gateways, "_SILENT", 1.5)
    dead, alive = place.at_work(place.token()), place.at_work(place.token())
    held = threading.Event()
    dead.protocol.receive_data = lambda data: held.wait(20)  # its program stands still
    until(lambda: place.gateway.present() == [1], 8.0)
    time.sleep(2.0)
    assert place.gateway.present() == [1]  # its pongs are signs enough
    held.set()
    alive.close()


def test_a_peer_without_tls_or_with_an_old_one_is_no_device(place: Place) -> None:
    with socket.create_connection(("127.0.0.1", place.gateway.port), timeout=5) as plain:
        plain.sendall(b"GET /halfback/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in plain.recv(100)  # an alert of TLS, and nothing of the gateway's
    place.tls.minimum_version, place.tls.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        place.connect(place.token())


def test_a_closing_site_tells_its_devices_to_come_again(place: Place) -> None:
    line = place.at_work(place.token())
    prepared(place, line)
    waiting = asked_behind(place, OPEN)
    heard(line)
    place.gateway.close()
    assert end_of(line) == (4002, "the site is closing")
    with pytest.raises(WorkerLost):
        waiting.result()
    with pytest.raises(WorkerLost, match="the site is closing"):
        place.gateway.exchange(0, OPEN, 1.0, LONGEST)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", place.gateway.port))


def test_what_is_counted_can_be_read_on_loopback(place: Place) -> None:
    with place.at_work(place.token()) as line:
        prepared(place, line)
        port = place.gateway._told.sockets[0].getsockname()[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    assert "# TYPE halfback_gateway_questions_total counter\nhalfback_gateway_questions_total 1\n" in text
    assert "\nhalfback_gateway_devices_at_work 1\n" in text
    assert f"\nhalfback_gateway_seats {place.seats}\n" in text
    found = dict(re.findall(r"^halfback_gateway_(\w+) ([\d.e+-]+)$", text, re.MULTILINE))
    assert float(found["received_bytes_total"]) > 100
    assert 0 < float(found["reply_seconds_total"]) < 5


def test_counts_are_for_whoever_names_loopback(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in a browser here could have its own name turned to loopback, and read what it asks for."""
    port = place.gateway._told.sockets[0].getsockname()[1]

    def asked(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
            line.sendall(request)
            return line.recv(1 << 16)

    for host in (b"127.0.0.1", b"localhost:9100"):
        assert asked(b"GET /metrics HTTP/1.1\r\nhost: " + host + b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    for head in (b"Host: evil.example:9100\r\n", b"X: y\r\n", b"X: Host: localhost\r\n", b"Host: localhost.evil\r\n"):
        assert asked(b"GET /metrics HTTP/1.1\r\n" + head + b"\r\n").startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert asked(b"GET / HTTP/1.1\r\n" + b"x" * 20_000) == b""
    monkeypatch.setattr(counts, "_PATIENCE", 0.2)
    assert asked(b"GET / HTTP/1.1\r\n") == b""


def test_a_site_that_can_not_be_a_gateway_says_why(place: Place, tmp_path: Path) -> None:
    good = Terms("127.0.0.1", 0, place.certificate, place.key, 2)

    def refused(said_why: str, package: str = "package", **changes: Any) -> None:
        with pytest.raises(UserError, match=said_why) as error:
            Gateway(Terms(**(vars(good) | changes)), place.tokens, tmp_path / package)
        assert "\n" not in str(error.value)

    refused("key.pem: No such file or directory", key=tmp_path / "key.pem")
    refused("no certificate with its key", certificate=place.key)
    refused("no certificate with its key", key=place.certificate)
    refused(f"devices.listen=127.0.0.1:{place.gateway.port}: Address already in use", port=place.gateway.port)
    refused("there is no manifest.json in it", package="site")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "manifest.json").write_text(json.dumps({"files": {"key": {}}}))
    (tmp_path / "linked" / "key").symlink_to(place.key)
    refused("key: Too many levels of symbolic links", package="linked")
    (tmp_path / "linked" / "manifest.json").write_text(json.dumps({"files": {"../site/key.pem": {}}}))
    (tmp_path / "linked" / "folder").mkdir()
    (tmp_path / "linked" / "manifest.json").write_text(json.dumps({"files": {"folder": {}}}))
    refused("folder: it is no file", package="linked")
    (tmp_path / "linked" / "manifest.json").write_text(json.dumps({"files": {"../site/key.pem": {}}}))
    refused("'../site/key.pem' is no name of a file in it", package="linked")
    taken = place.gateway._told.sockets[0].getsockname()[1]
    refused(f"devices.metrics={taken}: ", metrics=taken)


def test_a_pace_comes_back_and_remembers_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("halfback.deploy.door.time.monotonic", lambda: clock[0])
    pace = Pace(3, 0.5)
    assert [pace.take("a") for _ in range(5)] == [True] * 3 + [False] * 2
    assert pace.take("b")
    clock[0] += 2
    assert [pace.allows("a"), pace.take("a"), pace.allows("a")] == [True, True, False]
    clock[0] += 1000
    assert [pace.take("a") for _ in range(4)] == [True] * 3 + [False]
    for number in range(20_000):
        pace.take(str(number))
    assert len(pace._left) == 10_000


def test_addresses() -> None:
    assert host_of(("10.0.0.7", 1)) == "10.0.0.7"
    assert host_of(("::ffff:10.0.0.7", 1, 0, 0)) == "10.0.0.7"
    assert host_of(("2001:db8::1", 1, 0, 0)) == host_of(("2001:db8::ffff:2", 9, 0, 0)) == "2001:db8::/64"
    assert host_of(("fe80::1%eth0", 1, 0, 2)) == "fe80::/64"
    assert parsed("0.0.0.0:8443") == ("0.0.0.0", 8443)
    assert parsed("[::]:1") == ("::", 1)
    for wrong in ("8443", ":8443", "host:", "host:99999", "host:-1", "host:1x"):
        with pytest.raises(UserError, match="host:port is allowed"):
            parsed(wrong)


def test_random_bytes_end_their_own_connection_and_nobody_elses(place: Place, chance: random.Random) -> None:
    """Of a peer that is no WebSocket, and of one with a good token, beside a device that goes on replying."""
    steady, odd = place.at_work(place.token()), place.token()
    prepared(place, steady)
    for number in range(60):
        if number % 2:
            place.gateway._joins.__init__(10, 0.1)  # type: ignore[misc]  # as if it had waited
            line = place.connect(odd)
            if number % 4 == 1:
                said(line, hello())
            with suppress(ConnectionClosed):
                line.send(chance.randbytes(chance.randrange(300)))
            assert end_of(line)[0] in (1008, 1009)
        else:
            with socket.create_connection(("localhost", place.gateway.port), timeout=5) as plain:
                raw = place.tls.wrap_socket(plain, server_hostname="localhost")
                with suppress(OSError):
                    raw.sendall(chance.randbytes(3000) + b"\r\n\r\n")
                    raw.recv(100)
        reply = asked_behind(place)
        heard(steady)
        said(steady, READY)
        assert reply.result().header == READY
    steady.close()


def test_replies_come_to_who_asked(place: Place) -> None:
    """Questions to four devices from as many threads at once, each of which replies with what it was asked."""
    lines = [place.at_work(place.token()) for _ in range(4)]
    for at, line in enumerate(lines):
        prepared(place, line, at)

    def echo(line: ClientConnection) -> None:
        for _ in range(50):
            header, body = heard(line)
            said(line, json.dumps(header), body)

    def ask(number: int) -> bool:
        header, body = Said(lineage="0" * 16, round=number, exchange=0).model_dump_json(), bytes([number]) * 5000
        came = place.gateway.exchange(number % 4, Frame(header, body), 10.0, LONGEST)
        return (json.loads(came.header), came.body) == (json.loads(header), body)

    with ThreadPoolExecutor(12) as threads:
        echoes = [threads.submit(echo, line) for line in lines]
        assert all(threads.map(ask, range(200)))
        for one in echoes:
            one.result()
    for line in lines:
        line.close()
