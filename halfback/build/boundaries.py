"""Boundaries of devices that hold the whole model: those that an algorithm's options name, or that fit a memory."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle
from typing import Protocol, cast

from torch import Tensor

from halfback.algorithms.holdings import Boundary, Local, Round
from halfback.algorithms.protocol import Algorithm
from halfback.algorithms.server import Server
from halfback.engines.simulation import Simulation
from halfback.errors import UserError
from halfback.models.cut import CutModel, Device, install, recut
from halfback.zeroth.replay import Replica, UpdateRule
from halfback.zeroth.seeds import seed_for
from halfback.zeroth.slopes import check_radius, default_radius

log = logging.getLogger(__name__)

LocalOf = Callable[[int], Local]


class Bounded(Protocol):
    """What an algorithm whose devices have boundaries has for options."""

    boundaries: tuple[int, ...] | None
    memory_mb: tuple[float, ...] | None
    estimator: str
    radius: float | None


def settle(
    algorithm: Algorithm,
    server: Server,
    model: CutModel,
    local: Local,
    *,
    clients: int,
    rule: UpdateRule,
    trial: Callable[[LocalOf], Simulation],
    steps: int,
) -> LocalOf:
    """Gives the server the boundary of every client; returns the clients' own models, each cut at its boundary.

    local: the model cut where the recipe says. rule: how zeroth order moves what is below.
    trial, steps: a simulation of one client with the largest batch of the recipe's size, and the steps of a round.
    Raises UserError for a boundary outside the model, a memory that fits none, or a radius that the dtype swallows.
    """
    options, theta = cast(Bounded, algorithm), server.replica.parameters
    devices = [recut(model, at) for at in range(1, model.blocks + 1)]
    cuts = [local, *(replace(local, device=Device(own.bottom, own.top)) for own in devices)]
    below = [(), *(_names(theta, own) for own in cuts[1:])]

    def local_of(at: int, client: int) -> Local:
        def fresh(parameters: Mapping[str, Tensor], first: int) -> Replica:
            agreed = server.replica
            return agreed.alike(
                parameters,
                rule=rule,
                groups=None,
                seed_of=lambda row, p: seed_for(agreed.seed_of(first + row, p), "client", client),
                own_pace=True,
            )

        return replace(cuts[at], boundary=Boundary(below[at], fresh))

    @cache
    def peak_bytes(at: int) -> int:
        """Of one round in which a client takes real steps with this boundary; nothing is left of it."""
        measured = local_of(at, 0)
        server.boundaries = (_boundary(measured),)
        with server.replica.rehearsal():
            simulation = trial(lambda _: measured)
            simulation.run_round(Round(0, steps, 0), measure_memory=True)
        install(local.device, theta)
        return simulation.meters.client_peak_bytes

    if options.memory_mb is not None:
        chosen = lowest_that_fit(options.memory_mb, clients, model.blocks, peak_bytes)
    else:
        chosen = options.boundaries or (model.at,)
    if not all(0 <= at <= model.blocks for at in chosen):
        raise UserError(
            f"algorithm.boundaries={list(chosen)}: {type(model.whole).__name__} has {model.blocks} blocks, so 0 to "
            f"{model.blocks} are allowed"
        )
    locals_ = [local_of(chosen[client % len(chosen)], client) for client in range(clients)]
    log.info("boundaries, in turn for the clients: %s", ", ".join(map(str, chosen)))
    server.boundaries = tuple(_boundary(own) for own in locals_)
    if options.estimator != "forward_ad":
        for names in {boundary.below for boundary in server.boundaries}:
            moved = {name: theta[name] for name in names}
            check_radius(moved, options.radius or default_radius(moved, server.hidden_dtype))
    return locals_.__getitem__


def lowest_that_fit(
    memory_mb: Sequence[float], clients: int, blocks: int, peak_bytes: Callable[[int], int]
) -> tuple[int, ...]:
    """For each client the lowest boundary, the one with the most first order, at which its memory is enough.

    memory_mb: entry i is client i's, over again from the first behind the last; 1 MB is a million bytes.
    peak_bytes: what a client with this boundary needs. One after the other are asked for, since it need not fall with
    the boundary all the way: more directions are made at once for more parameters.
    Raises UserError for a client that can't work with any.
    """
    chosen: list[int] = []
    for client, size in zip(range(clients), cycle(memory_mb)):
        fitting = (at for at in range(blocks + 1) if peak_bytes(at) <= size * 1e6)
        try:
            chosen.append(next(fitting))
        except StopIteration:
            least = min(peak_bytes(at) for at in range(blocks + 1))
            raise UserError(
                f"algorithm.memory_mb: client {client} has {size:g} MB, which fits no boundary; "
                f"{math.ceil(least / 1e4) / 100:g} MB are needed at least"
            ) from None
    return tuple(chosen)


def _names(theta: Mapping[str, Tensor], local: Local) -> tuple[str, ...]:
    """The parameters of θ below the boundary of this model, which has θ's own in it."""
    own = {id(parameter) for parameter in local.device.bottom.parameters()}
    return tuple(name for name, parameter in theta.items() if id(parameter) in own)


def _boundary(local: Local) -> Boundary:
    assert local.boundary is not None
    return local.boundary
