"""A device that has come in at a gateway: what it is handed first, and one question at a time from then on."""

import asyncio
import json
import logging
from typing import final

from websockets.exceptions import ConnectionClosed

from halfback.deploy.counts import Counts
from halfback.deploy.door import Line
from halfback.deploy.joining import PROTOCOL, AtWork, Hello, Offer, Piece, message, read_said, room, unpacked
from halfback.deploy.relay import WorkerLost
from halfback.engine.remote.frames import Frame, Longest, Ready, read_reply
from halfback.errors import PeerError, one_line

log = logging.getLogger(__name__)

IDLE = 30.0  # seconds that a device may be silent, and may take to read a piece, before it works
_PREPARE, _READY = '{"kind":"prepare"', '{"kind":"ready"'  # how headers begin of what a device is told first
_PIECES = 2  # times the package that one connection may ask for


@final
class Seated:
    """A device at its place, on the gateway's event loop.

    Attributes:
        at_work: it has said that it replies to questions.
        sending: a question is on its way, which has a deadline of its own.
        longest: question that it takes, as it said itself when it was ready for a run.
    """

    def __init__(self, line: Line, counts: Counts) -> None:
        self.line, self.place = line, line.place
        self.at_work = self.sending = False
        self.longest = Longest(0)
        self._counts = counts
        self._prepared = False  # by this connection: one that is new has nothing of what its place was told before
        self._one_at_a_time = asyncio.Lock()
        self._due: asyncio.Future[Frame] | None = None  # the reply that is to come, also when nobody waits any more

    async def handed(self, offer: Offer) -> None:
        """Hands out the package, until the device has it and is at work.

        Raises:
            PeerError: it says what is not allowed here.
            TimeoutError: it is silent, or doesn't read.
            ConnectionClosed: it is gone.
        """
        hello = await self._heard()
        if not isinstance(hello, Hello):
            raise PeerError("", hello.kind, "hello is due first")
        if hello.protocol != PROTOCOL:
            raise PeerError("hello.protocol", hello.protocol, f"{PROTOCOL} is allowed")
        log.info("a device is at place %d: halfback-device %s", self.place, one_line(hello.version))
        package = {"digest": offer.digest, "files": offer.files}
        welcome = {"kind": "welcome", "protocol": PROTOCOL, "place": self.place, "package": package}
        await self._tell(welcome, b"")
        left = _PIECES * offer.bytes
        while not isinstance(asked := await self._heard(), AtWork):
            if isinstance(asked, Hello):
                raise PeerError("", "hello", "piece or ready is due")
            data = await asyncio.to_thread(offer.read, asked)
            left -= len(data)
            if left < 0:
                raise PeerError("piece", f"more than {_PIECES} times the package", "a new connection is due")
            await self._tell({"kind": "piece", "file": asked.file, "offset": asked.offset}, data)
        self.at_work = True

    async def _heard(self) -> Hello | Piece | AtWork:
        async with asyncio.timeout(IDLE):
            data = await self.line.recv()
        self._counts.add("received_bytes_total", len(data))
        asked = unpacked(data)
        if asked.body:
            raise PeerError("message", f"a body of {len(asked.body)} bytes", "none is allowed before a question")
        return read_said(asked.header)

    async def _tell(self, header: dict[str, object], body: bytes) -> None:
        async with asyncio.timeout(IDLE):
            await self._send(Frame(json.dumps(header), body))

    async def _send(self, asked: Frame) -> None:
        data = message(asked)
        self.line.due()
        await self.line.send(data[0] if len(data) == 1 else data)
        self._counts.add("sent_bytes_total", sum(map(len, data)))

    async def listen(self) -> None:
        """Takes in the replies that are due.

        Raises:
            PeerError: one came that is not due, or is no message.
            ConnectionClosed: the device is gone.
        """
        while True:
            data = await self.line.recv()
            self.line.protocol.max_message_size = room(0)
            self._counts.add("received_bytes_total", len(data))
            due, self._due = self._due, None
            if due is None:
                raise PeerError("reply", f"one of {len(data)} bytes", "none is due")
            try:
                reply = unpacked(data)
                if reply.header.startswith(_READY) and isinstance(said := read_reply(reply.header), Ready):
                    self.longest, self._prepared = Longest(said.takes), True
            except PeerError:
                due.cancel()
                raise
            if not due.done():
                due.set_result(reply)

    def ended(self) -> None:
        """The connection is over: whoever waits for a reply hears so."""
        self.at_work = False
        if self._due is not None:
            self._due.cancel()

    async def ask(self, asked: Frame, seconds: float, longest: Longest) -> Frame:
        """Its reply, no longer than `longest`; one question at a time.

        Raises:
            PeerError: the question is longer than it takes, or the reply than allowed.
            WorkerLost: it is gone, new here, or needs longer than so many seconds. Where it doesn't read, or is silent
                for two questions, its connection is closed.
        """
        self.longest.check(len(asked.header), len(asked.body))
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until):
                await self._one_at_a_time.acquire()
        except TimeoutError:
            raise WorkerLost(f"the device is busy with an earlier question for over {seconds:g} s") from None
        try:
            if self._due is not None:
                await self._late(until)
            if not self._prepared and not asked.header.startswith(_PREPARE):
                raise WorkerLost(f"the device at place {self.place} is new here")
            return await self._asked(asked, until, longest)
        finally:
            self._one_at_a_time.release()

    async def _late(self, until: float) -> None:
        """Waits for a reply that came too late for whoever asked."""
        assert self._due is not None
        try:
            async with asyncio.timeout_at(until):
                await asyncio.shield(self._due)
        except TimeoutError:
            self._counts.add("late_total")
            self.line.transport.abort()
            raise WorkerLost("the device was silent for two questions; its connection is closed") from None
        except (asyncio.CancelledError, PeerError):
            raise WorkerLost(f"the device at place {self.place} is gone") from None

    async def _asked(self, asked: Frame, until: float, longest: Longest) -> Frame:
        loop = asyncio.get_running_loop()
        due = self._due = loop.create_future()
        self.line.protocol.max_message_size = room(longest.body)
        begun = loop.time()
        self._counts.add("questions_total")
        try:
            async with asyncio.timeout_at(until):
                self.sending = True
                await self._send(asked)
                self.sending = False
                reply: Frame = await asyncio.shield(due)
        except TimeoutError:
            self._counts.add("late_total")
            if self.sending:
                self.line.transport.abort()
                raise WorkerLost("the device doesn't read its question; its connection is closed") from None
            raise WorkerLost(f"the device needs longer than {until - begun:.3g} s") from None
        except (asyncio.CancelledError, ConnectionClosed):
            self._counts.add("lost_total")
            raise WorkerLost(f"the device at place {self.place} is gone") from None
        self._counts.add("reply_seconds_total", loop.time() - begun)
        longest.check(len(reply.header.encode()), len(reply.body))
        return reply
