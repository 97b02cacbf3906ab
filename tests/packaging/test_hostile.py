"""A package is a claim until it is checked: what is wrong with it is one line, before any graph is loaded."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from packed import Packed

from halfback_device.errors import PackageError
from halfback_device.package import MANIFEST, WEIGHTS, Package
from halfback_device.runtime import Bottom

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(bert: Packed, tmp_path: Path) -> Path:
    return shutil.copytree(bert.folder, tmp_path / "package")


def refusal(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        Bottom(Package.open(folder))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


def changed(folder: Path, change: Change) -> Path:
    """The folder, with another manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def replaced(folder: Path, name: str, data: bytes) -> Path:
    """The folder, with another file of which the manifest knows."""
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return changed(folder, lambda manifest: manifest["files"].update({name: entry}))


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The header of the weights, and the values behind it."""
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(folder: Path, header: dict[str, Any], values: bytes) -> Path:
    data = json.dumps(header).encode()
    return replaced(folder, WEIGHTS, struct.pack("<Q", len(data)) + data + values)


def _set(path: str, value: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        *way, last = path.split(".")
        inner: Any = manifest
        for key in way:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        inner[int(last) if isinstance(inner, list) else last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", 2, "its format is 2; this device reads 1"),
        ("format", True, "its format is True"),
        ("files", {}, "files: 1 to"),
        ("files", [], "files must be names and values"),
        ("files.weights.safetensors", None, ""),
        ("model.kind", "robot", "model.kind is 'robot'"),
        ("model.cut", -1, "model.cut must be a whole number"),
        ("model.cut", 7, "7 blocks are due"),
        ("model.width", 0, "model.width and model.longest"),
        ("model.longest", 1e9, "model.longest must be a whole number"),
        ("theta.0.name", "nobody", "nobody: float32 values of shape"),
        ("theta.0.shape", [2, 33], "float32 values of shape"),
        ("theta.0.shape", [1 << 40, 1 << 40], "a name of its own and a shape are due"),
        ("theta.0.shape", [-1], "a name of its own and a shape are due"),
        ("exact", ["nobody"], "only names of theta are allowed"),
        ("graphs.kinds.0.file", "../../secret", "is none of the files"),
        ("graphs.kinds.0.backward", 3, "is none of the files"),
        ("graphs.blocks.0.kind", 1, "none of the 1 kinds"),
        ("graphs.blocks.0.window", 0, "window must be 1 or more"),
        ("graphs.blocks.0.weights.0", "0.nobody", "'0.nobody' is missing"),
        ("graphs.blocks.0.others", {"x": 3}, "must have names"),
        ("graphs.head", {"file": "embed.onnx", "weights": [], "read": "all of it"}, "what the head reads is not known"),
    ],
)
def test_a_manifest_that_says_what_cannot_be(folder: Path, path: str, value: Any, says: str) -> None:
    if path == "files.weights.safetensors":
        changed(folder, lambda manifest: manifest["files"].pop(WEIGHTS))
        says = "weights.safetensors among them"
    else:
        changed(folder, _set(path, value))
    assert says in refusal(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", ".hidden", "", "manifest.json", "a\nb"])
def test_no_path_leaves_the_folder(folder: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    assert "is no name of a file in this folder" in refusal(changed(folder, lambda m: m["files"].update({name: entry})))


def test_a_link_is_no_file(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder) == "weights.safetensors: it is no plain file"


def test_a_pipe_is_no_file(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    assert refusal(folder) == "manifest.json: it is no plain file"


@pytest.mark.parametrize("name", ["embed.onnx", "block0.onnx", "block0_gradient.onnx", WEIGHTS])
def test_a_file_with_another_bit(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert refusal(folder) == f"{name}: its digest is not the manifest's"


def test_a_file_that_is_cut_off_or_gone(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(100)
    assert "it has 100 bytes, and the manifest says" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert "there is no such file" in refusal(folder)


def test_a_graph_that_changes_behind_the_check(bert: Packed, folder: Path) -> None:
    package = Package.open(folder)
    (folder / "embed.onnx").write_bytes((folder / "block0.onnx").read_bytes()[: bert.package.manifest["format"]])
    with pytest.raises(PackageError, match=r"embed\.onnx: its digest is not the manifest's"):
        Bottom(package)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"a"', "\x00"])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert refusal(folder).startswith("manifest.json: it")


def test_a_manifest_without_end(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(1 << 30)  # of zeros, which take no room on a disk
    assert "more than" in refusal(folder)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (1 << 64) - 1])
def test_weights_whose_header_has_no_such_length(folder: Path, length: int) -> None:
    replaced(folder, WEIGHTS, struct.pack("<Q", length) + b"{}")
    assert "weights.safetensors: its header has" in refusal(folder)


def test_weights_shorter_than_a_length(folder: Path) -> None:
    assert "its header has" in refusal(replaced(folder, WEIGHTS, b"abc"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "F16"}, "its type or shape is none that is allowed"),
        ({"shape": [1 << 50]}, "its type or shape is none that is allowed"),
        ({"shape": [1] * 9}, "its type or shape is none that is allowed"),
        ({"shape": [2, 2]}, "its place in the file"),
        ({"data_offsets": [4, 8]}, "its place in the file"),
        ({"data_offsets": [0, 1 << 39]}, "its place in the file"),
        ({"data_offsets": [0]}, "two offsets are due"),
        ({"data_offsets": "ab"}, "two offsets are due"),
    ],
)
def test_weights_that_are_not_where_their_header_says(folder: Path, change: dict[str, Any], says: str) -> None:
    header, values = header_of(folder)
    first = min(header, key=lambda name: header[name]["data_offsets"][0] if name != "__metadata__" else 1 << 60)
    header[first] |= change
    assert says in refusal(with_header(folder, header, values))


def test_weights_with_bytes_of_nobody(folder: Path) -> None:
    header, values = header_of(folder)
    assert "it ends with 3 bytes that belong to nothing" in refusal(with_header(folder, header, values + b"abc"))


def test_a_graph_that_is_none(folder: Path) -> None:
    assert "embed (embed.onnx): this runtime can't load it" in refusal(
        replaced(folder, "embed.onnx", b"\x08\x07nothing")
    )


def test_an_operator_that_the_runtime_lacks_is_named_with_its_block(folder: Path) -> None:
    model = onnx.load(folder / "block0.onnx")
    model.graph.node[0].op_type = "Unheard"
    line = refusal(replaced(folder, "block0.onnx", model.SerializeToString()))
    assert line.startswith("block 0 (block0.onnx): this runtime can't load it")
    assert "Unheard" in line


def test_a_graph_that_refers_to_a_file_of_the_machine(folder: Path, tmp_path: Path) -> None:
    """A hostile server could read it through the activations."""
    (tmp_path / "secret").write_bytes(bytes(4096))
    model = onnx.load(folder / "block0.onnx")
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.data_location = "secret", onnx.TensorProto.FLOAT, onnx.TensorProto.EXTERNAL
    tensor.dims.append(1024)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(tmp_path / "secret")
    line = refusal(replaced(folder, "block0.onnx", model.SerializeToString()))
    assert line == "block0.onnx: it refers to a file of this machine"


def test_a_graph_with_a_loop_is_refused_unrun(folder: Path) -> None:
    """It may go round for ever, and a device would never reply."""
    model = onnx.load(folder / "embed.onnx")
    graph, given = model.graph, onnx.helper.make_tensor_value_info
    kept = [("again", "still", onnx.TensorProto.BOOL), ("value", "same", onnx.TensorProto.FLOAT)]
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [one], [other]) for one, other, _ in kept],
        "body",
        [given("number", onnx.TensorProto.INT64, []), *(given(one, kind, None) for one, _, kind in kept)],
        [given(other, kind, None) for _, other, kind in kept],
    )
    (last,) = (node for node in graph.node if graph.output[0].name in node.output)
    last.output[list(last.output).index(graph.output[0].name)] = "before"
    truth = onnx.helper.make_tensor("truth", onnx.TensorProto.BOOL, [], [True])
    graph.node.append(onnx.helper.make_node("Constant", [], ["always"], value=truth))
    graph.node.append(onnx.helper.make_node("Loop", ["", "always", "before"], [graph.output[0].name], body=body))
    line = refusal(replaced(folder, "embed.onnx", model.SerializeToString()))
    assert line == "embed.onnx: it has a loop, which may never end"
