"""What a device keeps on its disk to go on from: a folder a state, which appears whole or not at all; two are kept.

A state on disk may be another's, damaged or made up, so all of it is checked before any of it is used.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from halfback_device.errors import DeviceError
from halfback_device.messages import Array

_ARRAYS, _VALUES, _PREFIX = "arrays.safetensors", "values.json", "round-"
_WHOLE, _OURS = re.compile(rf"{_PREFIX}\d{{8,19}}"), re.compile(rf"({_PREFIX}|unfinished-)\d{{8,19}}")
_KEYS = {"sum", "lineage", "rounds", "about", "position", "link"}
_MOST_VALUES = 1 << 26  # bytes of a state's values, in which a cache has a number for each sample


class State(NamedTuple):
    """A state that was read: its arrays by name, and its values."""

    arrays: dict[str, Array]
    values: dict[str, Any]


def save(folder: Path, rounds: int, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
    """Writes `folder`/round-N, and then removes all but the last two, and those of later rounds.

    The new one is written under another name and renamed when it is on the disk, so a kill or a full disk at any moment
    leaves a whole one behind.

    Raises:
        DeviceError: the disk is full or not writable.
    """
    target, unfinished = folder / f"{_PREFIX}{rounds:08d}", folder / f"unfinished-{rounds:08d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, unfinished / _ARRAYS)
        told = {"sum": _sum((unfinished / _ARRAYS).read_bytes(), values)} | dict(values)
        (unfinished / _VALUES).write_text(json.dumps(told, allow_nan=False))
        for path in (unfinished / _ARRAYS, unfinished / _VALUES, unfinished):
            _to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(unfinished, target)
        _to_disk(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DeviceError(f"the state behind round {rounds} in {folder}: {reason}; the last one is kept") from None
    kept = [path for path in _whole_ones(folder) if path <= target][-2:]
    for path in folder.iterdir():  # of other names, such as a backup's, nothing is ours to remove
        if _OURS.fullmatch(path.name) and path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def rounds(folder: Path) -> list[int]:
    """The rounds behind which there is a whole state, the newest last."""
    return [int(path.name.removeprefix(_PREFIX)) for path in _whole_ones(folder)]


def read(folder: Path, number: int) -> State:
    """The state behind a round.

    Raises:
        DeviceError: it is damaged, or none that a device has written.
    """
    path = folder / f"{_PREFIX}{number:08d}"
    try:
        values = json.loads(_bytes(path / _VALUES, _MOST_VALUES), parse_constant=_constant)
        if not isinstance(values, dict) or values.keys() != _KEYS:
            raise DeviceError(f"{_VALUES} must have {', '.join(sorted(_KEYS))} and nothing else")
        for name, kind in {"lineage": str, "rounds": int, "position": int, "about": dict, "link": dict}.items():
            if type(values[name]) is not kind:
                raise DeviceError(f"{_VALUES}: {name} is no {kind.__name__}")
        if not (0 <= values["rounds"] < 1 << 62 and 0 <= values["position"] < 1 << 62):
            raise DeviceError(f"{_VALUES}: rounds or position is out of range")
        data = _bytes(path / _ARRAYS)
        if values.pop("sum") != _sum(data, values):
            raise DeviceError(f"{_ARRAYS} or {_VALUES} is damaged, or they are not of one state")
        arrays = load(data)
    except (OSError, ValueError, RecursionError, SafetensorError, DeviceError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error}"
        raise DeviceError(f"the state in {path} can't be read: {why}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DeviceError(f"the state in {path} can't be read: {name} is not finite")
    return State(arrays, values)


def check_arrays(found: Mapping[str, Array], wanted: Mapping[str, Array], *, free: str) -> None:
    """Refuses arrays that lack one of `wanted`, have one of another form, or one that nobody asked for.

    `free`: how the names of those begin whose number and form somebody else checks.

    Raises:
        DeviceError: names the array.
    """
    for name, like in wanted.items():
        if name not in found or found[name].shape != like.shape or found[name].dtype != like.dtype:
            raise DeviceError(f"array {name} is missing, or of another form than {like.dtype} {like.shape}")
    if unknown := next((name for name in found if name not in wanted and not name.startswith(free)), None):
        raise DeviceError(f"array {unknown!r:.80} is there, and nothing has this name")


def _whole_ones(folder: Path) -> list[Path]:
    named = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in named if _WHOLE.fullmatch(p.name)), key=lambda path: int(path.name[len(_PREFIX) :]))


def _bytes(path: Path, most: int = 1 << 40) -> bytes:
    if path.parent.is_symlink() or path.is_symlink() or not path.is_file():  # a pipe would never end
        raise DeviceError(f"{path.name} is no file")
    if path.stat().st_size > most:
        raise DeviceError(f"{path.name} is too large")
    return path.read_bytes()


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _sum(data: bytes, values: Mapping[str, Any]) -> str:
    """A checksum: for damage and mix-ups, not against forgery. A digit of the position would move θ apart unseen."""
    sha = hashlib.sha256(data)
    sha.update(json.dumps(dict(values), sort_keys=True, allow_nan=False).encode())
    return sha.hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
