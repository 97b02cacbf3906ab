"""Rows that a page reads, encodes and resizes are those of the native device, from the same files and tokenizers."""

import base64
import csv
import gzip
import io
import json
import os
import random
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from halfback.models.packages import packaged_models
from halfback.testing.web import built
from halfback_device.batches import Ragged
from halfback_device.files import read_table
from halfback_device.tables import NoText, RowError, Table
from halfback_device.tokens import Encoder

ODD = [
    "Ünïcödé — “quotes” … 漢字 テスト",
    "a\tb\nc  d",
    "[MASK] [SEP] x <s> </s> <|endoftext|>",
    "emoji 😀👍🏽 end, İstanbul ǅ ﬁ ½",
    "x" * 300,
    "1,234.56 $5.00 100% don't can't 'tis",
    "zero\u200bwidth\u200d, combining e\u0301",
]
HOW: dict[str, Any] = {
    "max_length": 64,
    "longest": 512,
    "template": None,
    "pair": False,
    "types": True,
    "continued": False,
    "side": "right",
    "end": None,
    "split_special": False,
    "tokens": 1 << 20,
}
HOWS: list[dict[str, Any]] = [
    {},
    {"max_length": 9, "side": "left"},
    {"pair": True, "max_length": 17},
    {"template": "{text} It was", "continued": True, "max_length": 12},
    {"template": "{{{text}}} and {pair}", "pair": True, "max_length": 20},
    {"split_special": True},
]


def _came(asked: Sequence[dict[str, Any]]) -> list[Any]:
    """What the page's modules make of each of these, in order."""
    lines = "\n".join(map(json.dumps, asked))
    ran = subprocess.run(
        ["node", str(built("node_rows"))], input=lines, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _texts() -> list[str]:
    """Sentences of SST-2 where they are, and odd ones."""
    file = Path(os.environ.get("HALFBACK_DATA", "nowhere")) / "sst2" / "train.csv.gz"
    if not file.is_file():
        dice = random.Random(0)
        words = ["the", "film", "is", "a", "very", "warm,", "dull", "plot"]
        return [" ".join(dice.choices(words, k=7)) for _ in range(200)] + ODD
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        return [row["text"] for row in csv.DictReader(opened)][:1500] + ODD


def _of_gpt2s_kind(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=alphabet)
    )
    return made


def _of_t5s_kind(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    made.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=1000, special_tokens=special, unk_token="<unk>"))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return made


def _files(folder: Path, texts: list[str], tiny_bert: Path) -> list[Path]:
    found = [tiny_bert / "tokenizer.json"]
    for name, made in (("bpe", _of_gpt2s_kind(texts)), ("unigram", _of_t5s_kind(texts))):
        made.save(str(folder / name))
        found.append(folder / name)
    minilm = packaged_models()["all-minilm-l6-v2"].folder()
    return found if minilm is None else [*found, minilm / "tokenizer.json"]


def test_tokens_are_those_of_the_native_device(tiny_bert: Path, tmp_path: Path) -> None:
    all_texts = _texts()
    few = all_texts[-150:]
    # Each text with each tokenizer; and what else a package may say with some of them.
    cases = [
        (file, HOW | how, few if how else all_texts) for file in _files(tmp_path, all_texts, tiny_bert) for how in HOWS
    ]
    asked = [
        {"tokens": {"file": str(file), "how": how, "texts": texts, "pairs": texts[::-1] if how["pair"] else None}}
        for file, how, texts in cases
    ]
    for (file, how, texts), came in zip(cases, _came(asked), strict=True):
        try:
            ids, types = Encoder(file, how).rows(texts, texts[::-1] if how["pair"] else None)
        except RowError:  # of a tokenizer that leaves nothing of some text
            assert "has no tokens" in came["error"]
            continue
        apart = [place for place, row in enumerate(_listed(ids)) if row != came["ids"][place]]
        if file.name == "unigram":  # of two ways with one probability the library takes the other one, now and then
            scores = [score for _, score in json.loads(file.read_text())["model"]["vocab"]]
            assert len(apart) <= len(texts) // 20
            for place in apart:
                own, its = ids[place].tolist(), came["ids"][place]
                if len(own) == how["max_length"]:  # cut: of the two ways different ends are left
                    assert len(its) == len(own)
                else:
                    assert sum(scores[each] for each in own) == pytest.approx(
                        sum(scores[each] for each in its), rel=1e-9
                    )
        else:
            assert not apart, (file, how, texts[apart[0]])
        assert came["types"] == (None if types is None else _listed(types)), (file, how)


def _listed(ragged: Ragged) -> list[list[int]]:
    return [ragged[place].tolist() for place in range(len(ragged))]


