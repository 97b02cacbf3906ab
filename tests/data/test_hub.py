"""Folders laid out like data sets of the hub, and the hub's own CSV and JSON: the same table as task.name=csv sees."""

import datetime
import decimal
import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from test_tasks import message

from halfback.data.options import TaskOptions
from halfback.data.tasks import load_task

CODES = ["01", "02", "1"]
ROWS = [{"text": f"2020-01-{day:02}", "label": CODES[day % 3]} for day in range(1, 31)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture
def folder(tmp_path):
    """Beside the library's cache, which it would take for data."""
    path = tmp_path / "set"
    path.mkdir()
    return path


def filled(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def hub(folder, **options):
    return load_task(TaskOptions("hub", train=str(folder), validation="train", **options), seed=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", CSV),
        ("data__train.csv", CSV),
        ("train__rows.csv", CSV),
        ("csv__train.csv", CSV),
        ("train.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("train.csv", CSV.replace(",", ";")),
        ("train.csv", CSV.encode("utf-16")),
        ("train.tsv", CSV.replace(",", "\t")),
        ("train.jsonl", LINES),
        ("train.json", json.dumps(ROWS)),
        ("train.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_cells_are_the_text_as_written(folder, name, content, capfd):
    task = hub(filled(folder, **{name: content}))
    assert task.train.texts == [row["text"] for row in ROWS]
    assert task.label_names == ["01", "1", "02"]
    assert [task.label_names[label] for label in task.train.labels] == [row["label"] for row in ROWS]
    assert capfd.readouterr() == ("", "")


def test_several_files_are_one_split_and_others_are_not_read(folder):
    names = ["train-00000-of-00002.csv", "train-00001-of-00002.csv"]
    name = filled(folder, **dict.fromkeys(names, CSV), **{"test.csv": 'a,b\n"'})
    assert hub(name).train.texts == [row["text"] for row in ROWS] * 2
    filled(folder, **{names[1]: CSV + "x,\n"})
    said = message(name="hub", train=name)
    assert f"line 32 of {names[1]!r}, column 'label' of split 'train' of {name!r} is missing" in said
    filled(folder, **{names[1]: CSV.replace("label", "lable", 1)})
    assert f"{names[1]}' has no column 'label', which file" in message(name="hub", train=name)
    filled(folder, **{names[1]: CSV})
    assert "test.csv', line 2: a quote opens here" in message(name="hub", train=name, validation="test")


def test_options_of_reading(folder):
    name = filled(folder, **{"train.csv": CSV.replace(",", "^").replace("2020-01-05", "naïve").encode("latin-1")})
    assert "task.encoding='cp1252'" in message(name="hub", train=name)
    assert hub(name, delimiter="^", encoding="latin-1").train.texts[4] == "naïve"
    filled(folder, **{"train.csv": CSV + "x,\n"})
    assert hub(name, skip_bad_rows=True).skipped_rows == 2  # the split serves both sides


CARD = """---
configs:
- config_name: default
  {how}
  data_files: [{{split: train, path: rows.csv}}]
dataset_info:
  features:
  - {{name: text, dtype: string}}
  - {{name: label, dtype: {{class_label: {{names: {{"0": pos, "1": neg}}}}}}}}
---
"""


@pytest.mark.parametrize(
    ("how", "header", "delimiter"),
    [
        ("sep: ';'", "text;label\n", ";"),
        ("column_names: [text, label]", "", ","),
        ("encoding: cp1252", "text,label\n", ","),
    ],
)
def test_what_a_card_says(folder, how, header, delimiter):
    rows = header + "".join(f"caf\u00e9 {n}{delimiter}{n % 2}\n" for n in range(4))
    encoding = "cp1252" if "encoding" in how else "utf-8"
    name = filled(folder, **{"README.md": CARD.format(how=how), "rows.csv": rows.encode(encoding)})
    task = hub(name)
    assert task.train.texts == [f"café {n}" for n in range(4)]
    assert (task.label_names, task.train.labels.tolist()) == (["pos", "neg"], [0, 1, 0, 1])


def test_a_card_that_asks_for_another_way_of_reading(folder):
    name = filled(folder, **{"README.md": CARD.format(how="skiprows: 1"), "rows.csv": CSV})
    assert "its card sets skiprows=1, which is not supported" in message(name="hub", train=name)


DAY = datetime.date(2020, 1, 31)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("007", "007"),
        (2**53 + 1, "9007199254740993"),
        (True, "True"),
        (1.5, "1.5"),
        (decimal.Decimal("1.50"), "1.50"),
        (DAY, "2020-01-31"),
        (datetime.datetime(2020, 1, 31, 12), "2020-01-31 12:00:00"),
        (float("nan"), "has no text"),
        (None, "has no text"),
        (["a"], "has a list where a text belongs"),
        ({"a": 1}, "has an object where a text belongs"),
        (b"a", "has bytes where a text belongs"),
        (datetime.timedelta(1), "has a timedelta where a text belongs"),
    ],
)
def test_what_values_of_parquet_become(folder, value, text):
    table = pyarrow.table({"text": [value] * 2, "label": ["b", "a"]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    if "has " in text:
        assert f"row 1, column 'text' of split 'train' of '{folder}' {text}" in message(name="hub", train=str(folder))
    else:
        assert hub(folder).train.texts == [text] * 2


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 0], ["0", "1"]),
        ([True, False], ["False", "True"]),
        (["01", "1"], "write them alike"),
        ([1.0, 0.0], "write 1"),
    ],
)
def test_labels_of_parquet(folder, labels, names):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": labels}), folder / "train.parquet")
    if isinstance(names, list):
        assert hub(folder).label_names == names
    else:
        assert names in message(name="hub", train=str(folder), validation="train")


def test_classes_that_parquet_declares_and_a_file_replaced_with_the_same_time(folder):
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    path = folder / "train.parquet"
    for text in ("old", "new"):
        rows = {"text": [text] * 2, "label": [1, 0]}
        table = datasets.Dataset.from_dict(rows, features=kinds).with_format("arrow")[:]
        pyarrow.parquet.write_table(table.replace_schema_metadata(kinds.arrow_schema.metadata), path)
        task = hub(folder)
        assert (task.train.texts, task.label_names, task.train.labels.tolist()) == ([text] * 2, ["pos", "neg"], [1, 0])


def test_csv_on_the_hub_itself(folder, monkeypatch):
    """The library's own rows have guessed types, so its files are read; a folder stands for what it would fetch."""
    name = filled(folder, **{"train.csv": CSV})
    real = datasets.load_dataset_builder

    def guessed(path, config=None):
        rows = datasets.Dataset.from_dict({"text": [1], "label": [1]})
        rows.info.builder_name = "csv"
        return datasets.DatasetDict(train=rows)

    monkeypatch.setattr(datasets, "load_dataset", guessed)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, config=None: real(name))
    task = hub("someone/rows")
    assert (task.train.texts[0], task.label_names) == ("2020-01-01", ["01", "1", "02"])


