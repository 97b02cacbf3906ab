"""What the parties of a process stand on, whichever they are: rows, the model cut and adapted, and θ."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from halfback.assembly.choices import sums_of
from halfback.assembly.motion import make_replica
from halfback.assembly.whole import Loaded
from halfback.codecs import Codec
from halfback.codecs.releases import RELEASED, Releases
from halfback.config import RunConfig
from halfback.config.facts import Shallow, Trained, method_of
from halfback.config.rules import check
from halfback.data.encode import EncodedTask, verbaliser_ids
from halfback.engine.bounds import bounds_of
from halfback.engine.links import Forms, Links
from halfback.models.adapters import set_trainable, trainable, untie
from halfback.models.auxiliary import auxiliary
from halfback.models.cut import CutModel, cut, recut
from halfback.models.exact import last
from halfback.models.normalising import batch_norms, statistics
from halfback.models.objectives import loss_of, terms
from halfback.models.part import Held, place, shape_behind
from halfback.models.quantising import quantise
from halfback.models.running import Bottom, LocalModel
from halfback.parties.holdings import Head, HiddenForm, LinkForm, VectorForm
from halfback.parties.protocol import Algorithm
from halfback.zeroth.directions import seed_for
from halfback.zeroth.replay import Replica, RowForm


@dataclass(frozen=True)
class Ground:
    """What all parties of a process have in common.

    Attributes:
        levels: the model at each of the clients' cuts, by cut; modules are shared.
        part: what θ belongs to, at the deepest cut.
        theta: what of θ this process has, as the federation agrees on it.
        head: the devices' head, in the U-shape.
        form: of the activations at the cut of whoever this process is for, the deepest where it is for all.
        norms: batch norms of the part that train; their statistics are in θ.
    """

    config: RunConfig
    algorithm: Algorithm
    device: torch.device
    task: EncodedTask
    levels: Mapping[int, CutModel]
    part: Bottom | LocalModel
    theta: Replica
    head: Head | None
    form: HiddenForm
    norms: Sequence[nn.BatchNorm2d] = ()

    @property
    def model(self) -> CutModel:
        """At the deepest cut."""
        return self.levels[max(self.levels)]

    def level(self, client: int) -> CutModel:
        """The model at a client's cut."""
        return self.levels[self.config.model.cut_of(client)]

    def parts(self, client: int) -> list[nn.Module]:
        """What a client holds of the model: the part that θ belongs to first."""
        part = self.part if isinstance(self.part, LocalModel) else self.level(client).bottom
        return [part] if self.head is None else [part, self.head.module]


def held_by(config: RunConfig, algorithm: Algorithm, client: int, *, read: bool) -> Held | None:
    """What a client alone holds of the model; None for all of it. `read`: its weights are in files of this machine."""
    first, head, kind = config.model.cut_of(client), config.model.head, config.model.auxiliary
    match algorithm.needs.holds:
        case "auxiliary" if kind != "linear":
            return Held(first + kind, 0, read)
        case "whole":
            return None if read else Held(sys.maxsize, 0, read)
        case _:
            return Held(first, head, read)


def lay(
    config: RunConfig, algorithm: Algorithm, loaded: Loaded, device: torch.device, client: int | None = None
) -> Ground:
    """Cuts the model and makes trainable what the recipe says; `client`: the one that alone is here.

    Raises:
        UserError: a setting trains nothing on a device, or asks for blocks that the model has not.
    """
    task, ids = loaded.task, verbaliser_ids(config.task.verbaliser, loaded.tokenizer)
    levels, part, theta = begun(config, algorithm, loaded.whole, device, ids, len(task.label_names))
    model = levels[max(levels)]
    own = model if client is None else levels[config.model.cut_of(client)]
    form, head = form_at(own, config, task, device), _head(own, task, device)
    norms = [norm for module in _normed(config, part).values() for norm in batch_norms(module).values()]
    return Ground(config, algorithm, device, task, levels, part, theta, head, form, norms)


