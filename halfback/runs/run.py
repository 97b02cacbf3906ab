"""One run from its first round to its summary, and from a checkpoint on."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import Built, build, clear_scratch
from halfback.assembly.fingerprint import check_same
from halfback.assembly.places import placed
from halfback.config import RunConfig
from halfback.errors import CohortLost, Diverged, UserError
from halfback.parties.holdings import Round
from halfback.report.page import write_report
from halfback.runs import checkpoint, standing
from halfback.runs.locks import alone, unchanging
from halfback.runs.standing import CHECKPOINT as CHECKPOINT
from halfback.runs.standing import CONFIG as CONFIG
from halfback.runs.summary import summary_of
from halfback.telemetry.records import (
    SUMMARY,
    Record,
    truncate_records,
    write_summary,
    writing,
)
from halfback.telemetry.sinks import JsonLines, Sink, TensorBoard

_STEPS_BACK = 20  # to one checkpoint in a row, until a run with lost clients gives up
PRETRAINED, REPORT = "pretrained.safetensors", "report.html"

log = logging.getLogger(__name__)

Watch = Callable[[Built, int, Record], None]
"""Called after each round with what runs, the step and the newest record (its loss and bytes are current)."""


def train(
    config: RunConfig,
    out: Path,
    *,
    overwrite: bool = False,
    watch: Watch | None = None,
    pretrained: Path | None = None,
    like: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Runs a configuration into the folder `out`; returns the summaries of the run and of those `beside` it.

    `pretrained` is a file of weights that another run of the same pretraining made; it is copied. `like` is the
    fingerprint of a run that this one is to be compared with.

    Raises:
        UserError: the configuration can't be run, or `out` holds a run already and `overwrite` is not set; `out` is
            then as it was before.
    """
    if (out / CONFIG).exists():
        if not overwrite:
            raise UserError(f"--out {out} holds a run already: continue with `halfback resume {out}`, or --overwrite")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is no run folder; name a new folder")
    for name in config.beside:
        _beside(config, name)  # what is wrong with it is said before anything runs
    out, start = out.resolve(), Path.cwd()  # it is renamed below, also where it is the current folder
    replaced = out.with_name(f"{out.name}.replaced")
    with ExitStack() as locks:
        if (out / CONFIG).exists():
            locks.enter_context(alone(out))  # also where it is put back
            shutil.rmtree(replaced, ignore_errors=True)
            try:
                out.rename(replaced)
            except OSError as error:
                raise UserError(f"--out {out} can't be replaced: {error.strerror}") from None
        ours = False
        try:
            _make(out)
            locks.enter_context(alone(out))
            if (out / CONFIG).exists():
                raise UserError(f"--out {out} holds a run already, begun by another process")
            ours = True
            _begin(config, out)
            if pretrained is not None:
                _copy(pretrained, out / PRETRAINED)
            progress = _opened(config, out, watch, out / PRETRAINED, None, start=start, like=like)
        except Exception:
            if ours:
                shutil.rmtree(out, ignore_errors=True)
            if replaced.exists() and not out.exists():
                replaced.rename(out)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
        return _to_the_end(config, out, watch, progress, start)


