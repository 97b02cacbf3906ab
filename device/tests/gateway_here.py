"""A gateway as small as one can be: real sockets, real TLS, and whatever a test has it say."""

import hashlib
import json
import ssl
import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from halfback.engine.remote.frames import Frame, Longest
from halfback_device.data import Rows
from halfback_device.errors import DeviceError
from halfback_device.join import Joining, Terms
from halfback_device.line import Lost, event_loop

TOKEN = "hb1.00000000." + "a" * 43
PIECE = 1 << 20

Said = tuple[dict[str, Any], bytes]


def packed(header: str, body: bytes = b"") -> bytes:
    data = header.encode()
    return struct.pack("<I", len(data)) + data + body


def unpacked(message: str | bytes) -> Said:
    assert isinstance(message, bytes)
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def listing(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What a gateway says of a package with these files."""
    shas = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    digest = hashlib.sha256("".join(sorted(f"{name} {sha}\n" for name, sha in shas.items())).encode()).hexdigest()
    told = [{"name": name, "bytes": len(data), "sha256": shas[name]} for name, data in files.items()]
    return {"digest": digest, "files": told}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Gateway:
    """Serves a package, and then whatever `at_work` does with the connection.

    Attributes:
        met: the hello of each connection, in order.
        pieces: which pieces were asked for.
    """

    def __init__(self, files: Mapping[str, bytes], at_work: Callable[[ServerConnection], None]) -> None:
        self.files, self.at_work = dict(files), at_work
        self.listing = listing(self.files)
        self.met: list[dict[str, Any]] = []
        self.pieces: list[tuple[str, int]] = []
        self.authority = trustme.CA()
        self.cut_after: int | None = None
        """After how many pieces the connection is cut, without a word."""
        self.let_in: list[str | None] = []
        """What stood in `Authorization` of whoever came."""
        self.welcome: Callable[[ServerConnection, bytes], None] | None = None
        """What it does in place of its welcome, which is given."""
        self.spoil = ""
        """Of which file one byte is another."""

    @contextmanager
    def serving(self, folder: Path) -> Iterator[str]:
        """Its URL; its authority's certificate is then in `folder`/ca.pem."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        quiet = {"compression": None, "process_request": self._let_in, "max_size": None}
        with serve(self._connected, "127.0.0.1", 0, ssl=context, **quiet) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"wss://127.0.0.1:{server.socket.getsockname()[1]}"
            finally:
                server.shutdown()
                thread.join()

    def _let_in(self, line: ServerConnection, request: Request) -> Response | None:
        self.let_in.append(request.headers.get("Authorization"))
        if request.headers.get("Authorization") == f"Bearer {TOKEN}" and request.path == "/halfback/1":
            return None
        return Response(401, "Unauthorized", Headers(), b"this token is not good here\n")

    def _connected(self, line: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            self.met.append(unpacked(line.recv())[0])
            told = {"kind": "welcome", "protocol": 1, "place": 0, "package": self.listing}
            welcome = packed(json.dumps(told))
            if self.welcome is not None:
                self.welcome(line, welcome)
                return
            line.send(welcome)
            while (asked := unpacked(line.recv())[0])["kind"] == "piece":
                name, offset = asked["file"], asked["offset"]
                if self.cut_after is not None and len(self.pieces) >= self.cut_after:
                    line.socket.close()
                    return
                self.pieces.append((name, offset))
                body = self.files[name][offset : offset + PIECE]
                if name == self.spoil:
                    body = bytes([body[0] ^ 1]) + body[1:]
                line.send(packed(json.dumps(asked), body))
            assert asked == {"kind": "ready"}
            self.at_work(line)


class Seats:
    """Carries a run's questions to devices that have connected, of which there may be none at the moment."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lines: dict[int, ServerConnection] = {}
        self._changed = threading.Condition()
        self.asked = 0
        self.before: Callable[[int], None] = lambda asked: None
        """Called before each questions, with their number."""

    def at_work(self, place: int) -> Callable[[ServerConnection], None]:
        """What a gateway does with the connection of the device at a place."""

        def work(line: ServerConnection) -> None:
            with self._changed:
                self._lines[place] = line
                self._changed.notify_all()
            line.recv_events_thread.join()

        return work

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._lines) == count, 60)

    def reachable(self) -> set[int]:
        return set(self._lines)

    def is_there(self, client: int) -> bool:
        return client in self._lines

    def ask(
        self, questions: Mapping[int, Frame], seconds: Mapping[int, float], longest: Longest
    ) -> Generator[tuple[int, Any], None, None]:
        self.before(self.asked)
        self.asked += 1
        replies: dict[int, Any] = {}
        for number, question in questions.items():
            try:
                self._lines[number].send(packed(question.header, question.body))
            except (ConnectionClosed, KeyError):
                replies[number] = "it is gone"
        for number in questions:
            yield number, replies[number] if number in replies else self._reply(number)

    def _reply(self, number: int) -> Frame | str:
        try:
            message = self._lines[number].recv(60)
        except ConnectionClosed:
            self._lines.pop(number, None)
            return "it is gone"
        assert isinstance(message, bytes)
        (length,) = struct.unpack_from("<I", message)
        return Frame(message[4 : 4 + length].decode(), message[4 + length :])


FILES = {"manifest.json": b"{}", "weights.safetensors": bytes(range(256)) * (3 * PIECE // 256) + b"end", "empty": b""}


def terms(url: str, folder: Path, rows: Path, **changes: Any) -> Terms:
    given = {"folder": folder / "device", "authority": folder / "ca.pem"}
    return Terms(url, TOKEN, Rows(str(rows), text="text", label="label", shared=True), **given | changes)


def idle(at: ServerConnection) -> None:
    """A gateway that asks nothing."""
    at.recv_events_thread.join()


def came_to(gateway: Gateway, folder: Path, rows: Path, times: int = 1) -> list[Exception]:
    """What came of so many visits of a device to this gateway."""
    found: list[Exception] = []
    with gateway.serving(folder) as url, event_loop() as loop:
        device = Joining(terms(url, folder, rows))
        for _ in range(times):
            with pytest.raises((Lost, DeviceError)) as error:
                device._take_part(loop)
            found.append(error.value)
    return found
