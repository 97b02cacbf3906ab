"""Boundaries of devices that hold the whole model: where zeroth order ends."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from halfback.config.facts import Boundaries, Probed
from halfback.config.rules import check
from halfback.models.cut import CutModel, Device, recut
from halfback.parties.holdings import Boundary, Local
from halfback.parties.protocol import Needs
from halfback.parties.server import Server
from halfback.zeroth.directions import Directions, seed_for
from halfback.zeroth.replay import Replica, RowForm, UpdateRule


def settle(
    needs: Needs, server: Server, model: CutModel, local: Local, *, clients: int, rule: UpdateRule
) -> Callable[[int], Local]:
    """Gives the server the boundary of every client; returns the clients' own models, each cut at its boundary.

    local: the model cut where the recipe says. rule: how zeroth order moves what is below.
    Raises UserError for a boundary outside the model, or a radius that the dtype swallows.
    """
    assert needs.boundaries is not None, "a method with boundaries says where"
    assert needs.probe is not None, "a method with boundaries probes below them"
    theta, probe = server.agreed.replica.parameters, needs.probe
    chosen = needs.boundaries.blocks or (model.at,)
    check(Boundaries(chosen, type(model.whole).__name__, model.blocks))
    turns = [chosen[client % len(chosen)] for client in range(clients)]
    cuts = {at: _recut(local, model, at) for at in {*turns}}
    below = {at: _names(theta, own) if at else () for at, own in cuts.items()}

    def boundary_of(client: int) -> Boundary:
        def fresh(parameters: Mapping[str, Tensor], first: int) -> Replica:
            agreed = server.agreed.replica.directions

            def seed_of(row: int, p: int) -> int:
                return seed_for(agreed.seed_of(first + row, p), "client", client)

            directions = Directions(seed_of, agreed.law)
            return server.agreed.replica.alike(
                parameters, rule=rule, form=RowForm(), directions=directions, own_pace=True
            )

        return Boundary(below[turns[client]], fresh)

    boundaries = server.cohort.boundaries = tuple(boundary_of(client) for client in range(clients))
    if probe.estimator != "forward_ad":
        for names in {*below.values()}:
            moved = {name: theta[name] for name in names}
            check(Probed(moved, probe.settled(moved, server.top.form.dtype).moved))
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
