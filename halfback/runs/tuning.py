"""One setting, chosen for each algorithm among the values of a grid, which is widened where its best is at an edge."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.errors import UserError
from halfback.runs.cells import Cell, Watch, run_cells
from halfback.runs.variants import Grid

MOST = 6  # values that a grid is widened by, for each algorithm: of a grid in steps of three a factor of 729
Edge = Literal["lower", "upper", "diverged"]
Ranks = Mapping[str, tuple[float, float] | None]
"""How good each value that was tried is, more is better: by the metric and then by the loss, which is finer; None where
the run diverged."""


def choose(
    grids: Mapping[str, Grid],
    cell: Callable[[str, str], Cell],
    *,
    rises: bool,
    watch: Watch,
) -> dict[str, Any]:
    """Runs algorithms with every value of their grids, and beyond; what came of it, each by the algorithm's label.

    `grids` has those that something is chosen for, by their labels. `cell` gives the run of an algorithm with a value.
    The best metric at the end is chosen, of equal ones that with the lowest loss on the same rows, then the one given
    first; a run that diverges is the worst. Where the best is at an edge of the grid, the next value in the grid's own
    ratio is run too, until the best is inside, `MOST` have been, or the setting ends there. Only a fraction (a float)
    above 0 is widened: a whole number, such as a cut or a number of directions, changes what a run costs.

    Returns `scores` and `losses` of each value (None where it diverged), the value that is `chosen`, the values that a
    grid was `widened` by, the `edge` that the best is still at, and the `cells`.

    Raises:
        UserError: as `run_cells`.
    """
    labels = [*grids]
    asked = {(label, value): cell(label, value) for label, grid in grids.items() for value in grid.values}
    cells = run_cells([*asked.values()], watch)
    tried = {label: dict(zip(grid.values, cells[label], strict=True)) for label, grid in grids.items()}
    widened: dict[str, list[str]] = {label: [] for label in labels}
    going = [label for label, grid in grids.items() if _is_fraction(grid, asked[label, grid.values[0]].config)]
    for _ in range(MOST):
        more = {}
        for label in going:
            value = wider(_ranks(tried[label], rises))
            if value is not None and (found := _allowed(cell, label, value)):
                more[label, value] = found
        if not more:
            break
        outcomes = run_cells([*more.values()], watch, earlier=[*asked.values()])
        for label, value in more:
            (tried[label][value],) = outcomes[label]
            widened[label].append(value)
        going = [label for label, _ in more]
    ranks = {label: _ranks(tried[label], rises) for label in labels}
    return {
        "scores": {label: {value: _at_end(run, "metric") for value, run in tried[label].items()} for label in labels},
        "losses": {
            label: {value: _at_end(run, "validation_loss") for value, run in tried[label].items()} for label in labels
        },
        "chosen": {label: best(ranks[label])[0] for label in labels},
        "widened": widened,
        "edge": {label: edge(ranks[label]) for label in labels},
        "cells": {label: [*tried[label].values()] for label in labels},
    }


def best(ranks: Ranks) -> list[str]:
    """The values that none is better than, in the order of `ranks`; all of them where every one diverged."""
    most = max((rank for rank in ranks.values() if rank is not None), default=None)
    return [value for value, rank in ranks.items() if rank == most]


def edge(ranks: Ranks) -> Edge | None:
    """The edge of the values tried that the best is at; None where one inside is as good, or values have no order.

    `diverged` where no value finished, in order or not.
    """
    if all(rank is None for rank in ranks.values()):
        return "diverged"
    places = _places(ranks)
    if places is None:
        return None
    low, high = min(places.values()), max(places.values())
    found = [places[value] for value in best(ranks)]
    if any(low < place < high for place in found):
        return None
    return "lower" if found[0] == low else "upper"


def wider(ranks: Ranks) -> str | None:
    """The next value beyond the edge that the best is at, in the ratio of the last two there; None where there is none.

    To four digits, as it is written in a setting.
    """
    at, places = edge(ranks), _places(ranks)
    if at in (None, "diverged") or places is None:
        return None
    last, before = sorted(places.values(), reverse=at == "upper")[:2]
    if last <= 0 or before <= 0:  # no ratio, and nothing below 0
        return None
    text = f"{last * (last / before):.4g}"
    value = float(text)
    return text if math.isfinite(value) and value > 0 and value != last else None


def _places(values: Mapping[str, object]) -> dict[str, float] | None:
    """Each value as a number; None where one is none, as names and lists are."""
    try:
        places = {value: float(value) for value in values}
    except ValueError:
        return None
    return places if all(math.isfinite(place) for place in places.values()) else None


def _is_fraction(grid: Grid, config: RunConfig) -> bool:
    for key in grid.keys:
        found: Any = configuration.to_tree(config)
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, float):
            return False
    return True


def _allowed(cell: Callable[[str, str], Cell], label: str, value: str) -> Cell | None:
    """The run with a value that nobody asked for; None beyond the setting's range."""
    try:
        return cell(label, value)
    except UserError:
        return None


def _ranks(tried: Mapping[str, Mapping[str, Any]], rises: bool) -> Ranks:
    ranks: dict[str, tuple[float, float] | None] = {}
    for value, run in tried.items():
        score, loss = _at_end(run, "metric"), _at_end(run, "validation_loss")
        signed = None if score is None else score if rises else -score
        ranks[value] = None if signed is None else (signed, -math.inf if loss is None else -loss)
    return ranks


def _at_end(run: Mapping[str, Any], key: str) -> float | None:
    found: float | None = run["curve"][-1][key] if run["status"] == "finished" else None
    return found