def begun(
    config: RunConfig,
    algorithm: Algorithm,
    whole: nn.Module,
    device: torch.device,
    verbaliser: Sequence[int] | None,
    classes: int,
) -> tuple[dict[int, CutModel], Bottom | LocalModel, Replica]:
    """The model at each of the clients' cuts, what θ belongs to, and θ as it begins; of the rows it takes nothing.

    `verbaliser`: token ids, one a class, where there is one; `classes`: how many the task has. Raises as `lay` does.
    """
    cuts = sorted({config.model.cut_of(client) for client in range(config.clients)})
    model = cut(place(whole, device), cuts[-1], head=config.model.head, verbaliser=verbaliser)
    if config.bottom.weights == "int8":
        untie(model)
    set_trainable(
        model,
        bottom=config.bottom.train,
        top=config.top.train,
        lora=config.lora,
        seed=seed_for(config.seed, "adapters"),
    )
    if config.bottom.weights == "int8":
        quantise(model.bottom)
    levels = {at: recut(model, at, head=config.model.head) for at in cuts[:-1]} | {model.at: model}
    part = _part(config, algorithm, model, classes)
    place(part, device)
    return levels, part, _theta(config, algorithm, part, [levels[at] for at in cuts])


def _normed(config: RunConfig, part: Bottom | LocalModel) -> dict[str, nn.Module]:
    """What of a part has batch norms that train, by how names in there begin."""
    if not isinstance(part, LocalModel):
        return {"": part} if config.bottom.batch_norm == "train" else {}
    sides = (("bottom.", part.bottom, config.bottom.batch_norm), ("head.", part.head, config.top.batch_norm))
    return {name: module for name, module, how in sides if how == "train"}


def _normless(config: RunConfig, model: CutModel) -> str | None:
    """A side whose batch norm is to train and that has none; None where there is no such."""
    sides = (("bottom", model.bottom, config.bottom.batch_norm), ("top", model.top, config.top.batch_norm))
    return next((side for side, module, how in sides if how == "train" and not batch_norms(module)), None)


def _statistics(config: RunConfig, part: Bottom | LocalModel) -> dict[str, Tensor]:
    """The running statistics that go with θ, by their names in the part."""
    return {
        f"{place}{name}": tensor
        for place, module in _normed(config, part).items()
        for name, tensor in statistics(module).items()
    }


def _part(config: RunConfig, algorithm: Algorithm, model: CutModel, classes: int) -> Bottom | LocalModel:
    """What θ belongs to."""
    match algorithm.needs.holds:
        case "bottom":
            return model.bottom
        case "whole":
            return LocalModel(model.bottom, model.top)
        case "auxiliary":
            head = auxiliary(
                model,
                config.model.auxiliary,
                num_labels=classes,
                trained=config.top.train,
                lora=config.lora,
                seed=seed_for(config.seed, "auxiliary"),
            )
            return LocalModel(model.bottom, head)


def _theta(config: RunConfig, algorithm: Algorithm, part: Bottom | LocalModel, levels: Sequence[CutModel]) -> Replica:
    """The trained parameters of a part as the federation moves them; those that this process doesn't hold left out."""
    needs, agreement, names = algorithm.needs, algorithm.needs.agreement, list(trainable(part))
    groups = _between_cuts(names, levels[:-1])
    if agreement.groups is not None:
        groups = agreement.groups(names, config.sampled_clients)
    exact, model = _exact(agreement.exact_blocks, levels[-1], trainable(part)), levels[-1]
    count = 1 if groups is None else len(groups)
    normless = _normless(config, model)
    check(Trained(config, method_of(algorithm), len(trainable(model.bottom)), len(exact), count, normless))
    moved = trainable(part) | _statistics(config, part)
    return make_replica(
        config,
        config.bottom if needs.replays else None,
        {name: tensor for name, tensor in moved.items() if not tensor.is_meta},
        "bottom",
        form=RowForm(groups, exact),
        own_pace=needs.turns == "one_by_one",
    )


def _exact(count: int | str, model: CutModel, theta: Mapping[str, Tensor]) -> list[str]:
    """The names of θ in the last so many blocks of the bottom, whose gradient a device takes exactly."""
    inside = [{id(p) for p in block.parameters()} for block in last(model.bottom, count)]
    return [name for block in inside for name, parameter in theta.items() if id(parameter) in block]


