"""A bottom in pieces: what stands before its blocks, each distinct kind of block, and the gradient of such a block."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from halfback.errors import UserError
from halfback.models.quantising import quantised
from halfback.models.running import Bottom
from halfback.packaging.tracing import Argument, Graph, Run, pulled_back, traced, written

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


class _Noting(nn.Module):
    """Stands in for a block: notes what it is called with, and gives its input back."""

    def __init__(self, block: nn.Module, noted: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.__dict__["block"], self.__dict__["noted"] = block, noted  # its parameters are not among the model's now

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.__dict__["noted"].append((args, kwargs))
        return args[0]  # type: ignore[no-any-return]


class _Rows(TorchFunctionMode):
    """Looks up rows of tables as whole numbers, by the identity of the floats that stand for them."""

    def __init__(self, tables: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._tables = tables

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.embedding and id(args[1]) in self._tables:
            whole, scale = self._tables[id(args[1])]
            return whole[args[0]].to(scale.dtype) * scale[args[0]]
        return func(*args, **(kwargs or {}))


def _dequantised(whole: Tensor, scale: Tensor, channel: int) -> Tensor:
    """Whole numbers as floats, by the one operator that the runtime has for it."""
    import torch.ao.quantization.fx._decomposed

    made = torch.ops.quantized_decomposed.dequantize_per_channel.default
    return made(whole, scale, None, channel, -127, 127, torch.int8)  # type: ignore[no-any-return]


@contextlib.contextmanager
def plain_attention(parts: Sequence[nn.Module]) -> Iterator[None]:
    """While this context is open, attention is written out as products and a softmax."""
    configs = {id(c): c for part in parts for m in part.modules() if (c := getattr(m, "config", None)) is not None}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    for key, config in configs.items():
        if before[key] is not None:
            config._attn_implementation = "eager"
    try:
        yield
    finally:
        for key, config in configs.items():
            if before[key] is not None:
                config._attn_implementation = before[key]


@contextlib.contextmanager
def _noting(bottom: Bottom) -> Iterator[list[tuple[Any, ...]]]:
    """While this context is open, a pass stops before the blocks, and it is noted what they are called with."""
    held: Any = bottom.body.get_submodule(bottom.family.backbone).get_submodule(bottom.family.blocks)
    blocks, noted = dict(held._modules), list[tuple[Any, ...]]()
    for name, block in blocks.items():
        held._modules[name] = _Noting(block, noted)
    try:
        yield noted
    finally:
        held._modules.update(blocks)


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
        (self.places,) = free_sizes(self.bottom, 1)
        embed_weights = self._tensors(self._backbone(), skip={id(t) for b in blocks for t in _tensors_of(b).values()})
        inputs = self._inputs()
        with torch.no_grad(), _noting(self.bottom) as noted:
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
        windows = _windows(self.bottom, self.longest) if self.image is None else [None] * len(blocks)
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
            for name, leaf in _leaves(args, kwargs):
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
        found = {id(leaf): leaf for args, kwargs in calls for _, leaf in _leaves(args, kwargs)}
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
                values = _dequantised(whole, scale.reshape(-1), channel)
                tables[id(values)] = (whole, scale)
            found[name] = values
        with _Rows(tables):
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


def _leaves(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Tensors of a call beside the activations, with the name of their argument where they have one."""
    rest = [("", leaf) for leaf in tree_flatten(args[1:])[0]]
    named = [(name, leaf) for name, value in kwargs.items() for leaf in tree_flatten(value)[0]]
    return [(name, leaf) for name, leaf in (*rest, *named) if isinstance(leaf, Tensor)]


def free_sizes(part: nn.Module, count: int) -> list[int]:
    """So many numbers of places that no tensor of the part has as a size, since equal sizes move together."""
    taken = {size for tensor in _tensors_of(part).values() for size in tensor.shape}
    return list(islice((size for size in range(7, 1 << 20) if size not in taken), count))


def _key(program: Any, arguments: Mapping[str, Argument], trained: Sequence[bool]) -> str:
    """Equal for blocks of one kind: they do the same with tensors of the same forms."""
    forms = [(name, tuple(argument.example.shape), argument.example.dtype) for name, argument in arguments.items()]
    constants = [(name, tensor.tolist()) for name, tensor in program.constants.items() if isinstance(tensor, Tensor)]
    return f"{program.graph}{forms}{constants}{trained}"


def _windows(bottom: Bottom, longest: int) -> list[int | None]:
    """How many tokens each block's attention sees, itself among them; None for all, as where no text is longer.

    Raises:
        UserError: the model's own mask is none of these.
    """
    config: Any = bottom.body.config
    count = len(bottom.blocks)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention"] * count
    found = [
        window if kind == "sliding_attention" and window is not None and window < longest else None for kind in kinds
    ]
    if bottom.family.kind != "decoder":
        return [None] * count
    length = min(longest, max(filter(None, found), default=0) + 3)
    ids = torch.ones(length, dtype=torch.int64)
    with torch.no_grad(), _noting(bottom) as noted:
        bottom({"input_ids": ids, "lengths": torch.tensor([length])})
    ahead = torch.arange(length) - torch.arange(length).unsqueeze(1)
    for place, ((args, kwargs), own) in enumerate(zip(noted, found, strict=True)):
        masks = [leaf for _, leaf in _leaves(args, kwargs) if leaf.ndim == 4 and leaf.shape[1] == 1]
        sees = (ahead <= 0) & (ahead > -(own or length))
        theirs = (ahead <= 0) if not masks else masks[0][0, 0] if masks[0].dtype == torch.bool else masks[0][0, 0] == 0
        if not torch.equal(sees, theirs):
            raise UserError(f"block {place}: what its tokens see is neither all before them nor a window of it")
    return found
