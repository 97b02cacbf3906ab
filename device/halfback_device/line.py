"""A device's connection to a gateway: messages on a WebSocket over TLS (docs/protocol.md).

The connection lives on an event loop in a thread of its own: there pings are replied to while the device computes, and
one thread alone does all that TLS has to do. Whoever uses a `Line` waits as with any other file.
"""

import asyncio
import logging
import ssl
import struct
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from halfback_device.errors import DeviceError, PeerError, one_line
from halfback_device.frames import Frame

PATH = "/halfback/1"
PIECE = 1 << 20  # bytes of a file in one message
TAKEN, REVOKED, BROKEN = 4001, 4003, 1008  # why a connection is closed
_MOST_HEADER = 1 << 22  # bytes; the largest holds a configuration
_LENGTH = struct.Struct("<I")
_FRAGMENT = 1 << 18  # bytes of a message that are sent at once: between two there is room for a pong
_PING, _SILENT = 20.0, 40.0  # seconds of silence until the gateway is asked for a sign, and until it is given up
_OPENS, _CLOSES, _LOOK = 20.0, 2.0, 1.0


class Lost(Exception):
    """There is no connection, or none any more.

    Attributes:
        code: with which the gateway closed it; 0 where it said none.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        """`why` is made one line."""
        super().__init__(one_line(why))
        self.code = code


class Unwelcome(DeviceError):
    """The token is not good at this gateway, and won't be: there is no use in coming again."""


@final
class Line:
    """A connection. One thread at a time may use it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: "_Connection") -> None:
        """`loop`: on which the connection is."""
        self._loop, self._connection = loop, connection
        self._coming: Future[Any] | None = None
        self._moved = self._pinged = 0.0  # when the last fragment went; when the last thing had come at the last ping

    def take(self, body: int) -> None:
        """Bodies of up to so many bytes are read from now on, or of a piece: longer ones close the connection."""
        self._connection.protocol.max_message_size = _room(body)

    def send(self, said: Frame) -> None:
        """Sends a message, however long that takes, as long as something of it goes.

        Raises:
            Lost: the connection is.
        """
        self._moved = time.monotonic()
        header = said.header.encode()
        begin = _LENGTH.pack(len(header)) + header
        short = len(begin) + len(said.body) <= _FRAGMENT
        message = begin + said.body if short else self._fragments(begin, said.body)
        sent = _soon(self._loop, self._connection.send(message))
        while not wait([sent], _LOOK).done:
            if time.monotonic() - self._moved > _SILENT:
                self.drop()
        with _as_lost():
            sent.result()

    def _fragments(self, begin: bytes, body: bytes) -> Iterator[bytes | memoryview]:
        yield begin
        for first in range(0, len(body), _FRAGMENT):
            self._moved = time.monotonic()
            yield memoryview(body)[first : first + _FRAGMENT]

    def receive(self, seconds: float) -> Frame | None:
        """The next message; None if it isn't there after so many seconds.

        Raises:
            PeerError: what came is no message.
            Lost: the connection is, or nothing at all came for too long.
        """
        coming = self._coming = self._coming or _soon(self._loop, self._connection.recv())
        if not wait([coming], seconds).done:
            self._ask_for_a_sign()
            return None
        self._coming = None
        with _as_lost():
            message = coming.result()
        return unpacked(message)

    def _ask_for_a_sign(self) -> None:
        """A ping where it is silent. Whatever comes is a sign: a pong may stand behind a long message."""
        heard = self._connection.heard
        silent = time.monotonic() - heard
        if silent > _SILENT:
            self.drop()
            raise Lost(f"nothing came from it for {_SILENT:g} s")
        if silent > _PING and self._pinged != heard:
            self._pinged = heard
            with _as_lost():
                _soon(self._loop, self._connection.ping()).result(_CLOSES)

    def drop(self) -> None:
        """Ends the connection without a word."""
        self._loop.call_soon_threadsafe(self._connection.transport.abort)

    def close(self, code: int = 1000, why: str = "") -> None:
        """Says goodbye, for which the gateway has a moment."""
        reason = one_line(why).encode()[:120].decode(errors="ignore")  # what fits
        with suppress(TimeoutError):
            _soon(self._loop, self._connection.close(code, reason)).result(2 * _CLOSES)
        self.drop()


def unpacked(message: Any) -> Frame:
    """Header and body of a message; PeerError where it is none."""
    if not isinstance(message, bytes):
        raise PeerError("message", "text came, binary messages are allowed")
    if len(message) < _LENGTH.size:
        raise PeerError("message", f"{len(message)} bytes", f"{_LENGTH.size} or more are allowed")
    end = _LENGTH.size + _LENGTH.unpack_from(message)[0]
    if end > min(len(message), _LENGTH.size + _MOST_HEADER):
        came = f"a header of {end - _LENGTH.size} bytes in a message of {len(message)}"
        raise PeerError("message", came, f"at most {_MOST_HEADER} are allowed")
    try:
        return Frame(message[_LENGTH.size : end].decode(), message[end:])
    except UnicodeDecodeError:
        raise PeerError("message", "its header is no text") from None


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def opened(loop: asyncio.AbstractEventLoop, url: str, token: str, tls: ssl.SSLContext) -> Line:
    """A connection to a gateway.

    Raises:
        Unwelcome: it doesn't know the token.
        Lost: it can't be reached, can't show that it is who it should be, or turns the device away for now.
    """
    with _as_lost():
        return Line(loop, _soon(loop, _opened(url, token, tls)).result())


async def _opened(url: str, token: str, tls: ssl.SSLContext) -> "_Connection":
    quiet = logging.getLogger(f"{__name__}.websockets")
    quiet.setLevel(logging.CRITICAL)  # what is worth a line is said by who joins
    connection = await _Connect(
        url,
        ssl=tls,
        additional_headers={"Authorization": f"Bearer {token}"},
        user_agent_header=None,
        compression=None,  # what is sent is packed already, and what comes could unpack to any size
        open_timeout=_OPENS,
        ping_interval=None,
        close_timeout=_CLOSES,
        max_size=_room(0),
        max_queue=(1, 0),  # one question is due at a time
        logger=quiet,
        create_connection=_Connection,
    )
    assert isinstance(connection, _Connection)
    return connection


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        """A gateway is where its address says: no redirect is followed."""
        return exc


class _Connection(ClientConnection):
    heard = 0.0  # when anything came last

    def connection_made(self, transport: Any) -> None:
        self.heard = time.monotonic()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        super().data_received(data)


def address(url: str) -> str:
    """The address of a gateway, with the path that it has where the URL has none.

    Raises:
        DeviceError: it is none.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme == "wss" and parts.hostname and parts.port != 0 and url.isascii() and url.isprintable()
    except ValueError:
        is_one = False
    if not is_one or parts.username is not None or parts.query or parts.fragment or " " in url:
        raise DeviceError(f"{url!r:.200} is no gateway's address; wss://HOST:PORT is allowed")
    return url if parts.path.strip("/") else url.rstrip("/") + PATH


