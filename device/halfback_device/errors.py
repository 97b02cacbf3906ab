"""The errors that a package, a peer or a site can cause, in one line; all else is a bug and keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Peer = Literal["server"] | None
"""Who said it; None where that is not known, or not yet."""


class DeviceError(Exception):
    """Base of every error whose message is one line for whoever runs the device.

    It is one whatever it quotes: what came from elsewhere may hold ends of lines and a terminal's commands.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class PackageError(DeviceError):
    """A device package, or a setting in it, is none that this device can work with."""


class PeerError(DeviceError):
    """Bytes or a message from the server are wrong; the message names the field, what came and what is allowed.

    Attributes:
        field: what is wrong, `Kind.field` of a message say, and within it from the outside to the inside.
        came: what came of it, or what is wrong with it where nothing else would be `allowed`.
        allowed: what is, with its verb.
        sender: who sent it.
    """

    def __init__(self, field: str, came: object = "", allowed: str = "", *, sender: Peer = None) -> None:
        """The attributes, from which the message is made."""
        said = f"{came} came, {allowed}" if allowed else str(came)
        super().__init__(": ".join(filter(None, (sender or "", field, said))))
        self.field, self.came, self.allowed, self.sender = field, came, allowed, sender

    def within(self, field: str) -> "PeerError":
        """The same error, which says of what larger field this one is."""
        return PeerError(f"{field}: {self.field}", self.came, self.allowed, sender=self.sender)

    def of(self, sender: Peer) -> "PeerError":
        """The same error, which says who sent it."""
        return PeerError(self.field, self.came, self.allowed, sender=sender)


class Diverged(DeviceError):
    """What the device computed, or was sent, is no longer finite.

    Attributes:
        what: is not finite.
        how: that is said, such as "is not finite".
        cure: what may help.
        sender: who sent it; None where the device made it.
    """

    def __init__(self, what: str, how: str = "", cure: str = "", *, sender: Peer = None) -> None:
        """The attributes, from which the message is made."""
        named = f"{sender}: {what}" if sender else what
        super().__init__("; ".join(filter(None, (f"{named} {how}" if how else named, cure))))
        self.what, self.how, self.cure, self.sender = what, how, cure, sender


@contextmanager
def running_graphs() -> Iterator[None]:
    """Makes what the runtime raises, whose errors are of many kinds, one of the package."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        raise PackageError(f"the package's graphs can't be run: {type(error).__name__}: {error!s:.200}") from None


def one_line(text: str) -> str:
    """What somebody else wrote, fit for one line of a log: without ends of lines and whatever else doesn't print."""
    return "".join(character if character.isprintable() else " " for character in text)
