"""A device package: made from a client of the run, written, and held against the reference before it is handed out."""

import hashlib
import json
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.data.options import GIVEN
from halfback.engine.client_side import ClientSide
from halfback.engine.remote.weights import digest_of
from halfback.errors import UserError
from halfback.models.quantising import quantised
from halfback.models.running import Bottom
from halfback.packaging.encoding import task_section, tokenizer_json
from halfback.packaging.heads import HeadPiece, head_piece
from halfback.packaging.pieces import Pieces, bottom_pieces
from halfback.packaging.tracing import Graph
from halfback.parties.by_slopes import BySlopes
from halfback.parties.holdings import Head

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, WEIGHTS, TOKENIZER, HEAD = "manifest.json", "weights.safetensors", "tokenizer.json", "head.onnx"


@dataclass(frozen=True)
class Parts:
    """What a client holds of a model, and what of it a package is made of.

    Attributes:
        bottom: its part before the cut. head: in the U-shape the part behind the middle.
        theta: the parameters of the bottom that it trains, in the replica's order; `exact`: those with exact gradients.
        longest: tokens of the longest text; 0 for images.
        image: rows (B, C, H, W) of images, of which B is 2 or more; None for texts.
    """

    bottom: Bottom
    head: Head | None
    theta: Mapping[str, Tensor]
    exact: Sequence[str]
    longest: int
    image: Tensor | None

    @property
    def named(self) -> dict[str, Tensor]:
        """Every tensor of floats that is held, each once, by its name in the package's file."""
        found, seen = dict[str, Tensor](), set[int]()
        for place, part in enumerate([self.bottom] if self.head is None else [self.bottom, self.head.module]):
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                if id(tensor) not in seen and tensor.is_floating_point():
                    seen.add(id(tensor))
                    found[f"{place}.{name}"] = tensor
        return found

    @property
    def exact_blocks(self) -> int:
        """How many of the last blocks have parameters with exact gradients."""
        wanted = {id(self.theta[name]) for name in self.exact}
        inside = [any(id(p) in wanted for p in block.parameters()) for block in self.bottom.blocks]
        return len(inside) - inside.index(True) if any(inside) else 0


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
    def parts(self) -> Parts:
        """What the client holds of the model."""
        party, task = self.side.party, self.built.task
        own = dict(party.bottom.named_parameters())
        theta = {name: own[name] for name in party.theta.replica.parameters if name in own}
        image = task.train.batch([0, 0]).inputs["pixel_values"] if party.bottom.family.kind == "image" else None
        exact = [name for name in party.theta.replica.exact if name in theta]
        return Parts(party.bottom, party.head, theta, exact, _longest(self.built) if image is None else 0, image)


def check_recipe(config: RunConfig) -> None:
    """Refuses what a device with an inference runtime can't do, as far as the recipe alone says it.

    Raises:
        UserError: names the setting.
    """
    from halfback_device.errors import DeviceError
    from halfback_device.plan import check_recipe as check_on_device

    needs, name = configuration.build_algorithm(config).needs, config.algorithm.name
    if needs.backpropagates:
        raise UserError(f"algorithm.name={name}: its devices backpropagate; a package runs forward only")
    if needs.holds != "bottom":
        raise UserError(f"algorithm.name={name}: its devices hold more of the model than its first blocks")
    if not isinstance(needs.agreement, BySlopes) or needs.probe is None:
        raise UserError(f"algorithm.name={name}: its clients agree on more than slopes, which a package doesn't do")
    if needs.probe.estimator == "forward_ad":
        raise UserError("algorithm.estimator=forward_ad: an inference runtime takes forward or central")
    if GIVEN in (config.model.name, config.task.name, config.task.loss):
        raise UserError("a model, rows or a loss that were given in Python can't be packaged")
    if config.model.dtype != "float32":
        raise UserError(f"model.dtype={config.model.dtype}: a package has float32, or bottom.weights=int8")
    if config.task.augment:
        raise UserError("task.augment: a device package takes images as they are; leave it empty")
    if config.client.memory is not None:
        raise UserError("client.memory: of a package, set client.rows_at_once")
    try:
        check_on_device(configuration.to_tree(config))
    except DeviceError as refusal:
        raise UserError(str(refusal)) from None


def check_client(config: RunConfig, client: int | None) -> None:
    """Refuses a package for no client in particular where clients have other cuts, and one for a client where not.

    Raises:
        UserError: says what is allowed.
    """
    cuts = {config.model.cut_of(number) for number in range(config.clients)}
    if client is None and len(cuts) > 1:
        raise UserError("model.cut: clients have other cuts; name one with --client")
    if client is not None and len(cuts) == 1:
        raise UserError(f"--client {client}: all clients have the same cut and one package; leave it away")
    if client is not None and not 0 <= client < config.clients:
        raise UserError(f"--client {client}: 0 to {config.clients - 1} are allowed")


