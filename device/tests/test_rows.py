"""Rows that a device reads, encodes and batches are those of the reference, from the same files and tokenizers."""

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from halfback import config as configuration
from halfback.assembly.given import Given
from halfback.assembly.sources import Seat, client_sources, site_source
from halfback.assembly.whole import load
from halfback.data.files import read_table as reference_table
from halfback.data.sources import data_folder
from halfback.errors import UserError
from halfback.models.packages import packaged_models
from halfback.packaging.encoding import task_section, tokenizer_json
from halfback_device.batches import Feed
from halfback_device.data import Rows, own_split
from halfback_device.files import read_table
from halfback_device.seeds import seed_for
from halfback_device.tables import RowError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with SmolLM2's tokenizer, which is of GPT-2's kind."""
    package = packaged_models()["smollm2-135m-instruct"]
    if package.folder() is None:
        pytest.skip("smollm2-135m-instruct is not installed")
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    folder = tmp_path_factory.mktemp("models") / "small-lm"
    tokenizer = transformers.AutoTokenizer.from_pretrained(package.folder(), gguf_file=package.gguf)
    return _saved(folder, tokenizer)


@pytest.fixture(scope="module")
def begun_lm(small_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a token before every text and one behind it, as OPT's has the one and others the other."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_lm)
    token, number = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A {token}", pair=f"{token} $A {token} $B {token}", special_tokens=[(token, number)]
    )
    return _saved(tmp_path_factory.mktemp("models") / "begun-lm", tokenizer)


def _saved(folder: Path, tokenizer: Any) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SST2: dict[str, Any] = {"name": "sst2", "train_rows": 300, "validation_rows": 8}
RTE: dict[str, Any] = {"name": "rte", "train_rows": 200, "validation_rows": 8}
E2E: dict[str, Any] = {"name": "e2e", "train_rows": 200, "validation_rows": 8}
CASES: dict[str, tuple[str, dict[str, Any], Rows]] = {
    "one text": ("all-minilm-l6-v2", SST2, Rows("sst2/train.csv.gz", text="text", label="label")),
    "cut off": ("all-minilm-l6-v2", SST2 | {"max_length": 8}, Rows("sst2/train.csv.gz", text="text", label="label")),
    "pairs, cut off": (
        "all-minilm-l6-v2",
        RTE | {"max_length": 24},
        Rows("rte/train.csv.gz", text="premise", pair="hypothesis", label="label"),
    ),
    "pairs in a template": (
        "all-minilm-l6-v2",
        RTE | {"template": "{pair}: true or false? {text}", "max_length": 24},
        Rows("rte/train.csv.gz", text="premise", pair="hypothesis", label="label"),
    ),
    "verbaliser": (
        "begun_lm",
        SST2 | {"template": "{text} It was", "verbaliser": ["bad", "great"], "max_length": 16},
        Rows("sst2/train.csv.gz", text="text", label="label"),
    ),
    "language modelling": (
        "small_lm",
        SST2 | {"objective": "causal_lm", "max_length": 12},
        Rows("sst2/train.csv.gz", text="text"),
    ),
    "generation": ("small_lm", E2E | {"max_length": 40}, Rows("e2e/train.csv.gz", text="input", target="target")),
    "generation, begun": (
        "begun_lm",
        E2E | {"template": "{text}\n", "max_length": 40},
        Rows("e2e/train.csv.gz", text="input", target="target"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_shared_rows_come_in_the_reference_s_batches(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, task, rows = CASES[case]
    root = data_folder("sst2")
    if root is None:
        pytest.skip("the local data are not here")
    if "-" in model and packaged_models()[model].folder() is None:
        pytest.skip(f"{model} is not installed")
    name = model if "-" in model else str(request.getfixturevalue(model))
    iid = task.get("objective") == "causal_lm" or task["name"] == "e2e"
    tree = {"algorithm": {"name": "ho_sfl"}, "task": task, "model": {"name": name, "cut": 1}, "clients": 3}
    changes = {"batch_size": 7, "seed": 3, "partition.name": "iid" if iid else "dirichlet"}
    config = configuration.from_tree(tree, changes)
    loaded = load(config, Given())
    manifest = _written(loaded, config, tmp_path)
    theirs = client_sources(config, loaded.task.train, CPU)[1]
    shared = Rows(**vars(rows) | {"path": str(root.parent / rows.path), "shared": True})
    split = own_split(shared, manifest, tmp_path, 1)
    ours = Feed(split, size=7, seed=seed_for(3, "order", 1))
    assert len(ours) == len(theirs)
    for number in (0, 1, len(ours) // 7, len(ours) // 7 + 1):  # the last of an epoch, and one of the next
        _assert_equal(ours.batch(number), theirs.batch(number))


def _written(loaded: Any, config: Any, folder: Path) -> dict[str, Any]:
    if loaded.tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer_json(loaded.tokenizer))
    told = {
        "task": task_section(config, loaded.task, loaded.whole, loaded.tokenizer),
        "config": configuration.to_tree(config),
    }
    read: dict[str, Any] = json.loads(json.dumps(told))
    return read


def _assert_equal(ours: Any, theirs: Any) -> None:
    assert ours.inputs.keys() == theirs.inputs.keys()
    pairs = [(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs]
    pairs += [(ours.labels, theirs.labels), (ours.sample_ids, theirs.sample_ids)]
    pairs += [] if theirs.scored is None else [(ours.scored, theirs.scored)]
    assert (ours.scored is None) == (theirs.scored is None)
    for mine, other in pairs:
        assert mine.dtype == other.numpy().dtype
        assert np.array_equal(mine, other.numpy())


def test_a_site_s_own_pictures_come_as_the_reference_makes_them(tmp_path: Path) -> None:
    from PIL import Image

    dice, folder = np.random.default_rng(0), tmp_path / "pictures"
    for label, mode in (("cat", "RGB"), ("cat", "L"), ("dog", "RGBA"), ("dog", "I;16"), ("dog", "P")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        pixels = dice.integers(0, 256, (20, 30, 4), dtype=np.uint8)
        picture = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[:, :, :3], "RGB")
        if mode == "I;16":
            picture = Image.fromarray((pixels[:, :, 0].astype(np.uint16) << 8) + 7)
        elif mode not in ("RGB", "RGBA"):
            picture = picture.convert(mode)
        picture.save(folder / label / f"{mode.replace(';', '')}.png")
    task = {"name": "images", "train": str(folder), "validation": str(folder), "image_size": 16}
    tree = {"algorithm": {"name": "ho_sfl"}, "task": task, "model": {"name": "resnet8", "cut": 1}}
    config = configuration.from_tree(tree, {"bottom.train": "full", "top.train": "full", "batch_size": 5})
    loaded = load(config, Given())
    split = own_split(Rows(str(folder)), _written(loaded, config, tmp_path), tmp_path, 0)
    seat = Seat(0, True, ("cat", "dog"))
    theirs = site_source(config, loaded.task.train, seat.client, CPU)
    _assert_equal(Feed(split, size=5, seed=seed_for(config.seed, "order", 0)).batch(1), theirs.batch(1))


@pytest.mark.parametrize(
    "content",
    [
        "text;label\nwarm; great;1\n",
        "text,label\nwarm,1\ncold,0\n",
        "\ufefftext\tlabel\nwarm\t1\n",
        'sep=|\ntext|label\n"a\nb"|1\n',
        'text,label\n"warm,1\ncold,0\n',
        'text,label\n"warm" x,1\n',
        "text,text\nwarm,1\n",
        "text,label\nwarm,1\ncold\n",
        "\n\n",
        "text,label\n",
        'id,text,label\n1,"warm,1\n2,cold",0\n3,fun,1\n',
        '{"text": "warm", "label": 1}\n{"text": null, "label": true}\n',
        '[{"text": "warm", "label": 01}]',
        '{"text": "warm", "text": "cold"}',
        '{"text": ["warm"], "label": 1.50}',
        '{"text": "\\ud800", "label": NaN}',
        "[[1]]",
        "[" * 100_000,
        '[{"text": "warm"}, {"text": "cold"}]',
        '{"text": "warm"}\n{"text":\n{"text": "cold"}\n{"text": "fun"}\n',
        '{"text": "warm"}\n{"text":\n',
        '{"text": "warm"}\r\n\r\n{"text": "cold"} x\r\n',
        'text,label\n"warm\nfun" x,1\n',
    ],
)
def test_files_are_read_or_refused_as_by_the_reference(content: str, tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.jsonl", "rows.json.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
        theirs = _reference_or_refusal(path)
        if isinstance(theirs, UserError):
            with pytest.raises(RowError) as error:
                read_table(str(path))
            assert "\n" not in str(error.value)
            assert re.findall(r"line \d+", str(error.value)) == re.findall(r"line \d+", str(theirs))
            continue
        ours = read_table(str(path))
        assert str(ours.columns) == str(theirs.columns)
        assert [ours.place(row) for row in range(ours.size)] == [theirs.place(row) for row in range(theirs.size)]


def _reference_or_refusal(path: Path) -> Any:
    try:
        return reference_table(str(path))
    except UserError as refusal:
        return refusal


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ("text,label\nwarm,2\n", {}, "label '2' in line 2"),
        ("text,label\nwarm,\n", {}, "line 2, column 'label' of file"),
        ("text,label\nwarm,\n", {}, "has no label; --skip-bad-rows skips such rows"),
        ("text,label\nwarm,NaN\n", {}, "has 'NaN', which stands for no label; --skip-bad-rows"),
        ("text,label\nwarm,1.5\n", {}, "has the label '1.5', which is no whole number or text"),
        ("text,label\n,1\n", {}, "line 2, column 'text' of file"),
        ("text,label\n,1\n", {}, "has no text; --skip-bad-rows skips such rows"),
        ("text,label\nwarm\n", {}, "--skip-bad-rows skips such rows"),
        ("text,label\nwarm,1\n", {"text": "words"}, "no column 'words'"),
        ("text,label\nwarm,1\n", {"label": "text"}, "named for two things"),
        ("text,label\nwarm,1\n", {"label": None}, "name its column with --label"),
        ("text,label\nwarm,1\n", {"text": None}, "name its column with --text"),
        ("text,label\nwarm,1\n", {"delimiter": ",,"}, "--delimiter ',,'"),
        ("text,label\nwarm,1\n", {"encoding": "none"}, "--encoding 'none'"),
        ("text,label\nwarm,1\n", {"encoding": ""}, "--encoding ''"),
        ("text,label\nw\u00e4rm,1\n", {"encoding": "ascii"}, "such as --encoding cp1252"),
        ("text,label\n,1\nwarm,\n", {"skip_bad_rows": True}, "no whole row"),
    ],
)
def test_wrong_rows_are_one_line(lines: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(lines, encoding="utf-8")
    task = {
        "objective": "classification",
        "label_names": ["negative", "positive"],
        "inputs": "texts",
        "texts": {"pair": False},
    }
    rows = Rows(**{"path": str(path), "text": "text", "label": "label"} | options)
    with pytest.raises(RowError) as error:
        own_split(rows, {"task": task, "config": {}}, tmp_path, 0)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


IMAGES: dict[str, Any] = {
    "objective": "classification",
    "label_names": ["cat", "dog"],
    "inputs": "images",
    "images": {"channels": 3, "size": [2, 2]},
}


def _refused(path: Path) -> str:
    with pytest.raises(RowError) as error:
        own_split(Rows(str(path)), {"task": IMAGES, "config": {}}, path.parent, 0)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.csv", "is a file: the model takes images, so a folder with a subfolder"),
        ("nowhere", "does not exist; a folder with a subfolder"),
        ("folder", "not installed here: pip install 'halfback-device[images]', or './device[images]' in a"),
    ],
)
def test_pillow_is_asked_for_where_images_are(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "halfback_device.pictures", None)
    (tmp_path / "rows.csv").write_text("text,label\nwarm,cat\n")
    (tmp_path / "folder").mkdir()
    assert said in _refused(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 3, 2, 2), np.float32)}, "has no array 'labels'; a .npz of"),
        ({"images": np.zeros((2, 3, 2, 2), np.float32), "labels": np.array(1)}, "with labels ()"),
        ({"images": np.zeros((1, 3, 2, 2), np.float32), "labels": np.array([np.nan])}, "label 'nan' in row 1"),
        (None, "is no .npz"),
    ],
)
def test_wrong_arrays_of_images_are_one_line(arrays: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    if arrays is None:
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        np.savez(path, **arrays)
    assert said in _refused(path)
