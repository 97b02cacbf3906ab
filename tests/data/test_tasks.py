import csv
import gzip
import json
import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from halfback.data import sources
from halfback.data.options import TaskOptions
from halfback.data.tasks import describe_tasks, load_task
from halfback.errors import UserError

ROWS = [{"text": f"sentence {row}", "more": f"pair {row}", "label": str(row % 3 + 8)} for row in range(30)]


def write_csv(path, rows, opener=open):
    with opener(path, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def message(**options):
    """The one line that loading with these options is refused with."""
    with pytest.raises(UserError) as caught:
        load_task(TaskOptions(**options), seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def needs_data(name):
    try:
        folder = sources.data_folder(name)
    except UserError as error:
        pytest.skip(str(error))
    if folder is None:
        pytest.skip(f"no {name} in HALFBACK_DATA or ../shared/data")


def texts_of(split):
    return set(split.texts)


@pytest.mark.parametrize(("name", "sizes"), [("digits", (1297, 500)), ("mnist", (4500, 500))])
def test_handwritten_digits_share_one_convention(name, sizes):
    task = load_task(TaskOptions(name), seed=0)
    assert (len(task.train.labels), len(task.validation.labels)) == sizes
    assert task.label_names == list("0123456789")
    assert task.in_channels == 1
    for split, size in zip((task.train, task.validation), sizes, strict=True):
        assert split.images.shape == (size, 1, 16, 16)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert split.images.min() == pytest.approx(-0.25 / 0.35, abs=1e-5)
        assert split.images.max() == pytest.approx(0.75 / 0.35, abs=1e-2)
        shares = torch.bincount(split.labels, minlength=10) / size
        assert (shares - 0.1).abs().max() < 0.01  # stratified
    assert abs(task.train.images.mean()) < 0.2
    assert task.train.images.std() == pytest.approx(1, abs=0.1)
    other = load_task(TaskOptions(name), seed=1)
    assert torch.equal(task.validation.images, other.validation.images)


def test_digits_and_mnist_look_alike():
    """MNIST's class means recognise digits far better as they are than turned, mirrored or inverted."""
    mnist, digits = (load_task(TaskOptions(name), seed=0).train for name in ("mnist", "digits"))
    means = torch.stack([mnist.images[mnist.labels == label].mean(0).flatten() for label in range(10)])

    def accuracy(images):
        return (torch.cdist(images.flatten(1), means).argmin(1) == digits.labels).float().mean()

    others = [digits.images.mT, digits.images.flip(3), digits.images.flip(2, 3), -digits.images]
    assert accuracy(digits.images) > 2 * max(map(accuracy, others))  # 0.38 against at most 0.13


def test_holdout_takes_training_rows_out_of_training(tmp_path):
    train = write_csv(tmp_path / "train.csv", ROWS)
    validation = write_csv(tmp_path / "validation.csv", [{"text": "other", "more": "", "label": "8"}])
    options = {"name": "csv", "train": train, "validation": validation}
    task = load_task(TaskOptions(**options, holdout=0.2), seed=5)
    assert (len(task.train.texts), len(task.validation.texts)) == (24, 6)
    assert texts_of(task.train) | texts_of(task.validation) == {row["text"] for row in ROWS}
    assert load_task(TaskOptions(**options, holdout=0.2), seed=5).validation.texts == task.validation.texts
    assert load_task(TaskOptions(**options, holdout=0.2), seed=6).validation.texts != task.validation.texts
    assert load_task(TaskOptions(**options), seed=5).validation.texts == ["other"]


def test_a_tenth_is_held_out_where_there_is_no_validation_file(tmp_path):
    train = write_csv(tmp_path / "train.csv", ROWS)
    first, second = (load_task(TaskOptions("csv", train=train), seed=seed) for seed in (0, 1))
    assert (len(first.train.texts), len(first.validation.texts)) == (27, 3)
    assert not texts_of(first.train) & texts_of(first.validation)
    assert first.validation.texts == second.validation.texts
    tuning = load_task(TaskOptions("csv", train=train, holdout=0.5), seed=0)
    assert not texts_of(first.validation) & (texts_of(tuning.train) | texts_of(tuning.validation))


def test_random_rows(tmp_path):
    train = write_csv(tmp_path / "train.csv", ROWS)
    options = TaskOptions("csv", train=train, train_rows=9, validation_rows=2, holdout=0.2)
    task = load_task(options, seed=1)
    assert (len(set(task.train.texts)), len(set(task.validation.texts))) == (9, 2)
    assert task.label_names == ["8", "9", "10"]
    assert load_task(options, seed=1).train.texts == task.train.texts
    assert load_task(options, seed=2).train.texts != task.train.texts
    assert "task.train_rows=28" in message(name="csv", train=train, train_rows=28)
    assert "27 rows" in message(name="csv", train=train, train_rows=28)
    assert "task.validation_rows=0" in message(name="csv", train=train, validation_rows=0)


def test_the_global_generators_stay(tmp_path):
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    load_task(TaskOptions("digits", train_rows=10, holdout=0.1), seed=3)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "json", "jsonl"])
def test_files_of_every_kind(tmp_path, kind, capfd):
    path = tmp_path / f"we[ir]d *name.{kind}"
    if kind == "csv":
        write_csv(path, ROWS)
    elif kind == "csv.gz":
        write_csv(path, ROWS, gzip.open)
    elif kind == "json":
        path.write_text(json.dumps([{**row, "label": int(row["label"])} for row in ROWS]))
    else:
        write_jsonl(path, [{**row, "label": int(row["label"])} for row in ROWS])
    task = load_task(TaskOptions("csv", train=str(path), validation=str(path), pair="more"), seed=0)
    assert task.train.texts == [row["text"] for row in ROWS]
    assert task.train.pairs == [row["more"] for row in ROWS]
    assert task.train.labels.tolist() == [row % 3 for row in range(30)]
    assert task.label_names == ["8", "9", "10"]  # by value, not by text
    assert (task.train.images, task.in_channels) == (None, None)
    assert capfd.readouterr() == ("", "")