def write(source: Source, folder: Path) -> None:
    """Writes the package of a source into an empty folder.

    Raises:
        UserError: something of the model can't be exported; block and operator are named.
    """
    built, replica = source.built, source.side.party.theta.replica
    name, blocks = built.config.model.name, len(source.side.party.bottom.blocks)
    log.info("packaging %s up to block %d: a few seconds a block", name, blocks)
    if built.tokenizer is not None:
        (folder / TOKENIZER).write_text(tokenizer_json(built.tokenizer))
    write_parts(
        source.parts,
        folder,
        {
            "halfback": version("halfback"),
            "groups": None if len(replica.groups) == 1 else [list(group) for group in replica.groups],
            "weights": {"format": built.config.bottom.weights, "digest": digest_of(source.side.held())},
            "config": configuration.to_tree(built.config),
            "task": task_section(built.config, built.task, built.model.whole, built.tokenizer),
            "client": source.client,
        },
    )


def write_parts(parts: Parts, folder: Path, also: Mapping[str, Any]) -> None:
    """Writes graphs, weights and manifest, with what else the manifest says; raises as `write` does."""
    named = parts.named
    pieces = bottom_pieces(
        parts.bottom,
        {id(tensor): name for name, tensor in named.items()},
        frozenset(f"0.{name}" for name in parts.theta),
        exact=parts.exact_blocks,
        longest=parts.longest,
        image=parts.image,
    )
    head = None
    if parts.head is not None:
        like = torch.zeros(1, *parts.head.sizes)
        names = {id(tensor): name for name, tensor in named.items()}
        head = head_piece(parts.head.module, names, like)
        (folder / HEAD).write_bytes(head.graph.data)
    for name, graph in _graph_files(pieces).items():
        (folder / name).write_bytes(graph.data)
    _write_weights(folder, named, quantised(parts.bottom))
    manifest = {
        "format": FORMAT,
        "files": _digests(folder),
        "model": _model(parts),
        "graphs": _graphs(pieces) | {"head": None if head is None else _head(parts.head, head)},
        "theta": [{"name": name, "shape": list(tensor.shape)} for name, tensor in parts.theta.items()],
        "exact": list(parts.exact),
        **also,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _write_weights(folder: Path, named: Mapping[str, Tensor], whole: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Floats as they are; what is quantised as whole numbers, with their scales under a name of their own."""
    stored = dict[str, Tensor]()
    for name, tensor in named.items():
        values, scale = whole.get(id(tensor), (tensor, None))
        stored[name] = values.detach().contiguous()
        if scale is not None:
            stored[f"{name}.scale"] = scale.contiguous()
    (folder / WEIGHTS).write_bytes(save(stored))


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
    }


def _head(head: Head | None, piece: HeadPiece) -> dict[str, Any]:
    assert head is not None
    tensors = [{"name": name, "shape": list(tensor.shape)} for name, tensor in head.parameters.items()]
    return {
        "file": HEAD,
        "weights": list(piece.weights),
        "tensors": tensors,
        "read": piece.read,
        "sizes": list(head.sizes),
    }


def _model(parts: Parts) -> dict[str, Any]:
    """The family, the cut, and how texts are laid out."""
    family, config = parts.bottom.family, cast(Any, parts.bottom.body).config
    texts = family.kind != "image"
    path = ".".join(filter(None, ("body", family.backbone, family.blocks)))
    return {
        "family": family.name,
        "kind": family.kind,
        "cut": len(parts.bottom.blocks),
        "head": None if parts.head is None else len(list(parts.head.module.get_submodule(path).children())),
        "width": config.hidden_size if texts else None,
        "longest": parts.longest,
        "positions_behind": config.pad_token_id if texts and family.positions_behind_padding else None,
    }


def _longest(built: Built) -> int:
    """The most tokens of a row: what the recipe cuts rows to, or what the model has positions for."""
    config = cast(Any, built.model.whole).config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and built.model.family.positions_behind_padding:
        positions -= config.pad_token_id + 1
    return min(built.config.task.max_length, positions or built.config.task.max_length)


def _digests(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = {"sha256": digest, "bytes": path.stat().st_size}
    return found


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which takes its place behind the block; after an error or SIGTERM nothing is left.

    Raises:
        UserError: `out` is there, and is no empty folder.
    """
    out = out.resolve()  # "." has no name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists; name a new folder")
    making = out.with_name(f"{out.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        with _ended_by_an_exception():
            yield making
            if out.exists():
                out.rmdir()
            making.rename(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


@contextmanager
def _ended_by_an_exception() -> Iterator[None]:
    """SIGTERM raises SystemExit, unless the program has a handler of its own; threads can't set one."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if own:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
