"""What a manifest says of the task, the rows and the client, checked before anything relies on it: others wrote it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from halfback_device.errors import PackageError

TOKENIZER = "tokenizer.json"
_MANY = 1 << 31
_ABSENT = object()  # which no entry may be


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MANY


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _in(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _numbers(count: int, holds: Callable[[Any], bool] = _is_number) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == count and all(map(holds, value))


_TASK = {
    "objective": _in("classification", "causal_lm", "generation"),
    "label_names": _are_texts,
    "inputs": _in("texts", "images"),
}
_TEXTS = {
    "max_length": lambda value: _is_whole(value) and value > 0,
    "longest": _or_none(_is_whole),
    "template": _or_none(_is_text),
    "pair": _is_truth,
    "types": _is_truth,
    "continued": _is_truth,
    "side": _in("left", "right"),
    "end": _or_none(_is_whole),
    "split_special": _is_truth,
    "tokens": _is_whole,
}
_IMAGES = {
    "channels": lambda value: _is_whole(value) and 0 < value <= 4096,
    "size": _numbers(2, lambda value: _is_whole(value) and 0 < value <= 1 << 16),
}
_PICTURES = {
    "resample": lambda value: _is_whole(value) and value <= 5,
    "scale": _or_none(_is_number),
    "mean": _numbers(3),
    "std": _numbers(3, lambda value: _is_number(value) and value > 0),
}
# Of a recipe, what says which rows of a file that all clients have are whose.
_SHARED = {
    "partition.name": _in("iid", "dirichlet", "shards"),
    "partition.alpha": lambda value: _is_number(value) and value > 0,
    "task.name": _is_text,
    "task.holdout": lambda value: _is_number(value) and 0 <= value < 1,
    "task.train_rows": _or_none(lambda value: _is_whole(value) and value > 0),
}


def at(tree: Any, path: str, otherwise: Any = None) -> Any:
    """What a tree has at a dotted path; `otherwise` where it has nothing there."""
    for key in path.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return otherwise
        tree = tree[key]
    return tree


def check_facts(manifest: Mapping[str, Any]) -> None:
    """Refuses a manifest that says what can't be.

    Raises:
        PackageError: names the entry.
    """
    _check(manifest, "task", _TASK)
    if manifest["task"]["inputs"] == "texts":
        _check(manifest, "task.texts", _TEXTS)
        if TOKENIZER not in manifest["files"]:
            raise PackageError(f"the manifest's files lack {TOKENIZER}, by which texts become tokens")
        if manifest["task"]["objective"] == "generation" and manifest["task"]["texts"]["template"] is None:
            raise PackageError("the manifest's task.texts.template is missing, which generation needs")
    else:
        _check(manifest, "task.images", _IMAGES)
        if manifest["task"]["images"]["channels"] == 3:
            _check(manifest, "task.images", _PICTURES)
    if (manifest["task"]["inputs"] == "images") != (manifest["model"]["kind"] == "image"):
        raise PackageError("the manifest's task.inputs are not what its model takes")
    _check(manifest, "weights", {"format": _in("float32", "int8"), "digest": _is_text})
    _check(manifest, "config", _SHARED)
    for name, holds in {"client": _or_none(_is_whole), "groups": _or_none(_are_groups)}.items():
        if not holds(manifest.get(name)):
            raise PackageError(f"the manifest's {name} is none that is allowed")


def _are_groups(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_are_texts, value))


def _check(manifest: Mapping[str, Any], path: str, wanted: Mapping[str, Callable[[Any], bool]]) -> None:
    section = at(manifest, path)
    for name, holds in wanted.items():
        if not holds(at(section, name, _ABSENT)):
            raise PackageError(f"the manifest's {path}.{name} is none that is allowed")
