"""Checkpoints: a folder that appears whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from halfback.errors import HalfbackError, UserError

_TENSORS, _VALUES, _PREFIX = "tensors.safetensors", "values.json", "round-"


class CheckpointError(HalfbackError):
    """A checkpoint could not be written; the one before it is untouched."""


def save(folder: Path, round_number: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Writes `folder`/round-N and then removes the older ones.

    The new one is written under another name and renamed when it is on the disk, so a kill or a full disk at any moment
    leaves a complete checkpoint behind.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    target = folder / f"{_PREFIX}{round_number:08d}"
    unfinished = folder / f"unfinished-{round_number:08d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished / _TENSORS)
        (unfinished / _VALUES).write_text(json.dumps(values))
        for path in (unfinished / _TENSORS, unfinished / _VALUES, unfinished):
            _to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(unfinished, target)
        _to_disk(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(
            f"checkpoint of round {round_number} in {folder}: {reason}; the last one is kept"
        ) from None
    for path in folder.iterdir():
        if path != target:
            shutil.rmtree(path, ignore_errors=True)


def load(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete checkpoint: (round, tensors, values), or None where there is none yet.

    Raises:
        UserError: the checkpoint is damaged.
    """
    complete = sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []
    if not complete:
        return None
    newest = complete[-1]
    try:
        tensors = load_file(newest / _TENSORS)
        values = json.loads((newest / _VALUES).read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"checkpoint {newest} can't be read: {error}") from None
    return int(newest.name.removeprefix(_PREFIX)), tensors, values


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
