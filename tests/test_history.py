"""A history rebuilds what devices trained, to the bit, on its own base alone; its bytes may be anybody's."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command import digits, halfback, refusal
from safetensors import safe_open
from safetensors.torch import load
from torch import nn

import halfback as hb
from halfback.errors import UserError
from halfback.runs import applying, history
from halfback.runs.opening import reload

# Every way in which a slope moves θ, both laws, one direction and several; of methods with and without a cut, with one
# group of θ or more, and with gradients beside the slopes.
WAYS: dict[str, tuple[str, list[str]]] = {
    "sgd": ("ho_sfl", []),
    "momentum, normalised, gaussian": (
        "ho_sfl",
        ["bottom.optimizer=momentum", "bottom.normalize=true", "bottom.law=gaussian", "algorithm.directions=5"],
    ),
    "adamw, clipped": (
        "ho_sfl",
        ["bottom.optimizer=adamw", "bottom.clip=0.5", "bottom.weight_decay=0.01", "bottom.schedule=cosine"],
    ),
    "sign, pipelined": ("ho_sfl_pipelined", ["bottom.optimizer=sign", "steps_per_round=3", "algorithm.directions=1"]),
    "u-shape": ("ho_sfl", ["model.head=0", "bottom.warmup=2"]),
    "mixed cuts": ("ho_sfl", ["model.cut=[1,2]", "bottom.optimizer=momentum"]),
    "exact block": ("ho_sfl", ["model.cut=2", "algorithm.exact_blocks=1", "bottom.optimizer=adamw"]),
    "exact blocks alone": ("ho_sfl", ["algorithm.exact_blocks=all", "algorithm.directions=0"]),
    "turns": ("hosl", ["bottom.schedule=linear"]),
    "whole": ("decomfl", ["steps_per_round=2", "bottom.optimizer=adamw"]),
    "groups": ("spry", []),
    "both parts by slopes": ("zo_sfl", ["top.optimizer=sgd"]),
}


def trained(out: Path, name: str) -> Path:
    algorithm, settings = WAYS[name]
    said = halfback(*digits(out, "steps=6", "eval_every=6", *settings, algorithm=algorithm))
    assert said.status == 0, said.err
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run") / "run", "adamw, clipped")


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    out = run.parent / "history"
    hb.load(run).export(out, "history")
    return out / history.FILE


def assert_rebuilt(run: Path, file: Path, base: str | nn.Module) -> None:
    """θ, all else that was trained, and the logits of every validation row have the run's bits."""
    again, built = applying.rebuilt(history.read(file), base), reload(run)
    theta = built.federation.server.party.agreed.replica.parameters
    assert again.theta.parameters.keys() == theta.keys()
    assert [name for name in theta if not torch.equal(theta[name], again.theta.parameters[name])] == []
    rows = built.task.validation.batch(range(len(built.task.validation)))
    with torch.no_grad():
        found, wanted = (model.logits(rows.inputs, rows.scored) for model in (again.model, built.model))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", WAYS)
def test_a_history_rebuilds_the_bits(name: str, tmp_path: Path) -> None:
    out = trained(tmp_path / "run", name)
    hb.load(out).export(tmp_path / "history", "history")
    assert_rebuilt(out, tmp_path / "history", "resnet8")


