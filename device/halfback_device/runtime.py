"""The device's part of a model in ONNX Runtime: forward passes, and exact gradients block by block and row by row.

All blocks of one kind run in one session, with a block's weights and parameters as inputs: so they are held once, as
they are mapped from the file, and no graph is loaded with weights in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from halfback_device.errors import PackageError, one_line
from halfback_device.layout import Layout, lay_out, parts_of, positions_behind
from halfback_device.package import SCALE, Package, dequantised

Array = NDArray[Any]
Floats = NDArray[Any]  # float32
Weight = Callable[[str], Floats]
"""A parameter of θ by its name, as it is to be in the run at hand; asked for when the block that uses it is next."""


class Piece:
    """A graph in a session: what it takes, by name."""

    def __init__(self, package: Package, file: str, what: str, threads: int) -> None:
        """Loads the graph `file`; `what` names it in an error.

        Raises:
            PackageError: the runtime lacks an operator of it, or can't read it.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # What a run has taken is given back behind it, and nothing is kept for the next one.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = package.graph(file)
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of many kinds, none of which the runtime names
            raise PackageError(f"{what} ({file}): this runtime can't load it: {one_line(str(error))[:300]}") from None
        self.inputs = {each.name: each.type for each in self._session.get_inputs()}

    def __call__(self, values: Mapping[str, Array]) -> list[Floats]:
        """Runs it on what it takes of these values."""
        found: list[Floats] = self._session.run(None, {name: values[name] for name in self.inputs})
        return found


@dataclass(frozen=True)
class Noted:
    """What entered the last blocks of a forward pass, the first of them first; used up by `Bottom.exact`."""

    layout: Layout | None
    others: Mapping[str, Array]
    entered: list[Floats]


