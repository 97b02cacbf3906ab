"""Simulated time of a run: from the fleet that its recipe names to the clock that goes with it.

The fleet is kept in the run's folder when the run begins, so that it goes on with the same one from wherever it is
continued, whatever has become of the file.
"""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from halfback.assembly import Built
from halfback.config import RunConfig, build_algorithm
from halfback.errors import UserError
from halfback.planning.clock import Clock
from halfback.planning.profiles import Fleet, draw, read_fleet
from halfback.planning.steps import MEGA
from halfback.planning.work import Work
from halfback.telemetry.records import replace_text

FLEET = "fleet.json"

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Refuses a fleet that can't be read, or whose clock would hear nothing; UserError in one line."""
    if config.fleet is None:
        return
    if config.client.runtime == "device":
        raise UserError(
            f"fleet={config.fleet}: its clock doesn't hear clients on device packages (client.runtime=device); use "
            "client.runtime=torch, or fleet=null"
        )
    if build_algorithm(config).needs.agreement.pools:
        raise UserError(
            f"fleet={config.fleet}: {config.algorithm.name} runs on one machine, without devices and links; use "
            f"fleet=null (in a comparison {config.algorithm.name}:fleet=null)"
        )
    read_fleet(config.fleet)


def clock_of(built: Built, out: Path, start: Path | None) -> Clock | None:
    """The clock of a run in the folder `out`, with the time at 0; None where the recipe names no fleet.

    Args:
        built: the run.
        out: where the fleet is kept.
        start: the folder that the fleet's path is relative to, None for the current one.

    Returns:
        The clock; it has to be told of messages and rounds.

    Raises:
        UserError: the fleet can't be read.
    """
    config = built.config
    if config.fleet is None:
        return None
    fleet = _fleet_of(config.fleet, out, start)
    devices = draw(fleet, config.clients, config.seed)
    work_of = _work_of(built)
    for client, device in enumerate(devices):
        if (needed := work_of(client).peak_bytes) > device.memory_megabytes * MEGA:
            log.warning(
                "fleet: client %d is a %s with %g MB, and its part takes %.1f MB: its time is counted all the same",
                *(client, device.name, device.memory_megabytes, needed / MEGA),
            )
            break
    return Clock(fleet, devices, work_of, in_turn=built.federation.server.algorithm.needs.turns == "one_by_one")


def _fleet_of(named: str, out: Path, start: Path | None) -> Fleet:
    kept = out / FLEET
    if not kept.exists():
        path = named if start is None or not (start / named).exists() else start / named
        replace_text(kept, read_fleet(path).model_dump_json(indent=2) + "\n")
    return read_fleet(kept)


def _work_of(built: Built) -> Callable[[int], Work]:
    """Operations of a step by client, counted on one batch for each cut; what goes over links is measured later."""
    config, needs = built.config, built.federation.server.algorithm.needs

    @cache
    def at(cut: int) -> Work:
        client = next(number for number in built.clients.sources if config.model.cut_of(number) == cut)
        batch = built.clients.sources[client].batch(0)
        level = built.ground.level(client)
        whole = _operations(lambda: level.logits(batch.inputs, batch.scored))
        device = whole if needs.holds == "whole" else _operations(lambda: level.bottom(batch.inputs))
        server = whole - device if needs.top != "none" else 0.0
        return Work(
            peak_bytes=0,
            parameter_bytes=sum(tensor.nbytes for part in built.ground.parts(client) for tensor in part.parameters()),
            up_bytes=0,
            down_bytes=0,
            device_forward=device,
            passes=1,
            device_backward=2 * device if needs.backpropagates else 0.0,
            overlapping_passes=0,
            server_forward=server,
            server_backward=2 * server if needs.top == "backpropagated" else 0.0,
            exchanges=1,
        )

    return lambda client: at(config.model.cut_of(client))


def _operations(run: Callable[[], object]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        run()
    return float(counted.get_total_flops())
