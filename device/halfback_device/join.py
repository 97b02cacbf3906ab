"""`halfback-device join`: a device that connects to a gateway by itself, works, and comes again when it was cut off."""

import asyncio
import json
import logging
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from halfback_device.client import Device, alone_in
from halfback_device.data import Rows, check_all_read
from halfback_device.errors import DeviceError, PeerError
from halfback_device.fetch import Listing, Store, read_listing
from halfback_device.frames import Frame, parsed
from halfback_device.line import BROKEN, TAKEN, Line, Lost, Unwelcome, address, event_loop, opened, tls
from halfback_device.package import Package

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"hb1\.[0-9a-f]{8}\.[A-Za-z0-9_-]{43}")
_LONGEST_WAIT = 60.0  # seconds until it comes again; the first time it is one
_LOOK = 1.0  # seconds after which it looks whether it was told to stop
_DUE = 120.0  # seconds that a gateway has for what it was asked for
_MAY = 30.0  # seconds between two runs of the command that says whether this device may work, and that one may take
_TELL = 5.0  # seconds between two lines that say how it goes


@dataclass(frozen=True)
class Terms:
    """How a device takes part.

    Attributes:
        url: of the gateway.
        token: by which the gateway knows the device.
        rows: where its rows are.
        folder: where it keeps the package and its states; None for one of the user's, by the token's public part.
        authority: PEM file of the authority that the gateway's certificate is from; None for those of the system.
        only_when: a command of the shell: the device works while its status is 0.
        keep_labels: it takes part only in runs in which no label is sent.
    """

    url: str
    token: str
    rows: Rows
    folder: Path | None = None
    authority: Path | None = None
    only_when: str | None = None
    keep_labels: bool = False


class _Leaves(Exception):
    """The device ends the connection, for a reason of its own."""


