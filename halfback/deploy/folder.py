"""The folder of a run on the server's site: where it may be, and what of it is handed out."""

import re
import shutil
from pathlib import Path

from halfback.errors import UserError, one_line
from halfback.runs.folder import BEST, CHECKPOINT, COHORTS, CONFIG, PRETRAINED, RELEASES, REPORT
from halfback.telemetry.records import RECORDS, SUMMARY

SEATS, EVENTS, ENDED = "seats.json", "events.jsonl", "ended.json"
GATEWAYS = "gateways.jsonl"  # what gateways have counted, at each evaluation
# Patterns of what a run leaves for whoever submitted it; its folder also has a token and what codecs remember.
HANDED_OUT = (
    CONFIG,
    RECORDS,
    COHORTS,
    RELEASES,
    GATEWAYS,
    SUMMARY,
    REPORT,
    PRETRAINED,
    f"{CHECKPOINT}/round-*/tensors.safetensors",
    f"{CHECKPOINT}/round-*/values.json",
    f"{BEST}/round-*/tensors.safetensors",
    f"{BEST}/round-*/values.json",
    "tensorboard/events.out.tfevents.*",
    "wandb/offline-run-*/run-*.wandb",
    "mlflow.db",
    SEATS,
    EVENTS,
    ENDED,
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: object, what: str) -> str:
    """The name of a run, which becomes that of a folder; UserError says `what` it is."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        said = one_line(str(name))[:80]
        raise UserError(f"{what} {said}: up to 64 letters, digits, dots, dashes and underscores are allowed")
    return name


def make_folder(runs: Path, name: object) -> Path:
    """The folder of a run below `runs`, which a job has named; made where it isn't there.

    Raises:
        UserError: the name is none of a run, the folder would lie elsewhere, or it can't be made.
    """
    out = runs / check_name(name, "the run's name")
    try:
        out.mkdir(parents=True, exist_ok=True)
        place, resolved = runs.resolve(strict=True), out.resolve(strict=True)
    except OSError as error:
        raise UserError(f"folder {out} can't be made: {error.strerror}") from None
    if resolved != place / out.name:
        raise UserError(f"folder {out} is a link to elsewhere: a run has a folder of its own")
    return out


def copy_run(source: Path, target: Path) -> None:
    """Copies what is handed out of a run; nothing else that lies in its folder, and nothing behind a link."""
    place = source.resolve()
    for path in sorted(path for pattern in HANDED_OUT for path in source.glob(pattern)):
        inside = path.relative_to(source)
        if path.is_file() and path.resolve() == place / inside:
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inside)