class Bottom:
    """What runs before the cut."""

    def __init__(self, package: Package, *, threads: int = 1) -> None:
        """Loads its graphs; `threads`: of one operation.

        Raises:
            PackageError: the runtime lacks an operator.
        """
        self._package, self._model, graphs = package, package.manifest["model"], package.manifest["graphs"]
        self._theta = {entry["name"] for entry in package.manifest["theta"]}
        self._blocks = graphs["blocks"]
        self._embed_weights = graphs["embed"]["weights"]
        self._others = graphs["embed"].get("others", [])
        self._embed = Piece(package, graphs["embed"]["file"], "embed", threads)
        self._forward, self._backward = list[Piece](), list[Piece | None]()
        for number, kind in enumerate(graphs["kinds"]):
            block = next((place for place, block in enumerate(self._blocks) if block["kind"] == number), None)
            self._forward.append(Piece(package, kind["file"], f"block {block}", threads))
            file = kind.get("backward")
            self._backward.append(None if file is None else Piece(package, file, f"gradient of block {block}", threads))

    def forward(self, inputs: Mapping[str, Array], weight: Weight) -> Floats:
        """Activations: (N, H) of the N tokens of B texts, (B, T, H) or (B, C, H, W) of images; float32.

        Args:
            inputs: `input_ids` (N,) and `lengths` (B,) int64, for encoders optionally `token_type_ids` (N,) int64; or
                `pixel_values` (B, C, H, W) float32.
            weight: gives each parameter of θ.

        Raises:
            PackageError: a text is longer than the package is for.
        """
        return self.noting(inputs, weight, 0)[0]

    def noting(self, inputs: Mapping[str, Array], weight: Weight, blocks: int) -> tuple[Floats, Noted]:
        """As `forward`, and what entered the last `blocks` blocks."""
        layout, hidden, others = self._embedded(inputs, weight)
        noted, first = Noted(layout, others, []), len(self._blocks) - blocks
        for place, block in enumerate(self._blocks):
            if place >= first:
                noted.entered.append(hidden)
            piece = self._forward[block["kind"]]
            values = self._values(piece, block["weights"], weight) | _of_block(others, block)
            (hidden,) = piece(values | {"hidden": hidden})
        return (hidden if layout is None else layout.take(hidden)), noted

    def exact(self, noted: Noted, gradient: Floats, weight: Weight) -> dict[str, Floats]:
        """The gradient of ⟨λ, z⟩ by the parameters of θ in the noted blocks, each by its name; `noted` is used up.

        `gradient` is λ, in the shape of the activations. One block is in memory at a time, and of a batch one image,
        or so many neighbouring texts as have together no more tokens than the longest may have.
        """
        found, layout = dict[str, Floats](), noted.layout
        shares = _neighbours(layout, self._model["longest"]) if layout is not None else _images(len(gradient))
        for block in reversed(self._blocks[len(self._blocks) - len(noted.entered) :]):
            entered, piece = noted.entered.pop(), self._backward[block["kind"]]
            if piece is None:
                raise PackageError("this package has no gradients of its blocks: its method takes none")
            trained = [name[2:] for name in block["weights"] if name[2:] in self._theta]
            held = self._values(piece, block["weights"], weight)
            others = _of_block(noted.others, block)
            sums = list[Floats]()
            before = np.empty((len(gradient), *entered.shape[1 if layout is None else 2 :]), np.float32)
            for part, row, places in shares:
                own = {name: _own(value, row, places) for name, value in others.items()}
                own["hidden"] = np.ascontiguousarray(entered[row : row + 1, places])
                own["gradient"] = gradient[part] if layout is None else gradient[part][None]
                of_hidden, *slopes = piece(held | own)
                before[part] = of_hidden if layout is None else of_hidden[0]
                if not sums:
                    sums = slopes
                    continue
                for total, slope in zip(sums, slopes, strict=True):
                    total += slope
            found |= dict(zip(trained, sums, strict=True))
            gradient = before
        return found

    def _embedded(self, inputs: Mapping[str, Array], weight: Weight) -> tuple[Layout | None, Floats, dict[str, Array]]:
        """The layout, what enters the first block, and what else blocks take, by its name."""
        own = self._values(self._embed, self._embed_weights, weight)
        if self._model["kind"] == "image":
            hidden, *_ = self._embed(own | {"pixel_values": inputs["pixel_values"]})
            return None, hidden, {}
        lengths = [int(length) for length in inputs["lengths"]]
        if max(lengths) > self._model["longest"]:
            raise PackageError(
                f"a text has {max(lengths)} tokens; this package is for {self._model['longest']} at most"
            )
        layout = lay_out(lengths, self._model["width"])
        ids = layout.lay(inputs["input_ids"])
        kinds = inputs.get("token_type_ids")
        padding = self._model.get("positions_behind")
        positions = layout.positions if padding is None else positions_behind(padding, ids, layout)
        given = {
            "input_ids": ids,
            "token_type_ids": np.zeros_like(ids) if kinds is None else layout.lay(kinds),
            "position_ids": positions,
        }
        hidden, *others = self._embed(own | given)
        named = dict(zip(self._others, others, strict=True)) | {"position_ids": positions}
        causal = self._model["kind"] == "decoder"
        for window in {block["window"] for block in self._blocks}:
            named[f"bias {window}"] = layout.bias(causal=causal, window=window)
        return layout, hidden, named

    def _values(self, piece: Piece, names: list[str], weight: Weight) -> dict[str, Array]:
        """What a graph takes of weights and θ."""
        values = dict[str, Array]()
        for place, name in enumerate(names):
            wanted = piece.inputs.get(f"w{place}")
            if wanted is None:
                continue
            if name[2:] in self._theta:
                values[f"w{place}"] = weight(name[2:])
                continue
            held = self._package.weights[name]
            if held.dtype == np.int8:
                scale = self._package.weights[name + SCALE]
                if wanted == "tensor(float)":
                    held = dequantised(held, scale)
                else:
                    values[f"s{place}"] = scale
            values[f"w{place}"] = held
        return values


def _images(count: int) -> list[tuple[slice, int, slice]]:
    """Each image of a batch: where it is in the gradient, its row, and all of its places."""
    return [(slice(row, row + 1), row, slice(None)) for row in range(count)]