def _between_cuts(names: Sequence[str], levels: Sequence[CutModel]) -> list[list[str]] | None:
    """The names of θ before the first of all cuts, then those between two neighbours; None where there is one cut.

    levels: the model with each cut but the deepest, from the shallowest on.
    """
    groups, left = [], list(names)
    for level in levels:
        inside = dict(level.bottom.named_parameters())
        groups.append([name for name in left if name in inside])
        left = [name for name in left if name not in inside]
    return [group for group in (*groups, left) if group] if levels else None


def groups_of(ground: Ground, client: int) -> Sequence[int] | None:
    """The groups of θ that a client measures, by their place; None for all.

    Raises:
        UserError: its cut is not the deepest, and it would train nothing.
    """
    level = ground.level(client)
    if level is ground.model:
        return None
    inside = dict(level.bottom.named_parameters())
    groups = [place for place, names in enumerate(ground.theta.groups) if names and names[0] in inside]
    check(Shallow(ground.config, method_of(ground.algorithm), level.at, level.blocks, len(groups)))
    return groups


@torch.no_grad()
def form_at(level: CutModel, config: RunConfig, task: EncodedTask, device: torch.device) -> HiddenForm:
    """The form of the activations at a cut."""
    inputs = task.train.batch([0]).to(device).inputs
    hidden = level.bottom(inputs)
    has_texts = "lengths" in inputs
    shape = (config.task.max_length, *hidden.shape[1:]) if has_texts else tuple(hidden.shape[1:])
    return HiddenForm(shape, has_texts, hidden.dtype)


@torch.no_grad()
def _head(level: CutModel, task: EncodedTask, device: torch.device) -> Head | None:
    """The devices' head; the shape that it takes is what the middle gives."""
    if level.head is None:
        return None
    inputs = task.train.batch([0]).to(device).inputs
    sizes = shape_behind(level.top, level.bottom(inputs), inputs.get("lengths"))
    return Head(level.head, loss_of(task.objective, task.own_loss), partial(terms, task.objective), sizes)


def forms_of(ground: Ground) -> dict[int | None, HiddenForm]:
    """The form of the activations of each client whose cut is not the deepest; under None, that of all others."""
    config, task, device, deepest = ground.config, ground.task, ground.device, ground.model
    others = {at: form_at(level, config, task, device) for at, level in ground.levels.items() if level is not deepest}
    cuts = {client: config.model.cut_of(client) for client in range(config.clients)}
    return {None: ground.form} | {client: others[at] for client, at in cuts.items() if at in others}


def _link_forms(first: HiddenForm, head: Head | None, exact: int) -> Forms:
    """What each link of a client with such activations, and so many exact gradients, carries, by its name."""
    forms: dict[str, LinkForm] = {"activations_up": first, "gradient_down": first}
    if head is not None:
        shape = (first.shape[0], *head.sizes) if first.has_texts else head.sizes
        second = HiddenForm(shape, first.has_texts, first.dtype)
        forms |= {"activations_down": second, "gradient_up": second}
    if exact:
        forms |= {"slopes_up": VectorForm(exact), "slopes_down": VectorForm(exact)}
    return forms


def make_links(
    ground: Ground,
    codecs: Mapping[str, tuple[Codec, ...]],
    forms: Mapping[int | None, HiddenForm],
    scratch: Path | None,
) -> Links:
    """The links of clients whose activations have these forms, by client; under None all others'.

    Raises:
        UserError: a codec can't work on its link.
    """
    config, needs = ground.config, ground.algorithm.needs
    bounds = bounds_of(
        needs,
        ground.theta,
        {} if ground.head is None else ground.head.parameters,
        rows=config.batch_size * (config.sampled_clients if needs.agreement.pools else 1),
        # Where clients take turns, each client's step is one.
        steps=config.steps * (config.sampled_clients if needs.turns == "one_by_one" else 1),
    )
    of_links = {client: _link_forms(form, ground.head, ground.theta.width(0)) for client, form in forms.items()}
    bounds = replace(bounds, sums=sums_of(config))
    links = Links(codecs, of_links, bounds, ground.task.train.longest(), ground.device, scratch)
    if links.private is not None and scratch is not None:
        links = replace(links, releases=Releases(scratch / RELEASED))
    links.check()
    return links
