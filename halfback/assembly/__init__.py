"""From a configuration to objects: the only place that does."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfback.assembly.clients import Holdings, client_side
from halfback.assembly.fingerprint import fingerprint
from halfback.assembly.given import Given, check_fit, check_given, with_functions
from halfback.assembly.parties import device_head, device_part, link_forms, make_locals, make_server, place_above
from halfback.assembly.sources import Site, client_sources, pooled_source, site_sources
from halfback.assembly.whole import (
    check_rows,
    load_whole,
    preparation,
    pretrain_whole,
    processor_of,
)
from halfback.codecs import Codec, parse
from halfback.codecs.temporal import Temporal
from halfback.config import RunConfig, build_algorithm
from halfback.controllers import build as start_controller
from halfback.controllers import read_options
from halfback.controllers.protocol import Controller
from halfback.data.encode import EncodedTask, encode, verbaliser_ids
from halfback.data.tasks import load_task
from halfback.engine.bounds import bounds_of
from halfback.engine.federation import Federation
from halfback.engine.links import CACHES, Forms, Links
from halfback.engine.sampling import Sampling
from halfback.engine.server_side import ServerSide
from halfback.errors import UserError
from halfback.models.adapters import set_trainable
from halfback.models.cut import CutModel, cut, recut
from halfback.models.objectives import Evaluation, evaluate
from halfback.parties.protocol import Algorithm
from halfback.zeroth.directions import seed_for


@dataclass(frozen=True)
class Built:
    """Everything that a run needs.

    tokenizer: None for images. processor: None for all but images in colour. fingerprint: what the run is about.
    holdings: what the clients of this process hold. skipped_rows: left out on request.
    """

    config: RunConfig
    model: CutModel
    tokenizer: Any
    processor: Any
    task: EncodedTask
    federation: Federation
    holdings: Holdings
    evaluate: Callable[[], Evaluation]
    fingerprint: Mapping[str, str]
    skipped_rows: int = 0


def build(
    config: RunConfig,
    *,
    pretrained: Path | None = None,
    scratch: Path | None = None,
    site: Site | None = None,
    given: Given | None = None,
) -> Built:
    """Loads data and model, cuts, and sets up the parties.

    `pretrained`: where the weights of a recipe with `model.pretrain` are kept; trained and written there if absent, so
    a resumed run starts from the same bits. `scratch`: where codecs that remember on disk keep a temporary folder.
    `site`: this is the machine of one client, whose server is elsewhere and has done the pretraining. `given`: what
    the configuration calls "given".
    """
    algorithm, codecs, controller = check(config)
    given = given or Given()
    check_given(config, given)
    device = _device(config.device)
    how = preparation(config.model, config.task)
    classes = () if site is None else site.classes
    raw = load_task(config.task, seed=seed_for(config.seed, "task"), classes=classes, how=how, given=given.data)
    whole, tokenizer = load_whole(config, raw, given)
    options = config.task
    continued = options.verbaliser is not None
    task = encode(raw, tokenizer, max_length=options.max_length, template=options.template, continued=continued)
    check_rows(whole, tokenizer, raw, task, config)
    task = with_functions(task, given)
    if given.model is not None or given.loss is not None:
        piecewise = config.model.head is not None or algorithm.needs.holds != "bottom"
        check_fit(whole, tokenizer, task, config, piecewise=piecewise)
    if config.model.pretrain is not None and site is None:
        pretrain_whole(whole.to(device), raw, config, device, pretrained, how)
    if site is not None and site.own_rows:
        sources = site_sources(config, task.train, site, device)
    elif algorithm.needs.agreement.pools:
        sources = pooled_source(config, task.train, device)
    else:
        sources = client_sources(config, task.train, device)
    about = fingerprint(whole, task, sources)
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
    part = device_part(config, algorithm, model, task).to(device)
    server = make_server(config, algorithm, model, part, task, device, list(levels.values()))
    place_above(config, algorithm, server, others, task, device)
    head = device_head(model, task, device)
    alone = algorithm.needs.agreement.pools
    bounds = bounds_of(
        algorithm,
        server,
        rows=config.batch_size * (config.sampled_clients if alone else 1),
        # Where clients take turns, each client's step is one.
        steps=config.steps * (config.sampled_clients if algorithm.needs.turns == "one_by_one" else 1),
    )
    if algorithm.needs.agreement.aggregation == "rows":
        server.cohort.rows = {number: len(source) for number, source in enumerate(sources)}
    forms: dict[int | None, Forms] = {None: link_forms(server.top.form, head)}
    forms |= {client: link_forms(above.form, head) for client, above in server.top.above.items()}
    links = Links(codecs, forms, bounds, task.train.longest(), device, scratch)
    links.check()
    sampling = Sampling(config.seed, len(sources), 1 if alone else config.sampled_clients)
    side = ServerSide(algorithm, server, part, sampling, links, controller)
    bottoms = {client: other.bottom for client, other in others.items()}
    holdings = Holdings(sources, bottoms, head, make_locals(config, algorithm, server, model, part, task))
    federation = Federation(side, partial(client_side, config, side, holdings))
    evaluation = partial(_evaluate, config, side, model, task, device)
    how_made, skipped = processor_of(how, raw), raw.skipped_rows
    return Built(config, model, tokenizer, how_made, task, federation, holdings, evaluation, about, skipped)


def check(config: RunConfig) -> tuple[Algorithm, dict[str, tuple[Codec, ...]], Controller | None]:
    """The chosen algorithm, the codecs by link, and what sets the thresholds.

    Raises:
        UserError: an option of one of them has a value that is not allowed.
    """
    codecs = {link: parse(chosen, f"codecs.{link}") for link, chosen in config.codecs if chosen}
    return build_algorithm(config), codecs, _controller(config, codecs)


def clear_scratch(scratch: Path) -> None:
    """Removes what codecs remembered on disk, of a run that is over or was killed: checkpoints have what counts."""
    for left in scratch.glob(f"{CACHES}*"):
        shutil.rmtree(left, ignore_errors=True)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda': no CUDA device is here; use device=cpu or device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _controller(config: RunConfig, codecs: Mapping[str, tuple[Codec, ...]]) -> Controller | None:
    """What sets the thresholds; None where no link reuses anything."""
    read_options(config.controller.name, config.controller.options())
    links = sorted(link for link, chain in codecs.items() if isinstance(chain[0], Temporal))
    if not links:
        return None
    seed = seed_for(config.seed, "controller")
    return start_controller(config.controller.name, config.controller.options(), links, seed)


def _evaluate(
    config: RunConfig, server: ServerSide, model: CutModel, task: EncodedTask, device: torch.device
) -> Evaluation:
    server.agreed_bottom()
    split = task.validation

    def results() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in split.shortest_first().split(config.eval_batch_size):
            batch = split.batch(rows).to(device)
            yield model.logits(batch.inputs), batch.labels

    return evaluate(task.objective, results(), task.own_loss, task.own_metric)
