"""The rates of this machine, from a few seconds of a recipe's own passes: a fleet of one class, as a plan reads it."""

import os
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from halfback.assembly.choices import device_of
from halfback.assembly.given import NOTHING, Given
from halfback.assembly.ground import lay
from halfback.assembly.sources import client_sources
from halfback.assembly.whole import load
from halfback.config import RunConfig, build_algorithm, yaml_reading
from halfback.errors import UserError
from halfback.models.adapters import trainable
from halfback.models.objectives import loss_of
from halfback.models.running import Top
from halfback.planning.tracing import counter

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
class Rates:
    """What was measured: operations a second, two for each multiply-add.

    Attributes:
        bottom: of its forward pass. bottom_back: of its backward pass; None where nothing of it is trained.
        top, top_back: of the server's part.
        memory: bytes a second that are read or written in a large copy.
    """

    bottom: float
    bottom_back: float | None
    top: float
    top_back: float
    memory: float


def measured(config: RunConfig, given: Given = NOTHING, *, seconds: float = 3.0) -> Rates:
    """Runs the recipe's bottom, bottom with a graph and back, and top there and back, for about so many seconds each.

    Raises:
        UserError: the recipe is none that could run, or a part of its model has no product to be measured by.
    """
    device, algorithm = device_of(config), build_algorithm(config)
    loaded = load(config, given)
    ground = lay(config, algorithm, loaded, device)
    source = client_sources(config, loaded.task.train, device)[0]
    batches = [source.batch(number) for number in range(_BATCHES)]
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
    with torch.no_grad():
        ahead, _ = _rates(through_bottom, seconds)
    back = _rates(through_bottom, seconds)[1] if trainable(bottom) else None
    of_top, top_back = _rates(through_top, seconds)
    assert top_back is not None, "it has a graph"
    return Rates(ahead, back, of_top, top_back, _copying(device))


def _rates(run: Callable[[int], Any], seconds: float) -> tuple[float, float | None]:
    """Operations a second forward, and back where there is a graph: the medians over passes of the batches in turn."""
    operations = [_passed(run, place)[1] for place in range(_BATCHES)]  # which warms up too
    if not min(min(each) for each in operations if each):
        raise UserError("profile: a part of this model has no product of matrices or convolution to be measured by")
    rates: list[list[float]] = [[], []]
    end, passed = perf_counter() + seconds, 0
    while perf_counter() < end or passed < _BATCHES:
        place = passed % _BATCHES
        taken, _ = _passed(run, place, counts=False)
        for mine, spent, count in zip(rates, taken, operations[place], strict=False):
            mine.append(count / max(spent, 1e-9))
        passed += 1
    return median(rates[0]), median(rates[1]) if rates[1] else None


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
        "operations_per_second": _rounded(rates.bottom),
        "backward_operations_per_second": None if rates.bottom_back is None else _rounded(rates.bottom_back),
        "bytes_per_second": _rounded(rates.memory),
        "up_megabits": link.up_megabits,
        "down_megabits": link.down_megabits,
        "latency_seconds": link.latency_seconds,
        "share": 1.0,
        "source": source,
    }
    return {
        "classes": [of_class],
        "server_operations_per_second": _rounded(rates.top),
        "server_backward_operations_per_second": _rounded(rates.top_back),
        "source": "the same machine, with the top of the same recipe",
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def write_fleet(fleet: dict[str, Any], out: Path) -> None:
    """Writes a fleet as YAML; OSError where that can't be done."""
    out.write_text(yaml_reading.dump(fleet))
