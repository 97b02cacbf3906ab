"""From a configuration to objects, the only place that does: all parties of a run (`build`), or one client alone."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from halfback.assembly.choices import check as check
from halfback.assembly.choices import device_of, one_pass_of
from halfback.assembly.client import build_client as build_client
from halfback.assembly.clients import Clients
from halfback.assembly.fingerprint import fingerprint
from halfback.assembly.given import Given, check_fit
from halfback.assembly.ground import Ground, forms_of, lay, make_links
from halfback.assembly.local_models import make_locals
from halfback.assembly.server import server_side
from halfback.assembly.sources import client_sources, pooled_source
from halfback.assembly.whole import load, pretrain_whole
from halfback.config import RunConfig
from halfback.data.encode import EncodedTask
from halfback.data.sources import Preparation
from halfback.engine.federation import Federation
from halfback.engine.links import CACHES
from halfback.engine.server_side import ServerSide
from halfback.models.cut import CutModel, check_cut
from halfback.models.objectives import Evaluation, evaluate
from halfback.parties.attack import Liars
from halfback.zeroth.directions import seed_for

OnRows = Callable[[int, int], object]
"""Called while rows are worked through: how many are done, and how many there are."""


class Evaluate(Protocol):
    """What evaluates a run's model as it is."""

    def __call__(self, rows: int | None = None, told: OnRows | None = None) -> Evaluation: ...


@dataclass(frozen=True)
class Built:
    """Everything that a run needs.

    tokenizer: None for images. processor: None for all but images in colour. fingerprint: what the run is about.
    ground: what the parties stand on. clients: what the federation's are made of. skipped_rows: left out on request.
    evaluate: on all validation rows, or on so many, drawn with the run's seed, the same for every algorithm; it tells
        how many rows are done, of how many.
    how: the model wants the task's images.
    """

    config: RunConfig
    model: CutModel
    tokenizer: Any
    processor: Any
    task: EncodedTask
    federation: Federation
    ground: Ground
    clients: Clients
    evaluate: "Evaluate"
    fingerprint: Mapping[str, str]
    how: Preparation
    skipped_rows: int = 0


def build(
    config: RunConfig, *, pretrained: Path | None = None, scratch: Path | None = None, given: Given | None = None
) -> Built:
    """Loads data and model, cuts, and sets up the server and its clients.

    `pretrained`: where the weights of a recipe with `model.pretrain` are kept; trained and written there if absent, so
    a resumed run starts from the same bits. `scratch`: where codecs that remember on disk keep a temporary folder.
    `given`: what the configuration calls "given".
    """
    algorithm, codecs, controller = check(config)
    device = device_of(config)
    given = given or Given()
    loaded = load(config, given)
    if given.model is not None or given.loss is not None:
        piecewise = config.model.head is not None or algorithm.needs.holds != "bottom"
        check_fit(loaded.whole, loaded.tokenizer, loaded.task, config, piecewise=piecewise)
    for at in sorted({config.model.cut_of(client) for client in range(config.clients)}, reverse=True):
        check_cut(loaded.whole, at, config.model.head)  # before anything is pretrained for it
    if config.model.pretrain is not None:
        pretrain_whole(loaded.whole.to(device), loaded.raw, config, device, pretrained, loaded.how)
    pools, train = algorithm.needs.agreement.pools, loaded.task.train
    sources = pooled_source(config, train, device) if pools else client_sources(config, train, device)
    about = fingerprint(loaded.whole, loaded.task, sources)
    ground = lay(config, algorithm, loaded, device)
    if config.attack.name == "label_flip":
        for liar in config.attack.liars:
            sources[liar] = sources[liar].mislabelled(len(loaded.task.label_names))
    links, local = make_links(ground, codecs, forms_of(ground), scratch), make_locals(ground)
    rows = {number: len(source) for number, source in enumerate(sources)}
    side = server_side(ground, links, rows, local, controller)
    if config.attack.says:
        side.liars = Liars(config.attack, config.seed)
    clients = Clients(ground, links, dict(enumerate(sources)), local, side.meters)
    return Built(
        config,
        ground.model,
        loaded.tokenizer,
        loaded.processor,
        loaded.task,
        Federation(side, clients.side, one_pass=one_pass_of(config, device)),
        ground,
        clients,
        _Evaluating(config, side, ground.model, loaded.task, device),
        about,
        loaded.how,
        loaded.raw.skipped_rows,
    )


def clear_scratch(scratch: Path) -> None:
    """Removes what codecs remembered on disk, of a run that is over or was killed: checkpoints have what counts."""
    for left in scratch.glob(f"{CACHES}*"):
        shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True)
class _Evaluating:
    config: RunConfig
    server: ServerSide
    model: CutModel
    task: EncodedTask
    device: torch.device

    def __call__(self, rows: int | None = None, told: OnRows | None = None) -> Evaluation:
        self.server.agreed_bottom()
        task, split = self.task, self.task.validation
        chosen = torch.arange(len(split))
        if rows is not None:
            stream = np.random.SeedSequence([seed_for(self.config.seed, "first evaluation")])
            drawn = np.random.Generator(np.random.Philox(stream)).choice(len(split), size=rows, replace=False)
            chosen = torch.from_numpy(np.sort(drawn))

        def results() -> Iterator[tuple[Tensor, Tensor]]:
            done = 0
            for some in chosen.split(self.config.eval_batch_size):
                if told is not None:
                    told(done, len(chosen))
                batch = split.batch(some).to(self.device)
                yield self.model.logits(batch.inputs, batch.scored), batch.labels
                done += len(some)

        return evaluate(task.objective, results(), task.own_loss, task.own_metric)
