"""Checkpoints: a folder that appears whole or not at all."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as loaded
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_128

from halfback import json_reading
from halfback.errors import HalfbackError, UserError

_TENSORS, _VALUES, _SUM, _PREFIX = "tensors.safetensors", "values.json", "tensors", "round-"
_WHOLE, _OURS = re.compile(rf"{_PREFIX}\d{{8,}}"), re.compile(rf"({_PREFIX}|unfinished-)\d{{8,}}")


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
        told = {_SUM: _sum_of_file(unfinished / _TENSORS)} | dict(values)
        (unfinished / _VALUES).write_text(json.dumps(told))
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
    for path in folder.iterdir():  # of other names, such as a backup's, nothing is ours to remove
        if _OURS.fullmatch(path.name) and path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def rounds(folder: Path) -> list[int]:
    """The rounds of the complete checkpoints, the newest last."""
    return [_round_of(path) for path in _complete(folder)]


def _complete(folder: Path) -> list[Path]:
    named = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in named if _WHOLE.fullmatch(path.name))


def _sum_of_file(path: Path) -> str:
    """A checksum of a file's bytes: for damage and mix-ups, not against forgery."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


def _bytes_of(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would never end
        raise UserError(f"{path} is not a file")
    return path.read_bytes()


def values_of(folder: Path) -> dict[str, Any] | None:
    """The plain values of the newest complete checkpoint; None where none is, UserError for a damaged one."""
    found = _complete(folder)
    return _values(found[-1]) if found else None


def _values(path: Path) -> dict[str, Any]:
    values = json_reading.read(path / _VALUES)
    if not isinstance(values, dict):
        raise UserError(f"{path / _VALUES} must hold an object, not {type(values).__name__}")
    return values


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
    if newest.is_symlink() or not newest.is_dir():
        raise UserError(f"checkpoint {newest} can't be read: it is a {'link' if newest.is_symlink() else 'file'}")
    try:
        values = _values(newest)
        if _SUM not in values:
            raise UserError("it was written by an earlier version of halfback, which left out what is checked here")
        data = _bytes_of(newest / _TENSORS)  # read once, for the checksum and for the values
        if values.pop(_SUM) != xxh3_128(data).hexdigest():
            raise UserError(f"{_TENSORS} is damaged, or not the one that was saved with {_VALUES}")
        tensors = dict(sorted(loaded(data).items()))
        del data
    except (OSError, ValueError, SafetensorError, UserError) as error:
        raise UserError(f"checkpoint {newest} can't be read: {error}") from None
    for name, tensor in tensors.items():
        # Of numbers of one byte torch can't tell it.
        if not torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all():
            raise UserError(f"checkpoint {newest} can't be read: {name} is not finite")
    return _round_of(newest), tensors, values


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