def test_cells_stay_as_they_are_written(tmp_path):
    rows = [
        {"text": "007", "label": "no"},
        {"text": "None", "label": "yes"},
        {"text": 'a "quoted",\nbroken line', "label": "no"},
        {"text": "1.50", "label": "yes"},
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    task = load_task(TaskOptions("csv", train=path, validation=path), seed=0)
    assert task.train.texts == [row["text"] for row in rows]
    assert task.label_names == ["no", "yes"]


def test_a_changed_file_is_read_again(tmp_path):
    path = write_csv(tmp_path / "a.csv", ROWS)
    load_task(TaskOptions("csv", train=path, validation=path), seed=0)
    write_csv(tmp_path / "a.csv", [{**row, "text": row["text"] + " new"} for row in ROWS])
    os.utime(path, (1, 1))
    assert load_task(TaskOptions("csv", train=path, validation=path), seed=0).train.texts[0] == "sentence 0 new"


def test_texts_in_several_chunks_may_change_their_looks(tmp_path):
    """A library that guesses types would do it for each piece alone."""
    rows = [{"text": str(row), "label": str(row % 2)} for row in range(10_001)] + [{"text": "word", "label": "1"}]
    path = write_csv(tmp_path / "a.csv", rows)
    task = load_task(TaskOptions("csv", train=path, validation=path), seed=0)
    assert task.train.texts[-2:] == ["10000", "word"]


def test_causal_lm_needs_no_labels(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"input": f"in {row}", "target": f"out {row}"} for row in range(10)])
    options = TaskOptions("csv", train=path, validation=path, text="input", pair="target", objective="causal_lm")
    task = load_task(options, seed=0)
    assert task.train.pairs[3] == "out 3"
    assert task.train.labels.tolist() == [0] * 10
    assert task.label_names == []