def test_folders_that_are_refused(folder):
    assert "cannot be read: " in message(name="hub", train=filled(folder / "a", **{"train.parquet": "no parquet"}))
    assert "data files" in message(name="hub", train=filled(folder / "b", **{"x__y": ""}))
    assert "is empty" in message(name="hub", train=filled(folder / "c", **{"train.csv": ""}))
    assert "cannot be read: " in message(name="hub", train=filled(folder / "d", **{"train.zip": "PK"}))
    card = filled(folder / "e", **{"train.csv": CSV, "README.md": "---\na: [\n---\n"})
    assert "cannot be read: " in message(name="hub", train=card)
    twice = pyarrow.table({"text": ["a", "b"], " text": ["c", "d"], "label": [0, 1]})
    (folder / "f").mkdir()
    pyarrow.parquet.write_table(twice, folder / "f" / "train.parquet")
    assert "names a column twice: 'text'" in message(name="hub", train=str(folder / "f"))


@pytest.mark.parametrize(("file", "content"), [("dataset_info.json", "[]"), ("state.json", "{}"), ("state.json", "[")])
def test_what_save_to_disk_wrote_and_somebody_changed(folder, file, content):
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(folder)
    assert len(hub(folder).train.texts) == 2
    (folder / file).write_text(content)
    assert "cannot be read: " in message(name="hub", train=str(folder))
