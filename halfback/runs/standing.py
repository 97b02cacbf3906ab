"""Where a run stands by its checkpoint, held against its configuration and the other files of its folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from halfback.config import RunConfig
from halfback.config.values import first_difference
from halfback.engine import checkpoint
from halfback.engine.kept import Count, EngineValues, Seconds, checked
from halfback.errors import UserError, shown
from halfback.runs.folder import BEST, CHECKPOINT, CONFIG
from halfback.runs.summary import Summary
from halfback.telemetry.records import RECORDS, SUMMARY, read_records, read_summary

_OF_CONFIG = ("clients", "sampled_clients", "seed")  # that a summary repeats as they are


class Standing(BaseModel):
    """What a checkpoint says beside the engine's own.

    `start` is the folder that a run's relative paths are from; `ended` says why the run was over before its steps were.
    """

    model_config = ConfigDict(extra="ignore")

    config: dict[str, Any]
    step: Count
    losses: list[Annotated[float, Field(strict=True)]]
    wall_seconds: Seconds
    simulated_seconds: Seconds | None = None
    fingerprint: dict[str, str]
    start: str | None = None
    ended: str | None = None


def load(config: RunConfig, out: Path) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """The newest checkpoint of a run's folder as `checkpoint.load` has it; None where none is.

    Raises:
        UserError: it is damaged, that of another configuration, or contradicts itself or the folder's records.
    """
    found = checkpoint.load(out / CHECKPOINT)
    if found is not None:
        _check(config, out, CHECKPOINT, found[0], found[2])
        _check_records(config, out, found[0], found[2])
    return found


def load_best(config: RunConfig, out: Path) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """The checkpoint of a run's best evaluation, as `load` has the last one; None where none is.

    Raises:
        UserError: it is damaged, that of another configuration, or of a round without an evaluation.
    """
    found = checkpoint.load(out / BEST)
    if found is not None:
        _check(config, out, BEST, found[0], found[2])
        if found[0] not in [record.round for record in read_records(out) if record.rows is None]:
            raise UserError(
                f"{out / RECORDS} contradicts {out / BEST}: there was no evaluation behind round {found[0]}"
            )
    return found


def _check(config: RunConfig, out: Path, name: str, number: int, values: Mapping[str, Any]) -> None:
    """Holds a checkpoint in the folder `name` of a run against its configuration."""
    place = out / name
    try:
        kept = checked(Standing, values)
        if unknown := sorted(values.keys() - Standing.model_fields.keys() - EngineValues.model_fields.keys()):
            raise UserError(f"values.json: {shown(unknown[0])} is there, and nothing has this name")
    except UserError as error:
        raise UserError(f"checkpoint {place} can't be read: {error}") from None
    if changed := first_difference(config, kept.config):
        key, ours, theirs = changed
        raise UserError(
            f"checkpoint {place} belongs to another configuration: {key} was {shown(theirs)}, "
            f"{CONFIG} says {shown(ours)}"
        )
    rounds = math.ceil(config.steps / config.steps_per_round)
    step = min(number * config.steps_per_round, config.steps)
    if number > rounds or kept.step != step:
        raise UserError(f"checkpoint {place} of round {number} contradicts itself: it says step {kept.step}")
    if (kept.simulated_seconds is None) != (config.fleet is None):
        raise UserError(f"checkpoint {place} contradicts {CONFIG}: simulated_seconds and fleet go together")


def _check_records(config: RunConfig, out: Path, number: int, values: Mapping[str, Any]) -> None:
    """Each evaluation up to a checkpoint left a record before it, and the last says what it says."""
    rounds = math.ceil(config.steps / config.steps_per_round)
    rounds = rounds if values.get("ended") is None else number
    records = [record for record in read_records(out) if record.round <= number]
    due = [at for at in range(number + 1) if at % config.eval_every == 0 or at == rounds]
    if [record.round for record in records] != due:
        there = ", ".join(str(record.round) for record in records[-5:]) or "none"
        raise UserError(
            f"{out / RECORDS} contradicts the checkpoint of round {number}: it ends with records of {there}"
        )
    last = records[-1]
    told: dict[str, Any] = {"step": last.step, "losses since": number - last.round}
    kept: dict[str, Any] = {
        "step": min(last.round * config.steps_per_round, config.steps),
        "losses since": len(values["losses"]),
    }
    if last.round == number:
        ledger = checked(EngineValues, values).ledger
        told |= {"forward_passes": last.forward_passes, "up_bytes": last.up_bytes, "down_bytes": last.down_bytes}
        kept |= {"forward_passes": values["forward_passes"], "up_bytes": ledger.total("up")}
        kept |= {"down_bytes": ledger.total("down")}
        told["simulated_seconds"], kept["simulated_seconds"] = last.simulated_seconds, values.get("simulated_seconds")
    for key, value in kept.items():
        if told[key] != value:
            raise UserError(
                f"checkpoint {out / CHECKPOINT} contradicts {out / RECORDS} at round {last.round}: {key} is {value}, "
                f"there it is {told[key]}"
            )


def finished(config: RunConfig, out: Path) -> Summary:
    """The summary of a run that is over; UserError where it is that of another run."""
    summary = read_summary(out)
    told = {key: getattr(config, key) for key in _OF_CONFIG}
    told |= {"algorithm": config.algorithm.name, "task": config.task.name, "model": config.model.name}
    for key, value in told.items():
        if summary[key] != value:
            raise UserError(f"{out / SUMMARY} is that of another run: {key} is {shown(summary[key])}, not {value!r}")
    if summary["steps"] > config.steps or (summary["steps"] < config.steps) != (summary["ended"] is not None):
        raise UserError(f"{out / SUMMARY} is that of another run: it has {summary['steps']} of {config.steps} steps")
    return Summary.from_dict(summary)
