"""What a run writes to others, read back: by their own clients where these can, from their files where they can't."""

import json
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halfback import config as configuration
from halfback.errors import UserError
from halfback.runs import run
from halfback.telemetry.records import Record, read_records, read_summary
from halfback.telemetry.sinks import SINKS, Mlflow, WeightsAndBiases, sinks_of
from halfback.testing import small

STOPPED, STEPS = 5, 7  # and goes on from step 4, so that step 5 is come to twice
RECORD = Record(3, 30, 0.5, None, 0.25, 1 << 40, 7, 1.5, 0.25, 0.0, 2.0, 120, {"gradient_down": 0.98})


class Stop(Exception):
    """Whoever is told of a round ends the run."""


@pytest.fixture(scope="module")
def told() -> Iterator[socket.socket]:
    """An environment that names no place, and a proxy: a listening socket, which whatever would leave goes to."""
    for name in ("wandb", "mlflow", "alembic", "sqlalchemy"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.settimeout(0.2)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        yield proxy


@pytest.fixture(scope="module")
def out(told: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped behind step 5, lost the checkpoint of that, went on from step 4, and finished."""
    out = tmp_path_factory.mktemp("sinks") / "a-run"
    where = {"sinks": ["wandb", "mlflow"], "model__pretrain": {"task": "mnist", "steps": 1}}
    config = small.images("ho_sfl", steps=STEPS, eval_every=1, checkpoint_every=2, **where)

    def stop(state: Any) -> None:
        if state.step == STOPPED:
            raise Stop

    with pytest.raises(Stop):
        run.train(config, out, on_round=stop)
    shutil.rmtree(out / "checkpoint" / f"round-{STOPPED:08}")
    run.load(out).resume()
    assert [record.step for record in read_records(out)] == [*range(STEPS + 1)]
    return out


def of_wandb(folder: Path, kind: str) -> list[Any]:
    """The records of a kind in the files of Weights & Biases: LevelDB's log format, with messages of their client."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, held = path.read_bytes(), 7, b""  # the file's own header has seven bytes
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:  # a block's end, where no header fits
                at += left
                continue
            _, size, part = struct.unpack_from("<IHB", data, at)
            held, at = held + data[at + 7 : at + 7 + size], at + 7 + size
            if part in (1, 4):  # whole, or the last of several
                record = wandb_internal_pb2.Record()
                record.ParseFromString(held)
                held = b""
                if record.WhichOneof("record_type") == kind:
                    found.append(getattr(record, kind))
    return found


def values_of(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_weights_and_biases_has_each_step_once_and_the_summary(out: Path) -> None:
    kept, summary = read_records(out), read_summary(out)
    rows = [values_of(history.item) for history in of_wandb(out, "history")]
    assert [row["_step"] for row in rows] == [record.step for record in kept]
    assert [row["metric"] for row in rows] == [record.metric for record in kept]
    assert [row["bytes/up"] for row in rows] == [record.up_bytes for record in kept]
    told = {key: value for update in of_wandb(out, "summary") for key, value in values_of(update.update).items()}
    assert told["metric.best"] == summary["metric"]["best"]
    assert told["client_peak_bytes"] == summary["client_peak_bytes"]
    runs = of_wandb(out, "run")
    assert {run.run_id for run in runs} == {json.loads((out / SINKS).read_text())["wandb"]}
    assert {run.display_name for run in runs} == {"a-run"}
    assert values_of(runs[0].config.update)["bottom"]["lr"] == configuration.load(out / "config.yaml").bottom.lr


def test_mlflow_has_each_step_once_and_the_summary(out: Path) -> None:
    from mlflow.tracking import MlflowClient

    kept, summary = read_records(out), read_summary(out)
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("halfback")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a-run"
    for curve, key in (("metric", "metric"), ("bytes/up", "up_bytes"), ("loss/validation", "validation_loss")):
        history = client.get_metric_history(found.info.run_id, curve)
        values = {metric.step: metric.value for metric in history}
        assert len(history) == len(kept)
        assert values == {record.step: getattr(record, key) for record in kept}
    assert found.data.metrics["summary/metric.best"] == summary["metric"]["best"]
    assert found.data.params["bottom.lr"] == str(configuration.load(out / "config.yaml").bottom.lr)
    assert found.data.params["algorithm.name"] == "ho_sfl"


def test_nothing_leaves_the_machine_that_nobody_asked_for(out: Path, told: socket.socket) -> None:
    try:
        caller, _ = told.accept()
    except TimeoutError:
        return
    caller.settimeout(1)
    pytest.fail(f"a proxy was asked {caller.recv(200)!r}")


def test_a_place_that_is_gone_is_one_line(told: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgres-of-nobody://there")
    with pytest.raises(UserError, match=r"sinks=\[mlflow\]: ") as error:
        Mlflow(tmp_path, {}, [])
    assert "\n" not in str(error.value)
    monkeypatch.setenv("WANDB_MODE", "elsewhere")
    with pytest.raises(UserError, match=r"sinks=\[wandb\]: ") as error:
        WeightsAndBiases(tmp_path, {}, [])
    assert "\n" not in str(error.value)


def test_mlflow_that_goes_away_stops_no_run(out: Path, tmp_path: Path) -> None:
    shutil.copy(out / "mlflow.db", tmp_path)
    sink = Mlflow(tmp_path, {}, [])
    sink._id = "0" * 32  # as if somebody had deleted the run there
    sink.write(RECORD)
    sink.close()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_without_its_client_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("torch.utils.tensorboard", "wandb", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'halfback\[{name}\]'"):
        sinks_of([name], tmp_path, {}, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "a JSON object"),
        ("[]", "a JSON object"),
        ('{"wandb": []}', "no run's name"),
        ('{"wandb": "../x"}', "'../x'"),
    ],
)
def test_a_file_of_names_that_is_wrong_is_named(told: socket.socket, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / SINKS).write_text(text)
    with pytest.raises(UserError, match=said):
        WeightsAndBiases(tmp_path, {}, [])