def test_json_truth_values_are_classes(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": True}, {"text": "b", "label": False}])
    task = load_task(TaskOptions("csv", train=path, validation=path), seed=0)
    assert (task.label_names, task.train.labels.tolist()) == (["False", "True"], [1, 0])


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1", "0.5", "2"], "label '0.5' in line 3, column 'label'.*not a whole number"),
        (["1", "", "2"], "label '' in line 3.*is missing"),
        (["1", "2", "None"], "label 'None' in line 4.*is missing"),
        (["nan", "1", "2"], "label 'nan' in line 2.*is missing"),
        (["1", "1", "1"], "one class only \\('1'\\)"),
    ],
)
def test_labels_of_a_csv_that_are_refused(tmp_path, cells, said):
    path = write_csv(tmp_path / "a.csv", [{"text": "t", "label": cell} for cell in cells])
    with pytest.raises(UserError, match=said):
        load_task(TaskOptions("csv", train=path, validation=path), seed=0)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([1, None, 2], "label None in line 2.*is missing"),
        ([1.0, 0.0, 1.0], "label '1.0' in line 1.*not a whole number.*; write 1"),
        ([1, 0.5, "x"], "label '0.5' in line 2.*not a whole number"),
        ([[1], [2], [3]], "label in line 1.*is a list"),
    ],
)
def test_labels_of_a_json_file_that_are_refused(tmp_path, cells, said):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": cell} for cell in cells])
    with pytest.raises(UserError, match=said):
        load_task(TaskOptions("csv", train=path, validation=path), seed=0)


def test_a_label_that_training_never_saw(tmp_path):
    train = write_csv(tmp_path / "a.csv", ROWS)
    validation = write_csv(tmp_path / "b.csv", [*ROWS, {"text": "t", "more": "", "label": "12"}])
    said = message(name="csv", train=train, validation=validation)
    assert "label '12' in line 32" in said
    assert "b.csv" in said
    assert "known: " in said


def test_columns_that_are_not_there(tmp_path):
    path = write_csv(tmp_path / "a.csv", [{"zip": 1, "sentence": "a", "lable": 0}])
    assert "no column 'text'; it has" in message(name="csv", train=path)
    assert "no column 'sentences'; it has sentence, " in message(name="csv", train=path, text="sentences")
    assert "no column 'label'; it has lable, " in message(name="csv", train=path, text="sentence")
    assert "no column 'sentense'" in message(name="csv", train=path, text="sentence", pair="sentense", label="lable")


def test_files_that_are_refused(tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "twice.csv").write_text("text,text,label\na,b,0\n")
    (tmp_path / "comma.csv").write_text("text,label\nyes, indeed,0\nno,1\n")
    (tmp_path / "comma2.csv").write_text("text,label\nno,1\nyes, indeed,0\n")
    (tmp_path / "short.csv").write_text("text,label\nno,1\nyes\n")
    (tmp_path / "blank.csv").write_text("text,label\nno,1\n ,0\n")
    (tmp_path / "latin.csv").write_bytes("text,label\nna\xefve,1\n".encode("latin-1"))
    (tmp_path / "a.csv.gz").write_bytes(b"not gzip")
    (tmp_path / "a.json").write_text('{"text": "a", ')
    (tmp_path / "a.tsv").write_text("text\tlabel\n")
    for name, said in {
        "empty.csv": "is empty",
        "empty.jsonl": "is empty",
        "header.csv": "is empty: it has no rows",
        "twice.csv": "names a column twice",
        "comma.csv": "line 2: 3 fields, but the header has 2",
        "comma2.csv": "line 3: 3 fields, but the header has 2; a text with ',' in it needs quotes",
        "short.csv": "line 3: 1 field, but the header has 2",
        "blank.csv": "line 3, column 'text'",
        "latin.csv": "cannot be read: byte 0xef in line 2 is not 'utf-8'",
        "a.csv.gz": "cannot be read: ",
        "a.json": "cannot be read: ",
        "a.tsv": "unknown ending; allowed: .csv, .csv.gz, .json",
        "haeder.csv": "does not exist or is not a file; the folder has header.csv",
        "no/such.csv": "does not exist",
    }.items():
        line = message(name="csv", train=str(tmp_path / name))
        assert said in line, name
        assert name in line


