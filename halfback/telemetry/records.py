"""What a run leaves behind to be read: `records.jsonl`, one object per evaluation, and `summary.json`.

Both are standard JSON: a number that is not finite is written as null.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from halfback.errors import UserError, shown
from halfback.json_reading import MOST, check_bytes, check_numbers, parse, text_of

RECORDS = "records.jsonl"
SUMMARY = "summary.json"

SUMMARY_KEYS = frozenset(
    {
        "algorithm",
        "task",
        "skipped_rows",
        "model",
        "cut",
        "head",
        "clients",
        "sampled_clients",
        "steps",
        "seed",
        "metric",
        "train_loss",
        "up_bytes",
        "down_bytes",
        "bytes_by_kind",
        "client_peak_bytes",
        "client_inference_peak_bytes",
        "server_peak_bytes",
        "client_seconds",
        "server_seconds",
        "wire_seconds",
        "wall_seconds",
        "simulated_seconds",
        "forward_passes",
        "generation",
        "privacy",
        "slopes",
        "trainable_parameters",
        "versions",
        "ended",
        "private_activations",
    }
)
_NESTED_KEYS = {
    "metric": frozenset({"name", "initial", "final", "best", "initial_rows"}),
    "bytes_by_kind": frozenset({"up", "down"}),
    "trainable_parameters": frozenset({"bottom", "top"}),
    "generation": frozenset({"bleu", "chrf", "rows", "decoding"}),  # null where nothing was generated
    "private_activations": frozenset({"epsilon", "delta", "noise", "clip", "releases"}),  # null without codec `private`
    "privacy": frozenset({"epsilon", "delta", "unit", "noise", "releases", "where", "covers"}),  # null without noise
}
_MAY_BE_NOTHING = ("generation", "privacy", "private_activations")
_NUMBERS = (
    *("steps", "seed", "up_bytes", "down_bytes", "client_peak_bytes", "client_inference_peak_bytes"),
    *("server_peak_bytes", "client_seconds", "server_seconds", "wire_seconds", "wall_seconds", "forward_passes"),
    "simulated_seconds",
)
_COUNTS = ("round", "step", "up_bytes", "down_bytes", "forward_passes")
_SECONDS = ("client_seconds", "server_seconds", "wire_seconds", "wall_seconds", "simulated_seconds")
_MAY_BE_INFINITE = ("train_loss", "validation_loss", "metric", "activations_epsilon")  # and are null then
_SINCE = {"simulated_seconds", "rows", "activations_epsilon"}  # may be missing: of records from before there were such
_MAY_BE_NULL = (*_MAY_BE_INFINITE, *_SINCE)
_MOST_COUNT = 1 << 63  # below it; what other readers of JSON hold too


@dataclass(frozen=True)
class Record:
    """Where a run stood at one evaluation; bytes, seconds and forward passes are totals since the run began.

    Attributes:
        round: rounds that are done.
        step: optimiser steps that are done.
        train_loss: mean of the rounds since the record before; NaN when it was not finite or nothing was trained yet.
        validation_loss: mean over the validation rows; None when it was not finite.
        metric: of the task, on the validation rows: accuracy in percent, perplexity, or one's own.
        up_bytes: sent by all clients together.
        down_bytes: received by all clients together.
        client_seconds: spent by clients, all together.
        server_seconds: spent by the server.
        wire_seconds: spent by both on packing and unpacking, and on codecs.
        wall_seconds: since the run began, evaluations included, pauses not.
        forward_passes: of what a client holds on one batch, all clients together.
        thresholds: by link that reuses values, the similarity below which a sample is sent until the next round.
        simulated_seconds: that all this would have taken on the devices and links of the run's fleet; None without one.
        rows: validation rows that the evaluation was over, where it was not over all of them; else None.
        activations_epsilon: ε of the activations of the sample that was sent most often; None without noise on them.
    """

    round: int
    step: int
    train_loss: float
    validation_loss: float | None
    metric: float | None
    up_bytes: int
    down_bytes: int
    client_seconds: float
    server_seconds: float
    wire_seconds: float
    wall_seconds: float
    forward_passes: int
    thresholds: dict[str, float]
    simulated_seconds: float | None = None
    rows: int | None = None
    activations_epsilon: float | None = None

    def to_json(self) -> str:
        """Writes the record down.

        Returns:
            One line of standard JSON, without its end of line.

        Raises:
            UserError: a value is one that `from_json` refuses: what can't be read again is not written.
        """
        written = asdict(self)
        for name in _MAY_BE_INFINITE:
            written[name] = _finite(written[name])
        _check_values(written)
        return json.dumps(written, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """Reads a record.

        Args:
            line: as `to_json` wrote it; a null `train_loss` is NaN.

        Returns:
            The record.

        Raises:
            UserError: not JSON, a field is missing or unknown, or a value is not a number that a run can come to.
        """
        try:
            found = parse(line)
        except ValueError:
            raise UserError(f"a record must be one line of JSON, not {line[:60]!r}") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or found.keys() | _SINCE != names:
            keys = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise UserError(f"a record has the fields {sorted(names)}, not {keys}")
        _check_values(found)
        if found["train_loss"] is None:
            found["train_loss"] = math.nan
        return cls(**found)


def _check_values(found: dict[str, Any]) -> None:
    """What a record may hold, whether it is about to be written or was just read."""
    for name, value in found.items():
        if name == "thresholds":
            if not isinstance(value, dict) or not all(_is_number(threshold) for threshold in value.values()):
                raise UserError(f"a record's thresholds must be numbers by link, not {shown(value)}")
        elif name in _COUNTS or (name == "rows" and value is not None):
            if type(value) is not int or not 0 <= value < _MOST_COUNT:
                raise UserError(f"a record's {name} must be a number from 0 to 2^63 - 1, not {shown(value)}")
        elif not (_is_number(value) or (value is None and name in _MAY_BE_NULL)):
            raise UserError(f"a record's {name} must be a finite number, not {shown(value)}")
        elif name in _SECONDS and value is not None and value < 0:
            raise UserError(f"a record's {name} must be at least 0, not {shown(value)}")


def _is_number(value: Any) -> bool:
    """Whether a page can reckon with it: standard JSON has no infinity, but its readers take 1e999 for one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def read_records(folder: Path) -> list[Record]:
    """The records of a run, in order; a last line cut short by a killed writer is left out.

    Raises:
        UserError: `records.jsonl` is missing, unreadable, or wrong before its last line.
    """
    path = Path(folder) / RECORDS
    lines = text_of(path).split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line))
        except UserError as error:
            if number == len(lines):  # no end of line after it: the writer was stopped in the middle
                break
            raise UserError(f"{path}, line {number}: {error}") from None
    return records


