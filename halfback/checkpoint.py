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


def save(
    folder: Path, round_number: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, keep: int = 1
) -> None:
    """Writes `folder`/round-N and then removes all but the newest `keep`, and those of later rounds.

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
    kept = [path for path in _complete(folder) if path <= target][-keep:]
    for path in folder.iterdir():
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def rounds(folder: Path) -> list[int]:
    """The rounds of the complete checkpoints, the newest last."""
    return [_round_of(path) for path in _complete(folder)]


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


def _round_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def load(folder: Path, round_number: int | None = None) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """A complete checkpoint, the newest unless another is asked for: (round, tensors, values); None where none is.

    Raises:
        UserError: the checkpoint is damaged.
    """
    found = [path for path in _complete(folder) if round_number in (None, _round_of(path))]
    if not found:
        return None
    newest = found[-1]
    try:
        tensors = load_file(newest / _TENSORS)
        values = json.loads((newest / _VALUES).read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"checkpoint {newest} can't be read: {error}") from None
    return _round_of(newest), tensors, values


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