@final
class Joining:
    """A device of a gateway, from `work` until `stop` or until its token is refused."""

    def __init__(self, terms: Terms) -> None:
        """Takes the folder for this process.

        Raises:
            DeviceError: what is wrong with the terms, or another process works in the folder.
        """
        if not _TOKEN.fullmatch(terms.token):
            raise DeviceError("this is no token; `halfback site tokens` gives one, as hb1.ID.SECRET")
        self._url, self._tls, self._terms = address(terms.url), tls(terms.authority), terms
        if not Path(terms.rows.path).expanduser().exists():
            raise DeviceError(f"--data {terms.rows.path}: there is no such file or folder")
        folder = terms.folder or Path.home() / ".local" / "state" / "halfback-device" / terms.token.split(".")[1]
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DeviceError(f"folder {folder} can't be made: {error.strerror}") from None
        self._lock, self._states = alone_in(folder), folder / "states"
        self._store, self._progress = Store(folder / "package"), _Progress()
        self._device: tuple[str, Device] | None = None  # with the digest of its package
        self._told = False
        self._asked_whether = -_MAY  # when the command ran last
        self._waits = 0  # for how many times it has come in vain

    def stop(self) -> None:
        """Ends `work` behind the reply at hand; a signal's handler may call it."""
        self._told = True

    def work(self) -> None:
        """Connects, works, and comes again, until it is told to stop.

        Raises:
            Unwelcome: the token is refused.
        """
        with event_loop() as loop:
            while not self._told:
                try:
                    self._check_may()
                    self._take_part(loop)
                except _Leaves as error:
                    log.info("%s", error)
                    self._pause(_MAY)  # no longer than it is told to stop
                except Unwelcome:
                    raise
                except (Lost, DeviceError) as error:
                    if isinstance(error, Lost) and error.code == TAKEN:
                        self._waits = 6  # whoever has the place would be sent away by coming again at once
                    wait = min(_LONGEST_WAIT, 2.0**self._waits) * random.uniform(0.5, 1.0)
                    self._waits = min(self._waits + 1, 6)
                    log.info("not taking part: %s; again in %.1f s", error, wait)
                    self._pause(wait)
        log.info("stopped")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._told and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK))

    def _check_may(self) -> None:
        """Whether this device may work now, which is asked now and then."""
        if self._terms.only_when is None or time.monotonic() - self._asked_whether < _MAY:
            return
        try:
            ran = subprocess.run(
                self._terms.only_when, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_MAY
            )
            why = f"it ended with status {ran.returncode}" if ran.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"it took longer than {_MAY:g} s"
        except OSError as error:
            why = f"it can't be run: {error.strerror}"
        if why:
            raise _Leaves(f"not now, says --only-when: {why}; it is asked again in {_MAY:g} s")
        self._asked_whether = time.monotonic()

    def _take_part(self, loop: asyncio.AbstractEventLoop) -> None:
        with _goodbye(opened(loop, self._url, self._terms.token, self._tls)) as line:
            listing, place = self._welcomed(line)
            log.info("connected to %s, at place %d", self._url, place)
            device = self._device_of(line, listing)
            line.send(Frame('{"kind":"ready"}'))
            while True:
                asked = self._heard(line)
                begun = time.monotonic()
                reply = device.reply(*asked)
                self._progress.replied(reply.header, time.monotonic() - begun)
                del asked
                line.take(device.takes)
                line.send(reply)
                del reply
                self._waits = 0

    def _heard(self, line: Line, seconds: float | None = None) -> Frame:
        """What the gateway says next, for which it has so many seconds.

        Raises:
            _Leaves: meanwhile the device was told to stop, or may not work any more.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            if self._told:
                raise _Leaves("told to stop")
            self._check_may()
            if (said := line.receive(_LOOK)) is not None:
                return said
            if until is not None and time.monotonic() > until:
                raise Lost(f"it didn't say what was asked for in {seconds:g} s")

    def _welcomed(self, line: Line) -> tuple[Listing, int]:
        hello = {"kind": "hello", "protocol": 1, "version": version("halfback-device"), "package": self._store.digest()}
        line.send(Frame(json.dumps(hello)))
        said = self._heard(line, _DUE)
        told = parsed(said.header)
        keys = {"kind", "protocol", "place", "package"}
        if said.body or not isinstance(told, dict) or told.keys() != keys or told["kind"] != "welcome":
            raise PeerError("welcome", f"{', '.join(sorted(keys))} are due, and no body", sender="server")
        if type(told["protocol"]) is not int or told["protocol"] != 1:
            raise PeerError("welcome.protocol", f"{told['protocol']!r:.20}", "1 is allowed", sender="server")
        if type(told["place"]) is not int or not 0 <= told["place"] < 1 << 31:
            raise PeerError("welcome.place", f"{told['place']!r:.20}", "0 or more is allowed", sender="server")
        return read_listing(told["package"]), told["place"]

    def _device_of(self, line: Line, listing: Listing) -> Device:
        """The device of this package; the one of before, with what it has in memory, where that is the same."""
        if self._device is None or self._device[0] != listing.digest:
            self._device = None  # two models at once may be one too many
            package = Package.open(self._store.fetch(listing, self._asking(line), self._telling(listing)))
            check_all_read(self._terms.rows, package.manifest)
            device = Device(package, self._terms.rows, self._states, keep_labels=self._terms.keep_labels)
            self._device = (listing.digest, device)
        return self._device[1]

    def _asking(self, line: Line) -> Any:
        def ask(name: str, offset: int) -> bytes:
            wanted = {"kind": "piece", "file": name, "offset": offset}
            line.send(Frame(json.dumps(wanted)))
            said = self._heard(line, _DUE)
            if parsed(said.header) != wanted:
                raise PeerError("piece", f"another one came than {name!r} from {offset} on", sender="server")
            return said.body

        return ask

    def _telling(self, listing: Listing) -> Any:
        whole = listing.bytes / 1e6
        return lambda there: self._progress.say(f"package: {there / 1e6:.1f} of {whole:.1f} MB")


@contextmanager
def _goodbye(line: Line) -> Iterator[Line]:
    """Ends a connection with a code and a reason, whatever ends it."""
    try:
        yield line
    except PeerError as error:
        line.close(BROKEN, str(error))
        raise
    except _Leaves as error:
        line.close(1000, str(error))
        raise
    except BaseException:
        line.close()
        raise


@final
class _Progress:
    """Says how it goes, now and then."""

    def __init__(self) -> None:
        self._said = -_TELL
        self._replies, self._seconds = 0, 0.0  # since then

    def say(self, text: str) -> None:
        if time.monotonic() - self._said >= _TELL:
            self._said = time.monotonic()
            log.info("%s", text)

    def replied(self, header: str, seconds: float) -> None:
        self._replies, self._seconds = self._replies + 1, self._seconds + seconds
        number = json.loads(header).get("round")
        if number is not None and time.monotonic() - self._said >= _TELL:
            self.say(f"round {number}: {self._replies} replies, {self._seconds / self._replies:.3g} s each")
            self._replies, self._seconds = 0, 0.0


def join(terms: Terms) -> None:
    """Takes part until the process is told to end: a first signal ends it behind the reply at hand, a second at once.

    The process's own handlers of these signals are back when it ends.

    Raises:
        DeviceError: what is wrong with the terms, or the token is refused.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    joining = Joining(terms)

    def stop(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        joining.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        joining.work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        DeviceError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(1000).decode(errors="replace").strip()
    except OSError as error:
        raise DeviceError(f"--token-file {path}: {error.strerror}") from None