def test_options_that_are_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", ROWS)
    assert "task.name='digit' is unknown; known: digits, " in message(name="digit")
    assert "task.objective='lm'" in message(name="digits", objective="lm")
    assert "needs texts; task 'digits' has images" in message(name="digits", objective="causal_lm")
    assert "task.holdout=1.0" in message(name="digits", holdout=1.0)
    assert "task.holdout takes 0.001 of 27" in message(name="csv", train=path, holdout=0.001)
    assert "task.text='words' has no meaning for task 'digits'" in message(name="digits", text="words")
    assert "task 'csv' needs task.train" in message(name="csv")
    assert "2 words for 3 classes (8, 9, 10)" in message(name="csv", train=path, verbaliser=("a", "b"))


def paint(folder, classes, size=(10, 6)):
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            colour = (255 * (place == 0), 255 * (place == 1), 50 * number)
            Image.new("RGB", size, colour).save(folder / name / f"test_{number}.png")
    return str(folder)


def test_a_folder_of_images(tmp_path, capfd):
    # A class and files called "test" are no split of their own.
    train = paint(tmp_path / "tr[a]in", ["cat", "test"])
    validation = paint(tmp_path / "validation", ["test"])
    task = load_task(TaskOptions("images", train=train, validation=validation, image_size=8), seed=0)
    assert task.label_names == ["cat", "test"]
    assert task.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.validation.labels.tolist() == [1, 1, 1]
    assert task.train.images.shape == (6, 3, 8, 8)
    assert task.in_channels == 3
    red = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(task.train.images[0], red.view(3, 1, 1).expand(3, 8, 8), atol=1e-5)
    half = load_task(TaskOptions("images", train=train, train_rows=2, holdout=0.5), seed=0)
    assert half.train.images.shape == (2, 3, 32, 32)
    assert capfd.readouterr() == ("", "")


def test_folders_that_are_refused(tmp_path):
    train = paint(tmp_path / "train", ["cat", "dog"])
    other = paint(tmp_path / "other", ["dgo"])
    assert "label 'dgo'" in message(name="images", train=train, validation=other)
    assert "known: dog, cat" in message(name="images", train=train, validation=other)
    assert "one class only ('dgo')" in message(name="images", train=other)
    assert "'nowhere' does not exist" in message(name="images", train="nowhere")
    assert "no subfolders" in message(name="images", train=str(tmp_path / "other" / "dgo"))
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    assert "no images" in message(name="images", train=str(tmp_path / "bare"))
    (tmp_path / "train" / "cat" / "test_0.png").write_bytes(b"not an image")
    assert "cat/test_0.png' can't be read: it is no image" in message(name="images", train=train, validation=train)
    assert "task.image_size=0" in message(name="images", train=train, image_size=0)


def test_sst2_and_movies():
    needs_data("sst2")
    needs_data("vader_sentiment/movies")
    sst2 = load_task(TaskOptions("sst2"), seed=0)
    assert (len(sst2.train.texts), len(sst2.validation.texts)) == (67_349, 872)
    assert torch.bincount(sst2.train.labels).tolist() == [29_780, 37_569]
    assert sst2.validation.texts[0] == "it 's a charming and often affecting journey ."
    assert sst2.validation.labels[0] == 1
    movies = load_task(TaskOptions("movies"), seed=0)
    assert (len(movies.train.texts), len(movies.validation.texts)) == (8_392, 1_678)
    assert sst2.label_names == movies.label_names == ["negative", "positive"]