def truncate_records(folder: Path, round: int) -> None:
    """Drop the records after `round`, and a torn last line, in one atomic replacement; no file: nothing to drop.

    Raises:
        UserError: `records.jsonl` is unreadable or wrong before its last line.
    """
    path = Path(folder) / RECORDS
    if path.exists():
        _write_records(path, (record for record in read_records(folder) if record.round <= round))


def mend_records(folder: Path) -> None:
    """Make `records.jsonl` safe to append to: no torn last line, an end of line after the last record.

    Raises:
        UserError: `records.jsonl` is unreadable or wrong before its last line.
    """
    path = Path(folder) / RECORDS
    if path.exists() and not text_of(path).endswith("\n"):
        _write_records(path, read_records(folder))


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` in one atomic replacement.

    Raises:
        UserError: a key of `SUMMARY_KEYS` is missing, or another is there.
    """
    _check_summary(summary, "the summary")
    text = json.dumps(_finite(summary), indent=2, allow_nan=False)
    replace_text(Path(folder) / SUMMARY, text + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run; a number that was not finite comes back as None.

    Raises:
        UserError: `summary.json` is missing, not JSON, or its keys are not `SUMMARY_KEYS`.
    """
    path = Path(folder) / SUMMARY
    try:
        summary = parse(text_of(path))
    except ValueError:
        raise UserError(f"{path} must be JSON; delete it and run the recipe again") from None
    if isinstance(summary, dict):
        summary.setdefault("skipped_rows", 0)  # of a run from before rows could be skipped
        summary.setdefault("slopes", None)  # of a run from before it was said
        summary.setdefault("simulated_seconds", None)  # of a run from before there were fleets
        summary.setdefault("privacy", None)  # of a run from before there was noise
        summary.setdefault("ended", None)  # of a run from before one could end too soon
        summary.setdefault("private_activations", None)  # of a run from before there was noise on them
        if isinstance(summary.get("metric"), dict):
            summary["metric"].setdefault("initial_rows", None)  # of a run whose evaluations were all over all rows
    _check_summary(summary, str(path))
    check_numbers(summary, _NUMBERS, f"{path}: ", least=0)
    check_numbers(summary, ("train_loss",), f"{path}: ")
    check_numbers(summary["metric"], ("initial", "final", "best", "initial_rows"), f"{path}: metric.")
    if not isinstance(summary["ended"], str | None):
        raise UserError(f"{path}: ended must be a text or null, not {shown(summary['ended'])}")
    check_numbers(summary["generation"] or {}, ("bleu", "chrf"), f"{path}: generation.")
    numbers = ("epsilon", "delta", "noise", "clip", "releases")
    check_numbers(summary["private_activations"] or {}, numbers, f"{path}: private_activations.", least=0)
    check_numbers(summary["privacy"] or {}, ("epsilon", "delta", "noise", "releases"), f"{path}: privacy.", least=0)
    return dict(summary)


def _check_summary(summary: Any, where: str) -> None:
    if not isinstance(summary, dict):
        raise UserError(f"{where} must be an object, not {type(summary).__name__}")
    _check_keys(summary, SUMMARY_KEYS, where)
    for key, allowed in _NESTED_KEYS.items():
        if key in _MAY_BE_NOTHING and summary[key] is None:
            continue
        if not isinstance(summary[key], dict):
            raise UserError(f"{where}: {key} must be an object, not {shown(summary[key])}")
        _check_keys(summary[key], allowed, f"{where}: {key}")
    if not isinstance(summary["versions"], dict):
        raise UserError(f"{where}: versions must be an object, not {shown(summary['versions'])}")
    check_numbers(summary["trainable_parameters"], ("bottom", "top"), f"{where}: trainable_parameters.", least=0)
    check_numbers(summary["generation"] or {}, ("rows",), f"{where}: generation.", least=0)
    check_bytes(summary["bytes_by_kind"], f"{where}: bytes_by_kind")


def _check_keys(found: dict[str, Any], allowed: frozenset[str], where: str) -> None:
    if missing := sorted(allowed - found.keys()):
        raise UserError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(found.keys() - allowed):
        raise UserError(f"{where} has unknown keys {', '.join(unknown)}; allowed are {', '.join(sorted(allowed))}")


def _finite(value: Any) -> Any:
    """The same value with None for each number that standard JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _write_records(path: Path, records: Iterable[Record]) -> None:
    replace_text(path, "".join(record.to_json() + "\n" for record in records))


def replace_text(path: Path, text: str) -> None:
    """Write beside the file, then swap: a reader sees the old text or the new, also after a crash."""
    beside = path.with_name(path.name + ".part")
    with writing(path):
        # What has the name is removed, not opened: in a folder that came from elsewhere it may be a pipe or a link.
        beside.unlink(missing_ok=True)
        with beside.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk or a missing permission inside becomes an error of the user that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None
