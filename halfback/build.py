"""From a configuration to objects: the only place that does."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from halfback.algorithms import algorithms
from halfback.algorithms.parties import Above, Local, Server
from halfback.algorithms.parties import Head as DeviceHead
from halfback.algorithms.protocol import Algorithm
from halfback.boundaries import settle
from halfback.codecs import Codec, parse
from halfback.codecs.temporal import Temporal
from halfback.config import BottomConfig, ModelConfig, RunConfig, TopConfig
from halfback.controllers import build as start_controller
from halfback.controllers import read_options
from halfback.controllers.protocol import Controller
from halfback.data.batches import ClientData
from halfback.data.encode import EncodedTask, Split, encode, verbaliser_ids
from halfback.data.partition import partition
from halfback.data.sources import data_folder
from halfback.data.tasks import RawTask, TaskOptions, load_task
from halfback.engines.ends import CACHES, ends_of
from halfback.engines.link import HiddenForm
from halfback.engines.simulation import Simulation
from halfback.errors import UserError
from halfback.models.adapters import set_trainable, trainable
from halfback.models.auxiliary import auxiliary
from halfback.models.cut import Bottom, CutModel, Device, cut, recut
from halfback.models.loading import Head, load_model
from halfback.models.objectives import Evaluation, evaluate, loss, terms
from halfback.models.pretraining import pretrain
from halfback.schedules import schedule
from halfback.zeroth.replay import Replica, Schedule, UpdateRule
from halfback.zeroth.seeds import seed_for
from halfback.zeroth.slopes import check_radius, default_radius, least_move, swallowed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """Everything that a run needs; `tokenizer` is None for images."""

    config: RunConfig
    model: CutModel
    tokenizer: Any
    task: EncodedTask
    simulation: Simulation
    evaluate: Callable[[], Evaluation]


def build(config: RunConfig, *, pretrained: Path | None = None, scratch: Path | None = None) -> Built:
    """Loads data and model, cuts, and sets up the parties.

    `pretrained`: where the weights of a recipe with `model.pretrain` are kept; trained and written there if absent, so
    a resumed run starts from the same bits. `scratch`: where codecs that remember on disk keep a temporary folder.
    """
    algorithm = build_algorithm(config)
    codecs = {link: parse(chosen, f"codecs.{link}") for link, chosen in config.codecs if chosen}
    controller = _controller(config, codecs)
    device = _device(config.device)
    raw = load_task(config.task, seed=seed_for(config.seed, "task"))
    whole, tokenizer = _load_model(config.model, config.task, raw, seed_for(config.seed, "model"))
    task = encode(raw, tokenizer, max_length=config.task.max_length, template=config.task.template)
    _check_sizes(whole, raw, task, config)
    if config.model.pretrain is not None:
        _pretrain(whole.to(device), raw, config, device, pretrained)
    words = config.task.verbaliser
    ids = verbaliser_ids(words, tokenizer) if words is not None and tokenizer is not None else None
    cuts = [config.model.cut_of(client) for client in range(config.clients)]
    model = cut(whole.to(device), max(cuts), head=config.model.head, verbaliser=ids)
    set_trainable(
        model,
        bottom=config.bottom.train,
        top=config.top.train,
        lora=config.lora,
        seed=seed_for(config.seed, "adapters"),
    )
    levels = {at: recut(model, at, head=config.model.head) for at in sorted({*cuts} - {model.at})}
    others = {client: levels[at] for client, at in enumerate(cuts) if at in levels}
    part = _device_part(config, algorithm, model, task).to(device)
    server = _server(config, algorithm, model, part, task, device, list(levels.values()))
    _place(config, algorithm, server, others, task, device)
    head = _head(model, task, device)
    alone = algorithm.traits.agreement == "alone"
    simulate = partial(
        Simulation,
        algorithm,
        server,
        part,
        seed=config.seed,
        device=device,
        bottom_optimizer=partial(_optimizer, config.bottom),
        bottom_clip=config.bottom.clip,
        schedule=_schedule(config.bottom, config.steps),
        head=head,
        ends=ends_of(
            codecs,
            _forms(server, head, server.hidden_shape),
            others={client: _forms(server, head, above.hidden_shape) for client, above in server.above.items()},
            batch_size=config.batch_size,
            longest=task.train.longest(),
            device=device,
            scratch=scratch,
        ),
        controller=controller,
        bottoms={client: other.bottom for client, other in others.items()},
    )
    simulation = simulate(
        _pooled(config, task.train, device) if alone else _sources(config, task.train, device),
        sampled_clients=1 if alone else config.sampled_clients,
        local=_locals(config, algorithm, server, model, part, task, partial(simulate, sampled_clients=1), device),
    )
    evaluation = partial(_evaluate, config, simulation, model, task, device)
    return Built(config, model, tokenizer, task, simulation, evaluation)


def clear_scratch(scratch: Path) -> None:
    """Removes what codecs remembered on disk, of a run that is over or was killed: checkpoints have what counts."""
    for left in scratch.glob(f"{CACHES}*"):
        shutil.rmtree(left, ignore_errors=True)


def build_algorithm(config: RunConfig) -> Algorithm:
    """The chosen algorithm with its options.

    Raises:
        UserError: an option has a value that is not allowed.
    """
    kind = algorithms()[config.algorithm.name]
    try:
        return TypeAdapter(kind).validate_python(config.algorithm.options())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"algorithm.{path}={first['input']!r}: {first['msg']}") from None


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda': no CUDA device is here; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _load_model(config: ModelConfig, options: TaskOptions, raw: RawTask, seed: int) -> tuple[nn.Module, Any]:
    head: Head = "classifier"
    if raw.train.images is not None:
        head = "image"
    elif raw.objective != "classification":
        head = "causal_lm"
    elif options.verbaliser is not None:
        head = "verbaliser"
    return load_model(
        _in_data_folder(config.name),
        head=head,
        num_labels=max(len(raw.label_names), 1),
        seed=seed,
        dtype=getattr(torch, config.dtype),
        in_channels=raw.in_channels or 3,
    )


def _check_sizes(whole: Any, raw: RawTask, task: EncodedTask, config: RunConfig) -> None:
    """Refuses rows that a model has no position embeddings for, before one is drawn in the middle of a run."""
    name, model = config.model.name, whole.config
    positions = getattr(model, "max_position_embeddings", None)
    if positions is not None and "roberta" in model.model_type:
        positions -= model.pad_token_id + 1  # its positions are counted from behind the padding's
    longest = max(task.train.longest(), task.validation.longest())
    if positions is not None and longest > positions:
        raise UserError(
            f"task.max_length={config.task.max_length}: a row has {longest} tokens; {name} takes up to {positions}"
        )
    longest, tokens = max((len(prompt.tokens) for prompt in task.prompts), default=0), config.task.max_new_tokens
    if positions is not None and config.task.generated_rows and longest + tokens > positions:
        raise UserError(
            f"task.max_new_tokens={tokens}: a prompt has {longest} tokens; {name} takes up to {positions} in all"
        )
    wanted = getattr(model, "image_size", None)
    if wanted is not None and raw.train.images is not None:
        wanted = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted, wanted)
        size = tuple(raw.train.images.shape[-2:])
        if size != wanted:
            raise UserError(f"task.image_size: images are {size[0]}×{size[1]}; {name} takes {wanted[0]}×{wanted[1]}")


def _in_data_folder(name: str) -> str:
    """A name that begins with `$HALFBACK_DATA/` as a path where the data sets are; any other name as it is."""
    marker, _, rest = name.partition("/")
    if marker != "$HALFBACK_DATA":
        return name
    folder = data_folder(Path(rest).parts[0])
    if folder is None:
        raise UserError(f"model.name={name!r}: HALFBACK_DATA has no such folder; set it, or name a file or folder")
    return str(folder.joinpath(*Path(rest).parts[1:]))


def _pretrain(model: nn.Module, target: RawTask, config: RunConfig, device: torch.device, kept: Path | None) -> None:
    settings = config.model.pretrain
    assert settings is not None
    if kept is not None and kept.exists():
        try:
            model.load_state_dict(load_file(kept))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{kept} can't be read: {error}") from None
        return
    raw = load_task(TaskOptions(settings.task), seed=seed_for(config.seed, "task"))
    if raw.train.images is None or raw.in_channels != target.in_channels:
        raise UserError(
            f"model.pretrain.task={settings.task!r}: images with {target.in_channels} channels are allowed, like those "
            f"of {target.name}"
        )
    if len(raw.label_names) > len(target.label_names):
        raise UserError(
            f"model.pretrain.task={settings.task!r} has {len(raw.label_names)} classes; at most "
            f"{len(target.label_names)} are allowed, like those of {target.name}"
        )
    source = ClientData(
        encode(raw, None, max_length=config.task.max_length, template=None).train,
        torch.arange(len(raw.train.labels)).numpy(),
        batch_size=settings.batch_size,
        seed=seed_for(config.seed, "pretrain"),
    )
    log.info("pretraining %s on %s, %d steps", config.model.name, settings.task, settings.steps)
    batches = (source.batch(number).to(device) for number in range(settings.steps))
    pretrain(model, ((batch.inputs, batch.labels) for batch in batches), lr=settings.lr)
    if kept is not None:
        unfinished = kept.with_suffix(".unfinished")
        try:
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.rename(kept)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise UserError(f"{kept} can't be written: {getattr(error, 'strerror', None) or error}") from None


def _server(
    config: RunConfig,
    algorithm: Algorithm,
    model: CutModel,
    part: Bottom | Device,
    task: EncodedTask,
    device: torch.device,
    levels: Sequence[CutModel],
) -> Server:
    bottom = trainable(model.bottom)
    traits = algorithm.traits
    if not bottom and traits.agreement != "frozen":
        raise UserError(
            f"bottom.train={config.bottom.train!r}: {config.algorithm.name} needs something to train on the device; "
            "use lora or full, or algorithm.name=frozen_bottom"
        )
    head = None if model.head is None else trainable(model.head)
    top = {} if traits.top == "none" else trainable(model.top) | (head or {})
    theta = trainable(part)
    replays = {"bottom": not traits.backpropagates and traits.agreement != "frozen", "top": traits.top == "replayed"}
    if traits.agreement != "frozen":
        _check_lr("bottom", config.bottom, theta, replays["bottom"], config.bottom.normalize)
    _check_lr("top", config.top, top, replays["top"], replays["top"] and config.bottom.normalize)
    hidden_shape, has_texts, hidden_dtype = _hidden(model, task.train, config.task.max_length, device)
    if getattr(algorithm, "estimator", "") != "forward_ad":
        for side, moved in (("bottom", theta), ("top", top)):
            if replays[side]:
                check_radius(moved, getattr(algorithm, "radius", None) or default_radius(moved, hidden_dtype))
    steps = config.steps * (config.sampled_clients if traits.one_by_one else 1)  # of what one server sees
    groups = _between_cuts(theta, levels)
    if traits.groups is not None:
        groups = traits.groups(list(theta), config.sampled_clients)
    server = Server(
        top=nn.Module() if traits.top == "none" else model.top,
        loss=partial(loss, task.objective),
        replica=_replica(config, config.bottom if replays["bottom"] else None, theta, "bottom", steps, groups),
        hidden_shape=hidden_shape,
        has_texts=has_texts,
        hidden_dtype=hidden_dtype,
        head=head,
        auxiliary=part.head if traits.device == "auxiliary" and isinstance(part, Device) else None,
        schedule=_schedule(config.top, steps),
    )
    if traits.top == "replayed":
        server.top_replica = _replica(config, config.top, top, "top", steps)
    elif traits.top == "backpropagated":
        server.make_optimizer = partial(_optimizer, config.top)
        server.optimizer, server.clip = server.make_optimizer(list(top.values())), config.top.clip
    return server


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


def _place(
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
        if algorithm.traits.agreement != "frozen" and not server.groups[client]:
            raise UserError(
                f"model.cut={config.model.cut}: with {other.at} of {other.blocks} blocks a device trains nothing; "
                "use a deeper cut, or other lora.targets"
            )


def _device_part(config: RunConfig, algorithm: Algorithm, model: CutModel, task: EncodedTask) -> Bottom | Device:
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


def _locals(
    config: RunConfig,
    algorithm: Algorithm,
    server: Server,
    model: CutModel,
    part: Bottom | Device,
    task: EncodedTask,
    simulate: Callable[..., Simulation],
    device: torch.device,
) -> Callable[[int], Local] | None:
    """The clients' own models, where they have any."""
    if not isinstance(part, Device):
        return None
    local = Local(part, partial(loss, task.objective), partial(terms, task.objective))
    if not algorithm.traits.boundaries:
        return lambda _: local
    longest = task.train.shortest_first()[-config.batch_size :].numpy()
    source = _OnDevice(ClientData(task.train, longest, batch_size=config.batch_size, seed=0), device)
    return settle(
        algorithm,
        server,
        model,
        local,
        clients=config.clients,
        rule=_rule(config, config.bottom),
        trial=lambda local: simulate([source], local=local),
        steps=min(config.steps_per_round, 2),  # the second finds the moments that the first has made
    )


