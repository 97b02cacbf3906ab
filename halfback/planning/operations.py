"""Operations of a step in closed form, two for each multiply-add: of the device, and of the server for one client.

A block's operations are a · places + b · places² of each row that it runs on (linear layers, and attention); a and b
are found once from two short rows, so a batch of any lengths takes a sum. Of images a block takes as many for each.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from halfback.config import build_algorithm
from halfback.models.exact import last
from halfback.models.running import layout_of
from halfback.parties.holdings import Batch
from halfback.planning.device import Device, Tail
from halfback.planning.tracing import Call, How, how_probed
from halfback.zeroth.slopes import Estimator

_SHORT = (8, 16)  # tokens


@dataclass(frozen=True)
class Operations:
    """Of a step of one client; see `work.Work`."""

    device_forward: float
    passes: float
    device_backward: float
    server_forward: float
    server_backward: float
    device_blocks: float
    server_blocks: float


Places = tuple[float, float]
"""Of rows as they are laid out: places, and the sum of their squares by row; of images their number, and 0."""


@dataclass(frozen=True)
class Sizes:
    """All of a batch that operations depend on; of several batches their mean.

    Attributes:
        apart: where the rows go through in groups of so many at once. whole: all together. alone: each by itself.
        tokens: of all texts; of images their number.
        reads: places that a head turns into logits.
        rows: of the batch. groups: of rows that go through at once.
    """

    apart: Places
    whole: Places
    alone: Places
    tokens: float
    reads: float
    rows: float
    groups: float


def sizes_of(device: Device, rows: Batch) -> Sizes:
    """Those of one batch."""
    lengths = rows.inputs.get("lengths")
    count = len(rows.sample_ids)
    if lengths is None:
        at_once = device.config.client.rows_at_once or count
        return Sizes((count, 0), (count, 0), (count, 0), count, count, count, math.ceil(count / at_once))
    apart = [_laid(device, group) for group in device.groups(rows)]
    alone = (int(lengths.sum()), int((lengths * lengths).sum()))
    reads = count if rows.scored is None else len(rows.scored)
    groups = (sum(each[0] for each in apart), sum(each[1] for each in apart))
    return Sizes(groups, _laid(device, rows.inputs), alone, alone[0], reads, count, len(apart))


def mean_sizes(found: Sequence[Sizes]) -> Sizes:
    """Of several batches."""
    mean: Callable[[str], Any] = lambda name: fmean(getattr(each, name) for each in found)  # noqa: E731
    pair: Callable[[str], Places] = lambda name: (  # noqa: E731
        fmean(getattr(each, name)[0] for each in found),
        fmean(getattr(each, name)[1] for each in found),
    )
    single = {name: mean(name) for name in ("tokens", "reads", "rows", "groups")}
    return Sizes(pair("apart"), pair("whole"), pair("alone"), **single)


def _laid(device: Device, inputs: Mapping[str, Tensor]) -> Places:
    rows, width = layout_of(device.adapted.body, device.bottom.family, inputs["lengths"]).samples.shape
    return rows * width, rows * width * width


@dataclass(frozen=True)
class Counts:
    """Operations of the parts of a configuration, on rows of any length."""

    device: Device

    def step(self, sizes: Sizes) -> Operations:
        """Of a batch of these sizes."""
        needs, own = self.device.needs, self.bottom(sizes)
        probe, passes, back = needs.probe, 1.0, 0.0
        if probe is not None and probe.directions and own:
            once = self.bottom(sizes, probe.estimator) / own
            passes += probe.directions * once * (2 if probe.estimator == "central" else 1)
            passes += self.device.lower.half and needs.cut_gradient
        if self.device.tail is not None:
            return self._with_tail(sizes, own, passes)
        blocks = passes * sizes.groups * self.device.at
        if needs.agreement.exact_blocks:
            again, back = self._exact(sizes)
            passes += again / own
            blocks += 2 * sizes.rows * len(last(self.device.bottom, needs.agreement.exact_blocks))
        if needs.holds == "bottom" and needs.backpropagates:
            back = self._graphs(sizes)
            blocks += self.device.at
        if self.device.head is not None:
            back += sum(self._tail(sizes, self.device.head))
            blocks += 2 * self._blocks_of(self.device.head)
        forward, backward, of_server = self._server(sizes)
        return Operations(own, passes, back, forward, backward, blocks, of_server)

    def _with_tail(self, sizes: Sizes, own: float, passes: float) -> Operations:
        """A device with a loss of its own."""
        needs, tail, probe = self.device.needs, self.device.tail, self.device.needs.probe
        assert tail is not None, "asked of devices with a loss of their own"
        ahead, behind = self._tail(sizes, tail)
        often = 1 / self.device.config.algorithm.options().get("every", 1)
        forward, backward = self.server(sizes) if needs.top != "none" else (0.0, 0.0)
        whole, below, above = own + ahead, sizes.groups * self.device.at, self._blocks_of(tail)
        if needs.boundaries is not None:
            return Operations(own, passes, ahead + behind, 0.0, 0.0, passes * below + 2 * above, 0.0)
        of_server = 2 * often * self._server_blocks if needs.top != "none" else 0.0
        if needs.backpropagates:
            back, blocks = self._graphs(sizes) + behind, 2 * (below + above)
            return Operations(whole, 1.0, back, often * forward, often * backward, blocks, of_server)
        # A probe's passes go through the tail too, and so does one at θ; the bottom alone runs for what is sent.
        at_theta = probe is not None and probe.estimator == "forward"
        upload = often * own / whole if needs.holds == "auxiliary" else 0.0
        passes += at_theta + upload - 1
        blocks = passes * (below + above)
        return Operations(whole, passes, 0.0, often * forward, often * backward, blocks, of_server)

    def bottom(self, sizes: Sizes, estimator: Estimator | None = None) -> float:
        """A forward pass of what stands before the cut; `estimator`: of a probe."""
        hows = [How()] * self.device.at
        lower = self.device.lower
        if estimator is not None:
            hows = [
                how_probed(estimator, wide=lower.half, first=not at and not lower.moves_before)
                for at in range(self.device.at)
            ]
        calls = [self._block(at, how, high=False) for at, how in enumerate(hows)]
        return sum(_at(each, sizes.apart)[0] for each in (*self._before, *calls))

    def _graphs(self, sizes: Sizes) -> float:
        """Backward through the bottom."""
        through = self.device.lower.moves_before
        hows = [How(graph="through" if at or through else "inside") for at in range(self.device.at)]
        pairs = [_at(self._block(at, how, high=False), sizes.whole) for at, how in enumerate(hows)]
        again = bool(self.device.config.algorithm.options().get("checkpointing"))
        return sum(pair[1] + pair[0] * again for pair in pairs)

    def _exact(self, sizes: Sizes) -> tuple[float, float]:
        """The last blocks once more, forward and back, each sample alone."""
        first = self.device.at - len(last(self.device.bottom, self.device.needs.agreement.exact_blocks))
        hows = {at: How(graph="alone" if at > first else "inside") for at in range(first, self.device.at)}
        return _sum(_at(self._block(at, how, high=False), sizes.alone) for at, how in hows.items())

    def server(self, sizes: Sizes) -> tuple[float, float]:
        """A pass of the server's part there and back: to the loss, or in the U-shape through the middle."""
        head = self.device.config.model.head
        if head is None:
            return self._tail(sizes, self.device.adapted.above(self.device.at, None).top)
        middle = range(self.device.at, self.device.adapted.blocks - head)
        return _sum(_at(self._block(at, How(graph="through"), high=True), sizes.whole) for at in middle)

    def _server(self, sizes: Sizes) -> tuple[float, float, float]:
        """All passes of the server of one client's batch there and back, and the blocks that they run."""
        needs, (ahead, behind), blocks = self.device.needs, self.server(sizes), self._server_blocks
        if needs.cut_gradient or needs.probe is None:
            return ahead, behind, 2 * blocks
        probes = 2 * needs.directions  # of the device's activations
        if needs.top == "replayed":  # and as many of the top's own weights in each of its steps
            steps = getattr(build_algorithm(self.device.config), "server_steps", 1)
            return ahead * (probes + steps * probes), 0.0, blocks * (probes + steps * probes)
        return ahead * (probes + 1), behind, blocks * (probes + 2)

    @property
    def _server_blocks(self) -> int:
        """Blocks of the server's part, and its head."""
        head = self.device.config.model.head
        return self.device.adapted.blocks - self.device.at + (1 if head is None else -head)

    def _blocks_of(self, part: nn.Module) -> int:
        """Blocks behind a cut, and the head."""
        body: Any = getattr(part, "body", None)
        if body is None:
            return 1
        family = self.device.bottom.family
        return 1 + len(body.get_submodule(family.backbone).get_submodule(family.blocks))

    def _tail(self, sizes: Sizes, part: nn.Module) -> tuple[float, float]:
        """Forward and backward through what stands behind a cut, to the loss."""
        copied = part is self.device.tail and self.device.needs.holds == "auxiliary"
        blocks, bare = 0, part
        if hasattr(part, "body") and not copied:
            blocks, bare = self._blocks_of(part) - 1, self.device.adapted.end
        start = self.device.adapted.blocks - blocks
        through = range(start, self.device.adapted.blocks)
        ahead, behind = _sum(_at(self._block(at, How(graph="through"), high=True), sizes.whole) for at in through)
        known, key = self.device.adapted.counts, ("tail", id(bare), copied and self.device.at)
        if key not in known:
            known[key] = [self._behind(bare, each, copied) for each in self._samples]
        if len(known[key]) == 1:
            one = known[key][0]
            return ahead + one[0] * sizes.reads, behind + one[1] * sizes.reads
        found = []
        for short, long in zip(*known[key], strict=True):
            each = (long - short) / (_SHORT[1] - _SHORT[0])
            found.append(each * sizes.tokens + (short - each * _SHORT[0]) * sizes.reads)
        return ahead + found[0], behind + found[1]

    def _behind(self, part: nn.Module, inputs: Mapping[str, Tensor], copied: bool) -> tuple[int, int]:
        """Of one row, with one place that is read."""
        device = self.device
        sizes = device.sizes if copied else device.sizes_behind(device.adapted.blocks)
        lengths = inputs.get("lengths")
        count = 1 if lengths is None else int(lengths.sum())
        hidden = torch.empty(count, *sizes, dtype=device.lower.dtype, device="meta")
        scored = 1 if getattr(part, "scores_tokens", False) else None
        call = device.adapted.tracer.call(Tail(part, lengths, scored), (hidden,), {}, How(graph="through"), counts=True)
        return call.operations, call.back_operations

    def _block(self, at: int, how: How, *, high: bool) -> tuple[Call, ...]:
        """A block's calls on one image, or on rows of two lengths; `high`: as a server has it."""
        known, key = self.device.adapted.counts, (at, how, high)
        if key not in known:
            model = self.device.adapted
            block = (model.high_blocks if high else model.low_blocks)[at]
            calls = []
            for inputs in self._samples:
                entry = model.around(inputs).entries[at]
                calls.append(model.tracer.call(block, entry.args, entry.kwargs, how, counts=True))
            known[key] = tuple(calls)
        found: tuple[Call, ...] = known[key]
        return found

    @property
    def _samples(self) -> list[Mapping[str, Tensor]]:
        one = self.device.one
        if "lengths" not in one:
            return [one]
        made = list[Mapping[str, Tensor]]()
        for length in _SHORT:
            tokens = {n: t.new_zeros(length) for n, t in one.items() if n != "lengths"}
            made.append(tokens | {"lengths": torch.tensor([length])})
        return made

    @property
    def _before(self) -> list[tuple[Call, ...]]:
        """What stands before the blocks."""
        model, known = self.device.adapted, self.device.adapted.counts
        if "before" not in known:
            found = [
                [
                    model.tracer.call(e.block, e.args, e.kwargs, How(), counts=True)
                    for e, _ in model.around(inputs).before
                ]
                for inputs in self._samples
            ]
            known["before"] = list(zip(*found, strict=True))
        calls: list[tuple[Call, ...]] = known["before"]
        return calls


def _sum(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    ahead, behind = 0.0, 0.0
    for pair in pairs:
        ahead, behind = ahead + pair[0], behind + pair[1]
    return ahead, behind


def _at(calls: tuple[Call, ...], places: Places) -> tuple[float, float]:
    """Forward and backward of calls that were traced on one image, or on two short rows."""
    if len(calls) == 1:
        return calls[0].operations * places[0], calls[0].back_operations * places[0]
    short, long = _SHORT
    found = []
    for a, b in (
        (calls[0].operations, calls[1].operations),
        (calls[0].back_operations, calls[1].back_operations),
    ):
        # a = x · short + y · short², b the same of long
        square = (b / long - a / short) / (long - short)
        found.append((a / short - square * short) * places[0] + square * places[1])
    return found[0], found[1]
