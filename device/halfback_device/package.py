"""A device package: a folder from the server's side with all that a device needs, and nothing of it trusted before.

`manifest.json` says what is in it and holds the digest of every other file; `*.onnx` are the graphs, and
`weights.safetensors` is what the device holds of the model when a run begins. The weights are mapped, and never copied.
"""

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from halfback_device.errors import PackageError

FORMAT = 1
MANIFEST, WEIGHTS, SCALE = "manifest.json", "weights.safetensors", ".scale"
_MOST_BYTES = 1 << 24  # of the manifest, and of the header of the weights
_MOST_FILES, _MOST_DIMENSIONS, _MOST_VALUES = 4096, 8, 1 << 40
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_DTYPES: Mapping[str, Any] = {"F32": np.dtype("<f4"), "I8": np.dtype("i1")}
_KINDS = ("encoder", "decoder", "image")

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Package:
    """What `open` has checked.

    Attributes:
        folder: where it is.
        manifest: as it was read; the parts that this module and the runtime use are of the right kinds.
        weights: by name, views of the mapped file: float32, or int8 and the scales of its channels at `name + SCALE`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    weights: Mapping[str, Array]

    @classmethod
    def open(cls, folder: Path | str) -> "Package":
        """Reads and checks a package.

        Raises:
            PackageError: a file is missing, not the one that the manifest means, or says what cannot be; one line.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        for name in manifest["files"]:
            _check_file(folder, name, manifest)
        weights = _mapped(folder / WEIGHTS)
        package = cls(folder, manifest, weights)
        _check_theta(manifest, weights)
        _check_graphs(manifest, weights)
        return package

    def theta(self) -> dict[str, NDArray[np.float32]]:
        """The parameters that the device trains, as a run begins with them: name → an array of the caller's own."""
        return {entry["name"]: self.weights[f"0.{entry['name']}"].copy() for entry in self.manifest["theta"]}

    def graph(self, name: str) -> bytes:
        """A graph's file, whose digest is taken again: what is loaded is what was checked.

        Raises:
            PackageError: it is another one by now, refers to files beside it, or has a loop.
        """
        data = _read(self.folder / name, self.manifest["files"][name]["bytes"])
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][name]["sha256"]:
            raise PackageError(f"{name}: its digest is not the manifest's")
        # A tensor of a graph may name a file of this machine, under this key alone, and activations would tell of it.
        if b"location" in data:
            raise PackageError(f"{name}: it refers to a file of this machine")
        if b"Loop" in data:  # the operator that may never end; no block of a model has one
            raise PackageError(f"{name}: it has a loop, which may never end")
        return data