def _schedule(part: BottomConfig | TopConfig, steps: int) -> Schedule:
    return schedule(part.schedule, warmup=part.warmup, total=steps)


def _replica(
    config: RunConfig,
    part: BottomConfig | TopConfig | None,
    parameters: Mapping[str, Tensor],
    side: str,
    steps: int,
    groups: Sequence[Sequence[str]] | None = None,
) -> Replica:
    """`part` is None for parameters that no replay moves: they need no moments."""
    return Replica(
        parameters,
        rule=UpdateRule() if part is None else _rule(config, part),
        seed_of=lambda step, p: seed_for(config.seed, "direction", side, step, p),
        law=config.bottom.law,
        schedule=_schedule(config.bottom if part is None else part, steps),
        groups=groups,
    )


def _rule(config: RunConfig, part: BottomConfig | TopConfig) -> UpdateRule:
    return UpdateRule(
        optimizer=part.optimizer,
        lr=part.lr,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        clip=part.clip,
        normalize=config.bottom.normalize,
    )


def _optimizer(part: BottomConfig | TopConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    if part.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=part.lr, weight_decay=part.weight_decay)
    momentum = part.momentum if part.optimizer == "momentum" else 0.0
    return torch.optim.SGD(parameters, lr=part.lr, momentum=momentum, weight_decay=part.weight_decay)


