"""The rates of this machine, from a few seconds of a recipe's own passes: a fleet of one class, as a plan reads it."""

import math
import os
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from halfback.assembly import Built, build
from halfback.assembly.choices import device_of
from halfback.assembly.given import NOTHING, Given
from halfback.assembly.sources import client_sources
from halfback.config import RunConfig, yaml_reading
from halfback.errors import UserError
from halfback.models.adapters import trainable
from halfback.models.objectives import loss_of
from halfback.models.running import Top
from halfback.parties.holdings import Round
from halfback.planning.profiles import Fleet
from halfback.planning.steps import step_time
from halfback.planning.tracing import counter
from halfback.planning.work import Workload

_BATCHES = 8  # of the recipe, which take turns
_COPIED = 1 << 26  # bytes that are copied to find out how fast memory is


@dataclass(frozen=True)
class Link:
    """What nobody can measure on one machine, as it is written into its profile.

    Attributes:
        up_megabits, down_megabits: of the device's link, 10^6 bits a second.
        latency_seconds: of a round trip.
    """

    up_megabits: float = 10.0
    down_megabits: float = 50.0
    latency_seconds: float = 0.05


@dataclass(frozen=True)
class Part:
    """How fast a part of the model runs: seconds of a pass = operations / rate + blocks · `block_seconds`.

    Attributes:
        forward, backward: operations a second, two for each multiply-add.
        block_seconds: of a block in a pass, there or back, however few rows go through it.
    """

    forward: float
    backward: float
    block_seconds: float


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        bottom, top: of the device's and of the server's part of the model.
        memory: bytes a second that are read or written in a large copy.
        step, server_step: seconds of a step of a client, and of the server for it, beside what the parts explain:
            directions, messages, checks, an optimiser.
    """

    bottom: Part
    top: Part
    memory: float
    step: float = 0.0
    server_step: float = 0.0


def measured(config: RunConfig, given: Given = NOTHING, *, seconds: float = 3.0) -> Rates:
    """Runs the recipe's bottom there, the same with a graph there and back, top there and back, and steps of a run.

    Each takes about so many seconds. A top without a block, whose rate would say nothing of the tops of other cuts,
    counts as fast as the bottom.

    Raises:
        UserError: the recipe is none that could run, or a part of its model has no product to be measured by.
    """
    device, built = device_of(config), build(config, given=given)
    ground = built.ground
    train = ground.task.train
    source, few = client_sources(config, train, device)[0], (0, min(1, len(train) - 1))
    batches = [*(source.batch(number) for number in range(_BATCHES)), *[train.batch(few).to(device)] * _BATCHES]
    bottom, top, loss = ground.model.bottom, ground.model.top, loss_of(ground.task.objective, ground.task.own_loss)
    with torch.no_grad():
        hidden = [bottom(batch.inputs) for batch in batches]

    def through_top(place: int) -> Any:
        batch = batches[place]
        entered, lengths = hidden[place].detach().requires_grad_(), batch.inputs.get("lengths")
        if isinstance(top, Top):
            return loss(top(entered, lengths, batch.scored), batch.labels.long())
        return top(entered, lengths)  # the U-shape's middle, whose loss is a device's

    through_bottom: Callable[[int], Any] = lambda place: bottom(batches[place].inputs)  # noqa: E731
    blocks, below = ground.model.blocks - (config.model.head or 0), len(bottom.blocks)
    with torch.no_grad():
        ahead = _lines(through_bottom, seconds)[0]
    back = _lines(through_bottom, seconds)[1] if trainable(bottom) else ahead
    of_bottom = _part(ahead, back, below)
    of_top = of_bottom
    if blocks > below:
        ahead, back = _lines(through_top, seconds)
        of_top = _part(ahead, back, blocks - below)
    return _with_steps(Rates(of_bottom, of_top, _copying(device)), built, given, seconds)


def _with_steps(rates: Rates, built: Built, given: Given, seconds: float) -> Rates:
    """The rates, and what steps of a run take beside them."""
    config, federation = built.config, built.federation
    meters, each = federation.server.meters, config.steps_per_round
    at_once = 1 if built.ground.algorithm.needs.agreement.pools else config.sampled_clients
    number, end = 0, math.inf
    while number < 3 or perf_counter() < end:
        if number == 1:  # the first warms up
            end, begun = perf_counter() + seconds, (meters.client.seconds, meters.server.seconds)
        federation.run_round(Round(number, each, number * each), measure_memory=False)
        number += 1
    taken = [
        (now - then) / ((number - 1) * each * at_once)
        for now, then in zip((meters.client.seconds, meters.server.seconds), begun, strict=True)
    ]
    work = Workload(config, given, steps=number * each).computed(config)
    fleet = Fleet.model_validate(fleet_of(rates, Link(), name="this", recipe="itself"))
    known = step_time(work, fleet.classes[0], fleet)
    step, server = taken[0] - known.compute, taken[1] - known.server
    return replace(rates, step=max(0.0, step), server_step=max(0.0, server))


@dataclass(frozen=True)
class Line:
    """Seconds by operations: slope · operations + offset."""

    slope: float
    offset: float


def _part(ahead: Line, back: Line, blocks: int) -> Part:
    """Of so many blocks, whose passes there and back take so long."""
    return Part(1 / ahead.slope, 1 / back.slope, (ahead.offset + back.offset) / 2 / blocks)


def _lines(run: Callable[[int], Any], seconds: float) -> list[Line]:
    """Forward, and back where there is a graph: through the mean of many rows and that of few, of medians by batch."""
    places = range(2 * _BATCHES)
    operations = [_passed(run, place)[1] for place in places]  # which warms up too
    if not min(min(each) for each in operations if each):
        raise UserError("profile: a part of this model has no product of matrices or convolution to be measured by")
    taken: list[list[list[float]]] = [[] for _ in places]
    end = perf_counter() + seconds
    while perf_counter() < end or not taken[0]:
        for place in places:
            taken[place].append(_passed(run, place, counts=False)[0])
    lines = []
    for way in range(len(operations[0])):
        spent = [median(each[way] for each in taken[place]) for place in places]
        count = [each[way] for each in operations]
        many, few = ((fmean(count[part]), fmean(spent[part])) for part in (slice(_BATCHES), slice(_BATCHES, None)))
        lines.append(line(many, few))
    return lines


def line(many: tuple[float, float], few: tuple[float, float]) -> Line:
    """Through two points of operations and seconds; through the origin and the first where they are too near."""
    slope = many[1] / many[0]
    if many[0] > 2 * few[0] and many[1] > few[1]:
        slope = min(slope, (many[1] - few[1]) / (many[0] - few[0]))
    return Line(slope, many[1] - slope * many[0])


def _passed(run: Callable[[int], Any], place: int, *, counts: bool = True) -> tuple[list[float], list[int]]:
    """Seconds and operations of a pass on batch `place`, and of its backward pass where there is a graph."""
    seconds, operations = [], []
    ways: list[Callable[[], object]] = [lambda: out.append(run(place)), lambda: out[0].sum().backward()]
    out: list[Tensor] = []
    for way in ways:
        if out and not out[0].requires_grad:
            break
        start = _now()
        with counter() if counts else nullcontext() as found:
            way()
        seconds.append(_now() - start)
        operations.append(found.get_total_flops() if found is not None else 0)
    return seconds, operations


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


def _copying(device: torch.device) -> float:
    """Bytes a second of a copy, which reads each and writes each."""
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    taken = []
    for _ in range(5):
        start = _now()
        target.copy_(source)
        taken.append(_now() - start)
    return 2 * _COPIED / median(taken)


def memory_megabytes() -> int:
    """Of this machine, in units of 10^6 bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


