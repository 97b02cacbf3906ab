"""Labels as they are written: which are missing, which are no class, and which would be two though they are one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from halfback.data.tables import Cell, NoText
from halfback.errors import UserError

# What a spreadsheet or pandas writes for "no value"; a class that is really called so has to be renamed.
MISSING = {"", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "None", "null", "NULL"}
# Only what has a point: 1e5 and 1_2 are codes, though Python would read numbers in them, and infinity is a word.
_FRACTION = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")


def is_missing(label: Cell) -> bool:
    """Whether a cell has no label."""
    return label is None or (isinstance(label, str) and label.strip() in MISSING)


def read_labels(cells: Sequence[Cell], place: Callable[[int], str], *, column: str, where: str) -> list[str]:
    """Labels without the blanks around them; UserError at the first that is missing, a fraction or no text."""
    good: dict[Cell, str] = {}
    for row, cell in enumerate(cells):
        if cell not in good:
            good[cell] = _label(cell, f"{place(row)}, column {column!r} of {where}")
    return [good[cell] for cell in cells]


def _label(cell: Cell, where: str) -> str:
    if isinstance(cell, NoText):
        raise UserError(f"label in {where} is {cell.kind}, not a whole number or a text")
    if cell is None or is_missing(cell):
        rename = "" if cell is None or not cell.strip() else "; a class that is really called so needs another name"
        raise UserError(f"label {cell!r} in {where} is missing; task.skip_bad_rows=true skips such rows{rename}")
    text = cell.strip()
    if _FRACTION.fullmatch(text):
        whole = f"; write {text.split('.')[0]}" if re.fullmatch(r"[+-]?\d+\.0*", text) else ""
        raise UserError(f"label {cell!r} in {where} is not a whole number or a text{whole}")
    return text


def in_order(names: set[str]) -> list[str]:
    """Whole numbers by value, else by text."""
    if all(map(is_whole, names)):
        # By text too, else "01" and "1" would stand as the process's hashes have them.
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def is_whole(label: str) -> bool:
    """Whether a label is a whole number."""
    return re.fullmatch(r"[+-]?\d{1,999}", label) is not None


def check_alike(labels: Sequence[str], place: Callable[[int], str], *, where: str) -> None:
    """Refuses what is one class to people: 1 and 01, True and true, or texts that differ in blanks inside alone."""
    found = set(labels)
    whole = {name for name in found if is_whole(name)}
    # 02 without a 2: these are codes, so that 01 and 1 are two.
    are_codes = any(str(int(name)) not in whole for name in whole)
    seen: dict[object, str] = {}
    for name in sorted(found):
        key = int(name) if name in whole and not are_codes else _looks(name)
        other = seen.setdefault(key, name)
        if other != name:
            both = " and ".join(f"{each!r} ({place(labels.index(each))})" for each in (other, name))
            raise UserError(f"labels {both} of {where} would be two classes; write them alike")


def _looks(name: str) -> str:
    """What a reader sees, without quotes around it and characters of no width; letters alone keep their case."""
    seen = "".join(character for character in name if unicodedata.category(character) != "Cf")
    plain = " ".join(unicodedata.normalize("NFC", seen).split())
    plain = plain[1:-1] if len(plain) > 2 and plain[0] == plain[-1] in "'\"" else plain
    return plain if len(plain) == 1 else plain.casefold()