def _check_lr(
    side: str, part: BottomConfig | TopConfig, parameters: Mapping[str, Tensor], replays: bool, normalize: bool
) -> None:
    """Refuses steps that the weights' dtype rounds away; AdamW's and normalised ones are about as long as the rate."""
    dtypes = {parameter.dtype for parameter in parameters.values()}
    if not replays and part.optimizer == "adamw" and torch.float16 in dtypes:
        raise UserError(
            f"{side}.optimizer=adamw: its squared gradients vanish in float16; use model.dtype=bfloat16 or float32, "
            f"or {side}.optimizer=sgd"
        )
    if (part.optimizer == "adamw" or normalize) and (unchanged := swallowed(parameters, part.lr)) > 0.5:
        names = "/".join(sorted(str(dtype)[6:] for dtype in dtypes))
        raise UserError(
            f"{side}.lr={part.lr:g} is too small for {names}: a step rounds away in {unchanged:.0%} of the weights; "
            f"use at least {least_move(parameters, part.lr):.2g}, or train in float32"
        )


@torch.no_grad()
def _hidden(
    model: CutModel, split: Split, max_length: int, device: torch.device
) -> tuple[tuple[int, ...], bool, torch.dtype]:
    """Of the activations: shape behind the batch dimension (texts: at most), whether they are texts', and dtype."""
    batch = split.batch([0]).to(device)
    hidden = model.bottom(batch.inputs)
    has_texts = "attention_mask" in batch.inputs
    return (max_length if has_texts else hidden.shape[1], *hidden.shape[2:]), has_texts, hidden.dtype


