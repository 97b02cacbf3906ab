"""Models of the devices' own, from inputs to the loss; and where in them, for some methods, zeroth order ends."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

from torch import Tensor

from halfback.assembly.ground import Ground
from halfback.assembly.motion import update_rule
from halfback.errors import UserError
from halfback.models.cut import CutModel, Device, recut
from halfback.models.objectives import loss, terms
from halfback.parties.holdings import Boundary, Local
from halfback.zeroth.replay import Replica
from halfback.zeroth.seeds import seed_for
from halfback.zeroth.slopes import check_radius, default_radius


class Bounded(Protocol):
    """What an algorithm whose devices have boundaries has for options."""

    boundaries: tuple[int, ...] | None
    estimator: str
    radius: float | None


def make_locals(ground: Ground) -> Callable[[int], Local] | None:
    """Gives a client's own model by its number; None for methods whose devices have none.

    Raises:
        UserError: a boundary is outside the model, or a radius is one that the dtype swallows.
    """
    part, objective = ground.part, ground.task.objective
    if not isinstance(part, Device):
        return None
    local = Local(part, partial(loss, objective), partial(terms, objective))
    return _bounded(ground, local) if ground.algorithm.traits.boundaries else lambda _: local


def _bounded(ground: Ground, local: Local) -> Callable[[int], Local]:
    """The clients' own models, each cut at its boundary."""
    options, agreed, model, clients = cast(Bounded, ground.algorithm), ground.theta, ground.model, ground.config.clients
    chosen = options.boundaries or (model.at,)
    if not all(0 <= at <= model.blocks for at in chosen):
        raise UserError(
            f"algorithm.boundaries={list(chosen)}: {type(model.whole).__name__} has {model.blocks} blocks, so 0 to "
            f"{model.blocks} are allowed"
        )
    turns = [chosen[client % len(chosen)] for client in range(clients)]
    cuts = {at: _recut(local, model, at) for at in {*turns}}
    below = {at: _names(agreed.parameters, own) if at else () for at, own in cuts.items()}
    rule = update_rule(ground.config, ground.config.bottom)

    def boundary_of(client: int) -> Boundary:
        def fresh(parameters: Mapping[str, Tensor], first: int) -> Replica:
            return agreed.alike(
                parameters,
                rule=rule,
                groups=None,
                seed_of=lambda row, p: seed_for(agreed.seed_of(first + row, p), "client", client),
                own_pace=True,
            )

        return Boundary(below[turns[client]], fresh)

    if options.estimator != "forward_ad":
        for names in {*below.values()}:
            moved = {name: agreed.parameters[name] for name in names}
            check_radius(moved, options.radius or default_radius(moved, ground.form.dtype))
    return lambda client: replace(cuts[turns[client]], boundary=boundary_of(client))


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
