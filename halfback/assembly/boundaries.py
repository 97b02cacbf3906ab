"""Boundaries of devices that hold the whole model: where zeroth order ends."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, cast

from torch import Tensor

from halfback.config.facts import Boundaries, Probed
from halfback.config.rules import check
from halfback.models.cut import CutModel, Device, recut
from halfback.parties.holdings import Boundary, Local
from halfback.parties.protocol import Algorithm
from halfback.parties.server import Server
from halfback.zeroth.replay import Replica, UpdateRule
from halfback.zeroth.seeds import seed_for
from halfback.zeroth.slopes import default_radius


class Bounded(Protocol):
    """What an algorithm whose devices have boundaries has for options."""

    boundaries: tuple[int, ...] | None
    estimator: str
    radius: float | None


def settle(
    algorithm: Algorithm, server: Server, model: CutModel, local: Local, *, clients: int, rule: UpdateRule
) -> Callable[[int], Local]:
    """Gives the server the boundary of every client; returns the clients' own models, each cut at its boundary.

    local: the model cut where the recipe says. rule: how zeroth order moves what is below.
    Raises UserError for a boundary outside the model, or a radius that the dtype swallows.
    """
    options, theta = cast(Bounded, algorithm), server.replica.parameters
    chosen = options.boundaries or (model.at,)
    check(Boundaries(chosen, type(model.whole).__name__, model.blocks))
    turns = [chosen[client % len(chosen)] for client in range(clients)]
    cuts = {at: _recut(local, model, at) for at in {*turns}}
    below = {at: _names(theta, own) if at else () for at, own in cuts.items()}

    def boundary_of(client: int) -> Boundary:
        def fresh(parameters: Mapping[str, Tensor], first: int) -> Replica:
            agreed = server.replica
            return agreed.alike(
                parameters,
                rule=rule,
                groups=None,
                seed_of=lambda row, p: seed_for(agreed.seed_of(first + row, p), "client", client),
                own_pace=True,
            )

        return Boundary(below[turns[client]], fresh)

    boundaries = server.boundaries = tuple(boundary_of(client) for client in range(clients))
    if options.estimator != "forward_ad":
        for names in {*below.values()}:
            moved = {name: theta[name] for name in names}
            check(Probed(moved, options.radius or default_radius(moved, server.hidden_dtype)))
    return lambda client: replace(cuts[turns[client]], boundary=boundaries[client])


def _recut(local: Local, model: CutModel, at: int) -> Local:
    """The clients' own model with its boundary there; with nothing below it, as it is."""
    if at == 0:
        return local
    own = recut(model, at)
    return replace(local, device=Device(own.bottom, own.top))


def _names(theta: Mapping[str, Tensor], local: Local) -> tuple[str, ...]:
    """The parameters of θ below the boundary of this model, which has θ's own in it."""
    own = {id(parameter) for parameter in local.device.bottom.parameters()}
    return tuple(name for name, parameter in theta.items() if id(parameter) in own)
