"""A run that was recorded, once more in one process, with the clients that took part in each round then."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from halfback import config as configuration
from halfback.engine import checkpoint
from halfback.engine.attendance import rounds_of
from halfback.errors import UserError
from halfback.runs import execution
from halfback.runs.folder import CHECKPOINT, COHORTS, PRETRAINED, config_of
from halfback.runs.opening import Caller
from halfback.runs.told import OnRound
from halfback.telemetry.records import SUMMARY

_TRAINED = ("bottom.", "top.", "history")  # how names of what a run has trained begin in its checkpoint


@dataclass(frozen=True)
class Likeness:
    """How a run that was repeated came out.

    Attributes:
        tensors: how many were compared: what the devices' part, the server's part and the history hold.
        differ: names of those whose bits are others.
        row: the first row of the history that is another one; None where there is none, or no history.
    """

    tensors: int
    differ: list[str]
    row: int | None


def repeat(source: Path, out: Path, changes: Mapping[str, Any], *, on_round: OnRound | None) -> Likeness:
    """Runs once more, in one process, what a deployment has run.

    The clients of each round, and the exchange at which one left it, are those that the run has recorded, so the bits
    are the same where they follow from that: where a client keeps nothing of its own from round to round, or no
    client's process ended in the middle.

    Args:
        source: the folder of the finished run.
        out: a new folder for the other one.
        changes: settings that are others here, as where the rows are, or `client.runtime`.
        on_round: called behind every round.

    Raises:
        UserError: the run is not finished, has recorded no cohorts, or those of other rounds than it has.
    """
    config = configuration.from_tree(configuration.to_tree(config_of(source)), dict(changes))
    if not (source / SUMMARY).exists():
        raise UserError(f"{source} is not finished")
    if config.privacy.unit is not None:
        raise UserError(f"{source} is private (privacy.unit): its noise was drawn once, so nobody can repeat it")
    kept = checkpoint.values_of(source / CHECKPOINT) or {}
    over = kept.get("ended") is not None
    if over and config.budget.seconds is not None:
        raise UserError(f"{source} {kept['ended']}: a budget of seconds ends no run at the same step again")
    steps = kept.get("step", config.steps) if over else config.steps
    recorded, due = rounds_of(source / COHORTS, config.clients), math.ceil(steps / config.steps_per_round)
    if len(recorded) != due:
        raise UserError(f"{source / COHORTS} has {len(recorded)} rounds, {due} are due")
    weights = source / PRETRAINED
    caller = Caller(on_round=on_round, pretrained=weights if weights.exists() else None, cohorts=source / COHORTS)
    execution.begin(config, out, caller)
    return _likeness(source, out)


def _likeness(one: Path, other: Path) -> Likeness:
    found, again = (checkpoint.load(folder / CHECKPOINT) for folder in (one, other))
    if found is None or again is None:
        raise UserError(f"{one / CHECKPOINT if found is None else other / CHECKPOINT} has no checkpoint")
    mine, theirs = ({n: t for n, t in each[1].items() if n.startswith(_TRAINED)} for each in (found, again))
    names = sorted(mine.keys() | theirs.keys())
    differ = [n for n in names if n not in mine or n not in theirs or not torch.equal(mine[n], theirs[n])]
    rows = None
    if "history" in differ and "history" in mine and "history" in theirs:
        pairs = zip(mine["history"], theirs["history"], strict=False)
        rows = next((n for n, (a, b) in enumerate(pairs) if not torch.equal(a, b)), None)
    return Likeness(len(names), differ, rows)
