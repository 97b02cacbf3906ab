"""Runs carried out: begun, continued or served, and then those beside them, each in a folder."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.errors import Diverged, HalfbackError, Interrupted
from halfback.report.page import write_report
from halfback.runs import devices, simulated
from halfback.runs.folder import (
    BESIDE,
    CHECKPOINT,
    COHORTS,
    CONFIG,
    PRETRAINED,
    REPORT,
    check_free,
    config_of,
    copy_file,
    make,
    taken,
)
from halfback.runs.folder import begin as begin_folder
from halfback.runs.interrupts import Asked
from halfback.runs.locks import alone
from halfback.runs.opening import Caller, Opening
from halfback.runs.training import Training


def begin(config: RunConfig, out: Path, caller: Caller, *, overwrite: bool = False) -> None:
    """Runs a configuration into the folder `out`, and those `beside` it.

    Raises:
        UserError: the configuration can't be run, or `out` holds a run already and `overwrite` is not set; `out` is
            then as it was before.
    """
    check_free(out, overwrite=overwrite)
    for each in (config, *(beside_of(config, name) for name in config.beside)):
        devices.check(each)  # what is wrong with any of them is said before anything runs
        simulated.check(each)
    place = out.resolve()  # it is renamed below, also where it is the current folder
    opening = Opening(place, place / PRETRAINED, Path.cwd(), caller)
    with _resumable(place), ExitStack() as locks:
        with taken(place, locks):
            begin_folder(config, place)
            if caller.pretrained is not None:
                copy_file(caller.pretrained, place / PRETRAINED)
            if caller.cohorts is not None:
                copy_file(caller.cohorts, place / COHORTS)
            training = opening.training(config, None)
        _carry_out(config, opening, training)


def resume(out: Path, caller: Caller) -> None:
    """Continues what `begin` began in `out` from the last checkpoint, bit for bit.

    Raises:
        UserError: `out` holds no run, or its checkpoint belongs to another configuration.
    """
    config = config_of(out)
    with _resumable(out), alone(out):
        _carry_out(config, Opening(out, out / PRETRAINED, Path.cwd(), caller), None)


def run_deployed(config: RunConfig, out: Path, caller: Caller) -> None:
    """Begins or continues a run in `out` (see `folder.check_config`) whose clients are elsewhere.

    Raises:
        UserError: too few clients came.
    """
    make(out)
    begin_folder(config, out)  # also anew: how long to wait for clients may be another than before
    Opening(out, out / PRETRAINED, caller=caller).carried_on()
    write_report([out], out / REPORT)


def beside_of(config: RunConfig, name: str) -> RunConfig:
    """The same work with another algorithm, one of those in the setting `beside`."""
    return configuration.from_tree(configuration.to_tree(config), {"algorithm.name": name, "beside": []})


def same_work(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations have the same rows, shared out alike, and begin from the same weights."""
    parts = [
        (c.seed, c.task, c.clients, c.partition, c.model.model_copy(update={"cut": 0, "head": None, "auxiliary": 0}))
        for c in (one, other)
    ]
    return parts[0] == parts[1]


def _carry_out(config: RunConfig, opening: Opening, training: Training | None) -> None:
    """The run to its end, then those beside it; `training` where it has been opened."""
    out = opening.out
    if training is None:
        opening.carried_on()
    else:
        opening.finished(training)
    write_report([out], out / REPORT)
    kept = checkpoint.values_of(out / CHECKPOINT) if config.beside else None
    start = opening.start if not kept or kept.get("start") is None else Path(kept["start"])
    for name in config.beside:
        folder, other = out / BESIDE / name, beside_of(config, name)
        make(folder)
        like = kept["fingerprint"] if kept and same_work(config, other) else None
        caller = dataclasses.replace(opening.caller, like=like)
        try:
            with alone(folder):
                if not (folder / CONFIG).exists():
                    begin_folder(other, folder)
                Opening(folder, opening.weights, start, caller).carried_on()
        except Diverged as error:
            raise Diverged(
                f"{name}, beside the finished {config.algorithm.name}: {error} (see {out / REPORT})"
            ) from None
        write_report([out], out / REPORT)


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Whoever stops a run is told where it is, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        if (out / CONFIG).exists():
            way = f"halfback.load({str(out)!r}).resume()"
            if isinstance(error, Asked):
                raise Interrupted(out, way, step=error.step, number=error.signal) from None
            raise Interrupted(out, way) from None
        raise
    except HalfbackError:
        raise
    except Exception as error:
        if checkpoint.rounds(out / CHECKPOINT):
            error.add_note(f"the run is kept in {out}: halfback.load({str(out)!r}).resume() goes on with it")
        raise
