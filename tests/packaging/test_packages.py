"""Packages of recipes: what is refused, what is written, and that the same recipe gives the same bytes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import Packed, cut_model, inputs_of, packed
from torch import Tensor

from halfback import config as configuration
from halfback.assembly import build
from halfback.config import RunConfig
from halfback.engine.remote.weights import digest_of
from halfback.errors import UserError
from halfback.models.quantising import quantise
from halfback.models.resnet import _Block
from halfback.packaging.writing import check_client, new_folder
from halfback.runs.package import package
from halfback.testing import small
from halfback_device.package import Package


def _texts(model: Path, sentences: Path, algorithm: str = "ho_sfl", **changes: Any) -> RunConfig:
    return small.texts(algorithm, model, sentences, task__max_length=16, **changes)


@pytest.mark.parametrize(
    ("algorithm", "changes", "says"),
    [
        ("split_lora", {}, "algorithm.name=split_lora: its devices backpropagate"),
        ("mezo", {}, "algorithm.name=mezo: its devices hold more of the model than its first blocks"),
        ("heron_sfl", {}, "algorithm.name=heron_sfl: its devices hold more"),
        ("mu_splitfed", {}, "algorithm.name=mu_splitfed: its clients agree on more than slopes"),
        ("ho_sfl", {"algorithm.estimator": "forward_ad"}, "algorithm.estimator=forward_ad: an inference runtime"),
        ("ho_sfl", {"model.dtype": "bfloat16"}, "model.dtype=bfloat16: a package has float32"),
        ("ho_sfl", {"client.memory": 100}, "client.memory: of a package, set client.rows_at_once"),
        ("ho_sfl", {"task.augment": ["flip"]}, "task.augment: a device package takes images as they are"),
        ("ho_sfl", {"model.cut": [1, 2]}, "model.cut: clients have other cuts; name one with --client"),
        ("ho_sfl", {"codecs.activations_up": ["topk"]}, "codecs.activations_up: codec 'topk': a device has"),
    ],
)
def test_what_a_device_cannot_do_is_refused_before_anything_is_made(
    algorithm: str, changes: dict[str, Any], says: str, tmp_path: Path, tiny_bert: Path, sentences: Path
) -> None:
    config = _texts(tiny_bert, sentences, algorithm, **{key.replace(".", "__"): v for key, v in changes.items()})
    with pytest.raises(UserError, match=says):
        package(config, tmp_path / "package")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"codecs__activations_up": ["topk"]}, {"model__head": 0}, {"model__cut": 9}])
def test_nothing_is_pretrained_for_a_package_that_is_refused(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretraining = {"task": "digits", "steps": 1, "batch_size": 8, "lr": 1e-3}
    config = small.images("ho_sfl", **{"model__cut": 3, "model__pretrain": pretraining} | settings)
    with caplog.at_level("INFO", logger="halfback"), pytest.raises(UserError):
        package(configuration.to_tree(config), tmp_path / "package")
    assert "pretraining" not in caplog.text


@pytest.mark.parametrize(
    ("cut", "client", "said"),
    [([1, 2], 4, "--client 4: 0 to 3 are allowed"), (1, 3, "--client 3: all clients have the same cut")],
)
def test_a_client_that_no_package_is_for(cut: Any, client: int, said: str, tiny_bert: Path, sentences: Path) -> None:
    with pytest.raises(UserError, match=said):
        check_client(_texts(tiny_bert, sentences, model__cut=cut), client)


def test_a_package_of_a_recipe(
    tmp_path: Path, tiny_bert: Path, sentences: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="halfback")
    config = _texts(tiny_bert, sentences, bottom__weights="int8", model__head=1, algorithm__exact_blocks=0)
    errors = package(config, tmp_path / "package")
    assert f"packaging {tiny_bert} up to block 1: a few seconds a block" in caplog.messages
    assert sorted(errors) == ["activations", "the head's gradients", "the head's loss"]
    assert max(errors.values()) < 1e-5
    held = Package.open(tmp_path / "package")
    side = build(config).clients.side(0)
    assert held.manifest["weights"] == {"format": "int8", "digest": digest_of(side.held())}
    assert held.manifest["config"] == configuration.to_tree(config)
    assert held.manifest["client"] is None
    theta = side.party.theta.replica.parameters
    assert [entry["name"] for entry in held.manifest["theta"]] == list(theta)
    for name, array in held.theta().items():
        assert torch.equal(torch.from_numpy(array), theta[name])
    assert {"embed.onnx", "head.onnx", "tokenizer.json", "weights.safetensors"} < set(held.manifest["files"])
    with pytest.raises(UserError, match="exists; name a new folder"):
        package(config, tmp_path / "package")


def test_the_same_model_gives_the_same_bytes(bert: Packed, tmp_path: Path) -> None:
    again = packed(cut_model("bert", "lora"), tmp_path / "package")
    assert again.package.manifest == bert.package.manifest
    assert str(tmp_path) not in json.dumps(again.package.manifest)
    for path in bert.folder.glob("*.onnx"):
        assert b".py" not in path.read_bytes()  # of what has made it, and where that is


def test_an_operator_that_cannot_be_exported_is_named_with_its_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: _Block, hidden: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(hidden)

    monkeypatch.setattr(_Block, "forward", forward)
    with pytest.raises(UserError, match=r"^block 0 \(_Block\): its operator aten.*matrix_exp.* can't be exported$"):
        packed(cut_model("resnet8", "norm"), tmp_path / "package")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "half").write_bytes(b"")
        raise RuntimeError

    with pytest.raises(RuntimeError), new_folder(tmp_path / "package") as folder:
        half(folder)
    assert not list(tmp_path.iterdir())


def test_what_is_ended_by_the_system_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from halfback.packaging.writing import new_folder\n"
        "with new_folder(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "package")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the folder is there
        assert [path.name for path in tmp_path.iterdir()] == ["package.making"]
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama-tied", "vit", "resnet8"])
def test_quantising_twice_changes_nothing(name: str) -> None:
    """The scale is that of the largest value, which is a whole number of them: so all parties find the same floats."""
    model = cut_model(name, "norm" if name == "resnet8" else "lora")
    first = quantised_weights(model)
    assert first == quantised_weights(model)
    with torch.no_grad():
        assert bool(model.bottom(inputs_of(name)).isfinite().all())


def quantised_weights(model: Any) -> str:
    quantise(model.bottom)
    return digest_of(model.bottom.state_dict())


def test_every_party_computes_with_the_quantised_floats(tiny_llama: Path, sentences: Path) -> None:
    """Also where a table of embeddings is the head layer's: the server keeps its own floats."""
    plain, eight = (
        build(_texts(tiny_llama, sentences, bottom__weights=weights, task__objective="causal_lm"))
        for weights in ("float32", "int8")
    )
    table, other = (run.model.whole.get_input_embeddings().weight for run in (plain, eight))  # type: ignore[operator,union-attr]
    assert not torch.equal(table, other)
    of_top = [run.model.whole.get_output_embeddings().weight for run in (plain, eight)]  # type: ignore[operator,union-attr]
    assert torch.equal(*of_top)
    alone = small.alone(eight.config, 0).held()
    assert digest_of(alone) == digest_of(eight.clients.side(0).held())
    assert eight.evaluate().loss != plain.evaluate().loss


@pytest.mark.parametrize(("key", "value"), [("bottom.train", "full"), ("model.dtype", "bfloat16")])
def test_eight_bits_of_what_is_trained_or_halved_are_refused(
    key: str, value: str, tiny_bert: Path, sentences: Path
) -> None:
    with pytest.raises(UserError, match=r"bottom\.weights=int8: the frozen matrices of a float32 model"):
        _texts(tiny_bert, sentences, bottom__weights="int8", **{key.replace(".", "__"): value})
