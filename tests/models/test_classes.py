"""A checkpoint's head keeps its classes apart by name: rows are put in our order, or the head starts anew."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fitting import original, saved
from tiny_models import CONFIGS, resnet
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models import adapters
from halfback.models.classes import match_rows, own_names
from halfback.models.cut import cut
from halfback.models.families import family_of
from halfback.models.fitting import Loaded, found_head
from halfback.models.loading import ModelRequest, load_model

NAMES = ("bad", "fair", "good")


@pytest.mark.parametrize(
    ("own", "ours", "rows", "said"),
    [
        (["bad", "good"], ["bad", "good"], [0, 1], None),
        (["good", "bad"], ["bad", "good"], [1, 0], "rows are put in the data's order"),
        (["c", "a", "b"], ["a", "b", "c"], [1, 2, 0], "rows are put in the data's order"),
        (["GOOD", " Bad"], ["bad", "good"], [1, 0], "rows are put in the data's order"),
        (["True", "true"], ["true", "True"], [1, 0], "rows are put in the data's order"),
        (["TRUE", "true"], ["true", "True"], None, "its classes are TRUE, true, the data's are true, True"),
        (["bad", "great"], ["bad", "good"], None, "its classes are bad, great, the data's are bad, good"),
        (["bad", "fair", "good"], ["bad", "good"], None, "it has 3 classes, the data have 2"),
        (["good", "good"], ["bad", "good"], None, "its classes are good, good"),
        (["LABEL_0", "LABEL_1"], ["0", "1"], [0, 1], None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["2", "0", "1"], [2, 0, 1], None),
        (["bad", "good"], ["0", "1"], [0, 1], "the data's numbers are taken as theirs"),
        (["1", "0"], ["0", "1"], [1, 0], "rows are put in the data's order"),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], [0, 1], "no names for its classes .* taken as bad, good"),
        (["LABEL_0", "LABEL_1"], ["1", "2"], [0, 1], "no names for its classes"),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], [1, 0], "rows are put in the data's order"),
        (["LABEL_1", "LABEL_0"], ["0", "1"], [1, 0], None),
        (["LABEL_2", "LABEL_0", "LABEL_1"], ["a", "b", "c"], [1, 2, 0], "no names for its classes"),
        (["caf\u00e9", "bar"], ["bar", "cafe\u0301"], [1, 0], "rows are put in the data's order"),
    ],
)
def test_rows_by_name(own: list[str], ours: list[str], rows: list[int] | None, said: str | None) -> None:
    found, remark = match_rows(own, ours)
    assert found == rows
    assert (remark is None) == (said is None)
    if said is not None:
        assert remark is not None
        pytest.importorskip("re").search(said, remark) or pytest.fail(remark)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ({}, []),
        ({"id2label": None, "label2id": None}, []),
        ({"id2label": {"1": "good", "0": "bad"}}, ["bad", "good"]),
        ({"id2label": {0: 7, 1: True}}, ["7", "True"]),
        ({"label2id": {"good": 0, "bad": "1"}}, ["good", "bad"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"good": 0, "bad": 1}}, ["good", "bad"]),
        ({"id2label": {"0": "good", "1": "bad"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ["good", "bad"]),
        (
            {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
            "by label2id 'a' is 1, by id2label 1 is 'b'",
        ),
        ({"id2label": {"1": "a", "2": "b"}}, r"must number its classes from 0, not \[1, 2\]"),
        ({"id2label": {"a": 0, "b": 1}}, "must number names"),
        ({"id2label": ["a", "b"]}, "must number names"),
    ],
)
def test_names_of_a_configuration(written: dict[str, Any], names: list[str] | str) -> None:
    if isinstance(names, list):
        assert own_names("m", written) == names
    else:
        with pytest.raises(UserError, match=f"model 'm': .*{names}"):
            own_names("m", written)


def last_layer(model: nn.Module) -> nn.Linear:
    return found_head(model, family_of(model), Loaded(frozenset(), frozenset(), {})).layer


def with_names(folder: Path, names: tuple[str, ...]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: row for row, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))


def loaded(folder: Path, name: str, names: tuple[str, ...]) -> nn.Module:
    head = "image" if name.startswith(("vit", "resnet")) else "classifier"
    return load_model(str(folder), ModelRequest(head=head, num_labels=len(names), seed=1, label_names=names))[0]


def parameters(layer: nn.Linear) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in layer.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoints_rows_follow_its_names(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In every order of the same names; with others the head is that of a checkpoint without one."""
    caplog.set_level(logging.INFO, logger="halfback")
    weights = saved(original(name), tmp_path)
    with_names(tmp_path, NAMES)
    trained = parameters(last_layer(original(name)))
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        model = loaded(tmp_path, name, tuple(NAMES[row].upper() for row in order))
        for key, tensor in parameters(last_layer(model)).items():
            assert torch.equal(tensor, trained[key][order]), key
        assert all(
            torch.equal(model.state_dict()[key], tensor)
            for key, tensor in original(name).state_dict().items()
            if not key.startswith(family_of(model).head)
        )
    assert [record.getMessage().count("rows are put in the data's order") for record in caplog.records] == [1, 1]
    caplog.clear()
    other = parameters(last_layer(loaded(tmp_path, name, ("x", "y", "z"))))
    assert "the head starts anew: its classes are bad, fair, good, the data's are x, y, z" in caplog.text
    caplog.clear()
    few = loaded(tmp_path, name, ("bad", "good"))
    assert len(last_layer(few).weight) == 2
    assert "the head starts anew: it has 3 classes, the data have 2" in caplog.text
    caplog.clear()
    last = next(key for key, tensor in original(name).named_parameters() if tensor is last_layer(original(name)).weight)
    save_file(
        {key: tensor for key, tensor in weights.items() if not key.startswith(last.removesuffix("weight"))},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    for key, tensor in parameters(last_layer(loaded(tmp_path, name, NAMES))).items():
        assert torch.equal(tensor, other[key]), key
    assert caplog.text == ""  # a checkpoint without a head is nothing to tell of


@pytest.mark.parametrize("name", ["roberta", "bert", "llama"])
def test_half_a_head_is_no_head(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="halfback")
    weights = saved(original(name), tmp_path)
    key, change = {
        "roberta": ("classifier.dense.weight", None),
        "bert": ("classifier.bias", None),
        "llama": ("score.bias", torch.ones(3)),  # that a Llama has no place for
    }[name]
    given = {other: tensor for other, tensor in weights.items() if other != key} | (
        {key: change} if change is not None else {}
    )
    save_file(given, tmp_path / "model.safetensors", {"format": "pt"})
    model = loaded(tmp_path, name, NAMES)
    trained = last_layer(original(name)).weight
    assert not torch.isclose(last_layer(model).weight, trained).any()
    assert "the head starts anew: not all of it is in the file" in caplog.text


def test_an_exported_resnet_keeps_its_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="halfback")
    model = resnet("resnet8")
    trained, start = (
        parameters(last_layer(model)),
        parameters(last_layer(load_model("resnet8", ModelRequest(head="image", num_labels=3, seed=1))[0])),
    )
    adapters.export(cut(model, 1), tmp_path, NAMES)
    again = parameters(last_layer(loaded(tmp_path, "resnet", ("good", "bad", "fair"))))
    assert all(torch.equal(tensor, trained[key][[2, 0, 1]]) for key, tensor in again.items())
    assert "rows are put in the data's order" in caplog.text
    new = parameters(last_layer(loaded(tmp_path, "resnet", ("x", "y", "z"))))
    assert all(torch.equal(tensor, start[key]) for key, tensor in new.items())
    assert "the head starts anew: its classes are bad, fair, good" in caplog.text
    assert "id2label" in json.loads((tmp_path / "config.json").read_text())
    assert load_file(tmp_path / "model.safetensors")["linear.weight"].shape == (3, 64)
