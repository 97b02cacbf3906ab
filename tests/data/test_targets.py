"""Generation tasks: rows, references of one input, and what is refused."""

import gzip

import datasets
import numpy as np
import pytest
from test_tasks import message, needs_data, write_csv

from halfback.data.options import TaskOptions
from halfback.data.sources import Source
from halfback.data.targets import references
from halfback.data.tasks import load_task

ROWS = [{"text": f"input {row // 3}", "target": f"target {row}"} for row in range(30)]


def options(path, **changes):
    return TaskOptions("csv", train=path, objective="generation", **changes)


def test_own_data(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"question": "why", "more": "so", "answer": "because"}] * 3)
    task = load_task(options(path, validation=path, text="question", pair="more", target="answer"), seed=0)
    assert (task.objective, task.label_names) == ("generation", [])
    assert (task.train.texts[0], task.train.pairs[0], task.train.targets[0]) == ("why", "so", "because")
    assert task.train.labels.tolist() == [0] * 3


def test_rows_of_one_input_are_references_also_those_that_are_not_chosen(tmp_path):
    path = write_csv(tmp_path / "a.csv", ROWS)
    task = load_task(options(path, validation=path, validation_rows=7), seed=0)
    assert len(task.validation.references) == 7
    for text, target, found in zip(
        task.validation.texts, task.validation.targets, task.validation.references, strict=True
    ):
        assert found == [row["target"] for row in ROWS if row["text"] == text]
        assert target in found


def test_the_pair_is_part_of_the_input():
    source = Source("x", 3, [], texts=["a", "a", "a"], pairs=["1", "2", "1"], targets=["p", "q", "r"])
    assert references(source, np.array([2, 1]), np.arange(3)) == [["p", "r"], ["q"]]


@pytest.mark.parametrize("changes", [{}, {"holdout": 0.3}])
def test_an_input_is_held_out_with_all_its_targets(tmp_path, changes):
    path = write_csv(tmp_path / "a.csv", ROWS)
    task = load_task(options(path, **changes), seed=3)
    train, validation = set(task.train.texts), set(task.validation.texts)
    assert not train & validation
    assert len(validation) == (3 if changes else 1)
    assert len(task.validation.texts) == 3 * len(validation)
    assert all(len(found) == 3 for found in task.validation.references)


def test_columns_and_cells_that_are_not_there(tmp_path):
    path = write_csv(tmp_path / "a.csv", ROWS)
    said = message(name="csv", train=path, objective="generation", target="answer")
    assert "no column 'answer'; it has target" in said
    path = write_csv(tmp_path / "b.csv", [{"text": "a", "summary": "b"}])
    assert "no column 'target'; it has text" in message(name="csv", train=path, objective="generation")
    path = write_csv(tmp_path / "c.csv", [*ROWS, {"text": "a", "target": " "}])
    assert "line 32, column 'target'" in message(name="csv", train=path, objective="generation")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": "target"}, "task.label='target' has no meaning for task.objective=generation"),
        ({"verbaliser": ("a", "b")}, "task.verbaliser=('a', 'b') has no meaning"),
        ({"generated_rows": -1}, "task.generated_rows=-1 must be at least 0"),
        ({"generated_rows": 11}, "task.generated_rows=11: validation has 10 different inputs"),
        ({"beams": 0}, "task.beams=0 must be at least 1"),
        ({"max_new_tokens": 0}, "task.max_new_tokens=0 must be at least 1"),
        ({"objective": "generate"}, "task.objective='generate' is unknown; allowed: classification, causal_lm, gener"),
        ({"objective": "causal_lm", "target": "target"}, "task.target='target' has no meaning for task.objective=caus"),
        ({"objective": None, "label": "target", "generated_rows": 3}, "generated_rows=3 has no meaning"),
    ],
)
def test_options_that_are_refused(tmp_path, changes, said):
    path = write_csv(tmp_path / "a.csv", ROWS)
    assert said in message(**{"name": "csv", "train": path, "validation": path, "objective": "generation"} | changes)


def test_tasks_that_have_or_have_not_targets():
    assert "'sst2' has no targets; e2e, webnlg, dart, csv, hub have" in message(name="sst2", objective="generation")
    assert "needs texts; task 'digits' has images" in message(name="digits", objective="generation")
    assert "task.objective='causal_lm': task 'e2e' is for generation" in message(name="e2e", objective="causal_lm")
    assert "task.target='x' has no meaning for task 'e2e'" in message(name="e2e", target="x")


@pytest.mark.parametrize(
    ("name", "sizes", "inputs"),
    [
        ("e2e", (42_061, 4_672), 547),
        ("webnlg", (18_102, 2_268), 871),
        ("dart", (6_980, 12_551), 4_159),  # trained on validation; one of the test's 12,552 rows has no target
    ],
)
def test_the_local_data(name, sizes, inputs):
    needs_data(name)
    task = load_task(TaskOptions(name), seed=0)
    assert task.objective == "generation"
    assert (len(task.train.texts), len(task.validation.texts)) == sizes
    assert len(set(task.validation.texts)) == inputs
    assert all(target.strip() for target in task.train.targets + task.validation.targets)
    some = load_task(TaskOptions(name, validation_rows=5), seed=0).validation
    whole = list(zip(task.validation.texts, task.validation.targets, strict=True))
    assert some.references == [[target for other, target in whole if other == text] for text in some.texts]


HUB = {
    "e2e": ({"meaning_representation": "name[A]", "human_reference": "A is."}, [("name[A]", "A is.")]),
    "webnlg": (
        {
            "modified_triple_sets": {"mtriple_set": [["A | is | b", "b | of | c"]]},
            "lex": {"text": ["A is b.", "It is."]},
        },
        [("A : is : b | b : of : c", "A is b."), ("A : is : b | b : of : c", "It is.")],
    ),
    "dart": (
        {"tripleset": [["A", "is", "b"]], "annotations": {"source": ["x", "y"], "text": ["A is b.", ""]}},
        [("A : is : b", "A is b.")],
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_rows(name, tmp_path, monkeypatch):
    """The entries that the hub's data set cards show; the hub itself is not asked."""
    entry, rows = HUB[name]
    asked = []

    def load(path, config, **form):
        asked.append((path, form["revision"], form["data_dir"]))
        return datasets.DatasetDict({part: datasets.Dataset.from_list([entry]) for part in ("train", "validation")})

    monkeypatch.setenv("HALFBACK_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", load)
    task = load_task(TaskOptions(name), seed=0)
    assert list(zip(task.train.texts, task.train.targets, strict=True)) == rows
    assert [found[1:] for found in asked] == [
        ("refs/convert/parquet", "webnlg_challenge_2017" if name == "webnlg" else "default")
    ]


def test_a_folder_with_all_of_dart(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBACK_DATA", str(tmp_path))
    (tmp_path / "dart").mkdir()
    for part in ("train", "validation", "test"):
        write_csv(tmp_path / "dart" / f"{part}.csv.gz", [{"input": part, "target": "x", "source": "y"}], gzip.open)
    task = load_task(TaskOptions("dart"), seed=0)
    assert (task.train.texts, task.validation.texts) == (["train"], ["validation"])
    (tmp_path / "dart" / "train.csv.gz").unlink()
    task = load_task(TaskOptions("dart"), seed=0)
    assert (task.train.texts, task.validation.texts) == (["validation"], ["test"])