def test_rte():
    needs_data("rte")
    task = load_task(TaskOptions("rte"), seed=0)
    assert (len(task.train.texts), len(task.train.pairs), len(task.validation.labels)) == (2_490, 2_490, 277)
    assert task.train.texts[0] == "No Weapons of Mass Destruction Found in Iraq Yet."
    assert task.train.pairs[0] == "Weapons of Mass Destruction Found in Iraq."
    assert task.label_names[task.train.labels[0]] == "not_entailment"
    generated = load_task(TaskOptions("rte", objective="causal_lm", train_rows=5), seed=0)
    assert (generated.train.labels.tolist(), generated.label_names) == ([0] * 5, [])


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("boolq", [14, 18], [1_237, 2_033]),
        ("cb", [19, 10, 3], [23, 28, 5]),
        ("wic", [15, 17], [319, 319]),
        ("wsc", [22, 10], [66, 38]),
    ],
)
def test_few_shot_superglue(name, train, validation):
    needs_data("superglue_fewshot")
    task = load_task(TaskOptions(name), seed=0)
    assert torch.bincount(task.train.labels).tolist() == train
    assert torch.bincount(task.validation.labels).tolist() == validation
    rows = [set(zip(split.texts, split.pairs, strict=True)) for split in (task.train, task.validation)]
    assert not rows[0] & rows[1]
    assert task.label_names == (["entailment", "contradiction", "neutral"] if name == "cb" else ["False", "True"])


def test_the_word_and_the_pronoun_are_in_the_texts_of_wic_and_wsc():
    needs_data("superglue_fewshot")
    wic, wsc = (load_task(TaskOptions(name), seed=0) for name in ("wic", "wsc"))
    assert wic.train.texts[0] == "feel: You make me feel naked."
    assert wic.train.pairs[0] == "She felt small and insignificant."
    texts = wsc.train.texts + wsc.validation.texts
    assert all(text.count("*") == 2 for text in texts)
    assert "and shook *his* head" in wsc.train.texts[0]
    assert wsc.train.pairs[0] == "Mr. Bond"
    assert any("might want to use *it* , but" in text for text in texts)  # the file's number is one too small


