"""Cells of a comparison: ordinary run folders, each of which is run once, whatever stops it in between."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halfback import config as configuration
from halfback import json_reading
from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.errors import Diverged, UserError, shown
from halfback.runs import execution, standing
from halfback.runs.folder import CHECKPOINT, CONFIG, PRETRAINED, check_config, half_begun
from halfback.runs.opening import Caller
from halfback.runs.told import RunState
from halfback.telemetry.records import RECORDS, SUMMARY, Record, read_records, replace_text

DIVERGED = "diverged.json"

State = Literal["waiting", "running", "kept", "finished", "diverged"]


@dataclass(frozen=True)
class Cell:
    """One run: `label` is the algorithm as it was entered, `arguments` those of `halfback train`."""

    label: str
    arguments: tuple[str, ...]
    config: RunConfig
    folder: Path


Watch = Callable[[Cell, State, int, Record | None], None]
"""Called when a cell's state changes and after each of its rounds: the step, and the newest record if there is one."""


def run_cells(cells: Sequence[Cell], watch: Watch, earlier: Sequence[Cell] = ()) -> dict[str, list[dict[str, Any]]]:
    """Runs what is not over yet; label → what came of its cells, in order, as `report.comparison` takes it.

    `earlier`: cells that are over, whose pretrained weights are for these too.

    Raises:
        UserError: a folder holds anything else (then nothing was run), or a configuration can't be run.
    """
    for cell in cells:
        check_folder(cell.config, cell.folder)
    for cell in cells:
        watch(cell, "waiting", 0, None)
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        kept = is_over(cell.folder)
        if not kept:
            _run(cell, _pretrained(cell, [*earlier, *cells]), _like(cell, [*earlier, *cells]), watch)
        outcome = _outcome(cell)
        if outcome["status"] == "diverged":
            watch(cell, "diverged", outcome["after_step"], None)
        else:
            watch(cell, "kept" if kept else "finished", cell.config.steps, read_records(cell.folder)[-1])
        found.setdefault(cell.label, []).append(outcome)
    return found


def check_folder(config: RunConfig, folder: Path) -> None:
    """Refuses a folder that holds anything but this configuration's run, over or not."""
    if (folder / CONFIG).exists():
        check_config(config, folder, other="configuration", cure="name a new --out")
    elif folder.exists() and (not folder.is_dir() or any(path != half_begun(folder) for path in folder.iterdir())):
        raise UserError(f"{folder} exists and is no run folder; name a new --out")


def is_over(folder: Path) -> bool:
    """Whether the run in a folder finished or diverged."""
    return (folder / SUMMARY).exists() or (folder / DIVERGED).exists()


def finish(config: RunConfig, folder: Path, caller: Caller) -> None:
    """Runs a configuration into `folder`, or resumes it there; one that diverges leaves a note of that.

    Raises:
        UserError: the configuration can't be run.
    """
    try:
        if (folder / CONFIG).exists():
            execution.resume(folder, caller)
        else:
            half_begun(folder).unlink(missing_ok=True)
            execution.begin(config, folder, caller)
    except Diverged as error:
        if not folder.exists():  # a run that diverges before its first step leaves nothing
            folder.mkdir(parents=True)
            replace_text(folder / CONFIG, configuration.dump(config))
        said = {"after_step": error.after_step, "error": str(error)}
        replace_text(folder / DIVERGED, json.dumps(said) + "\n")


def _pretrained(cell: Cell, cells: Sequence[Cell]) -> Path | None:
    """Weights that a cell with the same pretraining left: on CUDA a second pretraining would give others."""
    for other in cells:
        file = other.folder / PRETRAINED
        if cell.config.model.pretrain is not None and _starts_from(other) == _starts_from(cell) and file.exists():
            return file
    return None


def _starts_from(cell: Cell) -> tuple[object, ...]:
    config = cell.config
    return config.seed, config.task, config.device, config.model.model_copy(update={"cut": 0, "head": None})


def _run(cell: Cell, pretrained: Path | None, like: dict[str, str] | None, watch: Watch) -> None:
    def told(state: RunState) -> None:
        watch(cell, "running", state.step, state.record)

    watch(cell, "running", 0, None)
    try:
        finish(cell.config, cell.folder, Caller(on_round=told, pretrained=pretrained, like=like))
    except UserError as error:
        raise UserError(f"{cell.label}, seed {cell.config.seed}: {error}") from None


def _outcome(cell: Cell) -> dict[str, Any]:
    begun = (cell.folder / RECORDS).exists()
    outcome = {
        "seed": cell.config.seed,
        "folder": f"{cell.folder.parent.name}/{cell.folder.name}",
        "command": shlex.join(["halfback", "train", *cell.arguments]),
        "curve": [json.loads(record.to_json()) for record in read_records(cell.folder)] if begun else [],
    }
    if (cell.folder / SUMMARY).exists():
        if not outcome["curve"]:
            raise UserError(f"{cell.folder / RECORDS} has no records, but the run is over; delete the folder")
        return outcome | {"status": "finished", "summary": standing.finished(cell.config, cell.folder).to_dict()}
    return outcome | {"status": "diverged", **_diverged(cell.folder / DIVERGED)}


def _diverged(path: Path) -> dict[str, Any]:
    said = json_reading.read(path)
    if not isinstance(said, dict) or said.keys() != {"after_step", "error"} or not isinstance(said["error"], str):
        raise UserError(f"{path} must hold after_step and error, not {shown(said)}")
    if type(said["after_step"]) is not int or said["after_step"] < 0:
        raise UserError(f"{path}: after_step must be a count, not {shown(said['after_step'])}")
    return said


def _like(cell: Cell, cells: Sequence[Cell]) -> dict[str, str] | None:
    """The fingerprint of a cell that has the same work and has begun: a file may have changed since."""
    for other in cells:
        if other.folder != cell.folder and execution.same_work(cell.config, other.config):
            values = checkpoint.values_of(other.folder / CHECKPOINT)
            if values and isinstance(values.get("fingerprint"), dict):
                return dict(values["fingerprint"])
    return None
