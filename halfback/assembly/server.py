"""The server side of a run."""

from collections.abc import Callable, Mapping

from torch import nn

from halfback.assembly.ground import Ground, groups_of
from halfback.assembly.hiding import private_of
from halfback.assembly.motion import make_descent, make_replica
from halfback.config.facts import Moved, Probed
from halfback.config.rules import check
from halfback.controllers.protocol import Controller
from halfback.engine.links import Links
from halfback.engine.sampling import Sampling
from halfback.engine.server_side import ServerSide
from halfback.engine.sums import Sums
from halfback.models.adapters import hidden_matrices, trainable
from halfback.models.normalising import batch_norms
from halfback.models.objectives import loss_of
from halfback.models.running import LocalModel
from halfback.parties.agreed import Agreed
from halfback.parties.client import Theta
from halfback.parties.cohort import Cohort
from halfback.parties.holdings import Above, HiddenForm, Local
from halfback.parties.server import Server, Top
from halfback.parties.server_step import Averaging


def server_side(
    ground: Ground,
    links: Links,
    rows: Mapping[int, int],
    local: Callable[[int], Local] | None,
    controller: Controller | None,
) -> ServerSide:
    """The server.

    Args:
        ground: what it stands on.
        links: to its clients.
        rows: the training rows of each client, by its number.
        local: a client's own model, for methods that have one.
        controller: what sets thresholds, where links have any.

    Raises:
        UserError: settings that train nothing, or that a dtype rounds away.
    """
    config, needs = ground.config, ground.algorithm.needs
    cohort = Cohort(robust=config.robust, summed=config.secure.sum)
    if needs.agreement.aggregation == "rows":
        cohort.rows = dict(rows)
    if local is not None:
        found = [local(client).boundary for client in range(config.clients)]
        cohort.boundaries = tuple(boundary for boundary in found if boundary is not None)
    top = _top(ground)
    for client in range(config.clients):
        if (groups := groups_of(ground, client)) is not None:
            form = links.forms[client]["activations_up"]
            assert isinstance(form, HiddenForm), "codecs take these by the samples that they are of"
            top.above[client] = Above(ground.level(client).top, form)
            cohort.groups[client] = groups
    part = ground.part
    auxiliary = part.head if needs.holds == "auxiliary" and isinstance(part, LocalModel) else None
    averaging = None
    if config.server_step.name != "none":
        averaging = Averaging(config.server_step, Theta(ground.theta).trained)
    server = Server(top, Agreed(ground.theta), cohort, averaging=averaging, auxiliary=auxiliary)
    sampling = Sampling(config.seed, len(rows), 1 if needs.agreement.pools else config.sampled_clients)
    side = ServerSide(ground.algorithm, server, part, sampling, links, controller)
    if links.bounds.sums is not None:
        side.sums = Sums(links.bounds.sums)
    side.private = private_of(config, ground.algorithm, rows, sampling)
    return side


def _top(ground: Ground) -> Top:
    """The server's part of the model, and what moves it; rates and radii of θ are looked at too."""
    config, needs, model, form = ground.config, ground.algorithm.needs, ground.model, ground.form
    head = None if ground.head is None else ground.head.parameters
    moved = {} if needs.top == "none" else trainable(model.top) | (head or {})
    theta, replayed = ground.theta.parameters, needs.top == "replayed"
    if needs.agreement.moves:
        check(Moved("bottom", config.bottom, theta, needs.replays, config.bottom.normalize))
    check(Moved("top", config.top, moved, replayed, replayed and config.bottom.normalize))
    if needs.probe is not None and needs.probe.estimator != "forward_ad":
        for parameters, replays in ((theta, needs.replays), (moved, replayed)):
            if replays:
                check(Probed(parameters, needs.probe.settled(parameters).moved))
    descent = replica = None
    if needs.top == "backpropagated":
        parts = [model.top, *([] if model.head is None else [model.head])]
        descent = make_descent(config, "top", moved, [name for part in parts for name in hidden_matrices(part)])
    elif replayed:
        replica = make_replica(config, config.top, moved, "top", own_pace=True)
    module, objective = nn.Module() if needs.top == "none" else model.top, ground.task.objective
    return Top(
        module,
        loss_of(objective, ground.task.own_loss),
        form,
        scores_tokens=objective != "classification",
        head=head,
        descent=descent,
        replica=replica,
        norms=[*batch_norms(module).values()] if config.top.batch_norm == "train" else (),
    )
