"""A run goes on over what it began with: the same rows and the same weights, from wherever it is continued."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import digits, halfback, refusal
from safetensors.torch import load_file, save_file

from halfback import config
from halfback.engine import checkpoint
from halfback.engine.remote.client import RemoteClient
from halfback.engine.remote.frames import Ancestor, Open, Save
from halfback.runs import run
from halfback.runs.told import RunState
from halfback.testing import small


def exchanged(text: str) -> str:
    return text.replace(",positive", ",#").replace(",negative", ",positive").replace(",#", ",negative")


def backwards(text: str) -> str:
    header, *rows = text.splitlines(keepends=True)
    return "".join([header, *rows[::-1]])


def half(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[: len(lines) // 2])


def texts(out: Path, algorithm: str = "split_lora", *settings: str) -> list[str]:
    """On `train.csv` and the model `model`, relative to the current folder."""
    rows = ["task.name=csv", "task.train=train.csv", "task.validation=check.csv", "task.train_rows=null"]
    rows += ["task.validation_rows=null", "model.name=model", "bottom.train=lora", "top.train=lora", "steps=8"]
    return digits(out, *rows, "eval_every=4", "checkpoint_every=1", *settings, algorithm=algorithm)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: Path) -> Path:
    """A folder with the files, a whole run and one that was stopped after step 5."""
    place = tmp_path_factory.mktemp("begun")
    for name in ("train.csv", "check.csv"):
        shutil.copy(sentences, place / name)
    shutil.copytree(tiny_bert, place / "model")
    before = Path.cwd()

    def watch(state: RunState) -> None:
        if state.step == 5:
            raise StopIteration

    os.chdir(place)
    try:
        assert halfback(*texts(Path("whole"))).status == 0
        with pytest.raises(StopIteration):
            run.train(config.resolve(None, texts(Path("run"))[1:-2]), Path("run"), on_round=watch)
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder and as where the runs were begun."""
    copy = Path(shutil.copytree(begun, tmp_path / "place"))
    for path in copy.glob("*/checkpoint/*/values.json"):
        path.write_text(path.read_text().replace(json.dumps(str(begun)), json.dumps(str(copy))))
    monkeypatch.chdir(copy)
    return copy


def state(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load(out / "checkpoint")
    assert found is not None
    return found[1]


def assert_like_the_unbroken(place: Path) -> None:
    whole, other = state(place / "whole"), state(place / "run")
    assert whole.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())


def weights(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    held = load_file(path)
    name = next(name for name in held if "layer.1" in name)
    save_file(held | {name: held[name] + 1e-3}, path, metadata={"format": "pt"})


def model_setting(place: Path) -> None:
    path = place / "model" / "config.json"
    path.write_text(path.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))


def table(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    def mutate(place: Path) -> None:
        path = place / name
        path.write_text(change(path.read_text()))

    return mutate


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "labels-exchanged": (table("train.csv", exchanged), "task.train has changed"),
    "other-order": (table("train.csv", backwards), "task.train has changed"),
    "half-of-the-rows": (table("train.csv", half), "task.train has changed"),
    "one-word": (table("train.csv", lambda text: text.replace("film", "the", 1)), "task.train has changed"),
    "validation": (table("check.csv", half), "task.validation has changed"),
    "weights": (weights, "model.name has changed"),
    "model-setting": (model_setting, "model.name has changed"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_is_not_continued_over_anything_else(place: Path, what: str) -> None:
    change, said = CHANGES[what]
    change(place)
    for arguments in (["resume", "run"], ["export", "run", "--out", "exported"], ["generate", "run", "a film"]):
        assert said in refusal(halfback(*arguments)), arguments
    assert not (place / "exported").exists()


def test_the_same_files_give_the_bits_of_an_unbroken_run(place: Path) -> None:
    (place / "train.csv").write_bytes((place / "train.csv").read_bytes())  # another time stamp is no other content
    assert halfback("resume", "run").status == 0
    assert_like_the_unbroken(place)


def test_from_another_folder_paths_are_those_of_where_it_was_begun(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same name that lies in the current folder is not taken; an exported model names no place."""
    out = Path(shutil.copytree(begun / "run", tmp_path / "run"))
    (tmp_path / "train.csv").write_text("text,label\nno,positive\n")
    monkeypatch.chdir(tmp_path)
    assert halfback("export", out, "--out", "model").status == 0
    assert not any(str(begun).encode() in path.read_bytes() for path in (tmp_path / "model").iterdir())
    assert halfback("resume", out).status == 0
    whole, other = state(begun / "whole"), state(out)
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.items())
    assert "model.name: model" not in (out / "config.yaml").read_text()
    assert config.load(out / "config.yaml") == config.load(begun / "run" / "config.yaml")


def test_on_another_machine_files_are_found_from_the_current_folder(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(begun, tmp_path / "moved"))
    number, tensors, values = checkpoint.load(moved / "run" / "checkpoint") or (0, {}, {})
    checkpoint.save(moved / "run" / "checkpoint", number, tensors, values | {"start": str(tmp_path / "gone")})
    monkeypatch.chdir(tmp_path)
    line = refusal(halfback("resume", moved / "run"))
    assert f"task.train='train.csv' is neither in {tmp_path / 'gone'}, where the run was begun, nor in the" in line
    monkeypatch.chdir(moved)
    table("train.csv", exchanged)(moved)
    assert "task.train has changed" in refusal(halfback("resume", "run"))
    shutil.copy(begun / "train.csv", moved / "train.csv")
    assert halfback("resume", "run").status == 0
    assert_like_the_unbroken(moved)


def test_what_runs_beside_has_the_same_rows(place: Path) -> None:
    """It begins when the first is done, which may be days later."""
    assert halfback(*texts(Path("two"), "split_lora", "steps=1", "beside=[frozen_bottom]")).status == 0
    shutil.rmtree("two/beside")
    table("train.csv", exchanged)(place)
    line = refusal(halfback("resume", "two"))
    assert "task.train has changed: the training rows of what this run is compared with" in line


def test_the_cells_of_a_comparison_have_the_same_rows(place: Path) -> None:
    work = ["compare", *texts(Path("x"), "split_lora", "steps=1")[2:-2], "--out", "out", "--seeds", 1, "--algorithms"]
    assert halfback(*work, "frozen_bottom").status == 0
    table("train.csv", exchanged)(place)
    assert "task.train has changed" in refusal(halfback(*work, "frozen_bottom,split_lora"))
    shutil.copy(place / "check.csv", place / "train.csv")
    assert halfback(*work, "frozen_bottom,split_lora").status == 0


def test_a_client_elsewhere_is_not_continued_over_other_rows(tmp_path: Path) -> None:
    """Its state on the site's disk says what it is of."""
    side = small.built(small.images("ho_sfl")).federation.client(0)
    same, one, two = {"task.train": "1", "model.name": "1"}, 16 * "1", 16 * "2"
    turn = {"first": 0, "steps": 1, "cursor": 0, "measure": False}
    before = RemoteClient(side, tmp_path, about=same)
    assert "said" in before.reply(Open(lineage=one, ancestry=(), round=0, **turn), b"").header
    assert "saved" in before.reply(Save(lineage=one, rounds=1), b"").header
    order = Open(lineage=two, ancestry=(Ancestor(lineage=one, rounds=1),), round=1, **turn)
    for about, said in ((same | {"task.train": "2"}, "task.train has changed on this site"), (same, "said")):
        assert said in RemoteClient(side, tmp_path, about=about).reply(order, b"").header