def dequantised(values: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whole numbers times the scale of their channel: the floats that the reference trains with, to the bit."""
    return values * scale


def _manifest(folder: Path) -> dict[str, Any]:
    data = _read(folder / MANIFEST, _MOST_BYTES)
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{MANIFEST}: it is not JSON ({type(error).__name__})") from None
    if not isinstance(manifest, dict):
        raise PackageError(f"{MANIFEST}: it must hold names and values")
    if manifest.get("format") != FORMAT or isinstance(manifest["format"], bool):
        came, cure = manifest.get("format"), "make it anew, with the halfback of this halfback-device's version"
        raise PackageError(f"{MANIFEST}: its format is {came!r:.40}; this device reads {FORMAT}: {cure}")
    files = _dict(manifest, "files")
    if not 0 < len(files) <= _MOST_FILES or WEIGHTS not in files:
        raise PackageError(f"{MANIFEST}: files: 1 to {_MOST_FILES} are allowed, {WEIGHTS} among them")
    for name, entry in files.items():
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise PackageError(f"{MANIFEST}: files: {name!r:.60} is no name of a file in this folder")
        if (
            not isinstance(entry, dict)
            or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256")))
            or not _whole(entry.get("bytes"))
        ):
            raise PackageError(f"{MANIFEST}: files: {name}: a digest and a number of bytes are due")
    model = _dict(manifest, "model")
    if model.get("kind") not in _KINDS:
        raise PackageError(f"{MANIFEST}: model.kind is {model.get('kind')!r:.40}; allowed are {', '.join(_KINDS)}")
    for name in ("cut", "longest"):
        if not _whole(model.get(name)):
            raise PackageError(f"{MANIFEST}: model.{name} must be a whole number")
    if model["kind"] != "image" and not (_whole(model.get("width")) and model["width"] and model["longest"]):
        raise PackageError(f"{MANIFEST}: model.width and model.longest must be 1 or more where rows are texts")
    for name in ("pad", "positions_behind"):
        if model.get(name) is not None and not _whole(model[name]):
            raise PackageError(f"{MANIFEST}: model.{name} must be a whole number or null")
    return manifest


def _check_file(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    """The file's size and digest, without ever having more than a piece of it in memory."""
    wanted, path = manifest["files"][name], folder / name
    _check_regular(path)
    if path.stat().st_size != wanted["bytes"]:
        raise PackageError(f"{name}: it has {path.stat().st_size} bytes, and the manifest says {wanted['bytes']}")
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                sha.update(piece)
    except OSError as error:
        raise PackageError(f"{name}: it can't be read ({error.strerror})") from None
    if sha.hexdigest() != wanted["sha256"]:
        raise PackageError(f"{name}: its digest is not the manifest's")


def _check_regular(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        raise PackageError(f"{path.name}: there is no such file in {path.parent}") from None
    if not stat.S_ISREG(mode):
        raise PackageError(f"{path.name}: it is no plain file")


def _read(path: Path, most: int) -> bytes:
    _check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise PackageError(f"{path.name}: it can't be read ({error.strerror})") from None
    if len(data) > most:
        raise PackageError(f"{path.name}: it has more than {most} bytes")
    return data


def _mapped(path: Path) -> dict[str, Array]:
    """Views of a safetensors file: 8 bytes of the header's length, a header of JSON, and the values."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MOST_BYTES):
            raise PackageError(f"{path.name}: its header has {length} bytes, of {size}")
        header = file.read(length)
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        raise PackageError(f"{path.name}: its header is not JSON") from None
    if not isinstance(entries, dict):
        raise PackageError(f"{path.name}: its header must hold names and values")
    entries.pop("__metadata__", None)
    begin, room, views = 8 + length, size - 8 - length, dict[str, Array]()
    data = np.memmap(path, np.uint8, "r", begin, (room,)) if room else np.zeros(0, np.uint8)
    behind = 0
    for name, entry in sorted(entries.items(), key=lambda item: _offsets(path, *item)):
        first, stop = _offsets(path, name, entry)
        dtype, shape = _DTYPES.get(str(entry.get("dtype"))), _shape(entry.get("shape"))
        if dtype is None or shape is None:
            raise PackageError(f"{path.name}: {name!r:.80}: its type or shape is none that is allowed")
        if first != behind or stop - first != _count(shape) * dtype.itemsize or stop > room:
            raise PackageError(f"{path.name}: {name!r:.80}: its place in the file is not where its values are")
        views[name] = np.asarray(data[first:stop]).view(dtype).reshape(shape)
        behind = stop
    if behind != room:
        raise PackageError(f"{path.name}: it ends with {room - behind} bytes that belong to nothing")
    return views


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    found = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(found, list) or len(found) != 2 or not all(_whole(each) for each in found):
        raise PackageError(f"{path.name}: {name!r:.80}: two offsets are due")
    return found[0], found[1]


def _check_theta(manifest: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
    entries, names = _list(manifest, "theta"), set[str]()
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        shape = _shape(entry.get("shape")) if isinstance(entry, dict) else None
        if not isinstance(name, str) or shape is None or name in names:
            raise PackageError(f"{MANIFEST}: theta: {name!r:.80}: a name of its own and a shape are due")
        found = weights.get(f"0.{name}")
        if found is None or found.dtype != np.float32 or found.shape != shape:
            raise PackageError(f"{WEIGHTS}: {name}: float32 values of shape {shape} are due")
        names.add(name)
    if not set(_strings(manifest, "exact")) <= names:
        raise PackageError(f"{MANIFEST}: exact: only names of theta are allowed")


def _check_graphs(manifest: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
    graphs = _dict(manifest, "graphs")
    _strings(_dict(graphs, "embed"), "others")
    kinds, blocks = _list(graphs, "kinds"), _list(graphs, "blocks")
    if len(blocks) != manifest["model"]["cut"] or not blocks:
        raise PackageError(f"{MANIFEST}: graphs: {manifest['model']['cut']} blocks are due")
    pieces = [_dict(graphs, "embed"), *kinds, *([] if graphs.get("head") is None else [_dict(graphs, "head")])]
    for piece in pieces:
        for key in ("file", "backward"):
            name = piece.get(key) if isinstance(piece, dict) else 0
            if name is None and key == "backward":
                continue
            if not isinstance(name, str) or name not in manifest["files"]:
                raise PackageError(f"{MANIFEST}: graphs: {name!r:.60} is none of the files")
    for piece in (graphs["embed"], *blocks, *pieces[1 + len(kinds) :]):
        if not isinstance(piece, dict):
            raise PackageError(f"{MANIFEST}: graphs: names and values are due")
        for name in _strings(piece, "weights"):
            found = weights.get(name)
            if found is None or (found.dtype == np.int8 and not _scaled(found, weights.get(name + SCALE))):
                raise PackageError(f"{WEIGHTS}: {name!r:.80} is missing, or the scales of its channels are")
    if graphs.get("head") is not None:
        _check_head(graphs["head"])
    for block in blocks:
        named = _dict(block, "others")
        if not all(isinstance(source, str) for source in named.values()):
            raise PackageError(f"{MANIFEST}: graphs: what a block takes beside must have names")
        if not _whole(block.get("kind")) or block["kind"] >= len(kinds):
            raise PackageError(f"{MANIFEST}: graphs: a block's kind is none of the {len(kinds)} kinds")
        if block.get("window") is not None and not (_whole(block["window"]) and block["window"]):
            raise PackageError(f"{MANIFEST}: graphs: a block's window must be 1 or more, or null")


def _check_head(head: Mapping[str, Any]) -> None:
    if head.get("read") not in ("first", "last", "scored", "all"):
        raise PackageError(f"{MANIFEST}: graphs: what the head reads is not known")
    if not _shape(head.get("sizes")):
        raise PackageError(f"{MANIFEST}: graphs: the sizes of what the head takes are due")
    for entry in _list(head, "tensors"):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or _shape(entry.get("shape")) is None:
            raise PackageError(f"{MANIFEST}: graphs: the head's tensors must have names and shapes")


def _scaled(values: Array, scale: Array | None) -> bool:
    if scale is None or scale.dtype != np.float32 or scale.ndim != values.ndim:
        return False
    return all(one in (1, other) for one, other in zip(scale.shape, values.shape, strict=True))


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_VALUES


def _shape(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS or not all(_whole(size) for size in value):
        return None
    return tuple(value) if _count(tuple(value)) < _MOST_VALUES else None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _of(kind: Callable[[Any], bool], said: str, tree: Mapping[str, Any], name: str) -> Any:
    value = tree.get(name)
    if not kind(value):
        raise PackageError(f"{MANIFEST}: {name} must be {said}")
    return value


def _dict(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = _of(lambda value: isinstance(value, dict), "names and values", tree, name)
    return found


def _list(tree: Mapping[str, Any], name: str) -> list[Any]:
    found: list[Any] = _of(lambda value: isinstance(value, list), "a list", tree, name)
    return found


def _strings(tree: Mapping[str, Any], name: str) -> list[str]:
    found = _list(tree, name)
    if not all(isinstance(each, str) for each in found):
        raise PackageError(f"{MANIFEST}: {name} must be a list of names")
    return found
