"""The tokens by which a gateway knows its devices: made, listed, revoked and rotated, and read by a running gateway.

A token is `hb1.ID.SECRET`. The file holds the digest of the secret alone, so who reads the file can't be a device; the
secret has 256 random bits, so a plain digest of it is as good as one that is slow to take.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halfback.errors import UserError, one_line, shown

_TOKEN = re.compile(r"hb1\.([0-9a-f]{8})\.([A-Za-z0-9_-]{43})")
_NOBODY = "0" * 64  # what a secret is compared with where its ID is unknown
_MOST_BYTES = 1 << 24
_Id = Annotated[str, Field(pattern="^[0-9a-f]{8}$")]

log = logging.getLogger(__name__)


class Entry(BaseModel):
    """What is kept of a token: its place (a client number of the site), and the digest of its secret in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    place: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    label: str = Field(max_length=200)
    made: str = Field(max_length=40)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    fresh: int = Field(default=0, ge=0)
    """The first place that never had a token: what a device has on its disk belongs to its place, so the places of
    devices that are gone are given away last."""
    tokens: dict[_Id, Entry] = {}


def listed(path: Path) -> dict[str, Entry]:
    """All tokens that are good, by ID; UserError where the file is none of tokens."""
    return dict(_read(path).tokens)


def add(path: Path, seats: int, label: str = "") -> str:
    """Makes a token for a place of its own; returns it, which is in no file.

    Raises:
        UserError: all places have a token, or the file can't be read or written.
    """
    with _changing(path) as kept:
        taken = {entry.place for entry in kept.tokens.values()}
        free = [place for place in (*range(kept.fresh, seats), *range(seats)) if place not in taken]
        if not free:
            raise UserError(f"all {seats} seats of this site have a token; revoke one, or raise devices.seats")
        token, number, entry = _made(free[0], label)
        _write(path, _File(fresh=max(kept.fresh, free[0] + 1), tokens=kept.tokens | {number: entry}))
    return token


def revoke(path: Path, number: str) -> None:
    """Ends a token, by its ID; UserError where there is none."""
    with _changing(path) as kept:
        _one(path, kept, number)
        left = {other: entry for other, entry in kept.tokens.items() if other != number}
        _write(path, kept.model_copy(update={"tokens": left}))


def rotate(path: Path, number: str) -> str:
    """Ends a token and makes another for its place, which is returned; UserError where there is none."""
    with _changing(path) as kept:
        old = _one(path, kept, number)
        token, new, entry = _made(old.place, old.label)
        left = {other: entry for other, entry in kept.tokens.items() if other != number}
        _write(path, kept.model_copy(update={"tokens": left | {new: entry}}))
    return token


def _one(path: Path, kept: _File, number: str) -> Entry:
    if number not in kept.tokens:
        raise UserError(f"{path} has no token {shown(number)}; `halfback site tokens KIT list` shows all")
    return kept.tokens[number]


def _made(place: int, label: str) -> tuple[str, str, Entry]:
    number, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return f"hb1.{number}.{secret}", number, Entry(place=place, sha256=_digest(secret), label=label, made=made)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise UserError(f"tokens {path} can't be read: {error.strerror}") from None
    try:
        if len(data) > _MOST_BYTES:
            raise UserError(f"tokens {path}: more than {_MOST_BYTES} bytes")
        return _File.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"tokens {path}: {one_line(field)[:100]}: {first['msg'][:200]}") from None


def _write(path: Path, kept: _File) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)  # of a process that was killed: whoever writes has the lock
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(kept.model_dump(), indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def _changing(path: Path) -> Iterator[_File]:
    """What the file holds, which nobody else changes meanwhile: the lock is on its folder, and waited for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"tokens {path}: its folder can't be opened: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield _read(path)
    except OSError as error:
        raise UserError(f"tokens {path} can't be written: {error.strerror}") from None
    finally:
        os.close(handle)


@final
class Tokens:
    """The tokens as a running gateway has them: read anew when the file has changed."""

    def __init__(self, path: Path) -> None:
        """Reads them; UserError where the file is none of tokens."""
        self._path = path
        self._seen = _stamp(path)
        self._known = listed(path)

    def refresh(self) -> None:
        """Reads a file that has changed; of one that is damaged by somebody else nothing is taken, and it is said."""
        if (stamp := _stamp(self._path)) == self._seen:
            return
        self._seen = stamp
        try:
            self._known = listed(self._path)
        except UserError as error:
            log.error("%s; the tokens stay as they were", error)

    def place(self, number: str) -> int | None:
        """The place of a token that is good, by its ID."""
        entry = self._known.get(number)
        return None if entry is None else entry.place

    def check(self, token: str) -> str | None:
        """The ID of a token that is good; None for any other, after the same work whatever is wrong with it."""
        found = _TOKEN.fullmatch(token)
        number, secret = found.groups() if found else ("", "")
        entry = self._known.get(number)
        good = hmac.compare_digest(_digest(secret), _NOBODY if entry is None else entry.sha256)
        return number if good and entry is not None else None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