TABLES: dict[str, tuple[str, str]] = {
    "plain": ("a.csv", "text,label\none,1\ntwo,0\n"),
    "quotes": ("a.csv", 'text,label\r\n"a, b",1\r\n"say ""hi""",0\r\n"two\nlines",1\r\n'),
    "semicolons": ("a.csv", "text;label\n1,5;2\n"),
    "tabs and blank lines": ("a.csv", "\ntext\tlabel\n\n  \na b\t1\n"),
    "excel": ("a.csv", "sep=;\ntext;label\nx;1\n"),
    "blanks behind commas": ("a.csv", 'text, label\n"a", "b, c"\n'),
    "markdown": ("a.csv", "| text | label |\n| --- | --- |\n| a | 1 |\n"),
    "commas at the end": ("a.csv", "text,label,,\na,1,,\n"),
    "byte order mark": ("a.csv", "\ufefftext,label\na,1\n"),
    "too few": ("a.csv", "text,label\na,1\nb\n"),
    "an open quote": ("a.csv", 'text,label\na,1\n"b,2\nc,3\n'),
    "behind a quote": ("a.csv", 'text,label\n"a"x,1\n'),
    "rows in a cell": ("a.csv", 'text,label\n"a,1\nb,0\nc",1\nd,0\n'),
    "prose in a cell": ("a.csv", 'text,label\n"a, 1\nb, 0\nc",1\nd,0\n'),
    "twice": ("a.csv", "text,text\na,b\n"),
    "no rows": ("a.csv", "text,label\n"),
    "list": ("a.json", '[{"text": "a", "label": 1.50}, {"text": null, "label": true}]'),
    "one after another": ("a.json", '{"text": "a\\u00e9"}\n\n{"text": ["x"], "more": {"b": 1}}'),
    "lines": ("a.jsonl", '{"text": "a", "n": NaN}\n{"text": "b", "n": -1e5}\n'),
    "a broken line": ("a.jsonl", '{"text": "a"}\n{"text": \n{"text": "b"}\n'),
    "a key twice": ("a.jsonl", '{"text": "a", "text": "b"}\n'),
    "half a character": ("a.jsonl", '{"text": "\\ud800"}\n'),
    "no object": ("a.json", "[1, 2]"),
    "behind its end": ("a.json", '[{"text": "a"}] x'),
    "empty": ("a.jsonl", "\n \n"),
    "another ending": ("a.txt", "text\n"),
}


def _table(path: Path) -> Table | str:
    """The native device's, or what it says in its place."""
    try:
        return read_table(str(path))
    except RowError as error:
        return str(error)


def test_tables_are_those_of_the_native_device(tmp_path: Path) -> None:
    paths = []
    for number, (name, text) in enumerate(TABLES.values()):
        paths.append(tmp_path / str(number) / name)
        paths[-1].parent.mkdir()
        paths[-1].write_text(text, encoding="utf-8", newline="")
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(b"text,label\na,1\n"))
    for name, path, came in zip(
        [*TABLES, "gz"], [*paths, packed], _came([{"table": str(path)} for path in [*paths, packed]]), strict=True
    ):
        table = _table(path)
        if isinstance(table, str):
            said = re.search(r"line (\d+)", table)
            assert "error" in came, name
            assert said is None or said[0] in came["error"], (name, table, came["error"])
            continue
        cells = [
            [column, [{"kind": cell.kind} if isinstance(cell, NoText) else cell for cell in found]]
            for column, found in table.columns.items()
        ]
        assert came == {"columns": cells, "places": [table.place(row) for row in range(table.size)]}, name


@pytest.mark.parametrize("resample", range(6))
def test_pictures_are_resized_to_the_native_devices_pixels(resample: int) -> None:
    dice = np.random.default_rng(0)
    shapes = [((37, 53), (32, 32)), ((8, 8), (31, 17)), ((64, 20), (64, 9)), ((300, 200), (24, 24))]
    asked, wanted = [], []
    for (width, height), to in shapes:
        pixels = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
        told = {"width": width, "height": height, "data": base64.b64encode(pixels.tobytes()).decode()}
        asked.append({"resize": told | {"to": to, "resample": resample}})
        wanted.append(np.asarray(Image.fromarray(pixels).resize(to, Image.Resampling(resample))).tobytes())
    assert [base64.b64decode(came) for came in _came(asked)] == wanted


def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path) -> None:
    kinds = {
        "images": np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2),
        "whole": np.array([-1, 2, 1 << 40]),
        "small": np.array([1, 255], dtype=np.uint8),
        "texts": np.array(["a", "größer", "😀"]),
    }
    np.savez(tmp_path / "stored.npz", **kinds)
    np.savez_compressed(tmp_path / "packed.npz", **kinds)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "stored.npz").read_bytes()[:-40])
    with io.BytesIO() as pickled:
        np.savez(pickled, objects=np.array([{}], dtype=object))
        (tmp_path / "pickled.npz").write_bytes(pickled.getvalue())
    stored, packed, cut, objects = _came(
        [{"npz": str(tmp_path / f"{name}.npz")} for name in ("stored", "packed", "cut", "pickled")]
    )
    assert stored == packed
    assert [[name, kind, shape] for name, kind, shape, _ in stored] == [
        ["images", "f4", [3, 1, 2, 2]],
        ["whole", "i8", [3]],
        ["small", "u1", [2]],
        ["texts", "U6", [3]],
    ]
    assert [texts for *_, texts in stored[1:]] == [[str(v) for v in values] for values in list(kinds.values())[1:]]
    assert "error" in cut
    assert "error" in objects
