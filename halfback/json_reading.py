"""JSON that others may have written: of a bounded size and depth, with numbers that are in range."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from halfback.errors import UserError, shown

MAX_BYTES = 1 << 28  # of a text
MOST = 1e100  # of a number on a page: what is reckoned with it stays finite


def parse(text: str | bytes) -> Any:
    """What a text holds; NaN and Infinity, which Python writes, are for `check_numbers` to refuse.

    Raises:
        ValueError: it is no JSON, has a number that is out of range, or is nested too deep.
    """
    try:
        return json.loads(text, parse_float=_real, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read(path: Path) -> Any:
    """What a file holds; UserError in one line where it can't be read or isn't what `parse` takes."""
    text = text_of(path)
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(f"{path} must be JSON: {error}") from None


def text_of(path: Path) -> str:
    """A file's text; UserError in one line where there is none."""
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UserError(f"{path} is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is too large: up to {MAX_BYTES:,} bytes are allowed")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not there; name the folder of a run") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; it must be UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def check_numbers(found: dict[str, Any], names: Iterable[str], where: str, *, least: float = -MOST) -> None:
    """Each of `names` that `found` has must be null or a finite number that a page can show, from `least` on."""
    for name in names:
        value = found.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise UserError(f"{where}{name} must be a finite number, not {shown(value)}")
        if value is not None and not least <= value <= MOST:
            raise UserError(f"{where}{name} must be from {least:g} to {MOST:g}, not {shown(value)}")


def check_bytes(by_kind: dict[str, Any], where: str) -> None:
    """Bytes by direction, kind and role."""
    for direction, kinds in by_kind.items():
        by_role = list(kinds.values()) if isinstance(kinds, dict) else [None]
        if not all(isinstance(roles, dict) and None not in roles.values() for roles in by_role):
            raise UserError(f"{where}.{direction} must give bytes by kind and role, not {shown(kinds)}")
        for kind, roles in kinds.items():
            check_numbers(roles, tuple(roles), f"{where}.{direction}.{kind}.", least=0)


def _real(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {shown(text)} is out of range")
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) >= 1 << 63:
        raise ValueError(f"the number {text[:20]}… is out of range")
    return number
