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
from halfback.models.adapters import trainable
from halfback.models.auxiliary import auxiliary
from halfback.models.cut import Bottom, CutModel, Device
from halfback.models.objectives import loss_of, terms
from halfback.parties.cohort import Cohort
from halfback.parties.holdings import Above, Descent, HiddenForm, Local
from halfback.parties.holdings import Head as DeviceHead
from halfback.parties.protocol import Algorithm
from halfback.parties.server import Agreed, Server, Top
from halfback.zeroth.directions import seed_for
from halfback.zeroth.replay import RowForm


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
    needs, agreement = algorithm.needs, algorithm.needs.agreement
    head = None if model.head is None else trainable(model.head)
    top = {} if needs.top == "none" else trainable(model.top) | (head or {})
    theta = trainable(part)
    replays = {"bottom": needs.replays, "top": needs.top == "replayed"}
    groups = _between_cuts(theta, levels)
    if agreement.groups is not None:
        groups = agreement.groups(list(theta), config.sampled_clients)
    exact = _exact(agreement.exact_blocks, model, theta)
    check(Trained(config, method_of(algorithm), len(bottom), len(exact), 1 if groups is None else len(groups)))
    if agreement.moves:
        check(Moved("bottom", config.bottom, theta, replays["bottom"], config.bottom.normalize))
    check(Moved("top", config.top, top, replays["top"], replays["top"] and config.bottom.normalize))
    form = _hidden(model, task.train, config.task.max_length, device)
    if needs.probe is not None and needs.probe.estimator != "forward_ad":
        for side, moved in (("bottom", theta), ("top", top)):
            if replays[side]:
                check(Probed(moved, needs.probe.settled(moved, form.dtype).moved))
    descent = replica = None
    if needs.top == "backpropagated":
        make = partial(make_optimizer, config.top)
        descent = Descent(list(top.values()), make, config.top.clip, make_schedule(config, config.top))
    elif needs.top == "replayed":
        replica = make_replica(config, config.top, top, "top", own_pace=True)
    moved_by = config.bottom if replays["bottom"] else None
    own_pace = needs.turns == "one_by_one"
    return Server(
        Top(
            nn.Module() if needs.top == "none" else model.top,
            loss_of(task.objective, task.own_loss),
            form,
            head=head,
            descent=descent,
            replica=replica,
        ),
        Agreed(make_replica(config, moved_by, theta, "bottom", form=RowForm(groups, exact), own_pace=own_pace)),
        Cohort(robust=config.robust),
        auxiliary=part.head if needs.holds == "auxiliary" and isinstance(part, Device) else None,
    )


def _exact(count: int, model: CutModel, theta: Mapping[str, Tensor]) -> list[str]:
    """The names of θ in the last so many blocks of the bottom, whose gradient a device takes exactly."""
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
    forms: dict[int, HiddenForm] = {}
    groups = server.agreed.replica.groups
    for client, other in others.items():
        if other.at not in forms:
            forms[other.at] = _hidden(other, task.train, config.task.max_length, device)
        server.top.above[client] = Above(other.top, forms[other.at])
        inside = dict(other.bottom.named_parameters())
        server.cohort.groups[client] = [i for i, names in enumerate(groups) if names and names[0] in inside]
        check(Shallow(config, method_of(algorithm), other.at, other.blocks, len(server.cohort.groups[client])))


def device_part(config: RunConfig, algorithm: Algorithm, model: CutModel, task: EncodedTask) -> Bottom | Device:
    """What θ belongs to."""
    match algorithm.needs.holds:
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
    local = Local(part, loss_of(task.objective, task.own_loss), partial(terms, task.objective), server.top.form.dtype)
    if algorithm.needs.boundaries is None:
        return lambda _: local
    rule = update_rule(config, config.bottom)
    return settle(algorithm.needs, server, model, local, clients=config.clients, rule=rule)


@torch.no_grad()
def _hidden(model: CutModel, split: Split, max_length: int, device: torch.device) -> HiddenForm:
    """The form of the activations at the cut."""
    batch = split.batch([0]).to(device)
    hidden = model.bottom(batch.inputs)
    has_texts = "attention_mask" in batch.inputs
    return HiddenForm((max_length if has_texts else hidden.shape[1], *hidden.shape[2:]), has_texts, hidden.dtype)


def link_forms(first: HiddenForm, head: DeviceHead | None) -> dict[str, HiddenForm]:
    """What each link of a client with such activations carries, by its name."""
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
    return DeviceHead(model.head, loss_of(task.objective, task.own_loss), partial(terms, task.objective), tuple(sizes))
