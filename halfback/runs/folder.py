"""A run's folder: the names of what is in it, how it is begun, and how a new run takes the place of an old one."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.config.values import first_difference
from halfback.errors import UserError
from halfback.runs.locks import alone
from halfback.telemetry.records import replace_text, writing

CONFIG, CHECKPOINT, BEST, BESIDE = "config.yaml", "checkpoint", "best", "beside"
PRETRAINED, REPORT = "pretrained.safetensors", "report.html"
RELEASES = "releases.jsonl"  # of a private run: what its account is of
COHORTS = "cohorts.jsonl"  # of a deployed run, and of one that repeats it: who took part in each round


def config_of(folder: Path) -> RunConfig:
    """The configuration of the run that a folder holds; UserError where it holds none."""
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} holds no run: there is no {CONFIG}")
    return configuration.load(folder / CONFIG)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuses to begin a run in a folder that holds one, unless it may be overwritten, or that holds anything else."""
    if (out / CONFIG).exists():
        if not overwrite:
            raise UserError(f"--out {out} holds a run already: continue with `halfback resume {out}`, or --overwrite")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is no run folder; name a new folder")


def check_config(config: RunConfig, out: Path, *, other: str, cure: str) -> None:
    """Refuses a folder that holds another configuration; how long to wait for clients may be another.

    `other`: what it holds then, for the error; `cure`: what to do.
    """
    if (out / CONFIG).exists():
        kept = configuration.to_tree(configuration.load(out / CONFIG))
        if found := first_difference(config, kept):
            key, ours, theirs = found
            raise UserError(f"{out} holds another {other}: {key} was {theirs!r}, now it is {ours!r}; {cure}")


@contextmanager
def taken(out: Path, locks: ExitStack) -> Iterator[None]:
    """A folder for a new run, locked with `locks`: an old run in it is moved away, and back if the block fails.

    An error in the block leaves `out` as it was before; `locks` outlive the block.
    """
    replaced = out.with_name(f"{out.name}.replaced")
    if (out / CONFIG).exists():
        locks.enter_context(alone(out))  # also where it is put back
        shutil.rmtree(replaced, ignore_errors=True)
        try:
            out.rename(replaced)
        except OSError as error:
            raise UserError(f"--out {out} can't be replaced: {error.strerror}") from None
    ours = False
    try:
        make(out)
        locks.enter_context(alone(out))
        if (out / CONFIG).exists():
            raise UserError(f"--out {out} holds a run already, begun by another process")
        ours = True
        yield
    except Exception:
        if ours:
            shutil.rmtree(out, ignore_errors=True)
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def make(out: Path) -> None:
    """Makes the folder where it is not there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None


def begin(config: RunConfig, out: Path) -> None:
    """Writes the configuration, whole or not at all: from then on the folder holds a run."""
    try:
        unfinished = half_begun(out)
        unfinished.unlink(missing_ok=True)  # not written through, where it is a link
        unfinished.write_text(configuration.dump(config))
        unfinished.rename(out / CONFIG)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None


def half_begun(out: Path) -> Path:
    """What a run leaves that is killed while it writes its first file."""
    return out / f"{CONFIG}.unfinished"


def copy_file(source: Path, target: Path) -> None:
    """Copies a file of another run into this one's folder, whole or not at all."""
    unfinished = target.with_suffix(".unfinished")
    with writing(target):
        shutil.copyfile(source, unfinished)
        unfinished.rename(target)


def as_json(values: Any) -> str:
    """The text of a file of values; a number that is not finite is none of them."""
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def write_results(out: str | Path, page: Callable[[Path], object], texts: Mapping[str, str]) -> Path:
    """Writes what something came to into a folder, in the place of what was there: a page, and texts by file name.

    Raises:
        UserError: it can't be written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    page(folder)
    try:
        for name, text in texts.items():
            replace_text(folder / name, text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return folder