def _forms(server: Server, head: DeviceHead | None, hidden_shape: tuple[int, ...]) -> dict[str, HiddenForm]:
    """What each link of a client with such activations carries, by its name."""
    first = HiddenForm(hidden_shape, server.has_texts, server.hidden_dtype)
    forms = {"activations_up": first, "gradient_down": first}
    if head is not None:
        shape = (first.shape[0], *head.sizes) if first.has_texts else head.sizes
        second = HiddenForm(shape, first.has_texts, first.dtype)
        forms |= {"activations_down": second, "gradient_up": second}
    return forms


def _controller(config: RunConfig, codecs: Mapping[str, tuple[Codec, ...]]) -> Controller | None:
    """What sets the thresholds; None where no link reuses anything."""
    read_options(config.controller.name, config.controller.options())
    links = sorted(link for link, chain in codecs.items() if isinstance(chain[0], Temporal))
    if not links:
        return None
    seed = seed_for(config.seed, "controller")
    return start_controller(config.controller.name, config.controller.options(), links, seed)


@torch.no_grad()
def _head(model: CutModel, task: EncodedTask, device: torch.device) -> DeviceHead | None:
    """The devices' head, in the U-shape; the shape that it takes is what the middle gives."""
    if model.head is None:
        return None
    batch = task.train.batch([0]).to(device)
    mask = batch.inputs.get("attention_mask")
    sizes = model.top(model.bottom(batch.inputs), mask).shape[1 if mask is None else 2 :]
    return DeviceHead(model.head, partial(loss, task.objective), partial(terms, task.objective), tuple(sizes))