def test_a_pronoun_that_is_not_there(tmp_path, monkeypatch):
    folder = tmp_path / "superglue_fewshot" / "wsc"
    folder.mkdir(parents=True)
    target = json.dumps({"span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 3})
    rows = [{"text": "Ann said that (She) can.", "target": target, "label": "True"}] * 2
    for part in ("dev32", "validation"):
        write_csv(folder / f"{part}.csv.gz", rows, gzip.open)
    monkeypatch.setenv("HALFBACK_DATA", str(tmp_path))
    assert load_task(TaskOptions("wsc"), seed=0).train.texts[0] == "Ann said that (*She*) can."
    rows[0] = {**rows[0], "text": "Ann said: I can."}
    write_csv(folder / "validation.csv.gz", rows, gzip.open)
    assert message(name="wsc") == "wsc: the pronoun 'she' is not a word of 'Ann said: I can.'"


def test_cifar10():
    needs_data("cifar10")
    task = load_task(TaskOptions("cifar10", train_rows=300, validation_rows=100), seed=0)
    assert (task.train.images.shape, task.validation.images.shape) == ((300, 3, 32, 32), (100, 3, 32, 32))
    assert task.label_names[0] == "airplane"
    assert len(task.label_names) == 10
    assert task.train.images.std() == pytest.approx(1.1, abs=0.15)
    assert torch.bincount(task.train.labels, minlength=10).min() > 10


def test_the_data_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "shared" / "data" / "things").mkdir(parents=True)
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.delenv("HALFBACK_DATA", raising=False)
    assert sources.data_folder("things").resolve() == tmp_path / "shared" / "data" / "things"
    assert sources.data_folder("nothing") is None
    monkeypatch.setenv("HALFBACK_DATA", str(tmp_path / "shared"))
    assert sources.data_folder("things") is None
    monkeypatch.setenv("HALFBACK_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"HALFBACK_DATA names '.*none'"):
        sources.data_folder("things")


GLUE = datasets.DatasetDict(
    {
        part: datasets.Dataset.from_dict(
            {"sentence": ["a", "b", "c"], "label": [1, 0, 1]},
            features=datasets.Features(
                {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["zero", "eins"])}
            ),
        )
        for part in ("train", "validation")
    }
)


def answer_from_hub(monkeypatch, known):
    """A hub that has `known`, because tests run without a network."""
    asked = []

    def load(path, config=None, **_):
        asked.append((path, config))
        if (path, config) not in known:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist\non the Hub")
        return GLUE

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


@pytest.mark.parametrize("name", ["nyu-mll/glue/sst2", "glue/sst2", "sst2", "someone/sst2"])
def test_hub_names(monkeypatch, name):
    known = {("nyu-mll/glue", "sst2"), ("glue", "sst2"), ("sst2", None), ("someone/sst2", None)}
    answer_from_hub(monkeypatch, known)
    task = load_task(TaskOptions("hub", train=name, text="sentence"), seed=0)
    assert task.label_names == ["zero", "eins"]  # in the data set's order
    assert task.validation.labels.tolist() == [1, 0, 1]


def test_hub_refusals(monkeypatch):
    answer_from_hub(monkeypatch, {("sst2", None)})
    assert "hub data set 'nobody/nothing' cannot be had: Dataset" in message(name="hub", train="nobody/nothing")
    assert "no split 'test'; it has" in message(name="hub", train="sst2", text="sentence", validation="test")
    assert "no column 'text'; it has" in message(name="hub", train="sst2")


def test_named_tasks_fall_back_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBACK_DATA", str(tmp_path))
    asked = answer_from_hub(monkeypatch, {("nyu-mll/glue", "sst2")})
    task = load_task(TaskOptions("sst2"), seed=0)
    assert task.train.texts == ["a", "b", "c"]
    assert task.train.labels.tolist() == [1, 0, 1]
    assert asked == [("nyu-mll/glue", "sst2")]
    for name in ("rte", "movies", "cifar10", "boolq"):
        said = message(name=name)
        assert "HALFBACK_DATA" in said
        assert name in said


NAMED = {"e2e", "webnlg", "dart"}  # generation: see test_targets


def test_every_task_has_one_line():
    lines = dict(describe_tasks())
    few_shot = {"boolq", "cb", "wic", "wsc"}
    assert {"digits", "mnist", "sst2", "rte", "movies", "cifar10", "csv", "images", "hub"} | NAMED | few_shot == set(
        lines
    )
    assert all(line and "\n" not in line for line in lines.values())


@pytest.mark.parametrize("kind", ["save_to_disk", "save_to_disk-splits", "csv"])
def test_hub_task_from_a_folder(tmp_path, kind):
    """An absolute path, which has the slashes of a hub name."""
    rows = {"sentence": [f"film {n}" for n in range(30)], "label": [n % 3 for n in range(30)]}
    table, folder = datasets.Dataset.from_dict(rows), tmp_path / "set"
    if kind == "save_to_disk":
        table.save_to_disk(folder)
    elif kind == "save_to_disk-splits":
        datasets.DatasetDict(train=table, validation=table.select(range(6))).save_to_disk(folder)
    else:
        folder.mkdir()
        table.to_csv(folder / "train.csv", index=False)
    task = load_task(TaskOptions("hub", train=str(folder), text="sentence"), seed=0)
    assert len(task.train.labels) + len(task.validation.labels) == (36 if kind.endswith("splits") else 30)
    assert "film 3" in [*task.train.texts, *task.validation.texts]


def test_a_folder_that_is_no_data_set(tmp_path):
    assert f"data set folder '{tmp_path}' cannot be read: " in message(name="hub", train=str(tmp_path))
