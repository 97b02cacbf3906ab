"""The server, and what the devices hold."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from halfback.assembly.boundaries import settle
from halfback.assembly.motion import make_optimizer, make_replica, make_schedule, update_rule
from halfback.config import RunConfig
from halfback.config.facts import Moved, Probed, Shallow, Trained, method_of
from halfback.config.rules import check
from halfback.data.encode import EncodedTask, Split
from halfback.engine.link import HiddenForm
from halfback.models.adapters import trainable
from halfback.models.auxiliary import auxiliary
from halfback.models.cut import Bottom, CutModel, Device
from halfback.models.objectives import loss, terms
from halfback.parties.holdings import Above, Local
from halfback.parties.holdings import Head as DeviceHead
from halfback.parties.protocol import Algorithm
from halfback.parties.server import Server
from halfback.zeroth.seeds import seed_for
from halfback.zeroth.slopes import default_radius


def make_server(
    config: RunConfig,
    algorithm: Algorithm,
    model: CutModel,
    part: Bottom | Device,
    task: EncodedTask,
    device: torch.device,
    levels: Sequence[CutModel],
) -> Server:
    """The server with the agreed θ; UserError for settings that train nothing, or that a dtype rounds away."""
    bottom = trainable(model.bottom)
    traits = algorithm.traits
    head = None if model.head is None else trainable(model.head)
    top = {} if traits.top == "none" else trainable(model.top) | (head or {})
    theta = trainable(part)
    replays = {"bottom": not traits.backpropagates and traits.agreement != "frozen", "top": traits.top == "replayed"}
    groups = _between_cuts(theta, levels)
    if traits.groups is not None:
        groups = traits.groups(list(theta), config.sampled_clients)
    exact = _exact(algorithm, model, theta)
    check(Trained(config, method_of(algorithm), len(bottom), len(exact), 1 if groups is None else len(groups)))
    if traits.agreement != "frozen":
        check(Moved("bottom", config.bottom, theta, replays["bottom"], config.bottom.normalize))
    check(Moved("top", config.top, top, replays["top"], replays["top"] and config.bottom.normalize))
    hidden_shape, has_texts, hidden_dtype = _hidden(model, task.train, config.task.max_length, device)
    if getattr(algorithm, "estimator", "") != "forward_ad":
        for side, moved in (("bottom", theta), ("top", top)):
            if replays[side]:
                check(Probed(moved, getattr(algorithm, "radius", None) or default_radius(moved, hidden_dtype)))
    server = Server(
        top=nn.Module() if traits.top == "none" else model.top,
        loss=partial(loss, task.objective),
        replica=make_replica(
            config,
            config.bottom if replays["bottom"] else None,
            theta,
            "bottom",
            groups=groups,
            exact=exact,
            own_pace=traits.one_by_one,
        ),
        hidden_shape=hidden_shape,
        has_texts=has_texts,
        hidden_dtype=hidden_dtype,
        robust=config.robust,
        head=head,
        auxiliary=part.head if traits.device == "auxiliary" and isinstance(part, Device) else None,
        schedule=make_schedule(config, config.top),
    )
    if traits.top == "replayed":
        server.top_replica = make_replica(config, config.top, top, "top", own_pace=True)
    elif traits.top == "backpropagated":
        server.make_optimizer = partial(make_optimizer, config.top)
        server.optimizer, server.clip = server.make_optimizer(list(top.values())), config.top.clip
    return server


def _exact(algorithm: Algorithm, model: CutModel, theta: Mapping[str, Tensor]) -> list[str]:
    """The names of θ in the blocks whose gradient a device takes exactly."""
    count = getattr(algorithm, "exact_blocks", 0)
    inside = [{id(p) for p in block.parameters()} for block in model.bottom.blocks[model.at - count :]]
    return [name for block in inside for name, parameter in theta.items() if id(parameter) in block]


def _between_cuts(theta: Mapping[str, Tensor], levels: Sequence[CutModel]) -> list[list[str]] | None:
    """The names of θ before the first of all cuts, then those between two neighbours; None where there is one cut.

    levels: the model with each cut but the deepest, from the shallowest on.
    """
    groups, left = [], list(theta)
    for level in levels:
        inside = dict(level.bottom.named_parameters())
        groups.append([name for name in left if name in inside])
        left = [name for name in left if name not in inside]
    return [names for names in (*groups, left) if names] if levels else None


def place_above(
    config: RunConfig,
    algorithm: Algorithm,
    server: Server,
    others: Mapping[int, CutModel],
    task: EncodedTask,
    device: torch.device,
) -> None:
    """Tells the server of the clients whose cut is not the deepest."""
    shapes: dict[int, tuple[int, ...]] = {}
    for client, other in others.items():
        if other.at not in shapes:
            shapes[other.at] = _hidden(other, task.train, config.task.max_length, device)[0]
        server.above[client] = Above(other.top, shapes[other.at])
        inside = dict(other.bottom.named_parameters())
        server.groups[client] = [i for i, names in enumerate(server.replica.groups) if names and names[0] in inside]
        check(Shallow(config, method_of(algorithm), other.at, other.blocks, len(server.groups[client])))


def device_part(config: RunConfig, algorithm: Algorithm, model: CutModel, task: EncodedTask) -> Bottom | Device:
    """What θ belongs to."""
    match algorithm.traits.device:
        case "bottom":
            return model.bottom
        case "whole":
            return Device(model.bottom, model.top)
        case "auxiliary":
            head = auxiliary(
                model,
                config.model.auxiliary,
                num_labels=len(task.label_names),
                trained=config.top.train,
                lora=config.lora,
                seed=seed_for(config.seed, "auxiliary"),
            )
            return Device(model.bottom, head)


def make_locals(
    config: RunConfig,
    algorithm: Algorithm,
    server: Server,
    model: CutModel,
    part: Bottom | Device,
    task: EncodedTask,
) -> Callable[[int], Local] | None:
    """The clients' own models, where they have any."""
    if not isinstance(part, Device):
        return None
    local = Local(part, partial(loss, task.objective), partial(terms, task.objective))
    if not algorithm.traits.boundaries:
        return lambda _: local
    rule = update_rule(config, config.bottom)
    return settle(algorithm, server, model, local, clients=config.clients, rule=rule)


