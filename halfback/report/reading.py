"""Reads run folders as the files they are, so that a report needs nothing of what trained them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfback.errors import UserError, shown
from halfback.json_reading import check_bytes, check_numbers, parse, text_of

_ALWAYS = ("step", "up_bytes", "down_bytes", "wall_seconds")
_OFTEN = ("train_loss", "validation_loss", "metric", "rows")  # null where there is none
_TOTALS = (
    "train_loss",
    "up_bytes",
    "down_bytes",
    "client_seconds",
    "server_seconds",
    "wire_seconds",
    "wall_seconds",
    "simulated_seconds",
    "forward_passes",
)
_MEASURES = (*_TOTALS, "steps", "client_peak_bytes", "client_inference_peak_bytes", "server_peak_bytes")


@dataclass(frozen=True)
class Run:
    """One run folder: `records` in order, the `summary` (made from the records while `finished` is false)."""

    label: str
    folder: Path
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    config: str
    finished: bool


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, each followed by those in its `beside/` that have begun; labels are unique.

    Raises:
        UserError: no folder, or one that is not there, holds no records, or has a file that is corrupt.
    """
    if not folders:
        raise UserError("a report needs at least one run folder, not none")
    found: list[tuple[str, Path]] = []
    resolved = [Path(folder).resolve() for folder in folders]
    names = [folder.name for folder in resolved]
    for folder in dict.fromkeys(resolved):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name the folder of a run")
        label = folder.name if names.count(folder.name) == 1 else str(folder)
        found.append((label, folder))
        beside = folder / "beside"
        if beside.is_dir():
            begun = [sub for sub in sorted(beside.iterdir()) if (sub / "records.jsonl").exists()]
            found += [(f"{label} / {sub.name}", sub) for sub in begun]
    return [_read_run(label, folder) for label, folder in found]


def _read_run(label: str, folder: Path) -> Run:
    records = _read_records(folder / "records.jsonl")
    finished = (folder / "summary.json").exists()
    if not finished and not records:
        raise UserError(f"{folder} has no records yet; let the run reach its first evaluation")
    summary = _read_summary(folder / "summary.json") if finished else _summary_so_far(records)
    config = text_of(folder / "config.yaml") if (folder / "config.yaml").exists() else ""
    return Run(label, folder, records, summary, config, finished)


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Each line's object; a last line without its end of line may be torn by a killed writer and is then left out."""
    lines = text_of(path).split("\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: a record must be JSON, not {line[:60]!r}") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: a record must be an object, not {line[:60]!r}")
        for name in _ALWAYS:
            if record.get(name) is None:
                raise UserError(f"{path}, line {number}: {name} must be a number, not {shown(record.get(name))}")
        record |= {name: record.get(name) for name in _OFTEN}
        check_numbers(record, _OFTEN, f"{path}, line {number}: ")
        check_numbers(record, {*_ALWAYS, *_TOTALS} - {*_OFTEN}, f"{path}, line {number}: ", least=0)
        if records and record["step"] < records[-1]["step"]:
            raise UserError(f"{path}, line {number}: step {record['step']} comes behind {records[-1]['step']}")
        records.append(record)
    return records


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = parse(text_of(path))
    except ValueError:
        raise UserError(f"{path} must be JSON; delete it to report from the records alone") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path} must hold an object, not {type(summary).__name__}")
    for key in ("metric", "bytes_by_kind", "trainable_parameters", "versions"):
        if not isinstance(summary.get(key), dict):
            raise UserError(f"{path}: {key} must be an object, not {shown(summary.get(key))}")
    check_numbers(summary, {*_MEASURES, "seed"} - {"train_loss"}, f"{path}: ", least=0)
    check_numbers(summary, ("train_loss",), f"{path}: ")
    check_numbers(summary["metric"], ("initial", "final", "best", "initial_rows"), f"{path}: metric.")
    check_numbers(summary["trainable_parameters"], ("bottom", "top"), f"{path}: trainable_parameters.", least=0)
    if not isinstance(summary.get("generation") or {}, dict):
        raise UserError(f"{path}: generation must be an object or null, not {shown(summary['generation'])}")
    check_numbers(summary.get("generation") or {}, ("bleu", "chrf", "rows"), f"{path}: generation.")
    if not isinstance(summary.get("privacy") or {}, dict):
        raise UserError(f"{path}: privacy must be an object or null, not {shown(summary['privacy'])}")
    check_numbers(summary.get("privacy") or {}, ("epsilon", "delta", "noise", "releases"), f"{path}: privacy.", least=0)
    check_bytes(summary["bytes_by_kind"], f"{path}: bytes_by_kind")
    return summary


def _summary_so_far(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the records say of a run that has no summary; which metric is best is not in them."""
    last = records[-1]
    return {
        "steps": last["step"],
        "metric": {"initial": records[0]["metric"], "final": last["metric"], "initial_rows": records[0].get("rows")},
        **{key: last.get(key) for key in _TOTALS},
    }
