"""A model without its values: cut and adapted as a recipe says, and what stands around its blocks in a pass.

What a part is called with (masks, places, what the backbone keeps of them) its own forward pass says, on real tensors
with blank values and with stand-ins for all that computes; what the blocks take is traced.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from halfback.errors import UserError
from halfback.models.adapters import Lora, set_trainable, trainable, untie
from halfback.models.auxiliary import LinearHead, auxiliary
from halfback.models.cut import CutModel, cut, recut, top_body
from halfback.models.exact import Entry
from halfback.models.running import Bottom, Top
from halfback.planning.tracing import Call, How, Tracer, bytes_of
from halfback.telemetry.meters import MemoryMeter
from halfback.zeroth.widening import has_half

PLAIN = How()


@dataclass(frozen=True)
class Trained:
    """What is trained of a model, and of what kind its parts are: equal for recipes with the same modules."""

    bottom: Any
    top: Any
    lora: Lora
    int8: bool
    head: int | None


@dataclass(frozen=True)
class Around:
    """A pass of the bottom, without what its modules compute.

    Attributes:
        before: each module before the blocks with what it is called with, and the bytes alive then.
        entries: the same of each block; all of this is on the meta device.
        results: the shape that each block gives.
        live: bytes alive as each block is entered, its argument among them.
        first: the most bytes alive before the first block is entered.
        laid: bytes of the result, where it is another tensor than the last block's.
        calls: of the blocks, as they were traced so far.
    """

    before: Sequence[tuple[Entry, int]]
    entries: Sequence[Entry]
    results: Sequence[tuple[int, ...]]
    live: Sequence[int]
    first: int
    laid: int
    calls: dict[Any, Call] = field(default_factory=dict)


@dataclass
class Lower:
    """A device's part at a cut, and what every variant with that cut asks of it."""

    bottom: Bottom
    blocks: list[nn.Module]

    @cached_property
    def theta(self) -> dict[str, nn.Parameter]:
        """What is trained of it, by name."""
        return trainable(self.bottom)

    @cached_property
    def weights(self) -> int:
        """Bytes of its weights and buffers."""
        return bytes_of([*self.bottom.parameters(), *self.bottom.buffers()])

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of its activations."""
        return next(self.bottom.parameters()).dtype

    @cached_property
    def half(self) -> bool:
        """Whether weights are of half precision, so that probes widen what they make of them."""
        return has_half(self.bottom)

    @cached_property
    def moves_before(self) -> bool:
        """Whether something is trained that stands before the blocks."""
        inside = {id(p) for block in self.blocks for p in block.parameters()}
        return any(id(p) not in inside for p in self.theta.values())


@dataclass
class Adapted:
    """A model on the meta device with what is trained of it.

    Attributes:
        low: cut as deep as it can be: its blocks are those of a bottom. high: cut after its first block.
    """

    low: CutModel
    high: CutModel
    tracer: Tracer
    body: nn.Module  # the forward pass around the blocks, with real values in what is small
    _around: dict[Any, Around] = field(default_factory=dict)
    _lowers: dict[int, "Lower"] = field(default_factory=dict)
    _tops: dict[int, CutModel] = field(default_factory=dict)
    counts: dict[Any, Any] = field(default_factory=dict)  # of `operations`, what it has found once

    def lower(self, at: int) -> "Lower":
        """The device's part at a cut."""
        if at not in self._lowers:
            self._lowers[at] = Lower(recut(self.low, at).bottom, self.low_blocks[:at])
        return self._lowers[at]

    def above(self, at: int, head: int | None) -> CutModel:
        """The parts above a cut."""
        if at not in self._tops:
            self._tops[at] = recut(self.high, at, head=head)
        return self._tops[at]

    @cached_property
    def end(self) -> Top:
        """What follows the last block, alone."""
        model, last = self.high, self.high.head or self.high.top
        return Top(
            top_body(model.whole, model.family, model.blocks, model.blocks), model.family, cast(Top, last).verbaliser
        )

    @property
    def blocks(self) -> int:
        """Of the whole model."""
        return self.low.blocks

    @cached_property
    def low_blocks(self) -> list[nn.Module]:
        """The blocks as a bottom has them."""
        return self.low.bottom.blocks

    @cached_property
    def high_blocks(self) -> list[nn.Module]:
        """The blocks as a top has them; the first, which it never has, as a bottom does."""
        backbone = self.high.whole.get_submodule(self.high.family.backbone)
        return list(cast(nn.ModuleList, backbone.get_submodule(self.high.family.blocks)))

    def around(self, inputs: Mapping[str, Tensor]) -> Around:
        """What stands around the blocks where these rows go through together; of texts their lengths alone matter."""
        lengths = inputs.get("lengths")
        key = tuple(inputs["pixel_values"].shape) if lengths is None else tuple(lengths.tolist())
        if key not in self._around:
            self._around[key] = _walked(self, inputs)
        return self._around[key]


