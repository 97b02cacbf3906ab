"""What is used once it is trained: rows predicted and scored as the run scored its own, and texts that are drawn."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from command import digits, halfback, refusal
from PIL import Image

import halfback as hb
from halfback.data.ink import ink_of, normalised, read_packaged
from halfback.errors import UserError
from halfback.report import confusion
from halfback.runs import predicting, subject
from halfback.runs.opening import reload
from halfback.telemetry.records import read_records, read_summary

QUIET: dict[str, Any] = {"progress": False}
WORDS = ["great film", "the dull plot", "a warm clever film", "awful", "is it fun", "cold cold plot", "very very great"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> tuple[Path, Path]:
    """Somebody's own rows to train and to validate on: other names of columns, semicolons, a column that is no use."""
    folder = tmp_path_factory.mktemp("films")
    lines = sentences.read_text().splitlines()[1:]
    for name, part in (("train", lines[:60]), ("valid", lines[60:])):
        rows = [";".join([f"n{place}", *line.split(",")]) for place, line in enumerate(part)]
        (folder / f"{name}.csv").write_text("id;review;mood\n" + "\n".join(rows) + "\n")
    return folder / "train.csv", folder / "valid.csv"


def texts(out: Path, model: Path, train: Path, valid: Path, *settings: str) -> list[str]:
    task = ["task.name=csv", f"task.train={train}", f"task.validation={valid}", "task.train_rows=null"]
    task += ["task.validation_rows=null", f"model.name={model}", "bottom.train=lora", "top.train=lora", "clients=2"]
    rates = ["bottom.lr=0.05", "bottom.optimizer=adamw", "top.lr=0.05", "task.max_length=20", "eval_batch_size=8"]
    return digits(out, *task, *rates, *settings, algorithm="split_lora")


@pytest.fixture(scope="module")
def moods(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, films: tuple[Path, Path]) -> Path:
    """A run that tells moods of films, which it has learned in part."""
    out = tmp_path_factory.mktemp("runs") / "moods"
    own = ["task.text=review", "task.label=mood", "steps=26", "eval_every=13"]
    assert halfback(*texts(out, tiny_bert, *films, *own)).status == 0
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def accuracy(rows: list[dict[str, str]], label: str) -> float:
    return 100 * sum(row["predicted"] == row[label] for row in rows) / len(rows)


