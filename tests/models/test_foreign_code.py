"""A model's folder may bring code, in Python or as a pickle: none of it ever runs."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from halfback.errors import UserError
from halfback.models.loading import ModelRequest, load_model

EVIL = """
import pathlib
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

pathlib.Path({marker!r}).touch()


class EvilConfig(BertConfig):
    model_type = {kind!r}


class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig


class EvilTokenizer(BertTokenizer):
    pass
"""
CODE = {
    "config.json": {"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"},
    "tokenizer_config.json": {"AutoTokenizer": ["evil.EvilTokenizer", None]},
}


@pytest.fixture
def folder(tmp_path: Path, tiny_bert: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in tiny_bert.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("kind", ["bert", "evil"])
def test_python_in_a_models_folder_does_not_run(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers asks on the terminal whether it may, where nothing says no."""
    marker = tmp_path / "it-ran"
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker), kind=kind))
    for name, classes in CODE.items():
        tree = json.loads((folder / name).read_text())
        tree |= {"auto_map": classes} | ({"model_type": kind} if name == "config.json" else {})
        (folder / name).write_text(json.dumps(tree))
    if kind == "bert":  # a family of ours: Transformers' own classes are taken
        load_model(str(folder), ModelRequest(head="classifier", num_labels=2, seed=0))
    else:
        with pytest.raises(UserError, match=r"^model folder .* cannot be read") as error:
            load_model(str(folder), ModelRequest(head="classifier", num_labels=2, seed=0))
        assert "\n" not in str(error.value)
    assert not marker.exists()


def test_an_adapter_names_no_other_folder_to_load(folder: Path, tmp_path: Path, tiny_bert: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_bert)}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^model .* an adapter"):
        load_model(str(folder), ModelRequest(head="classifier", num_labels=2, seed=0))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_models_folder_does_not_run(folder: Path, tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    weights = {"bert.pooler.dense.weight": torch.zeros(16, 16), "evil": Evil(marker)}
    if zipped:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights, protocol=2))
    with pytest.raises(UserError, match=r"^model .* cannot be loaded: ") as error:
        load_model(str(folder), ModelRequest(head="classifier", num_labels=2, seed=0))
    assert "\n" not in str(error.value)
    assert not marker.exists()
