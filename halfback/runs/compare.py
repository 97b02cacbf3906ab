"""Several algorithms on the same work, each with several seeds and with a learning rate chosen for it.

The seed fixes data, partition, order and first weights, so cells of one seed differ in the algorithm alone.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.data.tasks import objective_of, tuning_options
from halfback.errors import UserError
from halfback.models.objectives import better
from halfback.report.comparison import TARGET_SHARE, initial_of, metric_of, summarise, target_of
from halfback.report.comparison_page import write_comparison
from halfback.report.comparison_tables import markdown
from halfback.report.tables import number
from halfback.runs.cells import Cell, Watch, run_cells
from halfback.runs.locks import alone
from halfback.runs.tuning import choose
from halfback.runs.variants import Grid, Variant, refuse_made
from halfback.telemetry.records import replace_text, writing

CELLS, PASSES, TUNE, RESULT = "cells", "cells-passes", "tune", "compare"
TUNING_SEED = 0
_HELD_BACK = ("holdout", "train_rows", "validation_rows", "generated_rows")  # of the task's options


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        recipe: a recipe's name or path, or None.
        settings: for all algorithms, each as `key=value`.
        variants: the algorithms, in the order of the tables.
        out: the folder of the comparison.
        seeds: run seeds 0 to `seeds` − 1.
        tune: the values that a setting of every algorithm is chosen among.
        tune_steps: steps of a run with one of them, None for as many as any other run has.
        target: a metric, of which the cost is said; None for one that is made of the results.
        equal: `passes` to run all once more, with as many client forward passes as the first algorithm had.
    """

    recipe: str | None
    settings: tuple[str, ...]
    variants: Sequence[Variant]
    out: Path
    seeds: int = 3
    tune: Grid | None = None
    tune_steps: int | None = None
    target: float | None = None
    equal: str = "steps"

    @property
    def command(self) -> str:
        """What repeats the comparison on the command line."""
        words = ["halfback", "compare", *([] if self.recipe is None else [self.recipe]), *self.settings]
        words += ["--algorithms", ",".join(map(str, self.variants)), "--seeds", str(self.seeds)]
        options = {"tune": self.tune, "tune-steps": self.tune_steps, "target": self.target}
        words += [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
        words += [] if self.equal == "steps" else ["--equal", self.equal]
        return shlex.join([*words, "--out", str(self.out)])


def carry_out(request: Request, watch: Watch) -> dict[str, Any]:
    """Runs what is not there yet and writes compare.json, .md and .html into `out`; returns what compare.json holds.

    A cell that diverges is reported as that. Stopped at any time, the same request goes on where it was.

    Raises:
        UserError: the request can't be carried out, or `out` holds anything else.
    """
    work = _Work(request)
    grids = _grids(request)
    first = {label: work.cell(label, CELLS, 0) for label in work.methods}
    for label, cell in first.items():
        if label in grids and cell.config.task.holdout:
            raise UserError(
                f"task.holdout={cell.config.task.holdout}: --tune holds back itself; leave one of the two away"
            )
    if request.seeds < 1:
        raise UserError(f"--seeds {request.seeds}: 1 or more are allowed")
    if request.equal not in ("steps", "passes"):
        raise UserError(f"--equal {request.equal}: steps and passes are allowed")
    if request.target is not None and not math.isfinite(request.target):
        raise UserError(f"--target {request.target}: a finite number is allowed")
    _check_out(request.out)
    with writing(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
    with alone(request.out):
        try:
            return _compared(work, grids, first, watch)
        finally:
            with suppress(OSError):
                request.out.rmdir()  # where nothing could be run


def _compared(work: "_Work", grids: Mapping[str, Grid], first: Mapping[str, Cell], watch: Watch) -> dict[str, Any]:
    request = work.request
    rises = better(objective_of(next(iter(first.values())).config.task), 1.0, 0.0)
    tuning = _tune(work, grids, rises, watch) if grids else None
    rates: dict[str, list[str]] = {label: [] for label in work.methods}
    if tuning is not None:
        rates |= {label: grid.changes(tuning["chosen"][label]) for label, grid in grids.items()}
    # Seed by seed, so that a comparison that is stopped early still has something to compare.
    seeds = range(request.seeds)
    found = run_cells([work.cell(label, CELLS, seed, rates[label]) for seed in seeds for label in first], watch)
    parts = [("steps", found, list[str]())]
    if request.equal == "passes":
        _write(work, tuning, parts, rises)
        more, notes = _equal_passes(work, rates, found)
        parts.append(("passes", run_cells(more, watch), notes))
    return _write(work, tuning, parts, rises)


class _Work:
    """The request's algorithms, and the cells that it asks for."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.methods: dict[str, Variant] = {}
        for setting in request.settings:
            refuse_made(setting)
        for variant in request.variants:
            if variant.label in self.methods:
                raise UserError(f"--algorithms: {variant.label!r} is there twice; each entry is allowed once")
            self.methods[variant.label] = variant
        if not self.methods:
            raise UserError("--algorithms: one or more are needed")

    def cell(self, label: str, place: str, seed: int, changes: Sequence[str] = (), name: str | None = None) -> Cell:
        """The cell in folder `place`/`label`-`name` (by default the seed) with `changes` of its settings."""
        variant = self.methods[label]
        made = (f"algorithm.name={variant.algorithm}", f"seed={seed}", "beside=[]", "per_algorithm={}")
        whole = "first_eval_rows=null"  # what methods gained is told from the first evaluation
        settings = (*self.request.settings, *variant.settings, *changes, *made, whole)
        recipe = self.request.recipe
        config = configuration.resolve(recipe, settings)
        _check_whole(config)
        folder = self.request.out / place / quote(f"{label}-{name or seed}", safe="=:,+[]{} ")
        return Cell(label, settings if recipe is None else (recipe, *settings), config, folder)


def _check_whole(config: RunConfig) -> None:
    """Refuses runs that may end too soon: what is compared at equal steps has taken them."""
    asked = {
        "early_stopping.patience": config.early_stopping.patience,
        "budget.bytes": config.budget.bytes,
        "budget.seconds": config.budget.seconds,
    }
    for setting, value in asked.items():
        if value is not None:
            raise UserError(f"{setting}={value:g}: runs are compared at equal steps; use {setting}=null here")


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is no folder; name a new one")
    for name in sorted(path.name for path in out.iterdir()) if out.exists() else []:
        if name not in (CELLS, PASSES, TUNE) and not name.startswith(f"{RESULT}."):
            raise UserError(f"--out {out} holds {name}, which is no part of a comparison; name a new folder")


def _grids(request: Request) -> dict[str, Grid]:
    """The values that are tried, of each algorithm that something is chosen for."""
    own = {variant.label: variant.grid for variant in request.variants if variant.grid is not None}
    if request.tune is None and not own and request.tune_steps is not None:
        raise UserError(f"--tune-steps {request.tune_steps}: there is nothing to tune without --tune")
    if request.tune_steps is not None and request.tune_steps < 1:
        raise UserError(f"--tune-steps {request.tune_steps}: 1 or more are allowed")
    if request.tune is not None and own:
        raise UserError(f"--tune {request.tune}: {next(iter(own))} has learning rates of its own; name them once")
    grids = own if request.tune is None else {variant.label: request.tune for variant in request.variants}
    for variant in request.variants:
        grid = grids.get(variant.label)
        if grid and (both := {setting.partition("=")[0].strip() for setting in variant.settings} & {*grid.keys}):
            raise UserError(f"--algorithms: {variant.label} sets {both.pop()}, which --tune {grid} is to choose")
    return grids


def _tune(work: _Work, grids: Mapping[str, Grid], rises: bool, watch: Watch) -> dict[str, Any]:
    """Runs algorithms with every value of their grids on held-back training rows; what compare.json says of that."""
    configs = {label: work.cell(label, CELLS, TUNING_SEED).config for label in grids}
    options = {label: tuning_options(config.task) for label, config in configs.items()}
    steps = {label: work.request.tune_steps or config.steps for label, config in configs.items()}

    def cell(label: str, value: str) -> Cell:
        held = [f"task.{key}={json.dumps(getattr(options[label], key))}" for key in _HELD_BACK]
        changes = [*held, f"steps={steps[label]}", *grids[label].changes(value)]
        return work.cell(label, TUNE, TUNING_SEED, changes, name=value)

    one = next(iter(grids.values()))  # all are of one setting
    return {
        "name": one.name,
        "keys": one.keys,
        "values": list(dict.fromkeys(value for grid in grids.values() for value in grid.values)),
        "seed": TUNING_SEED,
        "steps": steps,
        "held_back": {label: of_task.holdout for label, of_task in options.items()},
        **choose(grids, cell, rises=rises, watch=watch),
    }


def _equal_passes(
    work: _Work, rates: Mapping[str, list[str]], found: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[Cell], list[str]]:
    """The cells with as many client forward passes as the first algorithm's, and what can't be had.

    A cell that takes as many steps as before is the one that is there. `eval_every` grows with the steps.
    """
    rows = summarise(found, target=None, rises=True)
    first, notes, cells = next(iter(rows)), [], []
    goal = rows[first]["forward_passes"]
    changes: dict[str, list[str]] = {}
    for label, row in rows.items():
        if not goal or not row["forward_passes"]:
            notes.append(
                f"{label} is not in the part at equal forward passes: it or {first} has none that could be counted."
            )
            continue
        more = goal / row["forward_passes"]
        steps = max(1, round(more * row["steps"]))
        evaluate = max(1, round(more * work.cell(label, CELLS, 0).config.eval_every))
        changes[label] = [] if steps == row["steps"] else [f"steps={steps}", f"eval_every={evaluate}"]
    for seed in range(work.request.seeds):
        for label, change in changes.items():
            cells.append(work.cell(label, PASSES if change else CELLS, seed, [*rates[label], *change]))
    return cells, notes


def _write(
    work: _Work,
    tuning: Mapping[str, Any] | None,
    parts: Sequence[tuple[str, dict[str, list[dict[str, Any]]], list[str]]],
    rises: bool,
) -> dict[str, Any]:
    request, found = work.request, parts[0][1]
    target = target_of(found, rises=rises) if request.target is None else request.target
    metric = metric_of(found)
    cells = [cell for _, cells_of, _ in parts for label in cells_of for cell in cells_of[label]]
    versions: dict[str, set[str]] = {}
    for cell in cells:
        for name, version in (cell.get("summary") or {"versions": {}})["versions"].items():
            versions.setdefault(name, set()).add(version)
    config: RunConfig = work.cell(next(iter(work.methods)), CELLS, 0).config
    comparison = {
        "command": request.command,
        "recipe": request.recipe,
        "settings": list(request.settings),
        "task": config.task.name,
        "model": config.model.name,
        "seeds": list(range(request.seeds)),
        "algorithms": {
            label: {"name": variant.algorithm, "settings": list(variant.settings)}
            for label, variant in work.methods.items()
        },
        "metric": {"name": metric, "rises": rises, "initial": initial_of(found)},
        "target": {"value": target, "said": _about_target(request.target, target, metric)},
        "tuning": tuning,
        "parts": [
            {
                "equal": equal,
                "notes": notes,
                "methods": {
                    label: row | {"cells": cells_of[label]}
                    for label, row in summarise(cells_of, target=target, rises=rises).items()
                },
            }
            for equal, cells_of, notes in parts
        ],
        "versions": {name: " and ".join(sorted(found)) for name, found in versions.items()},
    }
    out = request.out / RESULT
    replace_text(out.with_suffix(".json"), json.dumps(comparison, indent=1, allow_nan=False) + "\n")
    replace_text(out.with_suffix(".md"), markdown(comparison))
    write_comparison(comparison, out.with_suffix(".html"))
    return comparison


def _about_target(wanted: float | None, target: float | None, metric: str) -> str:
    reading = "Steps and bytes to it are those of the first evaluation that reached it; – where not every seed did."
    if target is None:
        return f"No target {metric}: no algorithm ended better than it began."
    if wanted is not None:
        return f"Target {metric}: {number(target)}, as asked for. {reading}"
    share = f"{TARGET_SHARE} × (best mean final − before training)"
    return f"Target {metric}: {number(target)}, which is the one before training + {share}. {reading}"