def test_a_history_of_a_text_model_by_the_command_line(tmp_path: Path, tiny_bert: Path, sentences: Path) -> None:
    """The folder that `apply` writes is the one that `export` writes, tokenizer and classes included."""
    out = tmp_path / "run"
    texts = ["task.name=csv", f"task.train={sentences}", "task.train_rows=null", "task.validation_rows=null"]
    lora = [f"model.name={tiny_bert}", "bottom.train=lora", "top.train=lora", "bottom.lr=0.1", "top.lr=0.1"]
    assert halfback(*digits(out, *texts, *lora)).status == 0
    assert halfback("export", out, "--history", "--out", tmp_path / "history").status == 0
    assert_rebuilt(out, tmp_path / "history", str(tiny_bert))
    data = (tmp_path / "history" / history.FILE).read_bytes()
    assert str(tmp_path).encode() not in data
    assert str(tiny_bert.parent).encode() not in data
    said = halfback("apply", tmp_path / "history", "--base", tiny_bert, "--out", tmp_path / "applied")
    assert said.status == 0, said.err
    assert halfback("export", out, "--out", tmp_path / "merged").status == 0
    files = {path.name for path in (tmp_path / "applied").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    for name in files:
        assert (tmp_path / "applied" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes(), name
    other = tmp_path / "other"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model.bert.encoder.layer[2].output.dense.bias.data[0] += 1e-3
    model.save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(other)
    line = refusal(halfback("apply", tmp_path / "history", "--base", other, "--out", tmp_path / "wrong"))
    assert line == f"'{other}' is not what the run began from, 'tiny-bert': its weights or settings are others"
    assert not (tmp_path / "wrong").exists()


def test_a_pretrained_base_is_a_file_of_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain = "model.pretrain={task: digits, steps: 3, batch_size: 16}"
    assert halfback(*digits(out, pretrain)).status == 0
    hb.load(out).export(tmp_path / "history", "history")
    assert_rebuilt(out, tmp_path / "history", str(out / "pretrained.safetensors"))
    line = refusal(halfback("apply", tmp_path / "history", "--base", "resnet8", "--out", tmp_path / "model"))
    assert line.endswith("so its base is a file of its own; name RUN/pretrained.safetensors")


def test_a_model_of_ones_own_is_its_own_base(tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    rows = [(torch.randn(4), row % 2) for row in range(20)]
    settings: dict[str, Any] = {"bottom": {"train": "full"}, "top": {"train": "full"}, "device": "cpu"}
    work = {"algorithm": {"name": "decomfl"}, "model": {"cut": 1}, "task": {}}
    done = hb.train(
        work, model=net(), data=hb.Data(rows), steps=4, clients=2, sampled_clients=2, progress=False, **settings
    )
    done.export(tmp_path / "history", "history")
    found = hb.apply(tmp_path / "history", net())
    assert isinstance(found, nn.Sequential)
    with torch.no_grad():
        assert torch.equal(found(rows[0][0]), done.model()(rows[0][0]))
    assert not torch.equal(found[0].weight, net()[0].weight)


def test_without_the_top(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What devices trained is there to the bit, what the server trained is the base's, and both sides say so."""
    caplog.set_level(logging.INFO, logger="halfback")
    hb.load(run).export(tmp_path / "history", "history", top=False)
    assert "what the server trained by gradients is left out" in caplog.text
    again, built = applying.rebuilt(history.read(tmp_path / "history"), "resnet8"), reload(run)
    assert "the server's part is as the run began it" in caplog.text
    theta = built.federation.server.party.agreed.replica.parameters
    assert all(torch.equal(theta[name], own) for name, own in again.theta.parameters.items())
    weights = [model.whole.head.linear.weight for model in (again.model, built.model)]  # type: ignore[union-attr]
    assert not torch.equal(*weights)


def test_what_has_no_history_says_what_to_take(tmp_path: Path) -> None:
    for name, why in {"frozen_bottom": "its devices train nothing", "sfl_v1": "its clients agree by weights"}.items():
        out = tmp_path / name
        assert halfback(*digits(out, algorithm=name)).status == 0
        line = refusal(halfback("export", out, "--history", "--out", tmp_path / "history"))
        assert line.endswith(f"keeps no history of slopes ({why}); use --adapter, or --merged")
        assert not (tmp_path / "history").exists()


def _opened(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["halfback"]), load(file.read_bytes())


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_one_line(written: Path, tmp_path: Path, seed: int) -> None:
    """Bytes that were changed, cut off or made up: never read as a history, never anything but a UserError."""
    dice, data = random.Random(seed), written.read_bytes()
    for number in range(150):
        broken = bytearray(data)
        match number % 5:
            case 0:
                broken[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            case 1:
                del broken[dice.randrange(len(data)) :]
            case 2:
                broken[dice.randrange(200) : 200] = dice.randbytes(dice.randrange(1, 100))
            case 3:
                broken[:8] = dice.randrange(1 << 64).to_bytes(8, "little")
            case _:
                broken += dice.randbytes(dice.randrange(1, 100))
        with pytest.raises(UserError):
            history.parsed(bytes(broken))


WRONG: dict[str, Any] = {
    "another format": lambda told, tensors: told.update(format=2),
    "an unknown key": lambda told, tensors: told.update(more=1),
    "a missing key": lambda told, tensors: told.pop("digest"),
    "too large a model": lambda told, tensors: told["config"]["lora"].update(rank=1 << 40),
    "an algorithm that nobody has": lambda told, tensors: told["config"]["algorithm"].update(name="os.system"),
    "an option of another kind": lambda told, tensors: told["config"]["algorithm"].update(directions="many"),
    "a cut that the model has not": lambda told, tensors: told["config"]["model"].update(cut=99),
    "channels that fill the memory": lambda told, tensors: told.update(channels=1 << 40),
    "turns that go back": lambda told, tensors: told.update(turns=[[3, 1], [1, 1]]),
    "turns behind the end": lambda told, tensors: told.update(turns=[[99, 1]]),
    "slopes of one direction": lambda told, tensors: tensors.update(history=tensors["history"][:, :1]),
    "slopes that are not finite": lambda told, tensors: tensors["history"].fill_(float("nan")),
    "slopes that make θ infinite": lambda told, tensors: (
        tensors["history"].fill_(1e38),
        told["config"]["bottom"].update(optimizer="sgd", clip=None, lr=1e4),
    ),
    "more steps than the run has": lambda told, tensors: tensors.update(history=torch.zeros(99, 2)),
    "steps without slopes": lambda told, tensors: tensors.update(history=torch.zeros(1 << 40, 0)),
    "slopes in a row": lambda told, tensors: tensors.update(history=torch.zeros(12)),
    "no slopes": lambda told, tensors: tensors.pop("history"),
    "a tensor of another shape": lambda told, tensors: tensors.update(
        {min(tensors.keys() - {"history"}): torch.zeros(3)}
    ),
    "a tensor too many": lambda told, tensors: tensors.update({"top.other": torch.zeros(3)}),
    "a tensor too few": lambda told, tensors: tensors.pop(min(tensors.keys() - {"history"})),
    "a path to load from": lambda told, tensors: told["config"]["model"].update(
        name="/etc/resnet8", pretrain={"task": "digits", "steps": 1}
    ),
    "another base": lambda told, tensors: told.update(digest="0" * 32),
}


@pytest.mark.parametrize("what", WRONG)
def test_whoever_makes_one_can_not_do_more(what: str, written: Path, tmp_path: Path) -> None:
    """A file whose SHA-256 is right and whose content is wrong is refused in one line, before anything is written."""
    told, tensors = _opened(written)
    WRONG[what](told, tensors)
    (tmp_path / "made").write_bytes(history.packed(told, tensors))
    line = refusal(halfback("apply", tmp_path / "made", "--base", "resnet8", "--out", tmp_path / "model"))
    assert len(line) < 500
    assert not (tmp_path / "model").exists()


def test_no_file_and_no_history(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for name, why in {"empty": "it is no history of halfback", "gone": "there is no such file"}.items():
        line = refusal(halfback("apply", tmp_path / name, "--base", "resnet8", "--out", tmp_path / "model"))
        assert line == f"history '{tmp_path / name}' can't be used: {why}"