def resume(out: Path, *, watch: Watch | None = None, like: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Continues what `train` began in `out` from the last checkpoint, bit for bit; returns the same summaries.

    `like`: as for `train`.

    Raises:
        UserError: `out` holds no run, or its checkpoint belongs to another configuration.
    """
    if not (out / CONFIG).exists():
        raise UserError(f"{out} holds no run: there is no {CONFIG}")
    with alone(out):
        return _to_the_end(configuration.load(out / CONFIG), out, watch, None, Path.cwd(), like)


def reload(out: Path) -> Built:
    """The model and the parties as the last checkpoint in `out` left them.

    Raises:
        UserError: `out` holds no run, or no checkpoint of its configuration.
    """
    if not (out / CONFIG).exists():
        raise UserError(f"{out} holds no run: there is no {CONFIG}")
    with unchanging(out):
        config = configuration.load(out / CONFIG)
        found = standing.load(config, out)
        if found is None:
            raise UserError(f"{out} has no checkpoint yet; continue it with `halfback resume {out}`")
        built = _built(config, out, out / PRETRAINED, found, None)
        built.federation.load_state(found[1], found[2])
    built.federation.server.agreed_bottom()
    return built


def _to_the_end(
    config: RunConfig,
    out: Path,
    watch: Watch | None,
    begun: "_Progress | None",
    start: Path,
    like: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    summaries = [_finish(out, watch, out / PRETRAINED, begun, start=start, like=like)]
    write_report([out], out / REPORT)
    kept = checkpoint.values_of(out / CHECKPOINT) if config.beside else None
    start = Path((kept or {}).get("start") or start)
    for name in config.beside:
        folder = out / "beside" / name
        _make(folder)
        try:
            with alone(folder):
                if not (folder / CONFIG).exists():
                    _begin(_beside(config, name), folder)
                as_here = kept["fingerprint"] if kept and same_work(config, _beside(config, name)) else None
                summaries.append(_finish(folder, watch, out / PRETRAINED, None, start=start, like=as_here))
        except Diverged as error:
            raise Diverged(
                f"{name}, beside the finished {config.algorithm.name}: {error} (see {out / REPORT})"
            ) from None
        write_report([out], out / REPORT)
    return summaries


def same_work(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations have the same rows, shared out alike, and begin from the same weights."""
    parts = [
        (c.seed, c.task, c.clients, c.partition, c.model.model_copy(update={"cut": 0, "head": None, "auxiliary": 0}))
        for c in (one, other)
    ]
    return parts[0] == parts[1]


def _beside(config: RunConfig, name: str) -> RunConfig:
    """The same work with another algorithm."""
    return configuration.from_tree(configuration.to_tree(config), {"algorithm.name": name, "beside": []})


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None


def _begin(config: RunConfig, out: Path) -> None:
    try:
        unfinished = out / f"{CONFIG}.unfinished"
        unfinished.unlink(missing_ok=True)  # not written through, where it is a link
        unfinished.write_text(configuration.dump(config))
        unfinished.rename(out / CONFIG)
    except OSError as error:
        raise UserError(f"--out {out} can't be written: {error.strerror}") from None


def _copy(source: Path, target: Path) -> None:
    unfinished = target.with_suffix(".unfinished")
    with writing(target):
        shutil.copyfile(source, unfinished)
        unfinished.rename(target)


_Found = tuple[int, dict[str, Tensor], dict[str, Any]]


def _opened(
    config: RunConfig,
    out: Path,
    watch: Watch | None,
    pretrained: Path,
    found: _Found | None,
    engine: "Callable[[Built], Engine] | None" = None,
    *,
    start: Path | None = None,
    like: Mapping[str, str] | None = None,
) -> "_Progress":
    built = _built(config, out, pretrained, found, start, scratch=out)
    if like is not None:
        check_same(like, built.fingerprint, "what this run is compared with")
    start = start if found is None else _start_of(found)
    progress = _Progress(built, out, watch, built.federation if engine is None else engine(built), start)
    if found is None:
        progress.begin()
    else:
        progress.load(*found)
    return progress


def _built(
    config: RunConfig,
    out: Path,
    pretrained: Path,
    found: _Found | None,
    start: Path | None,
    scratch: Path | None = None,
) -> Built:
    """Everything that the run needs, from the files that it began with; UserError where they have changed."""
    start = start if found is None else _start_of(found)
    here = config if start is None else placed(config, start)
    built = replace(build(here, pretrained=pretrained, scratch=scratch), config=config)
    if found is not None:
        if lost := sorted(built.fingerprint.keys() ^ found[2]["fingerprint"].keys()):
            raise UserError(f"checkpoint {out / CHECKPOINT} can't be read: values.json: fingerprint: {lost[0]} is due")
        check_same(found[2]["fingerprint"], built.fingerprint, out)
    return built


def _start_of(found: _Found) -> Path | None:
    return None if found[2].get("start") is None else Path(found[2]["start"])


def check_config(config: RunConfig, out: Path) -> None:
    """UserError if `out` holds a run of another configuration; how long to wait for clients may be another."""
    if (out / CONFIG).exists():
        kept = configuration.load(out / CONFIG)
        ours, theirs = configuration.to_tree(config), configuration.to_tree(kept)
        if key := next((key for key in ours if key != "deployment" and ours[key] != theirs[key]), None):
            raise UserError(
                f"{out} holds another run: {key} was {theirs[key]!r}, now it is {ours[key]!r}; "
                "give this one another --name"
            )


def serve(config: RunConfig, out: Path, engine: "Callable[[Built], Engine]", watch: Watch) -> dict[str, Any]:
    """Begins or continues a run in `out` (see `check_config`) whose clients are elsewhere; returns its summary.

    Raises:
        UserError: too few clients came.
    """
    _make(out)
    _begin(config, out)  # also anew: how long to wait for clients may be another than before
    summary = _finish(out, watch, out / PRETRAINED, None, engine)
    write_report([out], out / REPORT)
    return summary


def _finish(
    out: Path,
    watch: Watch | None,
    pretrained: Path,
    progress: "_Progress | None",
    engine: "Callable[[Built], Engine] | None" = None,
    *,
    start: Path | None = None,
    like: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`start`: where one that begins here is begun, None where nobody needs to know; `like`: as `train` takes it."""
    if progress is None:
        clear_scratch(out)
        config = configuration.load(out / CONFIG)
        found = standing.load(config, out)
        if found is not None and (out / SUMMARY).exists():
            if found[2]["step"] < config.steps:
                raise UserError(f"{out / SUMMARY} is there, but the checkpoint is that of step {found[2]['step']}")
            log.info("%s: complete", out)
            return standing.finished(config, out)
        if found is None:
            _check_place(out / CHECKPOINT)
        else:
            log.info("%s: continuing from step %d of %d", out, found[2]["step"], config.steps)
        progress = _opened(config, out, watch, pretrained, found, engine, start=start, like=like)
    with closing(progress):
        try:
            progress.to_the_end()
        except Diverged as error:
            error.after_step = progress.step
            raise
    summary = summary_of(progress.built, out)
    write_summary(out, summary)
    return summary


def _check_place(folder: Path) -> None:
    """Refuses what no checkpoint can be written into, before the records of what was there are taken away."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise UserError(f"checkpoint {folder} can't be read: it is no folder")


class Engine(Protocol):
    """What carries a run's rounds: the federation in one process, or its server with clients elsewhere."""

    def run_round(self, round: Round, *, measure_memory: bool) -> float: ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None: ...


class _Progress:
    """Where a run stands, and the three things done with that: evaluate, save, finish."""

    def __init__(self, built: Built, out: Path, watch: Watch | None, engine: Engine, start: Path | None) -> None:
        self.built = built
        self.start = start
        self.engine = engine
        self.config = built.config
        self.out = out
        self.watch = watch
        self.round = 0
        self.step = 0
        self.losses: list[float] = []  # of the rounds since the last record
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        self.sinks: list[Sink] = []
        self.steps_back = 0  # in a row, to the same checkpoint

    def begin(self) -> None:
        """The first record and the first checkpoint, before anything is trained."""
        truncate_records(self.out, -1)
        self.evaluate()
        self.save()

    def to_the_end(self) -> None:
        config, server = self.config, self.built.federation.server
        rounds = math.ceil(config.steps / config.steps_per_round)
        while self.round < rounds:
            steps = min(config.steps_per_round, config.steps - self.step)
            measure = self.round % config.memory_every == 0
            round = Round(self.round, steps, self.step)
            try:
                loss = self.engine.run_round(round, measure_memory=measure)
            except CohortLost as error:
                self.go_back(error)
                continue
            self.losses.append(loss)
            self.round += 1
            self.step += steps
            last = self.round == rounds
            validation_loss = None
            if last or self.round % config.eval_every == 0:
                validation_loss = self.evaluate()
            elif self.watch is not None:
                self.watch(self.built, self.step, self.record(None, None))
            server.steer(round, train_loss=loss, validation_loss=validation_loss)
            if last or self.round % config.checkpoint_every == 0:
                self.save()

    def record(self, validation_loss: float | None, metric: float | None) -> Record:
        server = self.built.federation.server
        meters = server.meters
        return Record(
            round=self.round,
            step=self.step,
            train_loss=sum(self.losses) / len(self.losses) if self.losses else math.nan,
            validation_loss=validation_loss,
            metric=metric,
            up_bytes=server.ledger.total("up"),
            down_bytes=server.ledger.total("down"),
            client_seconds=meters.client.seconds,
            server_seconds=meters.server.seconds,
            wire_seconds=meters.wire.seconds,
            wall_seconds=self.seconds_before + time.perf_counter() - self.started,
            forward_passes=meters.forward_passes,
            thresholds=server.thresholds(),
        )

    def evaluate(self) -> float:
        """Writes a record; returns the validation loss."""
        result = self.built.evaluate()
        if not math.isfinite(result.loss):
            cure = "lower the learning rates (top.lr, bottom.lr)"
            raise Diverged("the validation loss", f"is {result.loss}", cure, step=self.step)
        record = self.record(result.loss, result.metric)
        if not self.sinks:
            self.sinks.append(JsonLines(self.out))
            if self.config.tensorboard:
                self.sinks.append(TensorBoard(self.out, self.step or None))
        for sink in self.sinks:
            sink.write(record)
        self.losses = []
        if self.watch is not None:
            self.watch(self.built, self.step, record)
        return result.loss

    def save(self) -> None:
        tensors, values = self.engine.state()
        if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
            cure = "lower the learning rates (top.lr, bottom.lr) or clip (top.clip, bottom.clip)"
            raise Diverged(broken[0], "is not finite", f"{cure}. The last checkpoint is kept", step=self.step)
        values |= {
            "config": configuration.to_tree(self.config),
            "step": self.step,
            "losses": self.losses,
            "wall_seconds": self.seconds_before + time.perf_counter() - self.started,
            "fingerprint": dict(self.built.fingerprint),
            "start": None if self.start is None else str(self.start),
        }
        checkpoint.save(self.out / CHECKPOINT, self.round, tensors, values)
        self.steps_back = 0

    def load(self, round_number: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.engine.load_state(tensors, values)
        self.round, self.step, self.losses = round_number, values["step"], values["losses"]
        self.seconds_before, self.started = values["wall_seconds"], time.perf_counter()
        truncate_records(self.out, round_number)

    def go_back(self, error: CohortLost) -> None:
        """To the last checkpoint, unless that has led nowhere again and again."""
        self.steps_back += 1
        if self.steps_back > _STEPS_BACK:
            raise UserError(f"went back to the checkpoint of round {self.round} {_STEPS_BACK} times, still: {error}")
        log.info("%s; going back to the last checkpoint", error)
        found = standing.load(self.config, self.out)
        if found is None:
            raise UserError(f"{self.out / CHECKPOINT} is gone, and with it what the run would go on from") from None
        self.close_sinks()  # the records after the checkpoint are taken away under them
        self.load(*found)

    def close_sinks(self) -> None:
        for sink in self.sinks:
            sink.close()
        self.sinks = []

    def close(self) -> None:
        self.close_sinks()
        clear_scratch(self.out)
