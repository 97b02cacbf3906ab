"""A client of a run whose server is elsewhere: it replies to the server's questions, and survives a kill.

Its state is good for the lineage and the rounds that it belongs to. Where the server has gone back to a checkpoint, or
this process is new, the newest state on disk that lies on the server's way is put back; without one the client begins
anew and catches up from the history, bit for bit.
"""

import fcntl
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, final

from halfback_device import state
from halfback_device.batches import Split
from halfback_device.data import Rows, own_split
from halfback_device.errors import DeviceError, Diverged, PackageError, PeerError
from halfback_device.facts import at
from halfback_device.frames import (
    Done,
    Frame,
    Open,
    Prepare,
    Question,
    Ready,
    Said,
    Save,
    Saved,
    Say,
    frame,
    read_question,
    refused,
)
from halfback_device.package import Package
from halfback_device.party import Round
from halfback_device.plan import OF_SHARED_ROWS, SAME, check_cut, plan_of
from halfback_device.session import Session, Talk
from halfback_device.tables import RowError

log = logging.getLogger(__name__)


@final
class Device:
    """A device's part of one run at a time, whatever carries the frames.

    Attributes:
        takes: bytes of the longest body that is read from now on.
    """

    def __init__(
        self,
        package: Package | Path,
        rows: Rows | Callable[[int], Split],
        folder: Path,
        *,
        keep_labels: bool = False,
    ) -> None:
        """What it works with.

        Args:
            package: the device package, or its folder, which is then opened with the first question.
            rows: where its rows are, or what makes them for a client's number.
            folder: where it keeps its states, by run and client.
            keep_labels: it takes part only in runs in which no label is sent.
        """
        self._keep_labels = keep_labels
        self._package = package
        self._rows = rows
        self._folder = folder
        self._order: Prepare | None = None
        self._client: _Client | None = None

    @property
    def takes(self) -> int:
        """Bytes of the longest body that is read from now on."""
        return 0 if self._client is None else self._client.takes

    def reply(self, header: str, body: bytes = b"") -> Frame:
        """Replies to one question, whatever came; one that comes twice, late or out of turn changes nothing."""
        try:
            question = read_question(header)
            if isinstance(question, Prepare):
                return self._prepare(question, body)
            if self._client is None:
                raise PeerError("", type(question).__name__.lower(), "prepare is due first")
            return self._client.reply(question, body)
        except Diverged as error:
            return refused("diverged", error)
        except PeerError as error:
            return refused("peer", error)
        except RowError as error:
            log.error("%s", error)
            return refused("user", "what is wrong may quote a row of this device; its own log says it")
        except DeviceError as error:
            return refused("user", error)
        except Exception as error:
            log.exception("a question could not be replied to")
            # Its text may quote a row; the log stays on this device.
            return refused("failed", f"{type(error).__name__}; this device's log says more")

    def _prepare(self, order: Prepare, body: bytes) -> Frame:
        if body:
            raise PeerError(
                "Prepare", "weights", "none are allowed: a device has those of its package", sender="server"
            )
        if self._order != order or self._client is None:
            self._order, self._client = None, None  # two models at once may be one too many
            self._client, self._order = self._built(order), order
        return frame(Ready(fits=True, takes=self._client.takes, rows=self._client.rows))

    def _built(self, order: Prepare) -> "_Client":
        if not isinstance(self._package, Package):
            self._package = Package.open(self._package)
        manifest = self._package.manifest
        plan = plan_of(manifest)
        _check_order(manifest, order, shared=isinstance(self._rows, Rows) and self._rows.shared)
        if self._keep_labels and (not plan.has_head or manifest["task"]["objective"] == "generation"):
            raise DeviceError("this device keeps its labels (keep_labels), and this run sends them; use model.head=0")
        if isinstance(self._rows, Rows):
            split = own_split(self._rows, manifest, self._package.folder, order.client)
        else:
            split = self._rows(order.client)
        own = self._folder / order.run / f"client-{order.client}"
        try:
            own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeviceError(f"folder {own} can't be made: {error.strerror}") from None
        lock = alone_in(own)
        return _Client(Session(self._package, plan, split, order.client, own / "caches"), own / "states", lock)


def alone_in(folder: Path) -> IO[bytes]:
    """Takes a folder for this process, which a killed one that has not ended yet may still write to.

    The system gives it back when the file is closed, or the process is gone.

    Raises:
        DeviceError: another process has it.
    """
    try:
        lock = (folder / "lock").open("wb")
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DeviceError(
            f"folder {folder}: another process works in it, or it can't be locked: {error.strerror}"
        ) from None
    return lock


def _check_order(manifest: Mapping[str, Any], order: Prepare, *, shared: bool) -> None:
    """Refuses a run that the package is not for.

    Raises:
        PeerError: the client's number is none.
        PackageError: names the setting that is another one, or says that the weights are.
    """
    clients = at(order.config, "clients")
    if type(clients) is not int or not order.client < clients:
        raise PeerError("Prepare.client", order.client, f"0 to {clients!r:.20} - 1 are allowed", sender="server")
    config = manifest.get("config")
    for key in (*SAME, *OF_SHARED_ROWS) if shared else SAME:
        if at(order.config, key) != at(config, key):
            raise _other(key, order.config, config)
    if _of_sums(order.config) != _of_sums(config):  # a server must not hear what was promised to be in a sum
        raise _other("secure", order.config, config)
    if list(order.label_names) != list(manifest["task"]["label_names"]):
        raise PackageError("the classes of this run are not the package's; package this recipe anew")
    check_cut(order.config, order.client, manifest["model"]["cut"])
    if order.weights != manifest["weights"]["digest"]:
        raise PackageError("the weights that this run begins with are not the package's; package them anew")