def blank(whole: nn.Module) -> nn.Module:
    """A copy on the meta device; no value is copied, and what a whole model ties is tied."""
    made: dict[int, Any] = {}
    for tensor in (*whole.parameters(), *whole.buffers()):
        like = torch.empty_like(tensor, device="meta")
        made[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
    # Where only a part of a model was loaded, what is outside of it has a tensor of its own.
    for one, other in (getattr(whole, "all_tied_weights_keys", None) or {}).items():
        made[id(whole.get_parameter(one))] = made[id(whole.get_parameter(other))]
    return copy.deepcopy(whole, made)


def adapt(whole: nn.Module, trained: Trained, verbaliser: Sequence[int] | None, tracer: Tracer) -> Adapted:
    """A model, of which the blocks may be without values, as a recipe adapts it.

    Raises:
        UserError: nothing can be trained in that way.
    """

    def made(at: int, head: int | None) -> CutModel:
        model = cut(blank(whole), at, head=head, verbaliser=verbaliser)
        if trained.int8:
            untie(model)
        set_trainable(model, bottom=trained.bottom, top=trained.top, lora=trained.lora, seed=0)
        return model

    around = cut(copy.copy(whole), 1)
    count = around.blocks
    try:
        low = made(count, None)
    except UserError:  # nothing is left for the top
        low = made(max(count - 1, 1), None)
    high = made(1, trained.head)
    body = recut(around, count).bottom.body
    dtype = next(whole.parameters()).dtype  # a bottom asks its first parameter for it; here stand-ins have none
    body.register_parameter("halfback_dtype", nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False))
    return Adapted(low, high, tracer, body)


def auxiliary_of(adapted: Adapted, at: int, kind: Any, trained: Trained, labels: int) -> LinearHead | Top:
    """The auxiliary head of a device at a cut, on the meta device."""
    model = adapted.above(at, None)
    return auxiliary(model, kind, num_labels=labels, trained=trained.top, lora=trained.lora, seed=0)


class _StandIn(nn.Module):
    """Notes what it is called with and gives zeros, in the shape that the module that it stands for gives."""

    def __init__(self, module: nn.Module, walk: "_Walk") -> None:
        super().__init__()
        self.__dict__["module"], self.__dict__["walk"] = module, walk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)  # a backbone asks a block for its kind of attention

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["walk"].step(self.__dict__["module"], args, kwargs)


class _Walk:
    """The stand-ins' notes of a pass: first the calls, then with these at hand the bytes that are alive at each."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.meter = tracer, MemoryMeter([])
        self.calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Call]] = []
        self.live: list[int] = []
        self.peaks: list[int] = []
        self.measures = False

    def step(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.measures:
            call = self.calls[len(self.live)][-1]
            self.live.append(self.meter.live_bytes)
            self.peaks.append(self.meter.peak_bytes)
        else:
            call = self.tracer.call(module, args, kwargs, PLAIN)
            shown = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
            self.calls.append((module, *shown, call))
        made = torch.zeros(call.sizes, dtype=call.dtype)
        return (made,) if call.several else made


@torch.no_grad()
def _walked(adapted: Adapted, inputs: Mapping[str, Tensor]) -> Around:
    family, walk = adapted.low.family, _Walk(adapted.tracer)
    backbone = adapted.body.get_submodule(family.backbone)
    places = list(family.before)
    shown = adapted.low.bottom.body.get_submodule(family.backbone)._modules
    kept = {name: backbone._modules.get(name) for name in places}
    blocks = backbone.get_submodule(family.blocks)
    numbers = list(blocks._modules)
    own = adapted.low_blocks + adapted.high_blocks[len(adapted.low_blocks) :]
    try:
        for name, module in kept.items():
            if module is not None:
                backbone._modules[name] = _StandIn(cast(nn.Module, shown[name]), walk)
        for number, block in zip(numbers, own, strict=True):
            blocks._modules[number] = _StandIn(block, walk)
        bottom = Bottom(adapted.body, family)
        bottom(inputs)
        walk.measures, walk.meter = True, MemoryMeter(list(inputs.values()))
        held = walk.meter.live_bytes
        with walk.meter.running():
            out = bottom(inputs)
    finally:
        for name, module in kept.items():
            backbone._modules[name] = module
    count = len(walk.calls) - len(own)
    noted = [Entry(module, args, kwargs) for module, args, kwargs, _ in walk.calls]
    live = [each - held for each in walk.live]
    moved = "lengths" in inputs and len(out) != math.prod(walk.calls[-1][-1].sizes[:-1])
    before = list(zip(noted[:count], live[:count], strict=True))
    results = [call.sizes for *_, call in walk.calls[count:]]
    return Around(before, noted[count:], results, live[count:], walk.peaks[count] - held, out.nbytes if moved else 0)