def test_predictions_are_those_of_the_runs_own_evaluation_on_every_row(
    moods: Path, films: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row with all that came with it; read in pieces, a file comes to the same."""
    said = halfback("predict", moods, films[1], "--out", tmp_path / "predictions.csv")
    assert (said.status, said.out, said.err) == (0, f"36 rows: {tmp_path / 'predictions.csv'}\n", "")
    rows = table(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["id", "review", "mood", "predicted", "probability_negative", "probability_positive"]
    assert [row["id"] for row in rows] == [f"n{place}" for place in range(36)]
    recorded = read_records(moods)[-1].metric
    assert accuracy(rows, "mood") == recorded  # the same rows and batches: no rounding between them
    assert 50 < recorded < 100, "a metric that a mistake would change"
    built = reload(moods)
    batch = built.task.validation.batch(range(36))
    with torch.no_grad():
        chances = built.model.logits(batch.inputs).softmax(dim=-1)
    found = torch.tensor([[float(row[f"probability_{name}"]) for name in ("negative", "positive")] for row in rows])
    torch.testing.assert_close(found, chances, rtol=0, atol=2e-6)  # six digits are written; batches are other ones
    assert [row["predicted"] for row in rows] == [built.task.label_names[place] for place in chances.argmax(dim=-1)]
    monkeypatch.setattr(subject, "_CHUNK", 9)
    assert halfback("predict", moods, films[1], "--out", tmp_path / "pieces.csv").status == 0
    assert (tmp_path / "pieces.csv").read_text() == (tmp_path / "predictions.csv").read_text()


def test_from_python_and_with_rows_that_have_no_labels(moods: Path, films: tuple[Path, Path]) -> None:
    run = hb.load(moods)
    of_file = run.predict(films[1], **QUIET)
    plain = run.predict([row["review"] for row in of_file], **QUIET)
    assert [row["predicted"] for row in plain] == [row["predicted"] for row in of_file]
    assert list(plain[0]) == ["review", "predicted", "probability_negative", "probability_positive"]
    assert run.predict({"review": WORDS[:1], "of": [7]}, **QUIET)[0]["of"] == 7
    scores = run.evaluate(**QUIET)
    assert (scores.metric, scores.loss) == (read_records(moods)[-1].metric, read_records(moods)[-1].validation_loss)
    assert run.evaluate(films[1], **QUIET) == scores
    again = run.evaluate([(row["review"], row["mood"]) for row in of_file], **QUIET)
    assert again == scores


def test_scores_are_what_their_definitions_say(
    moods: Path, films: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = halfback("evaluate", moods, films[1], "--json", "--picture", tmp_path / "confusion.svg")
    found = json.loads(said.out)
    rows = [(row["mood"], row["predicted"]) for row in hb.load(moods).predict(films[1], **QUIET)]
    names = ["negative", "positive"]
    counts = [[rows.count((label, told)) for told in names] for label in names]
    assert found["confusion"] == counts
    f1s = []
    for place, of_class in enumerate(found["classes"]):
        hits, said_so = counts[place][place], sum(row[place] for row in counts)
        precision, recall = 100 * hits / said_so, 100 * hits / sum(counts[place])
        f1s.append(2 * precision * recall / (precision + recall))
        assert of_class["support"] == sum(counts[place])
        for key, value in (("precision", precision), ("recall", recall), ("f1", f1s[-1])):
            assert of_class[key] == pytest.approx(value, rel=1e-12)  # float64 in another order
    assert found["macro_f1"] == pytest.approx(sum(f1s) / 2, rel=1e-12)
    assert found["accuracy"] == pytest.approx(found["metric"], rel=1e-12)
    assert "predicted" in (tmp_path / "confusion.svg").read_text()
    shown = halfback("evaluate", moods).out
    assert f"macro F1  {found['macro_f1']:.6g}" in shown
    assert "positive" in shown


def test_a_picture_of_the_confusion_is_a_picture(tmp_path: Path) -> None:
    confusion.draw(["a $x$ class", "b" * 80], [[3, 1], [0, 0]], tmp_path / "deep" / "c.png")
    assert Image.open(tmp_path / "deep" / "c.png").size[0] > 300


def test_an_exported_model_says_what_its_run_says(moods: Path, films: tuple[Path, Path], tmp_path: Path) -> None:
    """How rows are read went with it; adapters are merged, so float32 sums are other ones."""
    assert halfback("export", moods, "--out", tmp_path / "model").status == 0
    for folder in (moods, tmp_path / "model"):
        assert halfback("predict", folder, films[1], "--out", tmp_path / f"{folder.name}.csv").status == 0
    one, other = table(tmp_path / "moods.csv"), table(tmp_path / "model.csv")
    assert [row["predicted"] for row in one] == [row["predicted"] for row in other]
    chances = [[float(row["probability_positive"]) for row in rows] for rows in (one, other)]
    assert chances[0] == pytest.approx(chances[1], abs=1e-5)
    scores = json.loads(halfback("evaluate", tmp_path / "model", films[1], "--json").out)
    assert scores["metric"] == read_records(moods)[-1].metric
    assert "has no rows of its own" in refusal(halfback("evaluate", tmp_path / "model"))
    (tmp_path / "model" / "halfback.json").unlink()  # as a classifier from elsewhere, whose columns nobody knows
    assert "has no column 'text'" in refusal(halfback("predict", tmp_path / "model", films[1]))
    own = halfback("predict", tmp_path / "model", films[1], "--set", "text=review", "--out", tmp_path / "plain.csv")
    assert own.status == 0
    assert [row["predicted"] for row in table(tmp_path / "plain.csv")] == [row["predicted"] for row in one]
    (tmp_path / "model" / "halfback.json").write_text('{"task": 3}')
    assert "doesn't say how rows are read" in refusal(halfback("predict", tmp_path / "model", "a"))


def test_a_table_of_texts_and_of_the_first_rows_of_a_file(moods: Path, films: tuple[Path, Path]) -> None:
    said = halfback("predict", moods, *WORDS)
    assert (said.status, said.err) == (0, "")
    assert len(said.out.splitlines()) == 1 + len(WORDS)
    said = halfback("predict", moods, films[1])
    assert "20 of 36 rows; --out" in said.out
    assert len(said.out.splitlines()) == 1 + 20 + 1


def test_what_predict_and_evaluate_refuse(moods: Path, films: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("review,mood\ngreat film,positive\ndull,mixed\n")
    line = refusal(halfback("evaluate", moods, other, "--set", "delimiter=,"))
    assert line == f"label 'mixed' in line 3 of file '{other}' never occurs in training; known: negative, positive"
    assert "has no column 'tone'" in refusal(halfback("predict", moods, films[1], "--set", "text=tone"))
    assert "colour=red: " in refusal(halfback("predict", moods, "a", "--set", "colour=red"))
    assert "one file or folder is allowed" in refusal(halfback("predict", moods, films[1], "a text"))
    assert "does not exist" in refusal(halfback("predict", moods, tmp_path / "gone.csv"))
    assert "a .csv file is allowed" in refusal(halfback("predict", moods, films[1], "--out", tmp_path / "p.txt"))
    assert "that is the file which is read" in refusal(halfback("predict", moods, films[1], "--out", films[1]))
    assert "kept no best checkpoint" in refusal(halfback("predict", moods, "a", "--checkpoint", "best"))
    assert "--checkpoint worst: " in refusal(halfback("evaluate", moods, "--checkpoint", "worst"))
    assert ".png, .svg or .pdf" in refusal(halfback("evaluate", moods, "--picture", "c.gif"))
    assert "holds no run and no exported model" in refusal(halfback("evaluate", tmp_path))
    assert "generate takes runs with" in refusal(halfback("generate", moods, "a"))


def test_a_file_that_cant_be_written_is_left_as_it_was(moods: Path, films: tuple[Path, Path], tmp_path: Path) -> None:
    """A run that stops in the middle leaves the predictions of before."""
    out = tmp_path / "p.csv"
    out.write_text("of before\n")
    own = subject.subject(moods)
    rows = own.read(films[1], answers=False)

    def stop(done: int, _: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predicting.write(own, rows, out, stop)
    assert out.read_text() == "of before\n"


def test_images_in_a_folder(tmp_path: Path) -> None:
    """Digits that somebody drew, by a run on the packaged ones; the folder of each says what it is."""
    out = tmp_path / "run"
    assert halfback(*digits(out, "steps=8", "top.lr=1e-2", "eval_every=8", algorithm="split_lora")).status == 0
    pixels, labels = read_packaged("sklearn", "datasets/data/digits.csv.gz")
    for place in range(30):
        folder = tmp_path / "drawn" / str(labels[place])
        folder.mkdir(parents=True, exist_ok=True)
        _draw(pixels[place]).save(folder / f"{place}.png")
    run = hb.load(out)
    found = run.predict(tmp_path / "drawn", **QUIET)
    right = sum(row["file"].split("/")[0] == row["predicted"] for row in found)
    assert run.evaluate(tmp_path / "drawn", **QUIET).accuracy == pytest.approx(100 * right / 30)
    one = run.predict(tmp_path / "drawn" / found[0]["file"], **QUIET)
    assert one[0]["predicted"] == found[0]["predicted"]
    (tmp_path / "drawn" / "eleven").mkdir()
    (tmp_path / "drawn" / found[0]["file"]).rename(tmp_path / "drawn" / "eleven" / "x.png")
    with pytest.raises(UserError, match=r"label 'eleven' .* never occurs in training"):
        run.evaluate(tmp_path / "drawn", **QUIET)
    with pytest.raises(UserError, match="no image and no folder of images"):
        run.predict("a text", **QUIET)


def _draw(pixels: np.ndarray) -> Image.Image:
    """Dark on light, with a border, each of the 8×8 a square of 6×6."""
    large = np.pad(np.kron(255 - 15.9375 * pixels.reshape(8, 8), np.ones((6, 6))), 9, constant_values=255)
    return Image.fromarray(large.astype(np.uint8)).convert("RGB")


def test_a_drawn_digit_is_read_whatever_its_ground_and_border() -> None:
    pixels, _ = read_packaged("sklearn", "datasets/data/digits.csv.gz")
    picture = _draw(pixels[3])
    found = ink_of(picture)
    assert found.shape == (1, 16, 16)
    light = picture.point(lambda value: 255 - value)
    # Both ways the ink is a difference of float32 numbers of 1/255.
    np.testing.assert_allclose(ink_of(light), found, rtol=0, atol=1e-5)
    wide = Image.new("RGB", (200, 150), "white")
    wide.paste(picture, (20, 30))
    np.testing.assert_allclose(ink_of(wide), found, rtol=0, atol=1e-5)
    square = Image.new("RGB", (40, 40), "white")
    square.paste("black", (8, 8, 32, 32))
    full = normalised(torch.ones(1, 1, 4, 4))[0].numpy()  # ink alone
    np.testing.assert_allclose(ink_of(square), full, rtol=0, atol=1e-5)


def test_rows_of_tensors_from_python(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 6, generator=generator)
    labels = ["up" if row.sum() > 0 else "down" for row in rows]
    data = hb.Data([*zip(rows[:40], labels[:40], strict=True)], [*zip(rows[40:], labels[40:], strict=True)])
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    own: dict[str, Any] = {"algorithm.name": "split_lora", "bottom": {"train": "full"}, "top": {"train": "full"}}
    own |= {"model.cut": 1, "steps": 8, "clients": 2, "sampled_clients": 2, "batch_size": 8, "device": "cpu"}
    run = hb.train(out=tmp_path / "run", model=model, data=data, **own, **QUIET)
    found = run.predict(rows[40:], **QUIET)
    same = sum(row["predicted"] == label for row, label in zip(found, labels[40:], strict=True))
    assert run.evaluate(**QUIET).metric == 100 * same / 20 == run.summary.metric.final
    assert run.evaluate([*zip(rows[40:], labels[40:], strict=True)], **QUIET).metric == run.summary.metric.final
    with pytest.raises(UserError, match=r"the rows have shape \(5,\); .* was trained on \(6,\)"):
        run.predict(rows[:, :5], **QUIET)
    with pytest.raises(UserError, match="tensors, which come from Python alone"):
        run.predict("rows.csv", **QUIET)


def test_a_decoder_with_a_word_for_each_class(tiny_llama: Path, films: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = ["task.text=review", "task.label=mood", "task.template={text} it was", "task.verbaliser=[awful, great]"]
    assert halfback(*texts(out, tiny_llama, *films, *own, "steps=12", "eval_every=12")).status == 0
    for folder in (out, tmp_path / "model"):
        if not folder.exists():
            assert halfback("export", out, "--out", folder).status == 0
        said = halfback("predict", folder, films[1], "--out", tmp_path / "p.csv")
        assert said.status == 0, said.err
        assert accuracy(table(tmp_path / "p.csv"), "mood") == read_records(out)[-1].metric


def test_perplexities_are_those_of_the_whole_model(tiny_llama: Path, films: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    own = ["task.text=review", "task.objective=causal_lm", "steps=2"]
    assert halfback(*texts(out, tiny_llama, *films, *own)).status == 0
    run = hb.load(out)
    found = run.predict(films[1], **QUIET)
    model: Any = run.model()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    total, count = 0.0, 0
    for row in found:
        ids = tokenizer(row["review"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        # Six digits are written; float32 losses of a row alone are summed in another order.
        assert row["perplexity"] == pytest.approx(math.exp(loss / (ids.shape[1] - 1)), rel=1e-4)
        total, count = total + loss, count + ids.shape[1] - 1
    scores = run.evaluate(films[1], **QUIET)
    assert scores.metric == pytest.approx(math.exp(total / count), rel=1e-4)
    assert scores.metric == run.summary.metric.final
    assert run.predict(["great", "a film"], **QUIET)[0]["perplexity"] is None
    assert run.generate(["the film"], max_new_tokens=3, temperature=0.7)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("writer")
    rows = [f"{asked},{answer}" for asked in WORDS for answer in ("great fun", "warm clever it")]
    (folder / "rows.csv").write_text("input,answer\n" + "\n".join(rows) + "\n")
    own = ["task.objective=generation", "task.text=input", "task.target=answer", "task.generated_rows=7"]
    out = folder / "run"
    said = halfback(
        *texts(out, tiny_llama, folder / "rows.csv", folder / "rows.csv", *own, "steps=20", "task.max_new_tokens=5")
    )
    assert said.status == 0, said.err
    return out, folder / "rows.csv"


def test_what_is_generated_for_rows_and_how_good_it_is(writer: tuple[Path, Path], tmp_path: Path) -> None:
    out, rows = writer
    assert halfback("predict", out, rows, "--out", tmp_path / "p.csv").status == 0
    found = table(tmp_path / "p.csv")
    assert list(found[0]) == ["input", "answer", "generated"]
    assert [row["generated"] for row in found][::2] == hb.load(out).generate(WORDS)
    written = read_summary(out)["generation"]
    for data in ([], [rows]):
        scores = json.loads(halfback("evaluate", out, *data, "--json").out)
        assert scores["metric"] == read_summary(out)["metric"]["final"]
        assert scores["generation"] == written
    fewer = halfback("evaluate", out, rows, "--generated", 2).out
    assert "inputs continued  2" in fewer
    assert "0 to 7 are allowed" in refusal(halfback("evaluate", out, rows, "--generated", 8))


def test_what_is_drawn_follows_from_the_seed_and_the_text_alone(writer: tuple[Path, Path]) -> None:
    run = hb.load(writer[0])
    state = torch.get_rng_state()
    drawn = {"temperature": 1.5, "seed": 3, "samples": 4}
    two = run.generate(WORDS[:2], **drawn)
    assert len(two) == 8
    assert run.generate(WORDS[1:2], **drawn) == two[4:]
    assert run.generate(WORDS[:2], **(drawn | {"seed": 4})) != two
    assert len(set(two)) > 2
    assert torch.equal(torch.get_rng_state(), state)
    greedy = run.generate(WORDS)
    assert run.generate(WORDS, top_k=1, temperature=5.0) == greedy
    assert run.generate(WORDS, top_p=1e-9) == greedy
    said = halfback("generate", writer[0], WORDS[0], "--samples", 2, "--seed", 3, "--temperature", 1.5)
    assert said.out.splitlines()[::2] == ["— 1 of 2 —", "— 2 of 2 —"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--beams", "2", "--top-k", "5"), "beams=2: beams are searched, nothing is drawn; use beams=1, or no top_k"),
        (("--temperature", "0"), "temperature=0.0: above 0, up to 100 is allowed"),
        (("--temperature", "nan"), "temperature=nan: above 0, up to 100 is allowed"),
        (("--top-k", "0"), "top_k=0: 1 to 1000000 is allowed"),
        (("--top-p", "1.1"), "top_p=1.1: above 0, up to 1 is allowed"),
        (("--seed", "-1"), "seed=-1: 0 to 2^63 - 1 is allowed"),
        (("--samples", "0"), "samples=0: 1 to 100 is allowed"),
    ],
)
def test_what_can_not_be_drawn(tmp_path: Path, option: tuple[str, ...], said: str) -> None:
    """Said before a run is looked at."""
    assert refusal(halfback("generate", tmp_path / "none", "a", *option)) == said
