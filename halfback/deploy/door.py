"""Who may come in at a gateway's port, and how often: all that is decided before anybody has said who they are.

A connection costs memory and a file descriptor before its first word, and a TLS handshake costs more than all that this
project does with it, so limits hold from the moment it is accepted.
"""

import ipaddress
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame
from websockets.http11 import Request

from halfback.errors import UserError

SPOKEN = "halfback"  # the subprotocol that is answered; a browser, which can set no header, says its token behind it
_BEARER, _TOKEN = "Bearer ", "hb1."
HANDSHAKE = 10.0  # seconds that a connection has for TLS, and again for saying who it is
_WAITING, _WAITING_EACH = 256, 128  # connections that have not said who they are: in all, and from one address
_NAMES = 10_000  # addresses that are remembered
# Frames of less than so many bytes: so many at once, so many for each message that is due, and so many a second.
_SMALL, _SMALL_FRAMES, _SMALL_DUE, _SMALL_PER_SECOND = 1024, 1000, 100, 10.0
_AT_ONCE = 1 << 14  # bytes that are looked into before anything else has its turn


@dataclass(frozen=True)
class Terms:
    """Where a gateway listens, and what it works with.

    Attributes:
        host, port: where devices connect to; port 0 for any that is free.
        certificate, key: PEM files of TLS.
        seats: how many devices it has places for.
        metrics: port of loopback that tells the counts; None for none.
        page: folder of the page that browsers are handed; None for none.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    seats: int
    metrics: int | None = None
    page: Path | None = None


@final
class Pace:
    """Lets each name do something so many times (or have so much) at once, and from then on so many times a second."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst, self._per_second = burst, per_second
        self._left: dict[str, tuple[float, float]] = {}  # what is left to each, and when that was

    def allows(self, name: str) -> bool:
        """Whether it may; nothing is taken for that."""
        return self._now(name) >= 1

    def take(self, name: str, much: float = 1) -> bool:
        """Whether it may, which then counts: once, or for so much."""
        left = self._now(name)
        self._left.pop(name, None)  # those that came last stand last
        self._left[name] = (left - much if left >= much else left, time.monotonic())
        while len(self._left) > _NAMES:
            del self._left[next(iter(self._left))]
        return left >= much

    def _now(self, name: str) -> float:
        left, at = self._left.get(name, (self._burst, 0.0))
        return min(self._burst, left + (time.monotonic() - at) * self._per_second)


def host_of(address: Any) -> str:
    """Whom an address is counted for: a host, or with IPv6, where one host has many, its network of 64 bits."""
    host = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(host, ipaddress.IPv6Address):
        return str(host.ipv4_mapped or ipaddress.IPv6Network((int(host) >> 64 << 64, 64)))
    return str(host)


