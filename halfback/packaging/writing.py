"""A device package: made from a client of the run, written, and held against the reference before it is handed out."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.engine.client_side import ClientSide
from halfback.engine.remote.weights import digest_of
from halfback.errors import UserError
from halfback.packaging.facts import model_facts, task_facts
from halfback.packaging.pieces import Pieces, bottom_pieces
from halfback.packaging.tracing import Graph
from halfback.parties.by_slopes import BySlopes

FORMAT = 1
MANIFEST, WEIGHTS, TOKENIZER = "manifest.json", "weights.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class Source:
    """What a package is made of: a run that is about to begin, and one of its clients.

    Attributes:
        client: its number; None where the package is for every client.
    """

    built: Built
    side: ClientSide
    client: int | None

    @property
    def named(self) -> dict[str, Tensor]:
        """Every tensor of floats that the client holds, each once, by its name in the package's file."""
        found, seen = dict[str, Tensor](), set[int]()
        for place, part in enumerate(self.side.parts()):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                kept = f"{place}.{name}" in self.side.held()
                if kept and id(tensor) not in seen and tensor.is_floating_point():
                    seen.add(id(tensor))
                    found[f"{place}.{name}"] = tensor
        return found

    @property
    def theta(self) -> dict[str, Tensor]:
        """The parameters that this client trains, in the replica's order."""
        own = dict(self.side.parts()[0].named_parameters())
        return {name: own[name] for name in self.side.party.theta.replica.parameters if name in own}


def check_method(config: RunConfig, client: int | None) -> None:
    """Refuses what a device with an inference runtime can't do.

    Raises:
        UserError: names the setting.
    """
    needs, name = configuration.build_algorithm(config).needs, config.algorithm.name
    if needs.backpropagates:
        raise UserError(f"algorithm.name={name}: its devices backpropagate; a package runs forward only")
    if needs.holds != "bottom":
        raise UserError(f"algorithm.name={name}: its devices hold more of the model than its first blocks")
    if not isinstance(needs.agreement, BySlopes) or needs.probe is None:
        raise UserError(f"algorithm.name={name}: its clients agree on more than slopes, which a package doesn't do")
    if needs.probe.estimator == "forward_ad":
        raise UserError("algorithm.estimator=forward_ad: an inference runtime takes forward or central")
    if config.model.dtype != "float32":
        raise UserError(f"model.dtype={config.model.dtype}: a package has float32, or bottom.weights=int8")
    if config.client.memory is not None:
        raise UserError("client.memory: of a package, set client.rows_at_once")
    if config.task.loss is not None and config.model.head is not None:
        raise UserError("task.loss=given: a head in a package takes the loss of the task")
    cuts = {config.model.cut_of(number) for number in range(config.clients)}
    if client is None and len(cuts) > 1:
        raise UserError("model.cut: clients have other cuts; name one with --client")
    if client is not None and not 0 <= client < config.clients:
        raise UserError(f"--client {client}: 0 to {config.clients - 1} are allowed")


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Writes the package of a source into an empty folder; its manifest.

    Raises:
        UserError: something of the model can't be exported; block and operator are named.
    """
    named, theta = source.named, source.theta
    exact = [name for name in source.side.party.theta.replica.exact if name in theta]
    pieces = _pieces(source, named, theta, exact)
    files = _graph_files(pieces)
    (folder / WEIGHTS).write_bytes(save({name: tensor.detach().contiguous() for name, tensor in named.items()}))
    tokenizer = source.built.tokenizer
    if tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer.backend_tokenizer.to_str(pretty=False))
    for name, graph in files.items():
        (folder / name).write_bytes(graph.data)
    replica, config = source.side.party.theta.replica, source.built.config
    manifest = {
        "format": FORMAT,
        "halfback": _version(),
        "files": _digests(folder),
        "model": model_facts(source.built, source.side.party.bottom),
        "graphs": _graphs(pieces),
        "theta": [{"name": name, "shape": list(tensor.shape)} for name, tensor in theta.items()],
        "exact": exact,
        "groups": None if len(replica.groups) == 1 else [list(group) for group in replica.groups],
        "weights": {"format": "float32", "digest": digest_of(source.side.held())},
        "config": configuration.to_tree(config),
        "task": task_facts(source.built),
        "client": source.client,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def _pieces(source: Source, named: Mapping[str, Tensor], theta: Mapping[str, Tensor], exact: list[str]) -> Pieces:
    bottom, task = source.side.party.bottom, source.built.task
    inside = [{id(p) for p in block.parameters()} for block in bottom.blocks]
    first = next((place for place, own in enumerate(inside) if any(id(theta[name]) in own for name in exact)), None)
    image = None
    if bottom.family.kind == "image":
        image = task.train.batch([0, 0]).inputs["pixel_values"]
    return bottom_pieces(
        bottom,
        {id(tensor): name for name, tensor in named.items()},
        frozenset(f"0.{name}" for name in theta),
        exact=0 if first is None else len(inside) - first,
        longest=model_facts(source.built, bottom)["longest"],
        image=image,
    )


def _graph_files(pieces: Pieces) -> dict[str, Graph]:
    files = {"embed.onnx": pieces.embed}
    for number, kind in enumerate(pieces.kinds):
        files[f"block{number}.onnx"] = kind.forward
        if kind.backward is not None:
            files[f"block{number}_gradient.onnx"] = kind.backward
    return files


def _graphs(pieces: Pieces) -> dict[str, Any]:
    return {
        "embed": {"file": "embed.onnx", "weights": list(pieces.weights), "others": list(pieces.others)},
        "kinds": [
            {
                "file": f"block{number}.onnx",
                "backward": None if kind.backward is None else f"block{number}_gradient.onnx",
            }
            for number, kind in enumerate(pieces.kinds)
        ],
        "blocks": [
            {
                "kind": block.kind,
                "weights": list(block.weights),
                "others": dict(block.others),
                "window": block.window,
            }
            for block in pieces.blocks
        ],
        "head": None,
    }


def _digests(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = {"sha256": digest, "bytes": path.stat().st_size}
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("halfback")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which takes its place behind the block; after an error nothing is left.

    Raises:
        UserError: `out` is there, and is no empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists; name a new folder")
    making = out.with_name(f"{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        if out.exists():
            out.rmdir()
        making.rename(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