def _of_sums(config: Any) -> Any:
    """What a recipe says of secure sums; None where it has none, whatever else the section holds."""
    return at(config, "secure") if at(config, "secure.sum", False) else None


def _other(key: str, come: Any, own: Any) -> PackageError:
    """That two recipes differ in what has this key."""
    setting, here, there = _difference(key, at(come, key), at(own, key))
    return PackageError(f"{setting}={here!r:.60} in this run, {there!r:.60} in the package; package this recipe anew")


def _difference(setting: str, come: Any, own: Any) -> tuple[str, Any, Any]:
    """The first setting in which two sections differ, with its values."""
    if isinstance(come, Mapping) and isinstance(own, Mapping):
        for key in sorted(come.keys() | own.keys()):
            if come.get(key) != own.get(key):
                return _difference(f"{setting}.{key}", come.get(key), own.get(key))
    return setting, come, own


class _Client:
    """One client of one run, which replies to questions."""

    def __init__(self, session: Session, folder: Path, lock: IO[bytes]) -> None:
        """`folder`: where this run's states are kept, the last two; `lock`: held as long as this is there."""
        self._session, self._lock = session, lock
        self._folder = folder
        self._label = ("", 1)  # of what is in memory: lineage and rounds; a new process looks for a state on disk first
        self._talk: Talk | None = None
        self._turn: tuple[str, int, int] = ("", 0, 0)  # lineage, round and exchange of the last reply
        self._told = (0, 0.0, 0.0)  # forward passes and seconds before this round
        self.rows = len(session.party.feed)

    @property
    def takes(self) -> int:
        """Bytes of the longest body that may come."""
        return self._session.end.most_bytes

    def reply(self, question: Question, body: bytes) -> Frame:
        """Replies to one question; raises what `Session.converse` and `Session.load_state` do."""
        match question:
            case Open():
                return self._open(question)
            case Say() if (question.lineage, question.round, question.exchange) == self._turn and self._talk:
                return self._next(body)
            case Say():
                said = f"exchange {question.exchange} of round {question.round}, the client is at {self._turn}"
                return _stale(said)
            case Save() if question.lineage == self._label[0]:
                arrays, values = self._session.state()
                values |= {"lineage": question.lineage, "rounds": question.rounds, "about": self._session.about}
                state.save(self._folder, question.rounds, arrays, values)
                self._label = (question.lineage, question.rounds)
                return frame(Saved())
            case _:
                return _stale(f"{type(question).__name__.lower()}, which does not belong here")

    def _open(self, order: Open) -> Frame:
        most, party = self._session.plan.steps_per_round, self._session.party
        if order.steps > most:
            raise PeerError("Open.steps", order.steps, f"up to {most} are allowed", sender="server")
        way = {ancestor.lineage: ancestor.rounds for ancestor in order.ancestry}
        way |= {"": 0, order.lineage: order.round}
        if self._label[1] > way.get(self._label[0], -1):
            self._go_back(way)
        self._told = (party.passes, self._session.seconds, self._session.wire_seconds)
        party.feed.cursor = order.cursor
        self._label = (order.lineage, order.round + 1)
        self._talk = self._session.converse(Round(order.round, order.steps, order.first), measure=order.measure)
        self._turn = (order.lineage, order.round, -1)
        return self._next(None)

    def _go_back(self, way: Mapping[str, int]) -> None:
        """To the newest state that lies on the server's way, else to the beginning."""
        for number in reversed(state.rounds(self._folder)):
            found = state.read(self._folder, number)
            if found.values["about"] != self._session.about:
                raise DeviceError(
                    f"the rows or the package have changed on this device since it left its state in {self._folder}; "
                    "put back what it began with, or begin a run of another name"
                )
            if found.values["rounds"] <= way.get(found.values["lineage"], -1):
                self._session.load_state(found)
                return
        self._session.begin()

    def _next(self, body: bytes | None) -> Frame:
        lineage, number, exchange = self._turn
        talk, self._talk = self._talk, None  # one that fails is over
        assert talk is not None, "a question is replied to in a conversation"
        try:
            said = next(talk) if body is None else talk.send(body)
        except StopIteration:
            return frame(self._done())
        self._talk, self._turn = talk, (lineage, number, exchange + 1)
        return frame(Said(lineage=lineage, round=number, exchange=exchange + 1), said)

    def _done(self) -> Done:
        session, told = self._session, self._told
        return Done(
            lineage=self._turn[0],
            round=self._turn[1],
            cursor=session.party.feed.cursor,
            forward_passes=session.party.passes - told[0],
            client_seconds=session.seconds - told[1],
            wire_seconds=session.wire_seconds - told[2],
            peak_bytes=session.peak_bytes,
            inference_peak_bytes=session.inference_peak_bytes,
            losses=(),  # the server has them: of no method that a device takes part in is it the device that does
        )


def _stale(what: str) -> Frame:
    return refused("stale", f"a question came late or twice: {what}")
