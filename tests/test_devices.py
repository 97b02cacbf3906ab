"""What can't run on device packages is said in one line before anything is made; a run that can is like any other."""

import sys
from pathlib import Path
from typing import Any

import pytest

from halfback.errors import UserError
from halfback.runs import run
from halfback.runs.package import package
from halfback.runs.told import RunState
from halfback.testing import small

pytest.importorskip("halfback_device", reason="halfback-device is not installed")
pytest.importorskip("onnx", reason="the extra package is not installed")


@pytest.mark.parametrize(
    ("algorithm", "changes", "said"),
    [
        ("split_lora", {}, "client.runtime=device: algorithm.name=split_lora: its devices backpropagate"),
        ("mezo", {}, "client.runtime=device: algorithm.name=mezo: its devices hold more of the model"),
        ("heron_sfl", {}, "client.runtime=device: algorithm.name=heron_sfl: its devices hold more of the model"),
        ("ho_sfl", {"algorithm__estimator": "forward_ad"}, "client.runtime=device: algorithm.estimator=forward_ad"),
        ("ho_sfl", {"codecs__activations_up": ["topk"]}, "client.runtime=device: codecs.activations_up: codec 'topk'"),
        ("ho_sfl", {"client__memory": 90}, "client.runtime=device: client.memory"),
        ("ho_sfl", {"task__augment": ["flip"]}, "client.runtime=device: task.augment: a device package"),
        ("ho_sfl", {"one_pass": True}, "one_pass=true: clients on device packages"),
        ("ho_sfl", {"beside": ["split_lora"]}, "client.runtime=device: algorithm.name=split_lora"),
    ],
)
def test_what_a_device_can_not_do_is_one_line(
    tmp_path: Path, algorithm: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        run.train(small.images(algorithm, client__runtime="device", **changes), tmp_path / "out")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime", "halfback_device"])
def test_what_is_not_installed_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    says = f"needs {missing}, not installed here: pip install 'halfback\\[package\\]' halfback-device"
    with pytest.raises(UserError, match=rf"^client\.runtime=device {says}"):
        run.train(small.images("ho_sfl", client__runtime="device"), tmp_path / "out")
    with pytest.raises(UserError, match=rf"^a package {says}"):
        package(small.images("ho_sfl"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_stopped_goes_on_in_its_folder(tmp_path: Path, tiny_bert: Path, sentences: Path) -> None:
    """With packages and clients' states that lie in it."""
    changes = {"clients": 3, "sampled_clients": 2, "steps": 6, "eval_every": 3, "checkpoint_every": 2}
    config = small.texts("ho_sfl_pipelined", tiny_bert, sentences, client__runtime="device", **changes)

    def enough(state: RunState) -> None:
        if state.step == 3:
            raise KeyError("enough")

    whole = run.train(config, tmp_path / "whole")
    with pytest.raises(KeyError, match="enough"):
        run.train(config, tmp_path / "broken", on_round=enough)
    broken = run.load(tmp_path / "broken").resume()
    assert [record.validation_loss for record in broken.records] == [r.validation_loss for r in whole.records]
    assert broken.summary.bytes_by_kind == whole.summary.bytes_by_kind
    assert broken.summary.forward_passes == whole.summary.forward_passes
    assert broken.evaluate() == whole.evaluate()
