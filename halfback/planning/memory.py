"""A device's peak in closed form: what it holds, and the largest of the phases of a step.

Sums over blocks and phases of what each alone takes (`tracing`): so a plan of hundreds of configurations traces a
handful of calls. What is added up follows `engine.client_side` and the methods' own code, name by name; the meter of a
run says whether it does (docs/results.md, "Planned against measured").
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from halfback.codecs import parse
from halfback.models.exact import last
from halfback.models.packing import parts_of
from halfback.models.running import layout_of, rows_of
from halfback.parties.holdings import Batch, VectorForm
from halfback.planning.device import Device, Tail, part_of_lengths, rows_bytes
from halfback.planning.shapes import PLAIN
from halfback.planning.tracing import Call, How, bytes_of, how_probed
from halfback.planning.traffic import kept
from halfback.zeroth.directions import PACK_WIDTH

_INNER = 1 << 15  # values that a sum of products widens to float64 at once, of each factor
_HEAD_ROWS = 8  # samples whose loss a device with the head takes at once


def peak(device: Device, rows: Batch, missed: int) -> int:
    """The most bytes alive in a step on these rows, as the meter counts them.

    missed: rows of the history that come as the client joins, where this is the first step of its round.
    """
    held = device.parameter_bytes + device.state_bytes + _remembered(device)
    joined = joined_bytes(device, missed)
    ways = {
        ("bottom", False): _forward_only,
        ("bottom", True): _first_order,
        ("own", False): _own_loss,
        ("own", True): _own_loss_descent,
    }
    holds = "bottom" if device.needs.holds == "bottom" else "own"
    phases = ways[holds, device.needs.backpropagates](device, rows, joined)
    joining = (2 if device.exact else 1) * joined + _replayed(device)
    return held + max(joining, rows_bytes(rows) + max(phases))


def joined_bytes(device: Device, missed: int) -> int:
    """The answer to a client that joins, which stays until it says something again: θ, or the rows that it missed."""
    agreement = device.needs.agreement
    if not agreement.moves or agreement.pools:
        return 0
    if not agreement.keeps_history:
        return bytes_of(device.theta.values())
    exact = sum(parameter.numel() for parameter in device.exact)
    if not exact or not missed:
        return 4 * missed * device.needs.directions
    state, shapes = device.states, [tuple(parameter.shape) for parameter in device.exact]
    coded = bool(device.config.codecs.slopes_down)  # then more rows are fewer bytes than the state
    most = max(state * exact, 1 << 20) // exact if coded else kept(shapes * state, exact, None)
    return 4 * (missed * device.needs.directions + (missed if missed <= most else state) * exact)


def hidden_shape(device: Device, rows: Batch) -> tuple[int, ...]:
    """Of the activations at the cut."""
    return (rows_of(rows.inputs), *device.sizes)


def second_shape(device: Device, rows: Batch) -> tuple[int, ...]:
    """Of the activations at the second cut, in the U-shape."""
    return (rows_of(rows.inputs), *device.second_sizes)


def _hidden(device: Device, rows: Batch, *, wide: bool = False) -> int:
    """Bytes of the activations at the cut; `wide`: as float32, whatever the model's dtype."""
    return math.prod(hidden_shape(device, rows)) * (4 if wide else device.item)


def pass_peak(device: Device, rows: Batch, how: How, noted: int = 0) -> int:
    """The most bytes alive in a pass of the bottom; `noted`: the last blocks, whose arguments are kept."""
    groups, found = device.groups(rows), []
    later = replace(how, graph="through") if how.estimator == "forward_ad" else how
    begun = 0 if device.lower.moves_before else 1  # the first block that a tangent enters
    kept_before = 0
    for group in groups:
        around = device.adapted.around(group)
        calls = [device.call(place, group, later if place >= begun else how) for place in range(device.at)]
        stage = [around.first]
        for entry, live in around.before:
            stage.append(live + device.adapted.tracer.call(entry.block, entry.args, entry.kwargs, PLAIN).peak)
        notes = 0
        for place, call in enumerate(calls):
            entered = bytes_of([around.entries[place].args[0]])
            tangent = entered if place >= begun and later is not how else 0
            stage.append(around.live[place] + notes + tangent + call.peak)
            if place >= device.at - noted:
                notes += entered
        behind = around.live[device.at - 1] - bytes_of([around.entries[device.at - 1].args[0]]) + calls[-1].out
        stage.append(behind + notes + around.laid)
        found.append(max(stage) + kept_before)
        kept_before += _noted(device, group, noted)
    joined = _hidden(device, rows, wide=how.wide) if len(groups) > 1 else 0
    return joined + max(found)


