"""A site as gateway: devices connect outward to it, and each is a client of the run (docs/gateway.md).

One thread has an event loop with all connections. A place is a client number of this site; a device has it by its
token. Whatever a device says is a claim until checked, and costs no more than what is due from it at that moment.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from halfback.deploy.browsers import LONGEST, Page, built_page
from halfback.deploy.counts import Counts, tell
from halfback.deploy.device import check_package
from halfback.deploy.door import (
    HANDSHAKE,
    SPOKEN,
    Door,
    Line,
    Pace,
    Terms,
    host_of,
    is_from_here,
    parsed,
    tls_of,
    token_of,
)
from halfback.deploy.joining import BROKEN, CLOSING, PATH, REVOKED, TAKEN, Offer, room
from halfback.deploy.relay import WorkerLost
from halfback.deploy.seated import IDLE, Seated
from halfback.deploy.site import SiteConfig
from halfback.deploy.tokens import Tokens
from halfback.engine.remote.frames import Frame, Longest
from halfback.errors import PeerError, UserError, one_line

log = logging.getLogger(__name__)

_LOOK = 1.0  # seconds between two looks at the tokens and at connections that say nothing
_PING, _SILENT = 20.0, 40.0  # seconds of silence until a device is asked for a sign, and until it is given up
_CLOSES = 2.0  # seconds that a peer has to say goodbye
_GRACE = 5.0  # seconds more for the event loop than for a question
_WRONG = "this token is not good here\n"
_STRANGERS = (256, 50.0)  # connections from all addresses that no device came from: so many at once, then a second
# Of one address, or place: so many at once, and from then on so many a second.
_CONNECTIONS, _TOKENS, _JOINS = (64, 10.0), (10, 0.1), (10, 0.1)


@final
class Gateway:
    """Devices that connect to this site. Its methods may be called from any thread."""

    def __init__(self, terms: Terms, tokens: Path, package: Path) -> None:
        """Listens from here on.

        Args:
            terms: where, and how many.
            tokens: file of those that are good.
            package: folder of the device package that devices are handed.

        Raises:
            UserError: a file is not what it should be, or the port is taken.
        """
        self._terms = terms
        self._tokens = Tokens(tokens)
        self._tls = tls_of(terms)
        self._seated: dict[int, Seated] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._counts = Counts(self._gauges)
        burst, per_second = _CONNECTIONS
        pace = Pace(burst + 2 * terms.seats, per_second)
        self._wrong, self._joins = Pace(*_TOKENS), Pace(*_JOINS)
        self._offer = Offer(package)
        try:
            self._page = None if terms.page is None else Page(terms.page, terms.seats)
        except BaseException:
            self._offer.close()
            raise
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        try:
            strangers = Pace(_STRANGERS[0] + 2 * terms.seats, _STRANGERS[1])
            self._door = Door(terms.host, terms.port, pace, strangers, self._refused)
            self.port: int = self._door.getsockname()[1]
        except BaseException:
            self._loop.close()
            self._offer.close()
            if self._page is not None:
                self._page.close()
            raise
        self._thread.start()
        try:
            self._told = self._soon(self._begun())
        except OSError as error:
            self.close()
            raise UserError(f"devices.metrics={terms.metrics}: {error.strerror}") from None
        log.info("devices may connect to %s:%d, which has %d seats", terms.host, self.port, terms.seats)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _soon(self, work: Coroutine[Any, Any, Any], seconds: float | None = None) -> Any:
        """What comes of this on the event loop; concurrent.futures' TimeoutError after so many seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    async def _begun(self) -> asyncio.Server | None:
        quiet = logging.getLogger(f"{__name__}.websockets")
        quiet.setLevel(logging.CRITICAL)  # what strangers do is counted, not written down
        told = None if self._terms.metrics is None else await tell(self._counts, self._terms.metrics)
        self._server: Server = await serve(
            self._at_place,
            sock=self._door,
            ssl=self._tls,
            process_request=self._let_in,
            process_response=self._answered,
            create_connection=Line,
            compression=None,
            server_header=None,
            select_subprotocol=lambda _, offered: Subprotocol(SPOKEN) if SPOKEN in offered else None,
            open_timeout=LONGEST,  # of a file of the page; who has said nothing is cut off before: see Line
            ssl_handshake_timeout=HANDSHAKE,
            ping_interval=None,  # a pong stands behind a long reply in a slow line: see _look_around
            close_timeout=_CLOSES,
            max_size=room(0),
            max_queue=(1, 0),
            logger=quiet,
        )
        self._looking = asyncio.create_task(self._look_around())
        return told

    # What the site asks.

    def present(self) -> list[int]:
        """The places of devices that are at work."""
        return sorted(place for place, device in list(self._seated.items()) if device.at_work)

    def counts(self) -> dict[str, float]:
        """What was counted since the gateway began, by name."""
        return self._counts.now()

    def longest(self, place: int) -> Longest:
        """The longest question that the device at a place takes, none if there is none."""
        device = self._seated.get(place)
        return Longest(0) if device is None else device.longest

    def exchange(self, place: int, asked: Frame, seconds: float, longest: Longest) -> Frame:
        """The reply of the device at a place, which is no longer than `longest`.

        Raises:
            PeerError: the question is longer than the device takes, or the reply than allowed.
            WorkerLost: no device is there, it went, or it needs longer than so many seconds.
        """
        if self._closing:
            raise WorkerLost("the site is closing")
        try:
            reply = self._soon(self._ask(place, asked, seconds, longest), seconds + _GRACE)
        except (Late, CancelledError, RuntimeError):  # the event loop has ended meanwhile
            raise WorkerLost("the site is closing") from None
        assert isinstance(reply, Frame)
        return reply

    async def _ask(self, place: int, asked: Frame, seconds: float, longest: Longest) -> Frame:
        device = self._seated.get(place)
        if device is None or not device.at_work:
            self._counts.add("lost_total")
            raise WorkerLost(f"no device is at place {place}")
        return await device.ask(asked, seconds, longest)

    def close(self) -> None:
        """Sends all devices away, who may come again later, and ends."""
        if self._closing:
            return
        self._closing = True
        with suppress(Late):
            self._soon(self._ended(), 4 * _CLOSES)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(4 * _CLOSES)
        self._door.close()
        self._offer.close()
        if self._page is not None:
            self._page.close()

    async def _ended(self) -> None:
        if told := getattr(self, "_told", None):
            told.close()
        if self._page is not None:
            self._page.stop()
        if hasattr(self, "_server"):
            self._looking.cancel()
            self._server.close(code=CLOSING, reason="the site is closing")
            await self._server.wait_closed()

    # Who comes in.

    async def _let_in(self, line: ServerConnection, request: Request) -> Response | None:
        """Whether a connection is a device's; else why not, in one line that says no more than it must."""
        assert isinstance(line, Line)
        if line.protocol.parser_exc is not None:  # the library has ended the connection, and would answer even so
            line.transport.abort()
            await line.wait_closed()
            return line.respond(HTTPStatus.BAD_REQUEST, "what came behind the request is no message\n")
        host = host_of(line.address)
        if self._page is not None and request.path != PATH:
            self._door.passed(line.address)
            status = "late"
            try:
                answer = await self._page.answer(line, request, host, is_known=self._door.knows(host))
                status = str(answer.status_code)
            finally:
                self._counts.add("page_total", kind=status)
            return answer
        if not self._wrong.allows(host):
            return line.respond(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong tokens from here\n")
        if request.path != PATH:
            self._wrong.take(host)
            return line.respond(HTTPStatus.NOT_FOUND, f"{PATH} is here\n")
        if not is_from_here(request):
            return line.respond(HTTPStatus.FORBIDDEN, "a page from elsewhere may not connect here\n")
        self._tokens.refresh()  # one that was made a moment ago is good, and its device comes once
        token = self._tokens.check(token_of(request))
        place = None if token is None else self._tokens.place(token)
        if token is None or place is None:
            self._wrong.take(host)
            return line.respond(HTTPStatus.UNAUTHORIZED, _WRONG)
        if place >= self._terms.seats:
            return line.respond(HTTPStatus.SERVICE_UNAVAILABLE, "this site has fewer seats by now\n")
        if not self._joins.take(str(place)):
            return line.respond(HTTPStatus.TOO_MANY_REQUESTS, "this token came in too often; wait a while\n")
        self._door.know(host)
        line.token, line.place = token, place
        return None

    def _answered(self, line: ServerConnection, request: Request, response: Response) -> None:
        assert isinstance(line, Line)
        is_let_in = response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        if not is_let_in and self._door.passed(line.address):
            self._refused(str(response.status_code))

    def _refused(self, why: str) -> None:
        self._counts.add("refused_total", kind=why)

    async def _at_place(self, line: ServerConnection) -> None:
        """A device from when it has come in until it has gone."""
        assert isinstance(line, Line)
        if not self._door.passed(line.address):
            return  # it is gone again
        device, code, why = Seated(line, self._counts), 1000, ""
        if (older := self._seated.get(line.place)) is not None:
            self._send_away(older, TAKEN, "another connection took this place")
        self._seated[line.place] = device
        self._counts.add("joined_total")
        try:
            await device.handed(self._offer)
            await device.listen()
        except PeerError as error:
            code, why = BROKEN, str(error)
        except TimeoutError:
            code, why = BROKEN, f"nothing came, or was read, for {IDLE:g} s"
        except ConnectionClosed:
            if line.flooded:
                code, why = BROKEN, "too many small frames"
        finally:
            device.ended()
            if self._seated.get(line.place) is device:
                del self._seated[line.place]
            if why:
                self._counts.add("closed_total", kind=str(code))
        log.info("the device at place %d is gone%s", line.place, f": {one_line(why)}" if why else "")
        await line.close(code, _reason(why))

    def _send_away(self, device: Seated, code: int, why: str) -> None:
        """Closes a device's connection; nobody waits for a peer that is gone already."""
        device.ended()
        self._counts.add("closed_total", kind=str(code))
        task = asyncio.create_task(device.line.close(code, why))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _look_around(self) -> None:
        """Every second: who has no good token any more, and who gave no sign of life.

        Whatever comes is such a sign, not a pong alone: that one may stand behind a long reply in a slow line.
        """
        while True:
            await asyncio.sleep(_LOOK)
            try:
                self._tokens.refresh()
                for device in list(self._seated.values()):
                    if self._tokens.place(device.line.token) != device.place:
                        self._send_away(device, REVOKED, "this token was revoked")
                        del self._seated[device.place]
                    else:
                        self._ask_for_a_sign(device)
            except Exception:
                log.exception("a look at the devices failed")  # the next one may not

    def _ask_for_a_sign(self, device: Seated) -> None:
        line, silent = device.line, self._loop.time() - device.line.heard
        if silent > _SILENT and not device.sending:
            line.transport.abort()
        elif silent > _PING and not line.pending_pings:
            task = asyncio.create_task(_pinged(line))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _gauges(self) -> dict[str, int]:
        return {
            "devices": len(self._seated),
            "devices_at_work": len(self.present()),
            "seats": self._terms.seats,
        }


async def _pinged(line: Line) -> None:
    with suppress(ConnectionClosed):
        await line.ping()


def _reason(why: str) -> str:
    """What fits into a closing message: 123 bytes."""
    return one_line(why).encode()[:123].decode(errors="ignore")


def opened(site: SiteConfig, tokens: Path) -> Gateway:
    """The gateway of a site whose file has `devices`; `tokens`: file of those that are good.

    Raises:
        UserError: what its file names is not as it should be, or it takes no part in runs of its package's recipe.
    """
    assert site.devices is not None
    said, (host, port) = site.devices, parsed(site.devices.listen)
    package = check_package(site)
    certificate, key = (Path(path).expanduser() for path in (said.certificate, said.key))
    page = built_page() if said.page else None
    return Gateway(Terms(host, port, certificate, key, said.seats, said.metrics, page), tokens, package)