def tls(authority: Path | None) -> ssl.SSLContext:
    """TLS that trusts the system's authorities, or this one alone, a file of PEM.

    Raises:
        DeviceError: the file is missing or none.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        why = "it holds no certificate" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", str(error))
        raise DeviceError(f"--ca {authority}: {why}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _room(body: int) -> int:
    return _LENGTH.size + _MOST_HEADER + max(body, PIECE)


def _soon(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Future[Any]:
    return asyncio.run_coroutine_threadsafe(work, loop)


@contextmanager
def _as_lost() -> Iterator[None]:
    """What sockets, TLS and the library raise becomes one of the two errors of this module."""
    try:
        yield
    except InvalidStatus as error:
        status, said = error.response.status_code, (error.response.body or b"")[:200].decode(errors="replace").strip()
        if status == 401:
            raise Unwelcome(f"the gateway doesn't take this token: {said}") from None
        raise Lost(f"it says {status}: {said}") from None
    except ConnectionClosed as error:
        if error.rcvd is not None:
            code, reason = error.rcvd.code, error.rcvd.reason
            if code == REVOKED:
                raise Unwelcome(f"the gateway doesn't take this token any more: {reason}") from None
            raise Lost(f"it closed the connection ({code}{reason and ': '}{reason})", code) from None
        said = f"what it sent was refused ({error.sent.reason})" if error.sent else "the connection was cut"
        raise Lost(said) from None
    except ssl.SSLCertVerificationError as error:
        raise Lost(f"its certificate isn't trusted ({error.verify_message}); --ca names an authority") from None
    except (OSError, WebSocketException, ValueError, EOFError, ImportError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Lost(why or type(error).__name__) from None