def _noted(device: Device, group: Mapping[str, Tensor], noted: int) -> int:
    """What the notes of the last blocks keep of a group of rows: their arguments."""
    around = device.adapted.around(group)
    entries = around.entries[device.at - noted : device.at]
    tensors = [entry.args[0] for entry in entries]
    if entries:
        others = tree_leaves((entries[0].args[1:], dict(entries[0].kwargs)))
        tensors += [leaf for leaf in others if isinstance(leaf, Tensor)]
    return bytes_of(tensors)


def _probed(device: Device, rows: Batch) -> int:
    """The passes with moved weights, and the sums that follow each."""
    probe = device.needs.probe
    if probe is None or not probe.directions:
        return 0
    how = how_probed(probe.estimator, wide=device.lower.half, first=True)
    if not device.needs.cut_gradient:  # what comes of it is sent
        return pass_peak(device, rows, how)
    hidden = _hidden(device, rows, wide=how.wide)
    return max(pass_peak(device, rows, how), hidden * (2 if how.estimator == "forward_ad" else 1) + _sums(device, rows))


def _sums(device: Device, rows: Batch) -> int:
    """Of a sum of products over the activations: both factors of some columns and their products, as float64."""
    shape = hidden_shape(device, rows)
    return 24 * min(math.prod(shape), shape[0] * max(1, _INNER // shape[0]))


def _replayed(device: Device) -> int:
    """What taking a step holds for a moment: a pack of values, moments, an estimate and what the optimiser makes of it.

    What is measured and what is exact are taken one after the other.
    """
    if not device.needs.replays:
        return 0
    exact = sum(parameter.numel() for parameter in device.exact)
    measured = sum(parameter.numel() for parameter in device.theta.values()) - exact
    of_pack = {"adamw": 7, "momentum": 4}.get(device.config.bottom.optimizer, 3 if exact else 1)
    return 4 * min(max(measured, exact), PACK_WIDTH) * of_pack + 8 * exact


def _remembered(device: Device) -> int:
    """What error feedback on the way up keeps of exact gradients; that of samples grows, and is not counted."""
    exact = sum(parameter.numel() for parameter in device.exact)
    keeps = any(
        getattr(codec, "feedback", False) for codec in parse(device.config.codecs.slopes_up, "codecs.slopes_up")
    )
    return 4 * VectorForm(exact).rows * VectorForm.width * keeps


def _forward_only(device: Device, rows: Batch, joined: int) -> list[int]:
    """Activations up, λ down, exact gradients, probes, replay; as in `client_feedback` and `ho_sfl`."""
    needs, hidden, groups = device.needs, _hidden(device, rows), device.groups(rows)
    noted = len(last(device.bottom, needs.agreement.exact_blocks))
    notes = sum(_noted(device, group, noted) for group in groups)
    exact = bytes_of(device.exact)
    phases = [joined + pass_peak(device, rows, PLAIN, noted), notes + hidden + _said(rows)]
    if device.head is not None:
        phases.append(_behind_head(device, rows, hidden if needs.cut_gradient else 0) + notes)
    if not needs.cut_gradient:
        return [*phases, _probed(device, rows), _replayed(device)]
    phases.append(2 * hidden + notes + _sums(device, rows))
    if noted:
        phases += [notes + hidden + each for each in _exact(device, rows, noted)]
    wide = device.lower.half
    base = pass_peak(device, rows, How(wide=True)) if wide and needs.probe and needs.probe.directions else 0
    return [*phases, hidden + exact + max(base, _probed(device, rows)), exact + _replayed(device)]


def _said(rows: Batch) -> int:
    """What goes with activations: labels, lengths and numbers, in four bytes each."""
    lengths = rows.inputs.get("lengths")
    return 4 * (len(rows.labels) + len(rows.sample_ids) + (0 if lengths is None else len(lengths)))


def _exact(device: Device, rows: Batch, noted: int) -> list[int]:
    """The last blocks' gradients, block by block and row by row, beside the notes and λ."""
    sums, hidden, found = bytes_of(device.exact), _hidden(device, rows), []
    for group in device.groups(rows):
        around, spots = device.adapted.around(group), _spots(device, group)
        for place in range(device.at - noted, device.at):
            behind = hidden if place < device.at - 1 else 0  # the gradient at this block's end, where that is not λ
            ahead = hidden if place > device.at - noted else 0
            entry = around.entries[place]
            args, kwargs = entry.of(*spots)
            how = How(graph="alone" if ahead else "inside")
            call = device.adapted.tracer.call(device.blocks[place], args, kwargs, how)
            gone = (device.at - 1 - place) * bytes_of([entry.args[0]])  # notes that are used up
            found.append(sums + behind + ahead - gone + _alone(call))
    return [*found, 2 * sums]


def _spots(device: Device, group: Mapping[str, Tensor]) -> tuple[int, slice]:
    """Row and places of the longest sample."""
    lengths = group.get("lengths")
    if lengths is None:
        return 0, slice(None)
    layout = layout_of(device.adapted.body, device.bottom.family, lengths)
    return layout.spots()[int(lengths.argmax())]


def _alone(call: Call) -> int:
    """A call whose gradients are taken at once: the gradient of its result is a view of what is there."""
    return max(call.peak, call.saved + call.back_peak)


def _behind_head(device: Device, rows: Batch, hidden: int) -> int:
    """U-shape: the middle's output and the head's tensors, their gradients, and the graph of a few rows."""
    assert device.head is not None, "asked of the U-shape alone"
    second = math.prod(second_shape(device, rows)) * device.item
    of_head = bytes_of(device.sent_head.values())
    sums = 4 * sum(parameter.numel() for parameter in device.sent_head.values())
    count = len(rows.sample_ids)
    at_once = min(count, _HEAD_ROWS if rows.scored is None else 1)
    found = []
    for first in range(0, count, at_once):
        found.append(tail_call(device.head, device, rows, slice(first, first + at_once), How(graph="alone")))
    before = of_head if count > at_once else 0  # the gradients of the rows before, while the next ones' are taken
    return hidden + 2 * second + of_head + sums + before + max(_alone(call) for call in found)


def tail_call(tail: nn.Module, device: Device, rows: Batch, part: slice, how: How) -> Call:
    """What some rows take behind a cut, to the loss."""
    lengths = part_of_lengths(rows.inputs, part)
    shape = hidden_shape(device, rows) if tail is not device.head else second_shape(device, rows)
    count = len(rows.sample_ids[part]) if lengths is None else int(lengths.sum())
    scored = None
    if rows.scored is not None:
        places = parts_of(rows.inputs["lengths"].tolist())
        begin, end = places[part][0].start, places[part][-1].stop
        scored = int(((rows.scored >= begin) & (rows.scored < end)).sum())
    dtype = device.lower.dtype
    hidden = torch.empty(count, *shape[1:], dtype=dtype, device="meta")
    return device.adapted.tracer.call(Tail(tail, lengths, scored), (hidden,), {}, how)


def _graph(device: Device, rows: Batch, place: int) -> Call:
    through = place > 0 or device.lower.moves_before
    return device.call(place, rows.inputs, How(graph="through" if through else "inside"))


def _before(device: Device, rows: Batch) -> int:
    """What the graph keeps of the modules before the blocks, beside what they give."""
    if not device.lower.moves_before:
        return 0
    entries = [entry for entry, _ in device.adapted.around(rows.inputs).before]
    how, tracer = How(graph="inside"), device.adapted.tracer
    calls = [tracer.call(entry.block, entry.args, entry.kwargs, how) for entry in entries]
    return sum(call.saved - call.out for call in calls)


def _kept(device: Device, rows: Batch) -> int:
    """What the graph of the bottom keeps."""
    return _before(device, rows) + sum(_graph(device, rows, place).saved for place in range(device.at))


def _backward(device: Device, rows: Batch, seed: int, joined: int) -> list[int]:
    """The bottom with its graph, forward and back; `seed`: the gradient at the cut, which stays until the end."""
    checkpointing = bool(device.config.algorithm.options().get("checkpointing"))
    around = device.adapted.around(rows.inputs)
    calls = [_graph(device, rows, place) for place in range(device.at)]
    before = _before(device, rows)
    sizes = [bytes_of([around.entries[place].args[0]]) for place in range(device.at)]
    context = around.live[0] - sizes[0] + before
    saved = [call.out if checkpointing else call.saved for call in calls]
    phases = [around.first]
    for place, call in enumerate(calls):
        phases.append(joined + context + sizes[0] + sum(saved[:place]) + call.peak)
    left, largest = 0, max((4 * p.numel() for p in device.theta.values()), default=0)
    moving = 3 * largest if device.frees_gradients else 0
    for place in reversed(range(device.at)):
        call, again = calls[place], calls[place].saved if checkpointing else 0
        incoming = call.out if place < device.at - 1 else 0
        result = calls[-1].out if place < device.at - 1 else 0
        below = context + sizes[0] + sum(saved[: place + 1]) + result
        phases.append(below + again + seed + incoming + call.back_peak + left + moving)
        left += 0 if moving else call.gradients
    return [*phases, left + 2 * largest]


def _first_order(device: Device, rows: Batch, joined: int) -> list[int]:
    """Forward with a graph, λ, backward, and the optimiser's step; as in `first_order_steps`."""
    hidden, phases = _hidden(device, rows), []
    if device.head is not None:
        phases.append(_kept(device, rows) + _behind_head(device, rows, 0))
    return [*phases, *_backward(device, rows, hidden, joined)]


def _own_loss(device: Device, rows: Batch, joined: int) -> list[int]:
    """Slopes of a loss of the device's own, by forward passes through bottom and tail; as in `local_slopes`."""
    assert device.needs.probe is not None, "a device that runs forward only measures slopes"
    assert device.tail is not None, "a loss of its own"
    estimator, wide, hidden = device.needs.probe.estimator, device.lower.half, _hidden(device, rows)
    how = how_probed(estimator, wide=wide, first=True)
    count = len(rows.sample_ids)
    at_once = min(count, device.config.client.rows_at_once or count)
    entered = how_probed(estimator, wide=wide, first=False)  # z has a tangent, where all has
    calls = [
        tail_call(device.tail, device, rows, slice(first, first + at_once), entered)
        for first in range(0, count, at_once)
    ]
    measured = max(pass_peak(device, rows, how), (1 + (entered != how)) * hidden + max(call.peak for call in calls))
    agreement = device.needs.agreement
    if agreement.keeps_history and agreement.groups is None and device.config.steps_per_round > 1:
        measured += (
            bytes_of(device.theta.values()) + device.state_bytes
        )  # θ as it was, while a round's own steps are tried
    if device.needs.holds == "whole":
        return [joined + measured, _replayed(device)]
    return [joined + pass_peak(device, rows, PLAIN), measured, _replayed(device)]


def _own_loss_descent(device: Device, rows: Batch, joined: int) -> list[int]:
    """A step on the gradient of a loss of the device's own; as in `descend_local`."""
    assert device.tail is not None, "a loss of its own"
    call = tail_call(device.tail, device, rows, slice(None), How(graph="through"))
    if device.needs.boundaries is not None:  # a graph above the boundary alone, then probes below it
        hidden = _hidden(device, rows)
        phases = [
            pass_peak(device, rows, PLAIN),
            2 * hidden + _alone(call) + call.gradients,
            hidden + _probed(device, rows),
        ]
        return [joined + max(phases)]
    saved = _kept(device, rows)
    below = _backward(device, rows, call.gradients, 0)
    return [joined + max(*below, saved + _alone(call))]
