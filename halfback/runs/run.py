"""Runs from Python: `train` and `load` give a `Run`, which goes on, is looked at, exported, and asked to write."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import nn

from halfback.assembly.given import Given, settings_of
from halfback.config import RunConfig
from halfback.config.values import Config, resolve_values
from halfback.data.own import Data
from halfback.errors import HalfbackError, UserError
from halfback.models.adapters import merged
from halfback.models.objectives import Loss, Metric
from halfback.runs import execution, exporting, standing
from halfback.runs.evaluating import Scores, scored
from halfback.runs.folder import (
    BESIDE,
    CONFIG,
    config_of,
)
from halfback.runs.heartbeat import working
from halfback.runs.opening import Caller, Which, reload
from halfback.runs.predicting import predictions
from halfback.runs.progress import following
from halfback.runs.subject import subject
from halfback.runs.summary import Summary
from halfback.runs.told import OnRound
from halfback.runs.writing import asked, written
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
        """`load` and `train` make one.

        Args:
            folder: where it is.
            given: what was given in Python, in place of names in the configuration.
        """
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
        """Continues the run from its last checkpoint, to the bits of one that was never stopped.

        Args:
            on_round: called behind every round with a `RunState`.
            progress: whether to show how the run goes.

        Returns:
            Itself, finished.

        Raises:
            UserError: the checkpoint is damaged, or a file that the run began with has changed.
        """
        with following(on_round, progress=progress) as told:
            execution.resume(self.folder, Caller(on_round=told.on_round, on_rows=told.on_rows, given=self._given))
        return self

    def model(self, *, checkpoint: Which = "last") -> nn.Module:
        """The whole model as a checkpoint left it, both parts joined and adapters merged into the weights.

        Args:
            checkpoint: `last`, or `best`: that of the best evaluation, where the run has `keep_best`.

        Returns:
            The model of Transformers, or the module, that the run began with; in eval mode, on the run's device.
        """
        return merged(reload(self.folder, self._given, checkpoint).model)

    def predict(self, data: Any, *, checkpoint: Which = "last", progress: bool = True) -> list[dict[str, Any]]:
        """What the trained model says of rows; they are read as the run read its own.

        Args:
            data: the path of a CSV, JSON or JSONL file, of an image or of a folder of images, or rows in a form that
                `Data` takes; labels are not needed, so a list of texts will do, or an array of tensors.
            checkpoint: as for `model`.
            progress: whether to show how far it is.

        Returns:
            A dict for each row in turn: what came with it, and with a classifier `predicted` (the class) and
            `probability_CLASS` of each class, with a language model `perplexity` (None for a text of one token), with
            a model that writes `generated`.

        Raises:
            UserError: the rows can't be read so, or the model can't take them.
        """
        with working("predicting", shown=progress) as told:
            own = subject(self.folder, self._given, which=checkpoint)
            return list(predictions(own, own.read(data, answers=False), told))

    def evaluate(
        self, data: Any = None, *, generated: int | None = None, checkpoint: Which = "last", progress: bool = True
    ) -> Scores:
        """How good the trained model is.

        Args:
            data: rows with their answers, as for `predict`; None for the run's own validation rows.
            generated: different inputs that a model which writes continues, for BLEU and chrF; by default the run's
                `task.generated_rows`, and of other rows all.
            checkpoint: as for `model`.
            progress: whether to show how far it is.

        Returns:
            The mean loss, the metric, and what there is beside it; on the run's own rows the metric is the record's.

        Raises:
            UserError: the rows can't be read so, or have a label that the run doesn't know.
        """
        with working("evaluating", shown=progress) as told:
            own = subject(self.folder, self._given, which=checkpoint)
            rows = None if data is None else own.read(data, answers=True)
            return scored(own, rows, generated=generated, told=told)

    def export(
        self,
        out: str | Path,
        form: exporting.Form = "merged",
        *,
        parts: bool = False,
        top: bool = True,
        checkpoint: Which = "last",
    ) -> Path:
        """Writes what was trained as a new folder, with a model card.

        Args:
            out: the folder, which is not there yet.
            form: "merged", the whole model, which Transformers loads (but for our ResNets) and `model.name` takes;
                "adapter", what PEFT puts on the base; "onnx", the whole model as one graph; "history", a small file
                from which `apply` rebuilds the model on its base.
            parts: of an adapter, a folder each for the device's part and the server's.
            top: of a history, with what the server trained by gradients, of which there are no slopes.
            checkpoint: as for `model`.

        Returns:
            The folder.

        Raises:
            UserError: `out` is there already or can't be written, or the run has no checkpoint, or can't be had in
                this form.
        """
        exporting.export(self.folder, Path(out), exporting.Wanted(form, parts, top, checkpoint), self._given)
        return Path(out)

    def generate(
        self,
        texts: Sequence[str],
        *,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        checkpoint: Which = "last",
        **drawn: Any,
    ) -> list[str]:
        """What the fine-tuned model writes behind each text, once the task's template is put around it.

        Nothing is drawn at random unless one of `drawn` is given; then a text's continuations follow from the seed and
        the text alone.

        Args:
            texts: what to continue.
            beams: of the beam search, 1 for greedy decoding; by default the run's `task.beams`.
            max_new_tokens: the longest continuation; by default the run's `task.max_new_tokens`.
            checkpoint: as for `model`.
            **drawn: `temperature` (above 0; 1 unless given), `top_k` and `top_p` (only the so many likeliest tokens,
                or those of this probability together), `seed` (0 unless given), and `samples` (continuations of each
                text, 1 unless given).

        Returns:
            What comes behind each text, in their order; several samples of a text stand one behind the other.

        Raises:
            UserError: the run's model is a classifier, a text is blank or too long, or a value is out of range.
        """
        how = asked(beams, max_new_tokens, drawn)
        return written(subject(self.folder, self._given, which=checkpoint), texts, how)


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
        caller = Caller(on_round=told.on_round, on_rows=told.on_rows, given=given)
        if out is None:
            return _in_memory(resolved, caller)
        place = Path(out).resolve()  # also where `out` is the current folder, and is replaced
        execution.begin(resolved, Path(out), caller, overwrite=overwrite)
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

    Returns:
        The run.

    Raises:
        UserError: the folder holds no run.
    """
    return Run(Path(folder), Given(model, tokenizer, data, loss, metric))


def _in_memory(config: RunConfig, caller: Caller) -> Run:
    """A run in a temporary folder, which goes with the `Run`; it stays where somebody stopped the run."""
    folder = Path(tempfile.mkdtemp(prefix="halfback-"))
    try:
        execution.begin(config, folder, caller)
    except BaseException as error:
        if isinstance(error, HalfbackError) or not (folder / CONFIG).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    run = Run(folder, caller.given)
    weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
    return run