def _neighbours(layout: Layout, most: int) -> list[tuple[slice, int, slice]]:
    """Texts one behind the other in a row, `most` tokens of them or one text: their tokens, row and places.

    A short text alone is a small product, which costs more than its share of a larger one.
    """
    found = list[tuple[slice, int, slice]]()
    for part, (row, places) in zip(parts_of(layout.lengths), layout.spots(), strict=True):
        if found:
            before, last, taken = found[-1]
            joined = (before.stop, last, taken.stop) == (part.start, row, places.start)
            if joined and places.stop - taken.start <= most:
                found[-1] = (slice(before.start, part.stop), row, slice(taken.start, places.stop))
                continue
        found.append((part, row, places))
    return found


def _of_block(others: Mapping[str, Array], block: Mapping[str, Any]) -> dict[str, Array]:
    """What a block takes beside activations and weights, by its graph's names."""
    named = {name: others[source] for name, source in block["others"].items()}
    return named | {"bias": others[f"bias {block['window']}"]} if others else named


def _own(value: Array, row: int, places: slice) -> Array:
    """What of a row's places, or of pairs of them (R, 1, M, M), is one text's."""
    at = row if len(value) > 1 else 0
    return np.ascontiguousarray(
        value[at : at + 1, :, places, places] if value.ndim == 4 else value[at : at + 1, places]
    )


class Head:
    """In the U-shape, what follows the middle: the loss of a batch, and its gradients, one sample at a time.

    Attributes:
        sizes: the shape of its input behind the dimension of the samples, or of the texts' tokens.
        shapes: of its trainable tensors, by name and in order.
    """

    sizes: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def __init__(self, package: Package, *, threads: int = 1) -> None:
        """Loads its graph; only for a package with a head.

        Raises:
            PackageError: there is none in it, or the runtime lacks an operator.
        """
        head = package.manifest["graphs"].get("head")
        if head is None:
            raise PackageError("this package has no head: its recipe has no model.head")
        self._piece, self._reads = Piece(package, head["file"], "the head", threads), head["read"]
        self._held = {f"w{place}": package.weights[name] for place, name in enumerate(head["weights"])}
        self.shapes = {entry["name"]: tuple(entry["shape"]) for entry in head["tensors"]}
        self.sizes = tuple(head["sizes"])

    def loss(
        self,
        hidden: Array,
        tensors: Sequence[Array],
        lengths: Array | None,
        labels: Array,
        scored: Array | None = None,
    ) -> tuple[Floats, float, list[Floats]]:
        """The batch's mean loss, a number; its gradient by `hidden`; and those by the head's trained tensors.

        Args:
            hidden: the middle's output, (N, H) of the N tokens of B texts, or (B, …) of images.
            tensors: the head's trained tensors, in the order of `shapes`.
            lengths: tokens of each text, (B,); None for images.
            labels: (B,) classes, or of a language model (N,) tokens, -100 where none counts.
            scored: of a language model, the places (S,) of the tokens behind which a label counts; else None.

        Returns:
            Gradient by `hidden`, loss, gradients by `tensors`, all float32.
        """
        parts = parts_of([1] * len(hidden) if lengths is None else [int(length) for length in lengths])
        total = max(len(labels) if scored is None else len(scored), 1)
        gradient, loss = np.zeros_like(hidden), 0.0
        sums = [np.zeros_like(tensor) for tensor in tensors]
        moved = {f"t{place}": tensor for place, tensor in enumerate(tensors)}
        for number, part in enumerate(parts):
            given: dict[str, Array] = {"hidden": hidden[part], "scale": np.array(1 / total, np.float32)}
            if scored is not None:
                places = scored[(scored >= part.start) & (scored < part.stop)]
                if not len(places):
                    continue
                given |= {"read": places - part.start, "labels": labels[places + 1]}
            else:
                last = part.stop - part.start - 1 if self._reads == "last" else 0
                given |= {"read": np.array([last]), "labels": labels[number : number + 1]}
            given["labels"] = given["labels"].astype(np.int64)
            own, by_hidden, *slopes = self._piece(given | moved | self._held)
            gradient[part] = by_hidden
            loss += float(own)
            for mine, slope in zip(sums, slopes, strict=True):
                mine += slope
        return gradient, loss, sums