def parsed(listen: str) -> tuple[str, int]:
    """Host and port of `host:port`, or `[host]:port` with IPv6; UserError where it is neither."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(f"devices.listen={listen!r}: host:port is allowed, such as 0.0.0.0:8443")
    return host.removeprefix("[").removesuffix("]"), int(port)


@final
class Caller(socket.socket):
    """A connection that tells when it is closed, whoever closes it."""

    gone: Callable[[], None]

    def close(self) -> None:
        super().close()
        self.gone()


@final
class Door(socket.socket):
    """A listening socket that closes what is too much at once, before a TLS handshake is paid for it."""

    def __init__(self, host: str, port: int, pace: Pace, strangers: Pace, refused: Callable[[str], None]) -> None:
        """Listens.

        Args:
            host: this machine's address.
            port: 0 for any that is free.
            pace: of connections from one address.
            strangers: pace of all connections together from addresses that no device came in from.
            refused: hears why of each that never said who it is.

        Raises:
            UserError: the address is not this machine's, or somebody else listens there.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(family, kind, protocol)
        except OSError as error:
            raise UserError(f"devices.listen={host}:{port}: {error.strerror}") from None
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(address)
            self.setblocking(False)
        except OSError as error:
            self.close()
            raise UserError(f"devices.listen={host}:{port}: {error.strerror}") from None
        self._pace, self._strangers, self._refused = pace, strangers, refused
        self._known: dict[str, None] = {}  # hosts that a device came in from, the latest last
        self._waiting: set[Any] = set()  # addresses
        self._each: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; ConnectionAbortedError, after which the event loop goes on, for one that was closed."""
        plain, address = super().accept()
        connection = Caller(self.family, self.type, self.proto, plain.detach())
        connection.gone = lambda: self._gone(address)
        host = host_of(address)
        is_full = len(self._waiting) >= _WAITING or self._each[host] >= _WAITING_EACH
        if is_full or not self._pace.take(host) or not (host in self._known or self._strangers.take("")):
            connection.close()
            self._refused("crowd")
            raise ConnectionAbortedError
        self._waiting.add(address)
        self._each[host] += 1
        return connection, address

    def passed(self, address: Any) -> bool:
        """A connection has said who it is, truly or not; False if it is gone already."""
        if address not in self._waiting:
            return False
        self._waiting.remove(address)
        host = host_of(address)
        self._each[host] -= 1
        if not self._each[host]:
            del self._each[host]
        return True

    def know(self, host: str) -> None:
        """A device came in from there: it may come again, however many strangers do."""
        self._known.pop(host, None)
        self._known[host] = None
        if len(self._known) > _NAMES:
            del self._known[next(iter(self._known))]

    def knows(self, host: str) -> bool:
        """Whether a device came in from there."""
        return host in self._known

    def _gone(self, address: Any) -> None:
        if self.passed(address):
            self._refused("handshake")


class Line(ServerConnection):
    """A connection that reads nothing more from a peer who doesn't read: each ping would else be a pong in memory.

    Nor from one that sends small frames without end, each of which costs more than its bytes: `flooded` is then true.
    Who has not said what it wants in time is cut off, and so is who says more where a file is handed out: `is_reader`.
    """

    token, place = "", -1  # of a device that has said who it is
    flooded = is_reader = False
    _left, _at = float(_SMALL_FRAMES), 0.0  # small frames that may come, and when that was
    heard = 0.0  # when anything came last, on the loop's clock
    address: Any = None  # of the peer, which a transport no longer knows when that one is gone

    def connection_made(self, transport: Any) -> None:
        self.address = transport.get_extra_info("peername")
        self.heard = self.loop.time()
        super().connection_made(transport)
        self._due_soon = self.loop.call_later(HANDSHAKE, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        if self.is_reader:
            self.transport.abort()
            return
        for at in range(0, len(data), _AT_ONCE):
            super().data_received(data[at : at + _AT_ONCE])
            if self._left < 0:
                self.flooded = True
                self.transport.abort()
                return

    def connection_lost(self, error: Exception | None) -> None:
        self._due_soon.cancel()
        super().connection_lost(error)

    def process_event(self, event: Any) -> None:
        self._due_soon.cancel()
        super().process_event(event)
        if isinstance(event, Frame) and len(event.data) < _SMALL:
            self._left = min(_SMALL_FRAMES, self._left + (self.heard - self._at) * _SMALL_PER_SECOND) - 1
            self._at = self.heard

    def due(self) -> None:
        """Something is due from the device, which may come in small frames."""
        self._left = min(_SMALL_FRAMES, max(self._left, 0) + _SMALL_DUE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.recv_messages.paused:
            self.transport.resume_reading()


def is_from_here(request: Request) -> bool:
    """Whether no page of a browser asks, or one that came from here: its browser says so, and cannot be told not to."""
    origins, hosts = (request.headers.get_all(name) for name in ("Origin", "Host"))
    return not origins or (len(origins) == len(hosts) == 1 and origins[0].lower() == f"https://{hosts[0].lower()}")


def token_of(request: Request) -> str:
    """The token of a request, which is in one place: its header, or what is offered behind our subprotocol."""
    said = [each[len(_BEARER) :] for each in request.headers.get_all("Authorization") if each.startswith(_BEARER)]
    is_plain = len(said) == len(request.headers.get_all("Authorization"))
    for offered in request.headers.get_all("Sec-WebSocket-Protocol"):
        said += [each.strip() for each in offered.split(",") if each.strip().startswith(_TOKEN)]
    return said[0] if is_plain and len(said) == 1 else ""


def tls_of(terms: Terms) -> ssl.SSLContext:
    """What a gateway shows its devices; UserError where it is no certificate with its key."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nobody resumes; and a client that reads a ticket in a thread while it writes may lose what it says.
    context.num_tickets = 0
    try:
        context.load_cert_chain(terms.certificate, terms.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        said = (
            error.strerror if error.strerror and not isinstance(error, ssl.SSLError) else "no certificate with its key"
        )
        raise UserError(f"devices.certificate={terms.certificate}, devices.key={terms.key}: {said}") from None
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key has a password")  # which OpenSSL would ask a terminal for
