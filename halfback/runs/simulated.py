"""Simulated time of a run: from the fleet that its recipe names to the clock that goes with it.

The fleet is kept in the run's folder when the run begins, so that it goes on with the same one from wherever it is
continued, whatever has become of the file.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from halfback.assembly.given import Given
from halfback.config import RunConfig, build_algorithm
from halfback.errors import UserError
from halfback.planning.clock import Clock
from halfback.planning.profiles import Fleet, draw, read_fleet
from halfback.planning.steps import MEGA
from halfback.planning.work import Work, Workload
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


def clock_of(config: RunConfig, given: Given, out: Path, start: Path | None) -> Clock | None:
    """The clock of a run in the folder `out`, with the time at 0; None where the recipe names no fleet.

    Args:
        config: of the run, with the full paths of its files.
        given: what it calls "given".
        out: where the fleet is kept.
        start: the folder that the fleet's path is relative to, None for the current one.

    Returns:
        The clock; it has to be told of messages and rounds.

    Raises:
        UserError: the fleet can't be read.
    """
    if config.fleet is None:
        return None
    fleet = _fleet_of(config.fleet, out, start)
    devices = draw(fleet, config.clients, config.seed)
    work_of = _work_of(config, given)
    for client, device in enumerate(devices):
        if (needed := work_of(client).peak_bytes) > device.memory_megabytes * MEGA:
            log.warning(
                "fleet: client %d is a %s with %g MB, and its part takes %.1f MB: its time is counted all the same",
                *(client, device.name, device.memory_megabytes, needed / MEGA),
            )
            break
    return Clock(fleet, devices, work_of, in_turn=build_algorithm(config).needs.turns == "one_by_one")


def _fleet_of(named: str, out: Path, start: Path | None) -> Fleet:
    kept = out / FLEET
    if not kept.exists():
        path = named if start is None or not (start / named).exists() else start / named
        replace_text(kept, read_fleet(path).model_dump_json(indent=2) + "\n")
    return read_fleet(kept)


def _work_of(config: RunConfig, given: Given) -> Callable[[int], Work]:
    """What a client computes in a step, by its number; what goes over links is heard later."""
    workload = Workload(config, given)
    cuts = {config.model.cut_of(client) for client in range(config.clients)}
    at = {cut: workload.computed(_with_cut(config, cut)) for cut in cuts}
    return lambda client: at[config.model.cut_of(client)]


def _with_cut(config: RunConfig, cut: int) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"cut": cut})})
