"""The errors that a user or a peer can cause; everything else is a bug and keeps its traceback."""

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Peer = int | Literal["server"] | None
"""Who said it: a client, by its number, or the server; None where that is not known, or not yet."""


class HalfbackError(Exception):
    """Base of every error whose message is one line for the user (the command line exits with 2).

    It is one whatever it quotes: a name or a key that came with a job may hold ends of lines and a terminal's commands.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class UserError(HalfbackError):
    """A recipe, an option or a file is wrong; the message names the value and what is allowed."""


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """Where packages are imported that come with an optional extra of this one.

    Raises:
        UserError: a package is not installed; the message says what installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "halfback"):
            raise
        raise UserError(f"{package} is not installed: pip install 'halfback[{extra}]'") from None


class RowError(UserError):
    """A row is wrong, and the message quotes it: it is for whoever has the rows, and never leaves their machine."""


class PeerError(HalfbackError):
    """Bytes or a message from the other side are wrong; the message names the sender, the field and what is allowed.

    Attributes:
        field: what is wrong, `Kind.field` of a message say, and within it from the outside to the inside.
        came: what came of it, or what is wrong with it where nothing else would be `allowed`.
        allowed: what is, with its verb.
        sender: who sent it, and alone is to blame.
    """

    def __init__(self, field: str, came: object = "", allowed: str = "", *, sender: Peer = None) -> None:
        """The attributes, from which the message is made."""
        said = f"{came} came, {allowed}" if allowed else str(came)
        super().__init__(": ".join(filter(None, (_named(sender), field, said))))
        self.field, self.came, self.allowed, self.sender = field, came, allowed, sender

    def within(self, field: str) -> "PeerError":
        """Says of what larger field this one is.

        Args:
            field: the larger one.

        Returns:
            The same error, with both.
        """
        return PeerError(f"{field}: {self.field}", self.came, self.allowed, sender=self.sender)

    def of(self, sender: Peer) -> "PeerError":
        """Says who sent it, once that is known.

        Args:
            sender: a client's number, or "server".

        Returns:
            The same error, with the sender.
        """
        return PeerError(self.field, self.came, self.allowed, sender=sender)


class CohortLost(HalfbackError):
    """Too few clients are left to finish a round; what it has done so far is void, the last checkpoint counts."""


class BudgetSpent(HalfbackError):
    """One more round would release more than a private run may; nothing of it has begun, and the run is over."""


class Diverged(HalfbackError):
    """The loss or a slope is no longer finite; the message names the step, the sender and what may help.

    Attributes:
        what: is not finite.
        how: that is said, such as "is not finite".
        cure: what may help.
        step: of the run; None where a client can't say it.
        sender: who sent it, or whose rows it comes from.
        after_step: how many steps the run had taken.
    """

    def __init__(
        self, what: str, how: str = "", cure: str = "", *, step: int | None = None, sender: Peer = None
    ) -> None:
        who = _named(sender)
        if step is None:
            begin = f"{who}: {what}" if who else what
        else:
            begin = f"step {step}: {what} of {who}" if who else f"step {step}: {what}"
        super().__init__("; ".join(filter(None, (f"{begin} {how}" if how else begin, cure))))
        self.what, self.how, self.cure, self.step, self.sender = what, how, cure, step, sender
        self.after_step = 0


def _named(sender: Peer) -> str:
    return f"client {sender}" if isinstance(sender, int) else sender or ""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run or a comparison, or a notebook's stop button did.

    Attributes:
        folder: what was done so far, with a checkpoint of the last round that could be finished.
        step: the step of that checkpoint, where a run was asked to stop behind it; None where it is not known.
        signal: the number of the signal that ended it.
    """

    def __init__(self, folder: Path, way: str, *, step: int | None = None, number: int = signal.SIGINT) -> None:
        """Says what was ended, and how to go on.

        Args:
            folder: with what was done so far.
            way: the command or call that goes on from there.
            step: of the checkpoint, where it is known.
            number: of the signal.
        """
        self.step, self.signal = step, number
        super().__init__(f"stopped; {way} goes on from " + ("the last checkpoint" if step is None else f"step {step}"))
        self.folder = folder


def one_line(text: str) -> str:
    """What somebody else wrote, fit for one line of a log: without ends of lines and whatever else doesn't print."""
    return "".join(character if character.isprintable() else " " for character in text)


def first_line(error: BaseException) -> str:
    """How a library's error begins, for a message of ours; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return one_line(f"there is no {first}" if isinstance(error, KeyError) else first)[:300]


def shown(value: object) -> str:
    """A value as it stands in a message: its beginning, if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no longer ones
        return "a whole number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}…"


def offer(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known ones, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(names)}"
