"""Seconds of a step, from the work in it and the devices, links and server that do it.

A device's step is a chain: its passes before the upload, up, the server, down, its passes behind the answer. In every
conversation of ours client and server speak in turn, so nothing of one client's step runs beside the rest of it; the
clients of a cohort run beside each other. The server answers a cohort when it has heard all of it and is one machine,
so its work for all of them is a sum, and the cohort waits for whoever takes longest. It waits once a step: where the
slowest to upload is not the slowest behind the answer, a real step is longer by what they differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from halfback.planning.profiles import DeviceClass, Fleet
from halfback.planning.work import Work

Binds = Literal["memory", "compute", "uplink", "server", "downlink", "latency"]
MEGA = 1e6  # bytes of a megabyte, bits of a megabit
_PARTS = ("compute", "up", "server", "down", "latency")


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, of one device or of a cohort; then they are its slowest device's, and all the server's.

    Attributes:
        compute: of the device.
        up: to send what goes up.
        server: of the server, for everyone it answers at once.
        down: to receive what comes down.
        latency: of the round trips.
        total: of the step.
        binds: what takes the largest part of it; `memory` where the device has no room for it at all.
    """

    compute: float
    up: float
    server: float
    down: float
    latency: float
    total: float
    binds: Binds


def step_time(
    work: Work, device: DeviceClass, fleet: Fleet, up: float | None = None, down: float | None = None
) -> StepTime:
    """A step of one device, alone with the server.

    Args:
        work: of the step.
        device: that does it.
        fleet: with the server.
        up: bits a second that the device has of the shared uplink; None where it has its own link alone.
        down: likewise of the shared downlink.

    Returns:
        Its seconds.
    """
    forward = pass_seconds(work, device)
    backward = work.device_backward / (device.backward_operations_per_second or device.operations_per_second)
    fixed = work.device_blocks * device.block_seconds + work.steps * device.step_seconds
    parts = StepTime(
        compute=work.passes * forward + backward + fixed,
        up=8 * work.up_bytes / min(device.up_megabits * MEGA, up or math.inf),
        server=server_seconds(work, fleet),
        down=8 * work.down_bytes / min(device.down_megabits * MEGA, down or math.inf),
        latency=work.exchanges * device.latency_seconds,
        total=0.0,
        binds="memory",
    )
    return _timed(parts, full=work.peak_bytes > device.memory_megabytes * MEGA)


def cohort_time(times: Sequence[StepTime], *, in_turn: bool = False) -> StepTime:
    """A step of a cohort from those of its devices, each alone with the server.

    Args:
        times: one for each device.
        in_turn: one device goes through its step after the other, as in a relay.

    Returns:
        Its seconds: those of the device that the others wait for, or of all where they go in turn.
    """
    if in_turn:
        parts = {name: sum(getattr(time, name) for time in times) for name in _PARTS}
        memory = any(time.binds == "memory" for time in times)
        together = StepTime(**parts, total=sum(time.total for time in times), binds="memory")
        return together if memory else replace(together, binds=_largest(together))
    server = sum(time.server for time in times)
    waiting = [_timed(replace(time, server=server), full=time.binds == "memory") for time in times]
    slowest = max(waiting, key=lambda time: time.total)
    # Where one has no room the seconds are still of all: a quick one without room is not the one they wait for.
    return replace(slowest, binds="memory") if any(time.binds == "memory" for time in times) else slowest


def pass_seconds(work: Work, device: DeviceClass) -> float:
    """Of one forward pass of the device's part: of its operations, or of reading its weights where that is slower."""
    reading = 0.0 if device.bytes_per_second is None else work.parameter_bytes / device.bytes_per_second
    return max(work.device_forward / device.operations_per_second, reading)


def server_seconds(work: Work, fleet: Fleet) -> float:
    """Of the server, for one device's batch."""
    backward = fleet.server_backward_operations_per_second or fleet.server_operations_per_second
    fixed = work.server_blocks * fleet.server_block_seconds + work.steps * fleet.server_step_seconds
    return work.server_forward / fleet.server_operations_per_second + work.server_backward / backward + fixed


def equal_share(shared_megabits: float | None, devices: int) -> float | None:
    """Bits a second for each of so many devices; None where nothing is shared."""
    return None if shared_megabits is None else shared_megabits * MEGA / devices


def _timed(parts: StepTime, *, full: bool) -> StepTime:
    """The same parts with what they come to."""
    timed = replace(parts, total=sum(getattr(parts, name) for name in _PARTS))
    return replace(timed, binds="memory" if full else _largest(timed))


def _largest(time: StepTime) -> Binds:
    away: dict[Binds, float] = {
        "uplink": time.up,
        "server": time.server,
        "downlink": time.down,
        "latency": time.latency,
    }
    binds = max(away, key=lambda name: away[name])
    return "compute" if time.compute >= away[binds] else binds