@torch.no_grad()
def _hidden(
    model: CutModel, split: Split, max_length: int, device: torch.device
) -> tuple[tuple[int, ...], bool, torch.dtype]:
    """Of the activations: shape behind the batch dimension (texts: at most), whether they are texts', and dtype."""
    batch = split.batch([0]).to(device)
    hidden = model.bottom(batch.inputs)
    has_texts = "attention_mask" in batch.inputs
    return (max_length if has_texts else hidden.shape[1], *hidden.shape[2:]), has_texts, hidden.dtype


def link_forms(server: Server, head: DeviceHead | None, hidden_shape: tuple[int, ...]) -> dict[str, HiddenForm]:
    """What each link of a client with such activations carries, by its name."""
    first = HiddenForm(hidden_shape, server.has_texts, server.hidden_dtype)
    forms = {"activations_up": first, "gradient_down": first}
    if head is not None:
        shape = (first.shape[0], *head.sizes) if first.has_texts else head.sizes
        second = HiddenForm(shape, first.has_texts, first.dtype)
        forms |= {"activations_down": second, "gradient_up": second}
    return forms


@torch.no_grad()
def device_head(model: CutModel, task: EncodedTask, device: torch.device) -> DeviceHead | None:
    """The devices' head, in the U-shape; the shape that it takes is what the middle gives."""
    if model.head is None:
        return None
    batch = task.train.batch([0]).to(device)
    mask = batch.inputs.get("attention_mask")
    sizes = model.top(model.bottom(batch.inputs), mask).shape[1 if mask is None else 2 :]
    return DeviceHead(model.head, partial(loss, task.objective), partial(terms, task.objective), tuple(sizes))
