"""What a user can get wrong: one line on stderr, exit status 2, the value and what is allowed, nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import Said, digits, halfback, process, refusal
from safetensors.torch import load_file, save_file

from halfback.data.sources import data_folder


def refused(tmp_path: Path, *settings: str, algorithm: str = "ho_sfl") -> str:
    """The line; `--out` and everything beside it are as they were."""
    before = sorted(tmp_path.rglob("*"))
    line = refusal(halfback(*digits(tmp_path / "run", *settings, algorithm=algorithm)))
    assert sorted(tmp_path.rglob("*")) == before
    return line


SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "key": (["stepz=3"], ["'stepz' is unknown", "did you mean steps"]),
    "key-inside": (["bottom.lrr=3"], ["'bottom.lrr' is unknown", "did you mean lr?"]),
    "key-far-from-all": (["zzz=3"], ["'zzz' is unknown", "allowed: algorithm, task, model"]),
    "section-for-a-value": (["steps.more=3"], ["steps.more", "steps is a single value"]),
    "value-for-a-section": (["model=resnet8"], ["model='resnet8'", "name, cut"]),
    "algorithm": (["algorithm.name=ho_sfi"], ["'ho_sfi' is unknown", "did you mean ho_sfl"]),
    "algorithm-far-from-all": (["algorithm.name=42"], ["algorithm.name=42"]),
    "algorithm-list": (["algorithm.name=[a, b]"], ["algorithm.name=['a', 'b']"]),
    "algorithm-beside": (["beside=[split_lore]"], ["'split_lore' is unknown", "did you mean split_lora"]),
    "per-algorithm-of-none": (["per_algorithm.x={}"], ["'x' is unknown", "allowed: ho_sfl, ho_sfl_pipelined, hosl"]),
    "per-algorithm-key": (
        ["per_algorithm={zo_sfl: {top.lrr: 1}}"],
        ["per_algorithm.zo_sfl", "'top.lrr' is unknown", "did you mean lr"],
    ),
    "per-algorithm-option": (
        ["per_algorithm={zo_sfl: {algorithm.estimator: central}}"],
        ["'algorithm.estimator' is unknown", "directions"],
    ),
    "no-list": (["beside=split_lora"], ["beside='split_lora'", "write a list, as in beside=[split_lora]"]),
    "yaml-word": (["task.verbaliser=[null, yes]"], ["task.verbaliser.0=None", "in quotes"]),
    "yaml-words": (["task.verbaliser=[no, on]"], ["task.verbaliser has 2 words for 10 classes"]),
    "key-twice": (["bottom={lr: 1, lr: 2}"], ["bottom, line 1: key 'lr' is there twice"]),
    "key-that-is-no-text": (["bottom={[lr]: 1}"], ["bottom, line 1: a key must be text"]),
    "tag": (["steps=!!python/name:os.system"], ["steps, line 1: the tag 'tag:yaml.org,2002:python/name:os.system'"]),
    "alias-of-itself": (["lora.targets=&a [*a]"], ["lora.targets, line 1: *a refers to what it stands in"]),
    "deep": (["lora.targets=" + "[" * 10_000], ["lora.targets, line 1: nested deeper than 50 levels"]),
    "number-without-end": (["steps=1" + 400 * "0"], ["steps, line 1: the number 100000000000… has 401 digits"]),
    "number-beyond-floats": (["bottom.lr=1e400"], ["bottom.lr, line 1: the number 1e400 is out of range"]),
    "number-beyond-63-bits": (["seed=9223372036854775808"], ["seed, line 1: the number 922337203685…", "19 digits"]),
    "more-clients-than-lists-hold": (["clients=1000000000000"], ["clients=1000000000000", "1000000"]),
    "no-character": (['task.name="a\\0b"'], ["task.name, line 1: 'a\\x00b' has a character that no text may have"]),
    "no-utf-8": (["task.name=a\udcff"], ["task.name='a\\udcff' is not UTF-8"]),
    "long": (["steps=" + 5000 * "a"], ["steps='" + 199 * "a" + "…: input should be a valid integer"]),
    "task": (["task.name=digitz"], ["task.name='digitz'", "known: digits"]),
    "model": (["model.name=resnet9"], ["'resnet9'", "resnet8"]),
    "model-nearest": (["model.name=all-minilm"], ["'all-minilm'", "did you mean all-minilm-l6-v2"]),
    "model-folder": (["model.name=./nowhere"], ["'./nowhere' does not exist"]),
    "model-file": (["model.name=./resnet8.safetensors"], ["'./resnet8.safetensors' does not exist"]),
    "option-of-another-algorithm": (
        ["algorithm.checkpointing=true"],
        ["'algorithm.checkpointing' is unknown to ho_sfl", "directions, radius, estimator"],
    ),
    "option-misspelt": (["algorithm.direction=3"], ["'algorithm.direction'", "did you mean directions"]),
    "option-of-another-kind": (["algorithm.directions=few"], ["algorithm.directions='few'", "integer"]),
    "option-not-among": (
        ["algorithm.estimator=backward"],
        ["algorithm.estimator='backward'", "'forward'", "'central'"],
    ),
    "cut-too-deep": (["model.cut=4"], ["cut is 4", "1 to 3 are allowed"]),
    "cut-zero": (["model.cut=0"], ["cut is 0", "1 to 3 are allowed"]),
    "cut-negative": (["model.cut=-1"], ["cut is -1", "1 to 3 are allowed"]),
    "directions-zero": (
        ["algorithm.directions=0"],
        ["algorithm.directions=0", "1 or more", "or 0 with algorithm.exact_blocks"],
    ),
    "directions-negative": (["algorithm.directions=-2"], ["algorithm.directions=-2", "1 or more"]),
    "directions-zero-but-for-exact-blocks": (
        ["algorithm.directions=-1", "algorithm.exact_blocks=1", "model.cut=2"],
        ["algorithm.directions=-1", "0 or more"],
    ),
    "exact-blocks-negative": (["algorithm.exact_blocks=-1"], ["algorithm.exact_blocks=-1", "0 or more"]),
    "exact-blocks-too-many": (
        ["algorithm.exact_blocks=3", "model.cut=2"],
        ["algorithm.exact_blocks=3", "0 to 2 are allowed, or all"],
    ),
    "exact-blocks-misspelt": (
        ["algorithm.exact_blocks=every", "model.cut=2"],
        ["algorithm.exact_blocks=every", "0 or more are allowed, or all"],
    ),
    "exact-blocks-fraction": (["algorithm.exact_blocks=1.5", "model.cut=2"], ["algorithm.exact_blocks=1.5", "integer"]),
    "topk-of-exact-gradients": (
        ["algorithm.exact_blocks=1", "algorithm.directions=0", "codecs.slopes_up=[topk]"],
        ["codecs.slopes_up: topk: cast, int8, int4 and sign are allowed"],
    ),
    "temporal-of-exact-gradients": (
        ["algorithm.exact_blocks=1", "algorithm.directions=0", "codecs.slopes_down=[temporal]"],
        ["codecs.slopes_down: temporal: cast, int8, int4 and sign are allowed"],
    ),
    "exact-blocks-cuts": (
        ["algorithm.exact_blocks=1", "model.cut=[2, 3]"],
        ["algorithm.exact_blocks=1", "one cut for all clients"],
    ),
    "sign-in-first-order": (
        ["bottom.optimizer=sign", "algorithm.name=split_lora"],
        ["bottom.optimizer=sign", "use adamw, or another of"],
    ),
    "radius-zero": (["algorithm.radius=0"], ["algorithm.radius=0", "a positive number"]),
    "radius-negative": (["algorithm.radius=-1e-3"], ["algorithm.radius=-0.001", "a positive number"]),
    "radius-nan": (["algorithm.radius=.nan"], ["algorithm.radius=nan", "a positive number"]),
    "radius-swallowed": (["algorithm.radius=1e-12"], ["radius=1e-12 is too small for float32", "use at least"]),
    "lr-swallowed-by-bfloat16": (
        ["top.lr=1e-6", "model.dtype=bfloat16"],
        ["top.lr=1e-06 is too small for bfloat16", "use at least", "train in float32"],
    ),
    "adamw-in-float16": (["model.dtype=float16"], ["top.optimizer=adamw", "float16", "top.optimizer=sgd"]),
    "lr-huge": (["top.lr=1e30"], ["top.lr=1e+30", "less than or equal to 10000"]),
    "more-sampled-than-clients": (["sampled_clients=5"], ["sampled_clients=5", "at most clients=4"]),
    "more-clients-than-rows": (["clients=121"], ["clients=121", "120"]),
    "a-client-without-rows": (
        ["clients=100", "partition.name=dirichlet", "partition.alpha=0.01"],
        ["alpha=0.01", "100 clients", "fewer clients"],
    ),
    "no-clients": (["clients=0"], ["clients=0", "greater than or equal to 1"]),
    "none-sampled": (["sampled_clients=0"], ["sampled_clients=0", "greater than or equal to 1"]),
    "batch-size-zero": (["batch_size=0"], ["batch_size=0", "greater than or equal to 1"]),
    "steps-zero": (["steps=0"], ["steps=0", "greater than or equal to 1"]),
    "steps-half": (["steps=2.5"], ["steps=2.5", "integer"]),
    "seed-negative": (["seed=-1"], ["seed=-1", "greater than or equal to 0"]),
    "lr-negative": (["bottom.lr=-1"], ["bottom.lr=-1", "greater than 0"]),
    "lr-zero": (["top.lr=0"], ["top.lr=0", "greater than 0"]),
    "lr-infinite": (["top.lr=.inf"], ["top.lr=inf", "finite"]),
    "lr-nan": (["top.lr=nan"], ["top.lr='nan'", "finite"]),
    "lr-nan-of-yaml": (["top.lr=.nan"], ["top.lr=nan", "finite"]),
    "lr-text": (["top.lr=fast"], ["top.lr='fast'", "number"]),
    "lr-empty": (["top.lr="], ["top.lr=None", "number"]),
    "optimizer": (["top.optimizer=lion"], ["top.optimizer='lion'", "'adamw'"]),
    "partition": (["partition.name=random"], ["partition.name='random'", "'iid'"]),
    "dtype": (["model.dtype=int8"], ["model.dtype='int8'", "'bfloat16'"]),
    "nothing-to-train": (["bottom.train=none"], ["bottom.train='none'", "frozen_bottom"]),
    "lora-target": (["bottom.train=lora", "lora.targets=[q_proj]"], ["'q_proj' matches nothing", "conv"]),
    "bottom-train": (["bottom.train=adapter"], ["bottom.train='adapter'", "'ia3'", "'norm'"]),
    "top-train": (["top.train=ia3"], ["top.train='ia3'", "'lora' or 'full'"]),
    "ia3-of-a-resnet": (
        ["bottom.train=ia3"],
        ["bottom trains 'ia3'", "nothing to adapt; allowed are lora, lora_b, bias, norm, full, none"],
    ),
    "lora-rank": (["bottom.train=lora", "lora.rank=0"], ["rank is 0", "1 to 4096"]),
    "rows-of-training": (["task.train_rows=5000"], ["task.train_rows=5000", "1 to"]),
    "image-task-as-language-model": (["task.objective=causal_lm"], ["task.objective='causal_lm'", "images"]),
    "text-model-for-images": (["model.name=all-minilm-l6-v2"], ["all-minilm-l6-v2"]),
    "codec": (
        ["codecs.activations_up=[int9]"],
        ["codecs.activations_up: codec 'int9' is unknown", "did you mean int8"],
    ),
    "codec-no-list": (["codecs.activations_up=int8"], ["codecs.activations_up='int8'", "write a list"]),
    "codec-number": (["codecs.activations_up=[8]"], ["codecs.activations_up.0", "8"]),
    "codec-option": (
        ["codecs.gradient_down=[{name: topk, ration: 0.1}]"],
        ["codecs.gradient_down: option 'ration' is unknown to topk; did you mean ratio?"],
    ),
    "codec-value": (
        ["codecs.gradient_down=[{name: topk, ratio: 2}]"],
        ["codecs.gradient_down: codec topk: ratio=2: more than 0 and up to 1 are allowed"],
    ),
    "codec-link": (
        ["codecs.gradients_down=[int8]"],
        ["'codecs.gradients_down' is unknown", "did you mean gradient_down"],
    ),
    "codec-where-nothing-goes": (
        ["codecs.gradient_up=[int8]"],
        ["codecs.gradient_up: nothing goes this way without a head on the device (model.head)"],
    ),
    "chain-of-int8-and-cast": (
        ["codecs.activations_up=[int8, cast]"],
        ["codecs.activations_up: cast takes floats; what comes before it gives torch.int8"],
    ),
    "cast-of-bfloat16": (
        ["codecs.activations_up=[cast]", "model.dtype=bfloat16", "top.lr=1e-2", "bottom.lr=0.1"],
        ["codecs.activations_up: codec cast to bfloat16: the values are bfloat16 already"],
    ),
    "projection-wider-than-a-row": (
        ["codecs.gradient_down=[{name: projection, size: 256}]"],
        ["codecs.gradient_down: codec projection: size=256: 1 to 255 are allowed"],
    ),
    "temporal-not-first": (
        ["codecs.activations_up=[int8, temporal]"],
        ["codecs.activations_up: temporal must be the first of its chain"],
    ),
    "cap-below-a-batch": (
        ["codecs.gradient_down=[{name: temporal, cap_mb: 0.065}]"],
        ["codecs.gradient_down: codec temporal: cap_mb=0.065 is less than one batch; at least 0.0655 are needed"],
    ),
    "threshold-above-1": (
        ["codecs.activations_up=[temporal]", "controller.threshold=1.01"],
        ["controller.threshold=1.01: a cosine similarity in [-1, 1] is allowed"],
    ),
    "threshold-below-minus-1": (
        ["codecs.activations_up=[temporal]", "controller={name: bang_bang, low: -1.5}"],
        ["controller.low=-1.5: a cosine similarity in [-1, 1] is allowed"],
    ),
    "threshold-of-no-link": (
        ["codecs.activations_up=[temporal]", "controller.per_link={gradient_down: 0.9}"],
        ["controller.per_link.gradient_down: this run has no such link", "activations_up"],
    ),
    "override-without-equals": (["steps"], ["'steps' is not of the form key=value"]),
    "override-without-key": (["=3"], ["'=3' is not of the form key=value"]),
    "override-that-is-no-yaml": (["task.text=[a"], ["task.text='[a'"]),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a model that is not here is not looked for elsewhere
    settings, named = SETTINGS[what]
    line = refused(tmp_path, *settings)
    assert [part for part in named if part not in line] == [], line


def test_directions_and_radius_of_zo_sfl(tmp_path: Path) -> None:
    assert "algorithm.directions=0: 1 or more" in refused(tmp_path, "algorithm.directions=0", algorithm="zo_sfl")
    assert "algorithm.radius=-1: a positive" in refused(tmp_path, "algorithm.radius=-1", algorithm="zo_sfl")
    assert "is too small for float32" in refused(tmp_path, "algorithm.radius=1e-20", algorithm="zo_sfl")


@pytest.mark.parametrize(
    ("task", "says"), [("sst2", "images with 1 channels are allowed"), ("cifar10", "images with 1 channels")]
)
def test_pretraining_on_a_task_that_does_not_fit(tmp_path: Path, task: str, says: str) -> None:
    if data_folder(task) is None:
        pytest.skip(f"HALFBACK_DATA has no {task}")
    line = refused(tmp_path, f"model.pretrain={{task: {task}, steps: 1}}")
    assert f"model.pretrain.task='{task}'" in line
    assert says in line


def test_a_pretrained_file_that_is_damaged(tmp_path: Path) -> None:
    out, pretrain = tmp_path / "run", "model.pretrain={task: mnist, steps: 1}"
    assert halfback(*digits(out, pretrain)).status == 0
    (out / "summary.json").unlink()
    kept = out / "pretrained.safetensors"
    tensors = load_file(kept)
    bad = {
        "stem.conv1.weight": tensors["stem.conv1.weight"][:-1].clone(),
        "stem.bn1.bias": tensors["stem.bn1.bias"].half(),
        "stranger": torch.ones(1),
    }
    for name, tensor in bad.items():
        save_file(tensors | {name: tensor}, kept)
        line = refusal(halfback("resume", out))
        assert f"pretrained.safetensors is not of this model: tensor {name!r} is" in line
    save_file({name: tensor for name, tensor in tensors.items() if name != "stem.bn1.bias"}, kept)
    assert "tensor 'stem.bn1.bias' is missing" in refusal(halfback("resume", out))
    save_file(tensors | {"stem.bn1.bias": tensors["stem.bn1.bias"] * torch.nan}, kept)
    assert "tensor 'stem.bn1.bias' has values that are not finite" in refusal(halfback("resume", out))
    kept.write_bytes(b"")
    assert "pretrained.safetensors can't be read" in refusal(halfback("resume", out))


def test_rows_that_are_longer_than_the_models_positions(tmp_path: Path, tiny_bert: Path) -> None:
    """Said before the run: a long row may be drawn after hours."""
    table = tmp_path / "long.csv"
    table.write_text("text,label\n" + "".join(f"{'the film ' * (1 + 19 * (n == 7))},{n % 2}\n" for n in range(40)))
    texts = ["task.name=csv", f"task.train={table}", f"model.name={tiny_bert}", "bottom.train=lora", "top.train=lora"]
    line = refusal(halfback("train", "algorithm.name=ho_sfl", *texts, "model.cut=1", "--out", tmp_path / "run"))
    assert "task.max_length=128: a row has 42 tokens" in line
    assert "takes up to 32" in line


def test_normalising_the_update_of_an_algorithm_that_has_gradients(tmp_path: Path) -> None:
    line = refused(tmp_path, "bottom.normalize=true", algorithm="split_lora")
    assert "bottom.normalize=true: split_lora has gradients" in line


def test_what_is_wrong_beside_is_said_before_anything_runs(tmp_path: Path) -> None:
    line = refused(tmp_path, "bottom.normalize=true", "beside=[split_lora]")
    assert "bottom.normalize=true: split_lora has gradients" in line


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device='cuda'" in refused(tmp_path, "device=cuda")


FILES: dict[str, tuple[str, list[str]]] = {
    "missing-column": ("sentence,label\ngood,1\nbad,0\n", ["no column 'text'", "sentence, label"]),
    "missing-label-column": ("text,class\ngood,1\nbad,0\n", ["no column 'label'", "class"]),
    "labels-that-are-fractions": (
        "text,label\ngood,0.5\nbad,1.5\n",
        ["label '0.5' in line 2", "not a whole number or a text"],
    ),
    "label-missing": ("text,label\ngood,1\nbad,\n", ["label '' in line 3", "is missing"]),
    "one-class": ("text,label\ngood,1\nfine,1\n", ["one class only", "at least two"]),
    "no-rows": ("text,label\n", ["no rows"]),
    "empty": ("", ["is empty"]),
}


@pytest.mark.parametrize("what", FILES)
def test_data_files(tmp_path: Path, what: str) -> None:
    text, named = FILES[what]
    path = tmp_path / "data.csv"
    path.write_text(text)
    line = refused(tmp_path, "task={name: csv}", f"task.train={path}")
    assert [part for part in named if part not in line] == [], line


def test_json_labels_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "good", "label": [1]}\n{"text": "bad", "label": [0]}\n')
    assert "label in line 1, column 'label'" in refused(tmp_path, "task={name: csv}", f"task.train={path}")


def test_a_data_file_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("text,label\n")
    line = refused(tmp_path, "task={name: csv}", f"task.train={tmp_path / 'film.csv'}")
    assert "does not exist" in line
    assert "the folder has films.csv" in line


WHERE = ["task.name=digits", "model.name=resnet8", "model.cut=1"]


@pytest.mark.parametrize(
    ("text", "named", "settings"),
    [
        ("steps: [1, 2", "is no YAML: line", []),
        ("steps: 3\n  clients: 4", "is no YAML: line 2", []),
        ("- a\n- b\n", "must be a mapping", []),
        ("", "must be a mapping", []),
        ("steps: &a [*a]\n", "recipe.yaml', line 1: *a refers to what it stands in", []),
        ("seed: 1\nsteps: " + 401 * "9", "recipe.yaml', line 2: the number 999999999999… has 401 digits", []),
        ("top: {lr: .Inf}\nalgorithm: {name: ho_sfl}", "top.lr=inf", WHERE),
        ("top: {lr: -.NaN}\nalgorithm: {name: ho_sfl}", "top.lr='-.NaN'", WHERE),
        ("top: {lr: !!float 0xffffff}\nalgorithm: {name: ho_sfl}", "top.lr=16777215.0", WHERE),
        ("steps: true\nalgorithm: {name: ho_sfl}", "steps='true'", WHERE),
        ('task: {name: "\\U00110000"}\n', "is no YAML: an escape", []),
        ("!!python/name:os.system steps: 1\n", "line 1: the tag 'tag:yaml.org,2002:python/name:os.system'", []),
        ("!!binary YQ==: 1\n", "line 1: the tag 'tag:yaml.org,2002:binary'", []),
        ("lr: 1e999", "line 1: the number 1e999 is out of range", []),
        ("steps: 3\nsteps: 4\n", "line 2: key 'steps' is there twice", []),
        ("task: {text: &a {k: 1}, label: {<<: *a, k: 2, k: 3}}", "line 1: key 'k' is there twice", []),
        ("[a]: 3\n", "line 1: a key must be text", []),
        ("3: 4\n", "key '3' is unknown", []),
        ("steps: !!python/object/apply:os.getcwd []\n", "line 1: the tag 'tag:yaml.org,2002:python/object/apply", []),
        ("steps: !!timestamp 2024-01-01\n", "line 1: the tag 'tag:yaml.org,2002:timestamp' is not allowed", []),
        ("one_pass: 2024-01-01\n", "one_pass='2024-01-01': input should be", ["algorithm.name=ho_sfl", *WHERE]),
        ("a: \0\n", "is no YAML: line 1", []),
        ('task: {name: "a\\0b"}\n', "line 1: 'a\\x00b' has a character that no text may have", []),
        ("steps: " + 10_000 * "[", "line 1: nested deeper than 50 levels", []),
        (10_000 * "- ", "line 1: nested deeper than 50 levels", []),
        ("# " + (1 << 20) * "x", "is too large: up to 1,048,576 bytes are allowed", []),
        ("a: 1\n---\nb: 2\n", "is no YAML: line 2", []),
        ("steps: 3\n", "algorithm is missing", []),
        ("algorithm: {name: ho_sfl}\ntask: {name: digits}\n", "model is missing", []),
        ("algorithm: {name: ho_sfl}\nbottom: 3\n", "bottom=3 is a single value", []),
        ("algorithm: ho_sfl\ntask: {name: digits}\nmodel: {name: resnet8, cut: 1}\n", "algorithm='ho_sfl'", []),
        ("algorithm: {name: ho_sfl}\nper_algorithm: 3\n", "per_algorithm=3", ["algorithm.name=split_lora"]),
        ("algorithm: {name: ho_sfl}\nper_algorithm: {split_lora: 3}\n", "per_algorithm", ["algorithm.name=split_lora"]),
    ],
)
def test_recipe_files(tmp_path: Path, text: str, named: str, settings: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert named in refusal(halfback("train", path, *settings, "--out", tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("quikstart", ["'quikstart' is unknown", "did you mean quickstart"]),
        ("xyz", ["'xyz' is unknown", "quickstart", "sst2-minilm", "path of a YAML file"]),
        ("nowhere.yaml", ["'nowhere.yaml' can't be read", "No such file"]),
        ("./quickstart", ["'quickstart' can't be read", "No such file"]),
    ],
)
def test_recipes(tmp_path: Path, recipe: str, named: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(halfback("train", recipe))
    assert [part for part in named if part not in line] == [], line
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    assert "can't be read" in refusal(halfback("train", tmp_path / "recipe.yaml"))
    assert "can't be read" in refusal(halfback("train", str(tmp_path) + "/"))  # a folder


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert f"--out {out} exists and is no run folder" in refused(tmp_path)
    (tmp_path / "run" / "notes.txt").unlink()
    out.rmdir()
    out.write_text("a file")
    assert f"--out {out} exists and is no run folder" in refused(tmp_path)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refusal(halfback(*digits(tmp_path / "file" / "run")))
    assert "can't be written: Not a directory" in line


@pytest.mark.parametrize("command", ["resume", "report", "export"])
def test_a_folder_without_a_run(tmp_path: Path, command: str) -> None:
    arguments = ["--out", tmp_path / "model"] if command == "export" else []
    for folder in (tmp_path, tmp_path / "absent"):
        assert str(folder) in refusal(halfback(command, folder, *arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["model.cut=9", "algorithm.radius=1e-12", "clients=1000", "algorithm.directions=0"])
def test_a_corrected_retry_runs(tmp_path: Path, wrong: str) -> None:
    refused(tmp_path, wrong)
    assert halfback(*digits(tmp_path / "run", "steps=1")).status == 0


def test_a_corrected_retry_runs_in_a_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "cut is 9" in refusal(halfback(*digits(tmp_path / "run", "model.cut=9")))
    assert halfback(*digits(tmp_path / "run", "steps=1")).status == 0


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Late enough to have imported, loaded and built everything: whatever else would speak on stderr has done so."""
    running = process(*digits(tmp_path / "run", "model.cut=9"))
    out, err = running.communicate(timeout=120)
    assert all(line.startswith("getting ready") for line in out.splitlines())  # on a slow machine
    assert "cut is 9" in refusal(Said(running.returncode, out, err))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("halfback.runs.run.train", interrupted)
    said = halfback(*digits(tmp_path / "run"))
    assert said.status == 130
    assert said.err == "halfback: stopped\n"


@pytest.mark.parametrize("command", ["algorithms", "tasks", "models", "recipes"])
def test_what_there_is(command: str) -> None:
    said = halfback(command)
    assert (said.status, said.err) == (0, "")
    known = {"algorithms": "ho_sfl", "tasks": "sst2", "models": "resnet", "recipes": "quickstart"}[command]
    assert any(line.startswith(known) and len(line.split()) > 3 for line in said.out.splitlines())
    assert "\x1b" not in said.out  # piped output stays plain


def test_help_needs_nothing_heavy() -> None:
    """`halfback --help` answers at once: importing the command line imports no torch."""
    assert halfback("--help").status == 0
    running = process("--help")
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    assert "train" in out
    code = "import sys, halfback.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
