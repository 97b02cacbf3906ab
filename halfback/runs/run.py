"""Runs: begun, continued, looked at; the functions behind `halfback train`, `resume`, `export` and `generate`."""

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

from torch import nn

from halfback import config as configuration
from halfback.assembly.given import Given, settings_of
from halfback.config import RunConfig
from halfback.config.values import Config, resolve_values
from halfback.data.own import Data
from halfback.errors import Diverged, HalfbackError, Interrupted, UserError
from halfback.models.adapters import merged
from halfback.models.objectives import Evaluation, Loss, Metric
from halfback.report.page import write_report
from halfback.runs import checkpoint, exporting, generation, standing
from halfback.runs.folder import (
    BESIDE,
    CHECKPOINT,
    CONFIG,
    PRETRAINED,
    REPORT,
    check_free,
    config_of,
    copy_weights,
    make,
    taken,
)
from halfback.runs.folder import begin as begin_folder
from halfback.runs.locks import alone
from halfback.runs.opening import Caller, Opening, reload
from halfback.runs.progress import following
from halfback.runs.summary import Summary
from halfback.runs.training import OnRound, Training
from halfback.telemetry.records import RECORDS, SUMMARY, Record, read_records


@final
class Run:
    """One run: its configuration, what it recorded, and the model that it trains; finished, or waiting to go on.

    All of it is read from the run's folder, so nothing here is lost with the Python process. A run that was trained
    without `out` has a temporary folder, which is removed together with the last reference to its `Run`.

    Attributes:
        folder: where it is.
        config: its configuration.
    """

    def __init__(self, folder: Path, given: Given | None = None) -> None:
        """`load` and `train` make one; `given` are the parts that the configuration does not name."""
        self.folder = folder
        self.config = config_of(folder)
        self._given = given

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"<Run {str(self.folder)!r}: {self.config.algorithm.name} on {self.config.task.name}, {state}>"

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the summary is there."""
        return (self.folder / SUMMARY).exists()

    @property
    def summary(self) -> Summary:
        """What the run came to: its metric, its bytes, memory and seconds.

        Raises:
            UserError: the run is not finished.
        """
        if not self.finished:
            raise UserError(f"{self.folder} is not finished; resume it first")
        return standing.finished(self.config, self.folder)

    @property
    def records(self) -> list[Record]:
        """One record for each evaluation so far, the first of them from before training."""
        return read_records(self.folder) if (self.folder / RECORDS).exists() else []

    @property
    def beside(self) -> list["Run"]:
        """The runs of the algorithms in the setting `beside`, on the same work, as far as they have begun."""
        folders = [self.folder / BESIDE / name for name in self.config.beside]
        return [Run(folder, self._given) for folder in folders if (folder / CONFIG).exists()]

    def resume(self, *, on_round: OnRound | None = None, progress: bool = True) -> "Run":
        """Continues the run from its last checkpoint, to the bits of one that was never stopped; returns itself.

        Args:
            on_round: called behind every round with a `RunState`.
            progress: whether to show how the run goes.

        Raises:
            UserError: the checkpoint is damaged, or a file that the run began with has changed.
        """
        with following(on_round, progress=progress) as told:
            resume(self.folder, Caller(on_round=told, given=self._given))
        return self

    def model(self) -> nn.Module:
        """The whole model as the last checkpoint left it, both parts joined and adapters merged into the weights.

        It is the model of Transformers, or the module, that the run began with; in eval mode, on the run's device.
        """
        return merged(reload(self.folder, self._given).model)

    def evaluate(self) -> Evaluation:
        """Mean loss and metric of the last checkpoint's model on all validation rows."""
        return reload(self.folder, self._given).evaluate()

    def export(self, out: str | Path) -> Path:
        """Writes the model, and the tokenizer that gives it the run's tokens, as the new folder `out`; returns `out`.

        Transformers loads it, but for our ResNets; `model.name` takes it.

        Raises:
            UserError: `out` is there already or can't be written, or the run has no checkpoint.
        """
        exporting.export(self.folder, Path(out), self._given)
        return Path(out)

    def generate(
        self, texts: Sequence[str], *, beams: int | None = None, max_new_tokens: int | None = None
    ) -> list[str]:
        """What the fine-tuned model writes behind each text, once the task's template is put around it.

        Args:
            texts: what to continue.
            beams: of the beam search, 1 for greedy decoding; by default the run's `task.beams`.
            max_new_tokens: the longest continuation; by default the run's `task.max_new_tokens`.

        Raises:
            UserError: the run's model is a classifier, or a text is blank or too long.
        """
        chosen = {"beams": beams, "max_new_tokens": max_new_tokens}
        changes: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        for key, value in changes.items():
            if value < 1:
                raise UserError(f"{key}={value}: 1 or more are allowed")
        built = reload(self.folder, self._given)
        if built.task.objective == "classification":
            raise UserError(
                f"{self.folder} holds a classifier; generate takes runs with task.objective=generation or causal_lm"
            )
        options = dataclasses.replace(built.config.task, **changes)
        return generation.respond(built.model.whole, built.tokenizer, texts, options, built.config.eval_batch_size)


