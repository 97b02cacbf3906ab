"""Fetches a device package from a gateway: in pieces, on from where it was cut off, and kept by its digest.

The gateway's listing says which files there are; each has to come to its digest, and all of them to the listing's.
Nothing that it says is a path: names are those of files in one folder, which `package` checks again when it opens them.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

from halfback_device.errors import DeviceError, PeerError, one_line
from halfback_device.line import PIECE

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")
_PART = ".part"  # how the name of what is unfinished ends
_MOST_FILES, _MOST_BYTES = 4097, 1 << 36  # a package's, and its manifest; of all files together

Ask = Callable[[str, int], bytes]
"""What a file of the gateway's package has from an offset on: a piece of it, one byte or more."""


@dataclass(frozen=True)
class Listed:
    """A file of a package."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """The files of a package, and the digest of all of them."""

    digest: str
    files: tuple[Listed, ...]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


def read_listing(told: Any) -> Listing:
    """A listing from what a gateway says; PeerError names what is wrong."""
    if not isinstance(told, Mapping) or told.keys() != {"digest", "files"}:
        raise PeerError("package", "digest and files are due")
    entries = told["files"]
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_FILES:
        raise PeerError("package.files", f"1 to {_MOST_FILES} are allowed")
    files = tuple(_listed(entry, f"package.files.{place}") for place, entry in enumerate(entries))
    # Where a disk doesn't tell a from A, two such names would be one file.
    if len({file.name.lower() for file in files}) < len(files):
        raise PeerError("package.files", "two have one name")
    listing = Listing(_digest(told["digest"], "package.digest"), files)
    if listing.bytes > _MOST_BYTES:
        raise PeerError("package.files", f"{listing.bytes} bytes", f"at most {_MOST_BYTES} are allowed")
    lines = sorted(f"{file.name} {file.sha256}\n" for file in files)
    if hashlib.sha256("".join(lines).encode()).hexdigest() != listing.digest:
        raise PeerError("package.digest", "it is not that of its files")
    return listing


def _listed(entry: Any, where: str) -> Listed:
    if not isinstance(entry, Mapping) or entry.keys() != {"name", "bytes", "sha256"}:
        raise PeerError(where, "name, bytes and sha256 are due")
    name, size = entry["name"], entry["bytes"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower().endswith(_PART):
        raise PeerError(f"{where}.name", one_line(f"{name!r:.60}"), "a plain file's name is allowed")
    if type(size) is not int or not 0 <= size <= _MOST_BYTES:
        raise PeerError(f"{where}.bytes", f"{size!r:.40}", f"0 to {_MOST_BYTES} are allowed")
    return Listed(name, size, _digest(entry["sha256"], f"{where}.sha256"))


def _digest(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise PeerError(where, one_line(f"{value!r:.80}"), "64 digits of base 16 are allowed")
    return value


@final
class Store:
    """The folder of what was fetched: a package, called by its digest, or one that is on its way."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made with the first package; one process at a time works in it."""
        self._folder = folder

    def digest(self) -> str:
        """Of the package that is there; nothing if none is."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return next((path.name for path in found if _DIGEST.fullmatch(path.name)), "")

    def fetch(self, listing: Listing, ask: Ask, tell: Callable[[int], None]) -> Path:
        """The folder of a package, which is fetched as far as it isn't there; those of others are removed.

        `tell` hears how many bytes are there, time and again.

        Raises:
            PeerError: a file came to another digest; it is fetched anew the next time.
            DeviceError: the disk is full, or not writable.
            Exception: what `ask` raises; what has come until then stays.
        """
        whole, unfinished = self._folder / listing.digest, self._folder / f"{listing.digest}{_PART}"
        try:
            if whole.is_dir() and all(_is(whole / file.name, file) for file in listing.files):
                return whole
            shutil.rmtree(whole, ignore_errors=True)
            self._keep(unfinished)
            unfinished.mkdir(parents=True, exist_ok=True)
            self._check_room(unfinished, listing)
            for place, file in enumerate(listing.files):
                before = sum(earlier.bytes for earlier in listing.files[:place])
                _fetch(file, unfinished, ask, partial(_tell_more, tell, before))
            os.rename(unfinished, whole)
            self._keep(whole)
        except OSError as error:
            raise DeviceError(f"the package can't be kept in {self._folder}: {error.strerror}") from None
        return whole

    def _keep(self, kept: Path) -> None:
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if path != kept and _OURS.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _check_room(self, unfinished: Path, listing: Listing) -> None:
        there = sum(path.stat().st_size for path in unfinished.iterdir())
        free = shutil.disk_usage(unfinished).free
        if listing.bytes - there > free:
            raise DeviceError(f"a package of {listing.bytes} bytes doesn't fit on the disk, which has {free} left")


def _fetch(file: Listed, folder: Path, ask: Ask, tell: Callable[[int], None]) -> None:
    target, part = folder / file.name, folder / f"{file.name}{_PART}"
    if _is(target, file):
        return
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "r+b") as out:
        there = out.seek(0, os.SEEK_END)
        if there > file.bytes:
            there = out.truncate(0)
            out.seek(0)
        while there < file.bytes:
            tell(there)
            piece = ask(file.name, there)
            if not 0 < len(piece) <= min(PIECE, file.bytes - there):
                allowed = f"1 to {min(PIECE, file.bytes - there)} are allowed"
                raise PeerError("piece", f"{len(piece)} bytes of {file.name}", allowed, sender="server")
            out.write(piece)
            out.flush()  # what has come is there for the next try, whatever ends this one
            there += len(piece)
        os.fsync(out.fileno())
    if not _is(part, file):
        part.unlink()
        raise PeerError("piece", f"{file.name} came to another digest than listed", sender="server")
    os.replace(part, target)


def _tell_more(tell: Callable[[int], None], before: int, there: int) -> None:
    tell(before + there)


def _is(path: Path, file: Listed) -> bool:
    """Whether a file is there and is what the listing says."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
