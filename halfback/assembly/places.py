"""Where the files are that a recipe names: relative to where the run was begun, from wherever it is continued."""

import dataclasses
from contextlib import suppress
from pathlib import Path

from halfback.config import RunConfig
from halfback.data.options import GIVEN
from halfback.errors import UserError


def placed(config: RunConfig, start: Path) -> RunConfig:
    """The same configuration with full paths of the files and folders that are in `start`, where the run was begun.

    Where `start` is the current folder nothing changes. A file that `start` hasn't got is looked for in the current
    folder, as where a run was moved to another machine: what it holds is held against the checkpoint in any case.

    Raises:
        UserError: a table or a folder of images is in neither.
    """
    with suppress(OSError):  # of a current folder that is gone
        if start == Path.cwd():
            return config
    task = config.task
    local = task.name in ("csv", "images")
    named = {"train": task.train, "validation": task.validation if local else None}
    train, validation = (
        None if path is None else _found(start, path, f"task.{key}", needed=local) for key, path in named.items()
    )
    task = dataclasses.replace(task, train=train, validation=validation if local else task.validation)
    model = config.model
    if model.name != GIVEN:
        model = model.model_copy(update={"name": _found(start, model.name, "model.name", needed=False)})
    return config.model_copy(update={"task": task, "model": model})


def _found(start: Path, path: str, setting: str, *, needed: bool) -> str:
    if (start / path).exists():
        return str(start / path)
    if needed and not Path(path).exists():
        raise UserError(
            f"{setting}={path!r} is neither in {start}, where the run was begun, nor in the current folder; continue "
            "it from a folder that has it"
        )
    return path