def fleet_of(rates: Rates, link: Link, *, name: str, recipe: str) -> dict[str, Any]:
    """A fleet of one class, as `planning.profiles` reads it."""
    threads = torch.get_num_threads()
    source = f"measured with the passes of {recipe} on {platform.machine()}, {threads} threads; the link is assumed"
    of_class = {
        "name": name,
        "memory_megabytes": memory_megabytes(),
        "operations_per_second": _rounded(rates.bottom.forward),
        "backward_operations_per_second": _rounded(rates.bottom.backward),
        "block_seconds": _rounded(rates.bottom.block_seconds),
        "step_seconds": _rounded(rates.step),
        "bytes_per_second": _rounded(rates.memory),
        "up_megabits": link.up_megabits,
        "down_megabits": link.down_megabits,
        "latency_seconds": link.latency_seconds,
        "share": 1.0,
        "source": source,
    }
    return {
        "classes": [of_class],
        "server_operations_per_second": _rounded(rates.top.forward),
        "server_backward_operations_per_second": _rounded(rates.top.backward),
        "server_block_seconds": _rounded(rates.top.block_seconds),
        "server_step_seconds": _rounded(rates.server_step),
        "source": "the same machine, with the top of the same recipe",
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def write_fleet(fleet: dict[str, Any], out: Path) -> None:
    """Writes a fleet as YAML; OSError where that can't be done."""
    out.write_text(yaml_reading.dump(fleet))
