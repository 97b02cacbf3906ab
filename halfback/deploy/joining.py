"""What a gateway and a device say to one another beside a run's frames: docs/protocol.md has the protocol.

A message is four bytes with the length of its header (little-endian), the header (UTF-8 JSON), and the body.
"""

import hashlib
import os
import re
import stat
import struct
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from halfback import json_reading
from halfback.engine.remote.frames import Frame
from halfback.errors import PeerError, UserError

PROTOCOL = 1
PATH = f"/halfback/{PROTOCOL}"
PIECE = 1 << 20  # bytes of a file in one message
MOST_HEADER = 1 << 16  # bytes of what a device says
TAKEN, CLOSING, REVOKED, BROKEN = 4001, 4002, 4003, 1008  # why a connection is closed
_LENGTH = struct.Struct("<I")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_MANIFEST = "manifest.json"
_MOST_FILES = 4096


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hello(_Said):
    """What a device says first; `package`: the digest of the one that it has, or nothing."""

    kind: Literal["hello"]
    protocol: int = Field(ge=0, lt=1 << 31)
    version: str = Field(max_length=100)
    package: str = Field(pattern="^([0-9a-f]{64})?$")


class Piece(_Said):
    """It asks for what a file of the package has from an offset on."""

    kind: Literal["piece"]
    file: str = Field(max_length=200)
    offset: int = Field(ge=0, lt=1 << 62)


class AtWork(_Said):
    """It has the package, and replies to questions from here on."""

    kind: Literal["ready"]


_SAID: TypeAdapter[Hello | Piece | AtWork] = TypeAdapter(Annotated[Hello | Piece | AtWork, Field(discriminator="kind")])


def read_said(header: str) -> Hello | Piece | AtWork:
    """What a device says before it works; PeerError names the field that is wrong."""
    try:
        return _SAID.validate_json(header)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise PeerError(".".join(("header", *map(str, first["loc"])))[:60], first["msg"][:60]) from None


def message(asked: Frame) -> list[bytes | memoryview]:
    """The bytes of a message, in fragments: asyncio holds a writer back between two of them, never within one."""
    header, body = asked.header.encode(), memoryview(asked.body)
    head = b"".join((_LENGTH.pack(len(header)), header, body[:PIECE]))
    return [head, *(body[at : at + PIECE] for at in range(PIECE, len(body), PIECE))]


def room(body: int) -> int:
    """Bytes of the longest message of a device with so long a body."""
    return _LENGTH.size + MOST_HEADER + body


def unpacked(data: Any) -> Frame:
    """Header and body of a message; PeerError where it is none."""
    if not isinstance(data, bytes):
        raise PeerError("message", "text came, binary messages are allowed")
    if len(data) < _LENGTH.size:
        raise PeerError("message", f"{len(data)} bytes", f"{_LENGTH.size} or more are due")
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    if end > min(len(data), _LENGTH.size + MOST_HEADER):
        came = f"a header of {end - _LENGTH.size} bytes in a message of {len(data)}"
        raise PeerError("message", came, f"at most {MOST_HEADER} are allowed")
    try:
        return Frame(data[_LENGTH.size : end].decode(), data[end:])
    except UnicodeDecodeError:
        raise PeerError("message", "a header came that is no UTF-8 text") from None


class Opened(NamedTuple):
    """A file that stays open: whatever its name comes to mean later, this is what is handed out."""

    handle: int
    bytes: int
    sha256: str


@final
class Offer:
    """A device package as a gateway hands it out: its files are opened once, and no name of a device's opens another.

    Attributes:
        digest: of all files, by which a device knows that it has them.
        files: what a device is told of each.
        bytes: of all files.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files; UserError where one is missing or is no plain file."""
        self._files: dict[str, Opened] = {}
        try:
            for name in _names(folder):
                self._files[name] = opened_file(folder / name, "package")
        except BaseException:
            self.close()
            raise
        self.files = [{"name": name, "bytes": f.bytes, "sha256": f.sha256} for name, f in self._files.items()]
        lines = sorted(f"{name} {f.sha256}\n" for name, f in self._files.items())
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        self.bytes = sum(f.bytes for f in self._files.values())

    def read(self, asked: Piece) -> bytes:
        """A piece of a file; PeerError for a name that is not listed, or an offset that is none."""
        found = self._files.get(asked.file)
        if found is None:
            raise PeerError("piece.file", f"{asked.file!r:.60}", "a name of the listing is allowed")
        if asked.offset >= max(found.bytes, 1):
            raise PeerError("piece.offset", asked.offset, f"less than {found.bytes} is allowed")
        return os.pread(found.handle, min(PIECE, found.bytes - asked.offset), asked.offset)

    def close(self) -> None:
        """Closes the files."""
        for found in self._files.values():
            os.close(found.handle)
        self._files = {}


def _names(folder: Path) -> list[str]:
    """Of a package's files; what its manifest has beside is for the device to check."""
    if not (folder / _MANIFEST).is_file():
        raise UserError(f"package {folder}: there is no {_MANIFEST} in it; `halfback package` makes one")
    manifest = json_reading.read(folder / _MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not 0 < len(files) <= _MOST_FILES:
        raise UserError(f"package {folder}: its {_MANIFEST} must list 1 to {_MOST_FILES} files")
    for name in files:
        if not _NAME.fullmatch(name) or name == _MANIFEST:
            raise UserError(f"package {folder}: {name!r:.60} is no name of a file in it")
    return [_MANIFEST, *sorted(files)]


def opened_file(path: Path, what: str) -> Opened:
    """Opens a plain file, of which errors say what it is part of; UserError where it is missing, or is none."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{what} {path}: it is no file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Opened(handle, os.fstat(handle).st_size, digest)
    except BaseException:
        os.close(handle)
        raise
