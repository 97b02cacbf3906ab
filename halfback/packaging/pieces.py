"""A bottom in pieces: what stands before its blocks, each distinct kind of block, and the gradient of such a block."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from halfback.errors import UserError
from halfback.models.quantising import quantised
from halfback.models.running import Bottom
from halfback.packaging.calls import leaves_of, noting, plain_attention, windows_of
from halfback.packaging.floats import Rows, dequantised
from halfback.packaging.tracing import Argument, Graph, Run, free_sizes, pulled_back, traced, written

_ROWS = 2  # of an example: more than one, which would be taken for a size that never moves
_BIAS = "attention_mask"  # by this name a block takes what says which places see one another


@dataclass(frozen=True)
class Kind:
    """A kind of block: its graph, and that of its gradient by hidden states and by what of it is trained."""

    forward: Graph
    backward: Graph | None


@dataclass(frozen=True)
class Block:
    """One block: its kind, the names of its tensors, what it takes beside, and how far it sees back (None: all)."""

    kind: int
    weights: tuple[str, ...]
    others: Mapping[str, str]
    window: int | None


@dataclass(frozen=True)
class Pieces:
    """All of a bottom.

    Attributes:
        embed: what stands before the blocks; it gives what enters the first, and `others`, which blocks take beside.
        weights: the names of its tensors.
    """

    embed: Graph
    weights: tuple[str, ...]
    others: tuple[str, ...]
    kinds: tuple[Kind, ...]
    blocks: tuple[Block, ...]


@dataclass
class _Maker:
    """Makes the pieces of a bottom.

    Attributes:
        names: of a tensor in the package's file, by its identity.
        trained: the names of θ there.
        exact: so many of the last blocks get a graph of their gradient.
        longest: tokens of the longest text.
    """

    bottom: Bottom
    names: Mapping[int, str]
    trained: frozenset[str]
    exact: int
    longest: int
    image: Tensor | None
    quantised: Mapping[int, tuple[Tensor, Tensor]]
    places: int = 0
    others: list[str] = field(default_factory=list)

    def pieces(self) -> Pieces:
        blocks = self.bottom.blocks
        self.places = free_sizes(self.bottom)[0]
        embed_weights = self._tensors(self._backbone(), skip={id(t) for b in blocks for t in _tensors_of(b).values()})
        inputs = self._inputs()
        with torch.no_grad(), noting(self.bottom) as noted:
            self._call({name: argument.example for name, argument in inputs.items()}, {}, noted)
            calls, noted[:] = list(noted), []
            sources = self._sources(calls)
            hidden = [call[0][0] for call in calls]
            arguments = inputs | self._weights(embed_weights)

            def embed(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
                noted.clear()
                with self._floats(embed_weights, given) as own:
                    self._call(given, own, noted)
                return (noted[0][0][0], *self._computed(noted))

            program = traced(embed, arguments, "what stands before the blocks")
            graph = written(program, list(arguments), "what stands before the blocks")
        kinds, keys, made = list[Kind](), dict[str, int](), list[Block]()
        windows = windows_of(self.bottom, self.longest) if self.image is None else [None] * len(blocks)
        enters = hidden[0]
        for place, block in enumerate(blocks):
            args, kwargs = calls[place]
            run, others, weights = self._block(block, args, kwargs, sources[place])
            what = f"block {place} ({type(block).__name__})"
            arguments = self._arguments(enters, others, calls[place]) | self._weights(weights)
            program = traced(run, arguments, what)
            key = _key(program, arguments, [self.names[id(t)] in self.trained for t in weights.values()])
            graded = place >= len(blocks) - self.exact
            if key not in keys:
                keys[key] = len(kinds)
                kinds.append(Kind(written(program, list(arguments), what), None))
            number = keys[key]
            if graded and kinds[number].backward is None:
                kinds[number] = Kind(kinds[number].forward, self._backward(run, arguments, weights, what))
            names = tuple(self.names[id(tensor)] for tensor in weights.values())
            made.append(Block(number, names, others, windows[place]))
            with torch.no_grad():
                enters = run({name: argument.example for name, argument in arguments.items()})[0]
        names = tuple(self.names[id(tensor)] for tensor in embed_weights.values())
        return Pieces(graph, names, tuple(self.others), tuple(kinds), tuple(made))

    def _backward(self, run: Run, arguments: Mapping[str, Argument], weights: Mapping[str, Tensor], what: str) -> Graph:
        """The graph of a block's gradient for one sample: by what enters it, and by its trained tensors in order."""
        one = {
            name: Argument(argument.example[:1], tuple(d for d in argument.moving if d))
            for name, argument in arguments.items()
            if argument.moving
        }
        # Floats, also where the file has whole numbers: they are made once for all rows.
        one |= {f"w{place}": Argument(tensor.detach()) for place, tensor in enumerate(weights.values())}
        with torch.no_grad():
            out = run({name: argument.example for name, argument in one.items()})[0]
        one["gradient"] = Argument(torch.ones_like(out), one["hidden"].moving)
        trained = [f"w{n}" for n, tensor in enumerate(weights.values()) if self.names[id(tensor)] in self.trained]
        return written(pulled_back(run, one, ["hidden", *trained], f"gradient of {what}"), list(one), what)

    def _block(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], sources: Mapping[int, str]
    ) -> tuple[Run, dict[str, str], dict[str, Tensor]]:
        """A block as a function; what it takes beside weights, by its own name and where that is from; its tensors."""
        leaves, tree = tree_flatten((args[1:], dict(kwargs)))
        own = {place: sources[id(leaf)] for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        local = {place: "bias" if source == "bias" else f"x{place}" for place, source in own.items()}
        weights = self._tensors(block)

        def run(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            filled = [given[local[place]] if place in local else leaf for place, leaf in enumerate(leaves)]
            rest, named = tree_unflatten(filled, tree)
            with self._floats(weights, given) as tensors:
                out = functional_call(block, tensors, (given["hidden"], *rest), named)
            return (out if isinstance(out, Tensor) else out[0],)

        return run, {local[place]: source for place, source in own.items() if source != "bias"}, weights

    def _arguments(self, hidden: Tensor, others: Mapping[str, str], call: tuple[Any, ...]) -> dict[str, Argument]:
        if self.image is not None:
            return {"hidden": Argument(hidden.detach(), (0,))}
        found = {"hidden": Argument(hidden.detach(), (0, 1)), "bias": Argument(self._bias(), (0, 2, 3))}
        leaves, _ = tree_flatten((call[0][1:], dict(call[1])))
        return found | {name: Argument(leaves[int(name[1:])].detach(), (0, 1)) for name in others}

    def _sources(self, calls: Sequence[tuple[Any, ...]]) -> list[dict[int, str]]:
        """For each block, where each tensor that it is called with beside the activations comes from, by identity."""
        computed, found = dict[int, str](), list[dict[int, str]]()
        for place, (args, kwargs) in enumerate(calls):
            own = dict[int, str]()
            for name, leaf in leaves_of(args, kwargs):
                if id(leaf) in self._given:
                    own[id(leaf)] = self._given[id(leaf)]
                elif name == _BIAS:
                    raise UserError(f"block {place}: it makes a mask of its own, which a device doesn't know")
                else:
                    own[id(leaf)] = computed.setdefault(id(leaf), f"o{len(computed)}")
            found.append(own)
        self.others = list(computed.values())
        return found

    def _computed(self, calls: Sequence[tuple[Any, ...]]) -> list[Tensor]:
        """What blocks take that stood before them computed, in the order of `others`."""
        found = {id(leaf): leaf for args, kwargs in calls for _, leaf in leaves_of(args, kwargs)}
        return [leaf for key, leaf in found.items() if key not in self._given]

    def _call(self, given: Mapping[str, Tensor], weights: Mapping[str, Tensor], noted: list[Any]) -> None:
        backbone = self._backbone()
        self._given = dict[int, str]()
        if self.image is not None:
            functional_call(backbone, dict(weights), (given["pixel_values"],))
            return
        kwargs: dict[str, Any] = {name: given[name] for name in self._inputs()} | {"return_dict": True}
        if self.bottom.family.kind == "decoder":
            kwargs["use_cache"] = False
        kinds = set(getattr(self.bottom.body.config, "layer_types", None) or ())
        masks = {kind: self._bias() for kind in kinds} or self._bias()
        kwargs[_BIAS] = masks
        self._given |= {id(mask): "bias" for mask in (masks.values() if isinstance(masks, dict) else [masks])}
        self._given[id(given["position_ids"])] = "position_ids"
        functional_call(backbone, dict(weights), (), kwargs)

    def _inputs(self) -> dict[str, Argument]:
        if self.image is not None:
            return {"pixel_values": Argument(self.image, (0,))}
        ids = torch.arange(self.places).expand(_ROWS, -1) % 2 + 1
        names = ["input_ids", "position_ids"] + (["token_type_ids"] if self.bottom.family.kind == "encoder" else [])
        found = {name: Argument(ids.clone(), (0, 1)) for name in names}
        if "token_type_ids" in found:
            found["token_type_ids"].example.zero_()
        return found

    def _bias(self) -> Tensor:
        return torch.zeros(_ROWS, 1, self.places, self.places)

    def _backbone(self) -> nn.Module:
        return self.bottom.body.get_submodule(self.bottom.family.backbone)

    def _weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Argument]:
        """Tensors as inputs of a graph: floats, or whole numbers and their scales."""
        found = dict[str, Argument]()
        for place, tensor in enumerate(tensors.values()):
            values, scale = self.quantised.get(id(tensor), (tensor, None))
            found[f"w{place}"] = Argument(values.detach())
            if scale is not None:
                found[f"s{place}"] = Argument(scale)
        return found

    @contextlib.contextmanager
    def _floats(self, tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The tensors of a module by their names, as floats; while it is open, a table gives its rows as whole numbers.

        So what is taken of an embedding are the rows that a text has.
        """
        found, tables = dict[str, Tensor](), dict[int, tuple[Tensor, Tensor]]()
        for place, name in enumerate(tensors):
            values, scale = given[f"w{place}"], given.get(f"s{place}")
            if scale is not None:
                whole, channel = values, max(range(scale.ndim), key=lambda d: scale.shape[d])
                values = dequantised(whole, scale.reshape(-1), channel)
                tables[id(values)] = (whole, scale)
            found[name] = values
        with Rows(tables):
            yield found

    def _tensors(self, module: nn.Module, skip: frozenset[int] | set[int] = frozenset()) -> dict[str, Tensor]:
        """What a graph of this module takes as inputs: floats that are in the package's file."""
        return {n: t for n, t in _tensors_of(module).items() if id(t) in self.names and id(t) not in skip}


def bottom_pieces(
    bottom: Bottom, names: Mapping[int, str], trained: frozenset[str], *, exact: int, longest: int, image: Tensor | None
) -> Pieces:
    """All pieces of a bottom.

    Args:
        bottom: frozen but for what is trained, in float32.
        names: of each of its tensors in the package's file, by identity.
        trained: the names of θ there.
        exact: so many of its last blocks get a graph of their gradient.
        longest: tokens of the longest text.
        image: rows (B, C, H, W) of images, of which B is 2 or more; None for texts.

    Raises:
        UserError: something can't be exported; block and operator are named.
    """
    with plain_attention([bottom]):
        return _Maker(bottom, names, trained, exact, longest, image, quantised(bottom)).pieces()


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each under its first name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _key(program: Any, arguments: Mapping[str, Argument], trained: Sequence[bool]) -> str:
    """Equal for blocks of one kind: they do the same with tensors of the same forms."""
    forms = [(name, tuple(argument.example.shape), argument.example.dtype) for name, argument in arguments.items()]
    constants = [(name, tensor.tolist()) for name, tensor in program.constants.items() if isinstance(tensor, Tensor)]
    return f"{program.graph}{forms}{constants}{trained}"
