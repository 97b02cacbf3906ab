import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_folders import records, summary, write_run

from halfback.errors import UserError
from halfback.report.page import write_report
from halfback.report.tables import NOTHING, rows, short_size, size

VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """What a reader finds: every tag with its attributes, the text, and whether the tags close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data

    def labels(self) -> list[str]:
        """What figures with axes say in words."""
        plots = [attrs for tag, attrs in self.tags if tag == "div" and attrs.get("class") == "plot"]
        assert all(attrs["role"] == "img" for attrs in plots)
        return [attrs["aria-label"] or "" for attrs in plots]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "digits", records(), summary(), "algorithm: ho_sfl\nnote: a < b & c\n")


def test_one_run_shows_what_ran_and_every_number(run: Path, tmp_path: Path) -> None:
    out = write_report([run], tmp_path / "made" / "report.html")
    assert out == tmp_path / "made" / "report.html"
    page = Page(out)
    assert page.open == []
    for said in (
        "ho_sfl on digits",
        "4 of 10 clients",
        "accuracy, best",
        "of all evaluations on the way",
        "ho_sfl ended at accuracy 0.91 on digits, from 0.11 before training.",
        "Nothing ran beside it",
        "12.6 MB (12,582,912)",
        "6.4 MB (6,400,123)",
        "1.05×",
        "4,800",
        "31.2",
        "56,789",
        "torch 2.13.0",
        "activations what the devices' part gives, at the cut",
        "82,912",
        "note: a < b & c",
    ):
        assert said in page.text
    assert "unfinished" not in page.text


def test_the_page_fetches_nothing_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    page = Page(write_report([run], tmp_path / "report.html"))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith("#")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


def test_curves_are_described_for_those_who_cannot_see_them(run: Path, tmp_path: Path) -> None:
    labels = Page(write_report([run], tmp_path / "report.html")).labels()
    assert [label.split(".")[0] for label in labels] == [
        *(f"accuracy against {over}" for over in ("steps", "bytes, up and down", "wall seconds")),
        *(f"{which} loss against steps" for which in ("training", "validation")),
    ]
    assert "ho_sfl: 0.11 at 0, 0.8815 at 200" in labels[0]
    assert "ho_sfl: 2.3 at 0" in labels[4]


def test_runs_beside_are_further_lines_and_hostile_names_stay_text(run: Path, tmp_path: Path) -> None:
    write_run(run / "beside" / "first_order", records(rate=2), summary(algorithm="<script>alert(1)</script>"))
    write_run(run / "beside" / '"><b onclick=x>$x$', records(9), None, config="</pre><script>")
    page = Page(write_report([run], tmp_path / "report.html"))
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert "ho_sfl on digits, beside <script>alert(1)</script>" in page.text
    label = 'digits / "><b onclick=x>$x$'
    assert f"{label} unfinished so far at step 80" in page.text
    assert all(name in page.labels()[0] for name in (label, "<script>alert(1)</script>: "))


def test_two_runs_with_the_same_folder_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / where / "run", records(3), summary(seed=place)) for place, where in enumerate("ab")]
    text = Page(write_report(folders, tmp_path / "report.html")).text
    assert all(str(folder) in text for folder in folders)


def test_a_killed_run_still_gets_its_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "killed", records(5), None)
    with (run / "records.jsonl").open("a") as file:
        file.write('{"round": 5, "ste')
    page = Page(write_report([run], tmp_path / "report.html"))
    assert len(page.labels()) == 5
    assert "killed has not finished: so far it is at step 40." in page.text
    assert "unfinished" in page.text


def test_runs_far_apart_share_a_logarithmic_axis_that_leaves_zero_out(run: Path, tmp_path: Path) -> None:
    write_run(run / "beside" / "heavy", records(scale=100), summary())
    page = Page(write_report([run], tmp_path / "report.html"))
    assert page.text.count("The horizontal axis is logarithmic, so what lies at 0 is left out.") == 1  # that by bytes
    assert "1 GB" in page.text
    assert "digits / heavy: 0.2328 at 94.9 MB, " in page.labels()[1]


def test_memory_that_nobody_measured_is_no_number(run: Path, tmp_path: Path) -> None:
    """As of clients on device packages in one process."""
    unmeasured = summary(client_peak_bytes=0, client_inference_peak_bytes=0)
    text = Page(write_report([write_run(tmp_path / "devices", records(), unmeasured)], tmp_path / "report.html")).text
    assert "that of clients on device packages isn't measured" in text
    table = dict(map(tuple, rows([unmeasured])[1]))
    assert (table["client peak memory"], table["client inference peak"]) == (NOTHING, NOTHING)


def test_a_run_with_nothing_measured_yet_is_still_a_page(tmp_path: Path) -> None:
    bare = [records(1)[0] | {"train_loss": None, "validation_loss": None, "metric": None}]
    zeros = summary(
        up_bytes=0,
        down_bytes=0,
        bytes_by_kind={"up": {"A": {"a": 0}}, "down": {}},
        client_peak_bytes=0,
        client_inference_peak_bytes=0,
        metric={"name": "accuracy", "initial": None, "final": None, "best": None},
        train_loss=None,
    )
    page = Page(write_report([write_run(tmp_path / "bare", bare, zeros)], tmp_path / "report.html"))
    assert page.open == []
    assert "No evaluation has been recorded." in page.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("records.jsonl", None, "is not there"),
        ("records.jsonl", "nonsense\n{}\n", "line 1: a record must be JSON"),
        ("records.jsonl", "[]\n", "line 1: a record must be an object"),
        ("records.jsonl", "{}\n", "line 1: step must be a number, not None"),
        (
            "records.jsonl",
            json.dumps(records(1)[0] | {"step": "ten"}),
            "line 1: step must be a finite number, not 'ten'",
        ),
        ("records.jsonl", json.dumps(records(1)[0] | {"metric": float("inf")}), "metric must be a finite number"),
        ("records.jsonl", '{"step": 1' + 400 * "0" + "}\n", "line 1: a record must be JSON"),
        ("records.jsonl", '{"step": 1e999}\n', "line 1: a record must be JSON"),
        ("records.jsonl", 100_000 * "[" + "\n", "line 1: a record must be JSON"),
        ("records.jsonl", json.dumps(records(1)[0] | {"step": -1}), "step must be from 0 to 1e"),
        ("records.jsonl", json.dumps(records(1)[0] | {"wall_seconds": 1e308}), "wall_seconds must be from 0 to 1e"),
        ("records.jsonl", "".join(json.dumps(r) + "\n" for r in records(3)[::-1]), "line 2: step 10 comes behind 20"),
        ("summary.json", '{"steps": 1' + 400 * "0" + "}", "must be JSON"),
        ("summary.json", 100_000 * '{"a":', "must be JSON"),
        ("summary.json", "{", "must be JSON"),
        ("summary.json", "[]", "must hold an object, not list"),
        ("summary.json", "{}", "metric must be an object, not None"),
        ("summary.json", json.dumps(summary(bytes_by_kind={"up": {"A": 3}})), "bytes_by_kind.up must give bytes"),
        ("summary.json", json.dumps(summary(bytes_by_kind={"up": {"A": {"a": None}}})), "bytes_by_kind.up must give"),
        ("summary.json", json.dumps(summary(bytes_by_kind={"up": 3})), "bytes_by_kind.up must give bytes"),
        ("summary.json", json.dumps(summary(bytes_by_kind={"up": {"A": {"a": "b"}}})), "bytes_by_kind.up.A.a must be"),
        ("summary.json", json.dumps(summary(generation="much")), "generation must be an object or null, not 'much'"),
        ("summary.json", json.dumps(summary(generation={"bleu": "a"})), "generation.bleu must be a finite number"),
        ("summary.json", json.dumps(summary(seed="x")), "seed must be a finite number, not 'x'"),
        ("summary.json", json.dumps(summary(up_bytes="many")), "up_bytes must be a finite number, not 'many'"),
        ("summary.json", json.dumps(summary(trainable_parameters={"top": []})), "trainable_parameters.top must be"),
    ],
)
def test_a_corrupt_file_is_named_in_one_line(run: Path, tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(error.value)
    assert str(run / name) in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_run_beside_that_was_killed_before_its_first_record_is_left_out(run: Path, tmp_path: Path) -> None:
    """The report of the finished run is written again on the way to resuming the other one."""
    (run / "beside" / "split_lora").mkdir(parents=True)
    (run / "beside" / "split_lora" / "config.yaml").write_text("seed: 7\n")
    assert "split_lora" not in Page(write_report([run], tmp_path / "report.html")).text


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match="nowhere is not a folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match="no records yet"):
        write_report([write_run(tmp_path / "empty", [], None)], tmp_path / "report.html")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([run], run / "config.yaml" / "report.html")


def test_rows_are_strings_one_column_per_run() -> None:
    header, body = rows([summary(), summary(seed=8), {"metric": {}, "steps": 30}])
    assert header == ["", "ho_sfl (seed 7)", "ho_sfl (seed 8)", NOTHING]
    assert all(len(row) == 4 and all(isinstance(cell, str) for cell in row) for row in body)
    table = {row[0]: row[1:] for row in body}
    assert table["accuracy, final"] == ["0.91", "0.91", NOTHING]
    assert table["steps"] == ["200", "200", "30"]
    assert table["client peak ÷ inference peak"] == ["1.05×", "1.05×", NOTHING]
    assert not {"BLEU", "chrF", "decoding"} & set(table)
    scored = {"bleu": 31.25, "chrf": 50.0, "rows": 20, "decoding": "greedy"}
    table = {row[0]: row[1:] for row in rows([summary(generation=scored), summary(generation=None)])[1]}
    assert [table[name] for name in ("BLEU", "chrF", "inputs decoded", "decoding")] == [
        [said, NOTHING] for said in ("31.25", "50", "20", "greedy")
    ]
    assert rows([summary(), summary(metric={"name": "F1"})])[1][0][0] == "metric, before"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB (1,000)"), (999_999, "1 MB (999,999)"), (5 * 10**15, "5,000 TB")],
)
def test_sizes_read_well_at_the_edges(value: int, said: str) -> None:
    assert size(value).startswith(said)
    assert short_size(value) == said.split(" (")[0]


def test_the_report_loads_nothing_of_training(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from halfback.report.page import write_report; "
        f"write_report([Path({str(run)!r})], Path({str(tmp_path / 'r.html')!r})); "
        "print(sorted(name for name in sys.modules if name.startswith(('torch', 'halfback'))))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in loaded
    assert set(re.findall(r"halfback\.(\w+)", loaded)) == {"errors", "json_reading", "report"}


MUST_BE_THERE = {"metric", "bytes_by_kind", "trainable_parameters", "versions"}


@pytest.mark.parametrize("key", sorted({*summary(), "slopes", "head", "simulated_seconds"} - MUST_BE_THERE))
def test_a_summary_that_lacks_something_is_still_a_page(tmp_path: Path, key: str) -> None:
    """As one of an older version, or one that somebody wrote."""
    whole = write_run(tmp_path / "whole", records(3), summary())
    without = {name: value for name, value in summary().items() if name != key}
    for place, changed in enumerate((without, summary(**{key: None}))):
        run = write_run(tmp_path / str(place), records(3), changed)
        assert Page(write_report([run, whole], run / "report.html")).open == []
