"""Where records go as they come: a file of JSON lines, TensorBoard, Weights & Biases, MLflow.

Nothing leaves the machine unless the environment says where to: Weights & Biases writes offline without WANDB_MODE,
MLflow into the run's folder without MLFLOW_TRACKING_URI.
"""

import json
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from halfback.errors import UserError, one_line, shown
from halfback.json_reading import parse, text_of
from halfback.telemetry.records import RECORDS, Record, mend_records, read_records, replace_text, writing

SINKS = "sinks.json"  # in the run's folder: under which names others know the run
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_PARAMETERS = 100  # that MLflow takes at once
_LONGEST = 6000  # letters of a parameter there
_MLFLOW = "MLflow is not installed: pip install 'halfback[mlflow]'"
_NOT_FIGURES = ("bytes_by_kind", "versions")  # of a summary

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes each record once, in order, and at the end what the run came to."""

    def write(self, record: Record) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends to the run's `records.jsonl`; each record is in the file when `write` returns.

    Raises:
        UserError: the file that is there already is unreadable or wrong before its last line, or can't be written.
    """

    def __init__(self, folder: Path) -> None:
        mend_records(folder)
        self._path = Path(folder) / RECORDS
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Record) -> None:
        with writing(self._path):
            self._file.write(record.to_json() + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())  # a checkpoint, which follows, is held against it

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The summary has a file of its own."""

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


class TensorBoard:
    """Writes the curves to `tensorboard/` in the run's folder, against steps.

    `resumed_at`: on resume, the step to go on from; TensorBoard hides what a killed run had written from there on.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("TensorBoard is not installed: pip install 'halfback[tensorboard]'") from None
        self._writer = SummaryWriter(log_dir=str(Path(folder) / "tensorboard"), purge_step=resumed_at)

    def write(self, record: Record) -> None:
        for name, value in _curves(record).items():
            self._writer.add_scalar(name, value, record.step)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """TensorBoard has curves alone."""

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Writes to `wandb/` in the run's folder, or, where WANDB_MODE says `online`, to its server.

    A run that goes on is the same run there, by the name that `sinks.json` keeps. Its client holds back what it has
    not written, which a kill takes along: so a run that goes on offline begins its file anew, with all `past` records,
    and online sends those that the server lacks.

    Raises:
        UserError: its client is not installed, or it can't begin.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], past: Sequence[Record]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at the import
        try:
            import wandb
        except ImportError:
            raise UserError("Weights & Biases is not installed: pip install 'halfback[wandb]'") from None
        name, mode = _known(folder, "wandb") or secrets.token_hex(8), os.environ.get("WANDB_MODE", "offline")
        _remember(folder, "wandb", name)
        if mode == "offline":
            for old in folder.glob(f"wandb/offline-run-*-{name}"):
                shutil.rmtree(old)
        try:
            self._run = wandb.init(
                mode=cast(Any, mode),
                project=os.environ.get("WANDB_PROJECT", "halfback"),
                dir=folder,
                name=folder.resolve().name,
                id=name,
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
            )
        except (wandb.Error, ValueError, OSError) as error:
            raise UserError(f"sinks=[wandb]: {one_line(str(error))}") from None
        self._next = self._run.step  # behind what the server has
        for record in past:
            self.write(record)

    def write(self, record: Record) -> None:
        if record.step >= self._next:
            self._run.log(_curves(record), step=record.step, commit=True)
            self._next = record.step + 1

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(_figures(summary))

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """Writes to `mlflow.db` in the run's folder, or to where MLFLOW_TRACKING_URI says.

    A run that goes on is the same run there, by the name that `sinks.json` keeps, and gets those `past` records that
    it lacks.

    Raises:
        UserError: its client is not installed, or the place can't be reached.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], past: Sequence[Record]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # of its makers, who would be told of every run
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default minutes in which a run stands still
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise UserError(_MLFLOW) from None
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # of how it makes its tables
        self._failure = MlflowException
        try:
            self._client: Any = MlflowClient(tracking_uri=place)
            self._id: str = _known(folder, "mlflow") or self._begun(folder, config)
            told = self._client.get_metric_history(self._id, "bytes/up")
            self._client.update_run(self._id, status="RUNNING")
        except ImportError:  # of what its database needs, which its lean client comes without
            raise UserError(_MLFLOW) from None
        except MlflowException as error:
            raise UserError(f"sinks=[mlflow]: {one_line(str(error))[:200]}") from None
        self._sent = max((metric.step for metric in told), default=-1)
        self._state = "KILLED"  # unless it finishes
        for record in past:
            self.write(record)

    def _begun(self, folder: Path, config: Mapping[str, Any]) -> str:
        """The name of a new run, of which the configuration has been told."""
        from mlflow.entities import Param

        named = os.environ.get("MLFLOW_EXPERIMENT_NAME", "halfback")
        found = self._client.get_experiment_by_name(named)
        experiment = self._client.create_experiment(named) if found is None else found.experiment_id
        name: str = self._client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in _flat(config).items()]
        for at in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(name, params=parameters[at : at + _MOST_PARAMETERS])
        _remember(folder, "mlflow", name)
        return name

    def write(self, record: Record) -> None:
        if record.step > self._sent:
            self._log(_curves(record), record.step)
            self._sent = record.step

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._log({f"summary/{name}": value for name, value in _figures(summary).items()}, max(self._sent, 0))
        self._state = "FINISHED"

    def close(self) -> None:
        self._asked(lambda: self._client.set_terminated(self._id, status=self._state))

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._asked(lambda: self._client.log_batch(self._id, metrics=metrics))

    def _asked(self, what: Callable[[], object]) -> None:
        """A place that is gone is told of, and no reason to stop a run."""
        try:
            what()
        except self._failure as error:
            log.warning("MLflow did not take a record: %s", one_line(str(error))[:200])


def sinks_of(names: Sequence[str], folder: Path, config: Mapping[str, Any], resumed_at: int | None) -> list[Sink]:
    """The file of records, and what else a run writes to.

    Args:
        names: of the others, from `tensorboard`, `wandb` and `mlflow`.
        folder: of the run.
        config: of the run, as a tree of plain values.
        resumed_at: the step that a run goes on from; None for a new one.

    Raises:
        UserError: one of them is not installed or can't begin.
    """
    made: list[Sink] = [JsonLines(folder)]
    past = read_records(folder) if names else []
    for name in names:
        if name == "tensorboard":
            made.append(TensorBoard(folder, resumed_at))
        elif name == "wandb":
            made.append(WeightsAndBiases(folder, config, past))
        else:
            made.append(Mlflow(folder, config, past))
    return made


def _curves(record: Record) -> dict[str, float]:
    """What is drawn of a record, by the name of the curve; what isn't finite isn't drawn."""
    found = {
        "loss/train": record.train_loss,
        "loss/validation": record.validation_loss,
        "metric": record.metric,
        "bytes/up": record.up_bytes,
        "bytes/down": record.down_bytes,
        "seconds/client": record.client_seconds,
        "seconds/server": record.server_seconds,
        "seconds/wire": record.wire_seconds,
        "seconds/wall": record.wall_seconds,
        "seconds/simulated": record.simulated_seconds,
        "forward_passes": record.forward_passes,
        "epsilon/activations": record.activations_epsilon,
        **{f"thresholds/{link}": threshold for link, threshold in record.thresholds.items()},
    }
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a summary."""
    plain = {key: value for key, value in summary.items() if key not in _NOT_FIGURES}
    return {
        key: value
        for key, value in _flat(plain).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"bottom": {"lr": 1}}` → `{"bottom.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _known(folder: Path, sink: str) -> str | None:
    """The name that a run has with a sink, by `sinks.json`; None where it has none yet.

    Raises:
        UserError: the file says something else.
    """
    name = _all_known(folder).get(sink)
    if name is not None and not _NAME.fullmatch(str(name)):
        raise UserError(f"{folder / SINKS}: {shown(name)} is no run's name for {sink}; delete the file for a new run")
    return name


def _all_known(folder: Path) -> dict[str, Any]:
    path = folder / SINKS
    try:
        found = parse(text_of(path)) if path.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} must be a JSON object; delete the file for a new run with each sink")
    return found


def _remember(folder: Path, sink: str, name: str) -> None:
    replace_text(folder / SINKS, json.dumps({**_all_known(folder), sink: name}) + "\n")
