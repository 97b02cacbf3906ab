"""The server side of a run."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from halfback.assembly.ground import Ground, groups_of
from halfback.assembly.motion import check_lr, make_optimizer, make_replica, make_schedule
from halfback.controllers.protocol import Controller
from halfback.engine.links import Links
from halfback.engine.sampling import Sampling
from halfback.engine.server_side import ServerSide
from halfback.models.adapters import trainable
from halfback.models.cut import Device
from halfback.models.objectives import loss
from halfback.parties.holdings import Above, Local
from halfback.parties.server import Server
from halfback.zeroth.slopes import check_radius, default_radius


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
    config, algorithm = ground.config, ground.algorithm
    server = _server(ground)
    if getattr(algorithm, "aggregation", "uniform") == "rows":
        server.rows = dict(rows)
    for client in range(config.clients):
        if (groups := groups_of(ground, client)) is not None:
            above = Above(ground.level(client).top, links.forms[client]["activations_up"].shape)
            server.above[client], server.groups[client] = above, groups
    if local is not None:
        found = [local(client).boundary for client in range(config.clients)]
        server.boundaries = tuple(boundary for boundary in found if boundary is not None)
    sampled = 1 if algorithm.traits.agreement == "alone" else config.sampled_clients
    return ServerSide(algorithm, server, ground.part, Sampling(config.seed, len(rows), sampled), links, controller)


def _server(ground: Ground) -> Server:
    """The server as its algorithm sees it, with the agreed θ."""
    config, algorithm, model, form = ground.config, ground.algorithm, ground.model, ground.form
    traits, theta = algorithm.traits, ground.theta.parameters
    of_head = None if ground.head is None else ground.head.parameters
    top = {} if traits.top == "none" else trainable(model.top) | (of_head or {})
    replays = {"bottom": not traits.backpropagates and traits.agreement != "frozen", "top": traits.top == "replayed"}
    if traits.agreement != "frozen":
        check_lr("bottom", config.bottom, theta, replays["bottom"], config.bottom.normalize)
    check_lr("top", config.top, top, replays["top"], replays["top"] and config.bottom.normalize)
    if getattr(algorithm, "estimator", "") != "forward_ad":
        for side, moved in (("bottom", theta), ("top", top)):
            if replays[side]:
                check_radius(moved, getattr(algorithm, "radius", None) or default_radius(moved, form.dtype))
    server = Server(
        top=nn.Module() if traits.top == "none" else model.top,
        loss=partial(loss, ground.task.objective),
        replica=ground.theta,
        hidden_shape=form.shape,
        has_texts=form.has_texts,
        hidden_dtype=form.dtype,
        robust=config.robust,
        head=of_head,
        auxiliary=ground.part.head if traits.device == "auxiliary" and isinstance(ground.part, Device) else None,
        schedule=make_schedule(config, config.top),
    )
    if traits.top == "replayed":
        server.top_replica = make_replica(config, config.top, top, "top", own_pace=True)
    elif traits.top == "backpropagated":
        server.make_optimizer = partial(make_optimizer, config.top)
        server.optimizer, server.clip = server.make_optimizer(list(top.values())), config.top.clip
    return server
