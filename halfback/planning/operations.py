"""Operations of a step in closed form, two for each multiply-add: of the device, and of the server for one client.

A block's operations are a · places + b · places² of each row that it runs on (linear layers, and attention); a and b
are found once from two short rows, so a batch of any lengths takes a sum. Of images a block takes as many for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halfback.config import build_algorithm
from halfback.models.exact import last
from halfback.models.running import layout_of
from halfback.planning.device import Device, Rows, Tail
from halfback.planning.tracing import Call, How, how_probed
from halfback.zeroth.widening import has_half

_SHORT = (8, 16)  # tokens


@dataclass(frozen=True)
class Operations:
    """Of a step of one client; see `work.Work`."""

    device_forward: float
    passes: float
    device_backward: float
    server_forward: float
    server_backward: float


Places = tuple[int, int]
"""Of rows as they are laid out: places, and the sum of their squares by row; of images their number, and 0."""


@dataclass(frozen=True)
class Counts:
    """Operations of the parts of a configuration, on rows of any length."""

    device: Device

    def step(self, rows: Rows) -> Operations:
        """Of one batch."""
        needs, own = self.device.needs, self.bottom(rows, How())
        probe = needs.probe
        passes, back = 1.0, 0.0
        if probe is not None and probe.directions and own:
            of_probe = how_probed(probe.estimator, self.device.bottom)
            once = self.bottom(rows, of_probe) / own
            passes += probe.directions * once * (2 if probe.estimator == "central" else 1)
            passes += has_half(self.device.bottom) and needs.cut_gradient
        if needs.agreement.exact_blocks:
            again, back = self._exact(rows)
            passes += again / own
        if needs.holds == "bottom" and needs.backpropagates:
            back = self._graphs(rows)
        if self.device.head is not None:
            back += sum(self._tail(rows, self.device.head))
        if self.device.tail is not None:
            return self._with_tail(rows, own, passes)
        forward, backward = self._server(rows)
        return Operations(own, passes, back, forward, backward)

    def _with_tail(self, rows: Rows, own: float, passes: float) -> Operations:
        """A device with a loss of its own."""
        needs, tail = self.device.needs, self.device.tail
        assert tail is not None, "asked of devices with a loss of their own"
        ahead, behind = self._tail(rows, tail)
        every = getattr(self.device.config.algorithm, "model_extra", None) or {}
        often = 1 / every.get("every", 1)
        forward, backward = self._server(rows) if needs.top != "none" else (0.0, 0.0)
        whole = own + ahead
        if needs.backpropagates and needs.boundaries is None:
            return Operations(whole, 1.0, self._graphs(rows) + behind, often * forward, often * backward)
        if needs.boundaries is not None:
            return Operations(own, passes, ahead + behind, 0.0, 0.0)
        # A probe's passes go through the tail too, and so does one at θ; the bottom alone runs for what is sent.
        upload = often * own / whole if needs.holds == "auxiliary" else 0.0
        first = 0.0 if needs.probe is not None and needs.probe.estimator == "central" else 1.0
        first = 0.0 if needs.probe is not None and needs.probe.estimator == "forward_ad" else first
        return Operations(whole, passes - 1 + first + upload, 0.0, often * forward, often * backward)

    def bottom(self, rows: Rows, how: How) -> float:
        """A forward pass of what stands before the cut."""
        total = 0.0
        for group in self.device.groups(rows):
            places = self._places(group)
            calls = [self._block(at, how, high=False) for at in range(self.device.at)]
            total += sum(_at(each, places)[0] for each in (*self._before, *calls))
        return total

    def _graphs(self, rows: Rows) -> float:
        """Backward through the bottom."""
        places, through = self._places(rows.inputs), self.device.config.bottom.train == "full"
        hows = [How(graph="through" if at or through else "inside") for at in range(self.device.at)]
        pairs = [_at(self._block(at, how, high=False), places) for at, how in enumerate(hows)]
        again = sum(pair[0] for pair in pairs)
        checkpointing = bool(self.device.config.algorithm.options().get("checkpointing"))
        return sum(pair[1] for pair in pairs) + again * checkpointing

    def _exact(self, rows: Rows) -> tuple[float, float]:
        """The last blocks once more, forward and back, each sample alone."""
        lengths = rows.inputs.get("lengths")
        count = len(rows.sample_ids)
        places = (count, 0) if lengths is None else (int(lengths.sum()), int((lengths * lengths).sum()))
        noted = len(last(self.device.bottom, self.device.needs.agreement.exact_blocks))
        first = self.device.at - noted
        hows = {at: How(graph="alone" if at > first else "inside") for at in range(first, self.device.at)}
        pairs = [_at(self._block(at, how, high=False), places) for at, how in hows.items()]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def server(self, rows: Rows) -> tuple[float, float]:
        """A pass of the server's part there and back: to the loss, or in the U-shape through the middle."""
        head = self.device.config.model.head
        if head is None:
            return self._tail(rows, self.device.adapted.above(self.device.at, None).top)
        places = self._places(rows.inputs)
        middle = range(self.device.at, self.device.adapted.blocks - head)
        pairs = [_at(self._block(at, How(graph="through"), high=True), places) for at in middle]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def _server(self, rows: Rows) -> tuple[float, float]:
        """All passes of the server of one client's batch."""
        needs, (ahead, behind) = self.device.needs, self.server(rows)
        if needs.cut_gradient or needs.probe is None:
            return ahead, behind
        probes = 2 * needs.directions  # of the device's activations
        if needs.top == "replayed":  # and as many of the top's own weights in each of its steps
            steps = getattr(build_algorithm(self.device.config), "server_steps", 1)
            return ahead * (probes + steps * probes), 0.0
        return ahead * (probes + 1), behind

    def _tail(self, rows: Rows, part: nn.Module) -> tuple[float, float]:
        """Forward and backward through what stands behind a cut, to the loss."""
        body: Any = getattr(part, "body", None)
        known = self.device.adapted.counts
        blocks: Sequence[nn.Module] = []
        bare = part
        if body is not None:
            family = self.device.bottom.family
            blocks = list(body.get_submodule(family.backbone).get_submodule(family.blocks))
            if part is not self.device.tail or self.device.needs.holds == "whole":
                bare = self.device.adapted.end
            else:
                blocks = []
        places = self._places(rows.inputs)
        start = self.device.adapted.blocks - len(blocks)
        pairs = [_at(self._block(start + at, How(graph="through"), high=True), places) for at in range(len(blocks))]
        scored = rows.scored
        if "lengths" not in rows.inputs:
            key = ("tail", id(bare), self.device.at)
            if key not in known:
                known[key] = self._behind(bare, None, None, 1, blocks)
            one = known[key]
            pairs.append((one[0] * len(rows.sample_ids), one[1] * len(rows.sample_ids)))
        else:
            key = ("tail", id(bare), scored is None)
            if key not in known:
                wanted = None if scored is None else 1
                known[key] = tuple(
                    self._behind(bare, torch.tensor([length]), wanted, length, blocks) for length in _SHORT
                )
            (short, long), reads = known[key], len(rows.sample_ids) if scored is None else len(scored)
            tokens = int(rows.inputs["lengths"].sum())
            for_each = [(b - a) / (_SHORT[1] - _SHORT[0]) for a, b in zip(short, long, strict=True)]
            of_read = [a - each * _SHORT[0] for a, each in zip(short, for_each, strict=True)]
            pairs.append(tuple(each * tokens + read * reads for each, read in zip(for_each, of_read, strict=True)))  # type: ignore[arg-type]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    def _behind(
        self, part: nn.Module, lengths: Tensor | None, scored: int | None, count: int, blocks: Sequence[nn.Module]
    ) -> tuple[int, int]:
        sizes = self.device.sizes if not blocks else self.device.sizes_behind(self.device.adapted.blocks)
        hidden = torch.empty(count, *sizes, dtype=next(self.device.bottom.parameters()).dtype, device="meta")
        tail = Tail(part, lengths, scored)
        call = self.device.adapted.tracer.call(tail, (hidden,), {}, How(graph="through"))
        return call.operations, call.back_operations

    def _places(self, inputs: Mapping[str, Tensor]) -> Places:
        lengths = inputs.get("lengths")
        if lengths is None:
            return len(inputs["pixel_values"]), 0
        rows, width = layout_of(self.device.adapted.body, self.device.bottom.family, lengths).samples.shape
        return rows * width, rows * width * width

    def _block(self, at: int, how: How, *, high: bool) -> tuple[Call, ...]:
        """A block's calls on one image, or on rows of two lengths; `high`: as a server has it."""
        known, key = self.device.adapted.counts, (at, how, high)
        if key not in known:
            model = self.device.adapted
            block = (model.high_blocks if high else model.low_blocks)[at]
            calls = []
            for inputs in self._samples:
                entry = model.around(inputs).entries[at]
                calls.append(model.tracer.call(block, entry.args, entry.kwargs, how))
            known[key] = tuple(calls)
        return known[key]

    @property
    def _samples(self) -> list[Mapping[str, Tensor]]:
        one = self.device.one
        if "lengths" not in one:
            return [one]
        made = []
        for length in _SHORT:
            tokens = {n: t.new_zeros(length) for n, t in one.items() if n != "lengths"}
            made.append(tokens | {"lengths": torch.tensor([length])})
        return made

    @property
    def _before(self) -> list[tuple[Call, ...]]:
        """What stands before the blocks."""
        model, found = self.device.adapted, list[list[Call]]()
        for inputs in self._samples:
            entries = [entry for entry, _ in model.around(inputs).before]
            found.append([model.tracer.call(entry.block, entry.args, entry.kwargs, How()) for entry in entries])
        return list(zip(*found, strict=True))


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
