"""Models of the devices' own, from inputs to the loss; and where in them, for some methods, zeroth order ends."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from halfback.assembly.ground import Ground
from halfback.assembly.motion import update_rule
from halfback.config.facts import Boundaries, Probed
from halfback.config.rules import check
from halfback.models.cut import CutModel, recut
from halfback.models.objectives import loss_of, terms
from halfback.models.running import LocalModel
from halfback.parties.holdings import Boundary, Local
from halfback.zeroth.directions import Directions, seed_for
from halfback.zeroth.replay import Replica, RowForm


def make_locals(ground: Ground) -> Callable[[int], Local] | None:
    """Gives a client's own model by its number; None for methods whose devices have none.

    Raises:
        UserError: a boundary is outside the model, or a radius is one that rounding swallows.
    """
    part, objective = ground.part, ground.task.objective
    if not isinstance(part, LocalModel):
        return None
    local = Local(part, loss_of(objective, ground.task.own_loss), partial(terms, objective))
    return (lambda _: local) if ground.algorithm.needs.boundaries is None else _bounded(ground, local)


def _bounded(ground: Ground, local: Local) -> Callable[[int], Local]:
    """The clients' own models, each cut at its boundary."""
    needs, agreed, model, clients = ground.algorithm.needs, ground.theta, ground.model, ground.config.clients
    assert needs.boundaries is not None, "a method with boundaries says where"
    assert needs.probe is not None, "a method with boundaries probes below them"
    chosen = needs.boundaries.blocks or (model.at,)
    check(Boundaries(chosen, type(model.whole).__name__, model.blocks))
    turns = [chosen[client % len(chosen)] for client in range(clients)]
    cuts = {at: _recut(local, model, at) for at in {*turns}}
    below = {at: _names(agreed.parameters, own) if at else () for at, own in cuts.items()}
    rule = update_rule(ground.config, ground.config.bottom)

    def boundary_of(client: int) -> Boundary:
        def fresh(parameters: Mapping[str, Tensor], first: int) -> Replica:
            def seed_of(row: int, p: int) -> int:
                return seed_for(agreed.directions.seed_of(first + row, p), "client", client)

            directions = Directions(seed_of, agreed.directions.law)
            return agreed.alike(parameters, rule=rule, form=RowForm(), directions=directions, own_pace=True)

        return Boundary(below[turns[client]], fresh)

    if needs.probe.estimator != "forward_ad":
        for names in {*below.values()}:
            moved = {name: agreed.parameters[name] for name in names}
            check(Probed(moved, needs.probe.settled(moved).moved))
    return lambda client: replace(cuts[turns[client]], boundary=boundary_of(client))


def _recut(local: Local, model: CutModel, at: int) -> Local:
    """The clients' own model with its boundary there; with nothing below it, as it is."""
    if at == 0:
        return local
    own = recut(model, at)
    return replace(local, model=LocalModel(own.bottom, own.top))


def _names(theta: Mapping[str, Tensor], local: Local) -> tuple[str, ...]:
    """The parameters of θ below the boundary of this model, which has θ's own in it."""
    own = {id(parameter) for parameter in local.model.bottom.parameters()}
    return tuple(name for name, parameter in theta.items() if id(parameter) in own)