def train(
    config: Config = None,
    out: str | Path | None = None,
    *,
    model: nn.Module | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    data: Data | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    on_round: OnRound | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Fine-tunes: a shipped recipe, a YAML file or a mapping of settings, with settings changed by keyword.

    As in `train("quickstart", steps=300, bottom={"lr": 1e-3})`, where `**{"bottom.lr": 1e-3}` says the same.

    Args:
        config: a recipe's name, a path, a mapping, or a `RunConfig`; None where `settings` say everything.
        out: the run's new folder; without it the run lives in a temporary one for as long as the returned `Run`.
        model: a model of one's own, or settings of the section `model`.
        tokenizer: that model's, where it takes texts.
        data: rows of one's own to train and validate on.
        loss: a loss of one's own, (logits, labels) → the mean loss of these rows, a scalar.
        metric: a metric of one's own, (logits, labels) of all validation rows → a number, more is better.
        on_round: called behind every round with a `RunState`. An exception from it stops the run, which can go on.
        overwrite: whether to delete the run that `out` holds; any other folder is refused.
        progress: whether to show how the run goes: a bar on a terminal or in a notebook, elsewhere a line for each
            evaluation.
        **settings: of the recipe, by section or by path.

    Returns:
        The finished run.

    Raises:
        UserError: a setting or a file is wrong; `out` is then as it was before.
        Interrupted: Ctrl-C, behind the round that was running; a second one ends that round too.
        Diverged: a loss is not finite.
    """
    if isinstance(model, Mapping):
        settings, model = settings | {"model": model}, None
    given = Given(model, tokenizer, data, loss, metric)
    resolved = resolve_values(config, settings | settings_of(given))
    with following(on_round, progress=progress) as told:
        caller = Caller(on_round=told, given=given)
        if out is None:
            return _in_memory(resolved, caller)
        place = Path(out).resolve()  # also where `out` is the current folder, and is replaced
        begin(resolved, Path(out), caller, overwrite=overwrite)
    return Run(place, given)


def load(
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    data: Data | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
) -> Run:
    """The run in a folder, finished or not; it is checked when something of it is asked for.

    Args:
        folder: of a run, be it from here or from the command line.
        model: as `train` was given it, where it was; so are the others.
        tokenizer: likewise.
        data: likewise.
        loss: likewise.
        metric: likewise.

    Raises:
        UserError: the folder holds no run.
    """
    return Run(Path(folder), Given(model, tokenizer, data, loss, metric))


def begin(config: RunConfig, out: Path, caller: Caller, *, overwrite: bool = False) -> None:
    """Runs a configuration into the folder `out`, and those `beside` it.

    Raises:
        UserError: the configuration can't be run, or `out` holds a run already and `overwrite` is not set; `out` is
            then as it was before.
    """
    check_free(out, overwrite=overwrite)
    for name in config.beside:
        _beside(config, name)  # what is wrong with it is said before anything runs
    place = out.resolve()  # it is renamed below, also where it is the current folder
    opening = Opening(place, place / PRETRAINED, Path.cwd(), caller)
    with _resumable(place), ExitStack() as locks:
        with taken(place, locks):
            begin_folder(config, place)
            if caller.pretrained is not None:
                copy_weights(caller.pretrained, place)
            training = opening.training(config, None)
        _carry_out(config, opening, training)


def resume(out: Path, caller: Caller) -> None:
    """Continues what `begin` began in `out` from the last checkpoint, bit for bit.

    Raises:
        UserError: `out` holds no run, or its checkpoint belongs to another configuration.
    """
    config = config_of(out)
    with _resumable(out), alone(out):
        _carry_out(config, Opening(out, out / PRETRAINED, Path.cwd(), caller), None)


def run_deployed(config: RunConfig, out: Path, caller: Caller) -> None:
    """Begins or continues a run in `out` (see `folder.check_config`) whose clients are elsewhere.

    Raises:
        UserError: too few clients came.
    """
    make(out)
    begin_folder(config, out)  # also anew: how long to wait for clients may be another than before
    Opening(out, out / PRETRAINED, caller=caller).carried_on()
    write_report([out], out / REPORT)


def same_work(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations have the same rows, shared out alike, and begin from the same weights."""
    parts = [
        (c.seed, c.task, c.clients, c.partition, c.model.model_copy(update={"cut": 0, "head": None, "auxiliary": 0}))
        for c in (one, other)
    ]
    return parts[0] == parts[1]


def _in_memory(config: RunConfig, caller: Caller) -> Run:
    """A run in a temporary folder, which goes with the `Run`; it stays where somebody stopped the run."""
    folder = Path(tempfile.mkdtemp(prefix="halfback-"))
    try:
        begin(config, folder, caller)
    except BaseException as error:
        if isinstance(error, HalfbackError) or not (folder / CONFIG).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    run = Run(folder, caller.given)
    weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run


def _carry_out(config: RunConfig, opening: Opening, training: Training | None) -> None:
    """The run to its end, then those beside it; `training` where it has been opened."""
    out = opening.out
    if training is None:
        opening.carried_on()
    else:
        opening.finished(training)
    write_report([out], out / REPORT)
    kept = checkpoint.values_of(out / CHECKPOINT) if config.beside else None
    start = opening.start if not kept or kept.get("start") is None else Path(kept["start"])
    for name in config.beside:
        folder, other = out / BESIDE / name, _beside(config, name)
        make(folder)
        like = kept["fingerprint"] if kept and same_work(config, other) else None
        caller = dataclasses.replace(opening.caller, like=like)
        try:
            with alone(folder):
                if not (folder / CONFIG).exists():
                    begin_folder(other, folder)
                Opening(folder, opening.weights, start, caller).carried_on()
        except Diverged as error:
            raise Diverged(
                f"{name}, beside the finished {config.algorithm.name}: {error} (see {out / REPORT})"
            ) from None
        write_report([out], out / REPORT)


def _beside(config: RunConfig, name: str) -> RunConfig:
    """The same work with another algorithm."""
    return configuration.from_tree(configuration.to_tree(config), {"algorithm.name": name, "beside": []})


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Whoever stops a run is told where it is, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if (out / CONFIG).exists():
            raise Interrupted(out, f"halfback.load({str(out)!r}).resume()") from None
        raise
    except HalfbackError:
        raise
    except Exception as error:
        if checkpoint.rounds(out / CHECKPOINT):
            error.add_note(f"the run is kept in {out}: halfback.load({str(out)!r}).resume() goes on with it")
        raise
