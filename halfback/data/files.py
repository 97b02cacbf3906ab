"""Files of rows: found, decompressed and decoded.

Read anew every time: a copy kept by name and time stamp would outlive the file's content.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from halfback.data.parsing import read_csv, read_json
from halfback.data.tables import Table, line_of
from halfback.errors import UserError

CSV_SUFFIXES = (".csv", ".csv.gz")
LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
JSON_SUFFIXES = (".json", ".json.gz", *LINES_SUFFIXES)
_BOMS = {  # in this order, since one begins with another
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PACKED = {  # what begins with these bytes holds no text as it is
    b"PK\x03\x04": "is a zip archive or a spreadsheet",
    b"\x1f\x8b": "is compressed twice",
    b"BZh91AY&SY": "is compressed with bzip2",
    b"\xfd7zXZ": "is compressed with xz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd",
    b"PAR1\x15": "is a Parquet file (for task.name=hub)",
}


def read_table(
    path: str,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    skip: bool = False,
    kind: str | None = None,
    header: Sequence[str] | None = None,
) -> Table:
    """The rows of a .csv, .json or .jsonl file, or of one compressed with gzip.

    A cell of a CSV file is its text. In JSON a text stays as it is, a number as it is spelt, true and false are "True"
    and "False", null and NaN are missing. `delimiter` None finds out from the header. A file is in what its byte order
    mark says, one without in `encoding`, which is UTF-8 where it is None. `skip` leaves out rows with too few or too
    many fields. `kind`: "csv" or "json", whatever the file's name ends in. `header`: the columns of a CSV file that
    doesn't name them itself.

    Raises:
        UserError: the file is missing, unreadable or without rows, or an option is no delimiter or encoding; names the
            line where there is one.
    """
    where = f"file {path!r}"
    file = Path(path).expanduser()
    if not file.is_file():
        beside = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        alike = difflib.get_close_matches(file.name, beside, n=3)
        hint = f"; the folder has {', '.join(alike)}" if alike and not file.is_dir() else ""
        raise UserError(f"{where} does not exist or is not a file{hint}")
    lower = file.name.lower()
    if kind is None and not lower.endswith(CSV_SUFFIXES + JSON_SUFFIXES):
        raise UserError(f"{where} has an unknown ending; allowed: {', '.join(CSV_SUFFIXES + JSON_SUFFIXES)}")
    delimiter = _checked(delimiter)
    found = _bytes(file, where)
    if packed := next((what for mark, what in _PACKED.items() if found.startswith(mark)), None):
        raise UserError(f"{where} {packed}; unpack it or save it as CSV or JSON")
    text = _decoded(found, where, encoding)
    if not text.strip():
        raise UserError(f"{where} is empty")
    is_csv = lower.endswith(CSV_SUFFIXES) if kind is None else kind == "csv"
    if is_csv:
        table = read_csv(text, where, delimiter, skip, header)
    else:
        table = read_json(text, where, one_a_line=lower.endswith(LINES_SUFFIXES))
    if not table.size:
        raise UserError(f"{where} is empty: it has no rows")
    return table


def _checked(delimiter: str | None) -> str | None:
    if delimiter is None:
        return None
    found = "\t" if delimiter in ("tab", "\\t") else delimiter
    if len(found) != 1 or found in '"\r\n':
        raise UserError(f"task.delimiter={delimiter!r}: one character is allowed, such as ';', or tab")
    return found


def _bytes(file: Path, where: str) -> bytes:
    try:
        found = file.read_bytes()
        is_compressed = file.name.lower().endswith(".gz") or found.startswith(b"\x1f\x8b")
        return gzip.decompress(found) if is_compressed and found else found
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decoded(found: bytes, where: str, encoding: str | None) -> str:
    marked = next((name for mark, name in _BOMS.items() if found.startswith(mark)), None)
    name = "utf-8" if encoding is None else encoding
    try:
        "a".encode(name).decode(name, "replace")
    except (LookupError, ValueError):
        allowed = "utf-8, utf-16, cp1252 and latin-1 are among those allowed"
        raise UserError(f"task.encoding={encoding!r} is no encoding; {allowed}") from None
    name = marked or name
    try:
        text = found.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = found[: error.start].decode(name, "replace")
        problem = f"byte 0x{found[error.start]:02x} in line {line_of(before, error.start)} is not {name!r}"
        if not (before.isascii() or b"\0" in found or "\ufffd" in before):
            raise UserError(
                f"{where} cannot be read: {problem}, though what stands before it is; save it anew"
            ) from None
    except UnicodeError:
        problem = f"it is not {name!r}"
    else:
        if "\0" not in text:
            return text
        problem = f"line {line_of(text, text.index(chr(0)))} has a zero byte, which no text in {name!r} has"
        if 100 * found.count(0) < len(found):  # not every other
            raise UserError(f"{where} cannot be read: {problem}; take it out")
    raise UserError(f"{where} cannot be read: {problem}; name its encoding, such as task.encoding={_likely(found)!r}")


def _likely(found: bytes) -> str:
    """What a file that is no UTF-8 may be in."""
    even, odd = found[::2].count(0), found[1::2].count(0)
    return "cp1252" if not even + odd else "utf-16-le" if odd >= even else "utf-16-be"