@dataclass(frozen=True)
class _OnDevice:
    """A client's batches, placed where the model is."""

    data: ClientData
    device: torch.device

    def batch(self, number: int) -> Any:
        return self.data.batch(number).to(self.device)


def _sources(config: RunConfig, train: Split, device: torch.device) -> list[_OnDevice]:
    parts = partition(
        train.labels,
        config.clients,
        name=config.partition.name,
        alpha=config.partition.alpha,
        seed=seed_for(config.seed, "partition"),
    )
    return [
        _OnDevice(
            ClientData(train, rows, batch_size=config.batch_size, seed=seed_for(config.seed, "order", number)), device
        )
        for number, rows in enumerate(parts)
    ]


def _pooled(config: RunConfig, train: Split, device: torch.device) -> list[_OnDevice]:
    """One machine's data: the rows of all clients, and in a batch as many as those of a cohort together."""
    rows = torch.arange(len(train.labels)).numpy()
    size = config.batch_size * config.sampled_clients
    return [_OnDevice(ClientData(train, rows, batch_size=size, seed=seed_for(config.seed, "order", 0)), device)]


def _evaluate(
    config: RunConfig, simulation: Simulation, model: CutModel, task: EncodedTask, device: torch.device
) -> Evaluation:
    simulation.agreed_bottom()
    split = task.validation

    def results() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in split.shortest_first().split(config.eval_batch_size):
            batch = split.batch(rows).to(device)
            yield model.logits(batch.inputs), batch.labels

    return evaluate(task.objective, results())
