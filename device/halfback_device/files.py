"""Files of rows: found, unpacked and decoded."""

import codecs
import gzip
import zlib
from pathlib import Path

from halfback_device.parsing import read_csv, read_json
from halfback_device.tables import RowError, Table, line_of

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
_PACKED = (
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"BZh91AY&SY",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"PAR1\x15",
)  # no text begins so


def read_table(path: str, *, delimiter: str | None = None, encoding: str | None = None, skip: bool = False) -> Table:
    """The rows of a .csv, .json or .jsonl file, or of one compressed with gzip.

    `delimiter` None finds out from the header. A file is in what its byte order mark says, one without in `encoding`,
    UTF-8 where that is None. `skip` leaves out rows with too few or too many fields.

    Raises:
        RowError: the file is missing, unreadable or without rows, or an option is no delimiter or encoding; names the
            line where there is one.
    """
    where, file = f"file {path!r}", Path(path).expanduser()
    if not file.is_file():
        raise RowError(f"{where} does not exist or is not a file")
    lower = file.name.lower()
    if not lower.endswith(CSV_SUFFIXES + JSON_SUFFIXES):
        raise RowError(f"{where} has an unknown ending; allowed: {', '.join(CSV_SUFFIXES + JSON_SUFFIXES)}")
    if delimiter is not None:
        delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise RowError(f"--delimiter {delimiter!r}: one character is allowed, such as ';', or tab")
    text = _decoded(_bytes(file, where), where, encoding)
    if not text.strip():
        raise RowError(f"{where} is empty")
    if lower.endswith(CSV_SUFFIXES):
        table = read_csv(text, where, delimiter, skip)
    else:
        table = read_json(text, where, one_a_line=lower.endswith(LINES_SUFFIXES))
    if not table.size:
        raise RowError(f"{where} is empty: it has no rows")
    return table


def _bytes(file: Path, where: str) -> bytes:
    try:
        found = file.read_bytes()
        is_compressed = file.name.lower().endswith(".gz") or found.startswith(b"\x1f\x8b")
        found = gzip.decompress(found) if is_compressed and found else found
    except (OSError, EOFError, zlib.error) as error:
        raise RowError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if found.startswith(_PACKED):
        raise RowError(f"{where} is packed; unpack it or save it as CSV or JSON")
    return found


def _decoded(found: bytes, where: str, encoding: str | None) -> str:
    name = "utf-8" if encoding is None else encoding
    try:
        "a".encode(name).decode(name, "replace")
    except (LookupError, ValueError):
        raise RowError(f"--encoding {encoding!r} is none; utf-8, utf-16, cp1252 and latin-1 are some") from None
    name = next((marked for mark, marked in _BOMS.items() if found.startswith(mark)), name)
    try:
        text = found.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = line_of(found[: error.start].decode(name, "replace"), error.start)
        problem = f"byte 0x{found[error.start]:02x} in line {line} is not {name!r}"
    except UnicodeError:
        problem = f"it is not {name!r}"
    else:
        if "\0" not in text:
            return text
        problem = f"line {line_of(text, text.index(chr(0)))} has a zero byte, which no text in {name!r} has"
    raise RowError(f"{where} cannot be read: {problem}; name what it is in, such as --encoding cp1252, or save it anew")
