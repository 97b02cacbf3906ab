"""The public names: runs, comparisons and checks from Python, held against the command line where it does the same."""

import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command import digits, halfback
from rich.console import Console

import halfback as hb
from halfback.engine import checkpoint
from halfback.runs import heartbeat, progress
from halfback.testing.small import SMALL

TASK = {"name": "digits", "train_rows": 120, "validation_rows": 60}
PARTS = {"bottom.train": "full", "top.train": "full", "top.lr": 1e-3}
WORK: dict[str, Any] = {"task": TASK, "model": {"name": "resnet8", "cut": 1}, **SMALL, **PARTS, "steps": 4}
QUIET: dict[str, Any] = {"progress": False, "eval_every": 2}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load(folder / "checkpoint")
    assert found is not None
    return found[1]


def assert_equal_bits(one: Path, other: Path) -> None:
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hb.Run:
    return hb.train(WORK, tmp_path_factory.mktemp("api") / "run", algorithm={"name": "ho_sfl"}, **QUIET)


def test_the_import_is_light_and_quick() -> None:
    code = """
import sys, time
begun = time.perf_counter()
import halfback
assert time.perf_counter() - begun < 0.1
assert {"torch", "numpy", "pydantic", "rich"}.isdisjoint(sys.modules), "something heavy came along"
assert "train" in dir(halfback)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_every_public_name_is_there_and_no_other() -> None:
    for name in hb.__all__:
        assert getattr(hb, name) is not None, name
        assert name in dir(hb)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        hb.trian  # noqa: B018


def test_a_run_says_what_its_files_say(run: hb.Run) -> None:
    assert run.finished
    assert [record.step for record in run.records] == [0, 2, 4]
    summary = run.summary
    assert (summary.algorithm, summary.steps, summary.metric.name) == ("ho_sfl", 4, "accuracy")
    assert summary.metric.final == run.records[-1].metric
    assert summary.up_bytes == run.records[-1].up_bytes > 0
    assert summary.trainable_parameters.bottom > 0
    evaluation = run.evaluate()
    assert evaluation.metric == summary.metric.final
    assert evaluation.loss == run.records[-1].validation_loss
    assert "ho_sfl on digits, finished" in repr(run)
    loaded = hb.load(run.folder)
    assert loaded.config == run.config
    assert loaded.summary == summary
    assert loaded.resume(progress=False).finished, "a finished run is not run again"


def test_the_command_line_does_the_same_to_the_bit(run: hb.Run, tmp_path: Path) -> None:
    said = halfback(*digits(tmp_path / "run", "bottom.lr=1e-2"))
    assert said.status == 0, said.err
    assert hb.load(tmp_path / "run").config == run.config
    assert_equal_bits(tmp_path / "run", run.folder)


def test_the_model_is_the_one_that_is_exported(run: hb.Run, tmp_path: Path) -> None:
    from halfback.models.loading import ModelRequest, load_model

    whole = run.model()
    folder = run.export(tmp_path / "model")
    again, _ = load_model(str(folder), ModelRequest(head="image", num_labels=10, seed=99, in_channels=1))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(whole(images), again(images))
    with pytest.raises(hb.UserError, match="exists already"):
        run.export(folder)
    with pytest.raises(hb.UserError, match="holds a classifier"):
        run.generate(["a text"])


def test_without_a_folder_nothing_remains() -> None:
    states: list[hb.RunState] = []
    found = hb.train(WORK, **{"algorithm.name": "frozen_bottom"}, steps=2, on_round=states.append, progress=False)
    assert [state.step for state in states] == [0, 1, 2]
    assert math.isnan(states[0].train_loss)
    assert states[1].metric is None
    assert states[2].metric == found.summary.metric.final
    assert states[2].total_bytes == found.summary.up_bytes + found.summary.down_bytes > states[1].total_bytes
    folder = found.folder
    assert folder.exists()
    del found
    assert not folder.exists()


class Enough(Exception):
    pass


@pytest.mark.parametrize("step", [0, 3])
def test_who_is_told_of_a_round_may_stop_the_run(step: int, run: hb.Run, tmp_path: Path) -> None:
    """Between two checkpoints; what was done is kept, and it goes on to the bits of an unbroken run."""

    def stop(state: hb.RunState) -> None:
        if state.step == step:
            raise Enough

    with pytest.raises(Enough) as caught:
        hb.train(run.config, tmp_path / "run", on_round=stop, progress=False)
    (note,) = caught.value.__notes__
    assert str(tmp_path / "run") in note
    stopped = hb.load(tmp_path / "run")
    assert not stopped.finished
    assert checkpoint.rounds(stopped.folder / "checkpoint") == [step]
    with pytest.raises(hb.UserError, match="is not finished"):
        stopped.summary  # noqa: B018
    steps: list[int] = []
    assert stopped.resume(on_round=lambda state: steps.append(state.step), progress=False) is stopped
    assert steps == [*range(step + 1, 5)]
    assert_equal_bits(stopped.folder, run.folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_behind_its_round(number: signal.Signals, run: hb.Run, tmp_path: Path) -> None:
    """In the middle of a run in a temporary folder, which then stays."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(state: hb.RunState) -> None:
        if state.step == 1:
            signal.raise_signal(number)

    with pytest.raises(hb.Interrupted, match=r"halfback\.load\('.*'\)\.resume\(\) goes on from step 1$") as caught:
        hb.train(run.config, on_round=interrupt, progress=False)
    folder = caught.value.folder
    assert f"{str(folder)!r}" in str(caught.value)
    assert (caught.value.step, caught.value.signal) == (1, number)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    stopped = hb.load(folder)
    assert checkpoint.rounds(folder / "checkpoint") == [1]
    assert_equal_bits(stopped.resume(progress=False).folder, run.folder)
    shutil.rmtree(folder)


def test_the_command_line_names_the_folder_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise hb.Interrupted(tmp_path / "run", "", step=7, number=signal.SIGTERM)

    monkeypatch.setattr("halfback.runs.run.train", interrupted)
    said = halfback(*digits(tmp_path / "run"))
    assert said.status == 128 + signal.SIGTERM
    assert said.err == f"halfback: stopped; `halfback resume {tmp_path / 'run'}` continues from step 7\n"


def test_a_kill_costs_no_more_work_than_the_seconds_between_two_checkpoints(run: hb.Run, tmp_path: Path) -> None:
    """As whoever is told of a round finds them on the disk."""
    found: list[list[int]] = []
    place = tmp_path / "run" / "checkpoint"

    def look(_: hb.RunState) -> None:
        found.append(checkpoint.rounds(place))

    often = QUIET | {"checkpoint_seconds": 1e-6, "checkpoint_every": 100}
    again = hb.train(run.config, tmp_path / "run", on_round=look, **often)
    assert found == [[number] for number in range(run.config.steps + 1)]
    assert_equal_bits(again.folder, run.folder)


def test_a_log_is_never_silent_for_long(
    run: hb.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first step, and within one that is long, it says where the run is and how long it will take."""
    monkeypatch.setattr(heartbeat, "_FIRST", 0.1)
    monkeypatch.setattr(heartbeat, "_SILENCE", 0.2)
    bars = progress.Bars(Console(file=io.StringIO()))
    with bars:
        heard(capsys, r"getting ready  \(\d s so far\)")
        for step in (0, 2):
            time.sleep(0.1)
            record = hb.Record(step, step, 0.5, None, None, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, {})
            bars(hb.RunState(run.config, "accuracy", record))
        heard(
            capsys,
            r"step 2/4  loss 0.500  accuracy –  up 0 B down 0 B  0\.\d+ s a step  \d s left  \(\d+ s so far\)",
        )
        bars.rows(run.config, 512, 872)
        heard(capsys, r"step 2/4 .* left  evaluating 512/872 rows  \(\d+ s so far\)")
    capsys.readouterr()
    time.sleep(1.0)
    assert capsys.readouterr().out == ""
    assert [heartbeat.spoken(seconds) for seconds in (0.4, 59, 61, 3725)] == ["0 s", "59 s", "1 min 1 s", "1 h 2 min"]


def heard(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    """Waits for a line."""
    until, said = time.monotonic() + 30, ""
    while not re.search(pattern, said):
        assert time.monotonic() < until, said
        time.sleep(0.05)
        said += capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stepz": 3}, "'stepz' is unknown; did you mean steps"),
        ({"bottom": {"lrr": 1e-3}}, "'bottom.lrr' is unknown; did you mean lr"),
        ({"bottom.lr": "fast"}, "bottom.lr='fast'"),
        ({"bottom.lr": torch.tensor(1.0)}, "a Tensor is nothing that a setting can be"),
        ({"model": {"cut": 9}}, "cut is 9"),
        ({"algorithm": {"name": "ho_sfi"}}, "'ho_sfi' is unknown; did you mean ho_sfl"),
        ({"per_algorithm": {3: {}}}, "the key 3 is no text"),
    ],
)
def test_errors_are_the_strict_ones_of_one_line(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(hb.UserError) as caught:
        hb.train({**WORK, "algorithm.name": "ho_sfl"}, tmp_path / "run", progress=False, **settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_folders(run: hb.Run, tmp_path: Path) -> None:
    with pytest.raises(hb.UserError, match="holds a run already"):
        hb.train(run.config, run.folder, progress=False)
    with pytest.raises(hb.UserError, match="holds no run"):
        hb.load(tmp_path)
    with pytest.raises(hb.UserError, match="'quikstart' is unknown; did you mean quickstart"):
        hb.train("quikstart", tmp_path / "run")


def test_sections_and_paths_are_the_same_and_leave_the_others_as_they_are() -> None:
    from halfback.config.values import resolve_values

    by_section = resolve_values("quickstart", {"bottom": {"lr": 2e-3}, "codecs": {"activations_up": ("int8",)}})
    by_path = resolve_values("quickstart", {"bottom.lr": 2e-3, "codecs.activations_up": ["int8"]})
    assert by_section == by_path
    assert by_section.bottom.lr == 2e-3
    assert by_section.bottom.train == resolve_values("quickstart", {}).bottom.train


def test_a_comparison_is_typed_and_has_the_numbers_of_its_page(tmp_path: Path) -> None:
    variants = [hb.Variant("ho_sfl", lr=[1e-3, 3e-3]), "split_lora", "frozen_bottom"]
    settings: dict[str, Any] = {"steps": 2, "tune_steps": 2, "seeds": 2, **QUIET}
    found = hb.compare(WORK, variants, out=tmp_path / "out", **settings)
    assert list(found.rows) == ["ho_sfl", "split_lora", "frozen_bottom"]
    assert list(found.chosen) == ["ho_sfl"]
    row = found.rows["ho_sfl"]
    finals = {run.config.seed: run.summary.metric.final for run in found.runs("ho_sfl")}
    assert row.final is not None
    assert row.final.by_seed == finals
    assert row.final.mean == pytest.approx(sum(finals.values()) / 2)
    frozen = found.rows["frozen_bottom"].final
    assert row.minus_frozen is not None
    assert frozen is not None
    assert row.minus_frozen.by_seed == {seed: finals[seed] - frozen.by_seed[seed] for seed in finals}
    assert row.minus_frozen.se is not None
    assert found.runs("ho_sfl")[0].config.bottom.lr == float(found.chosen["ho_sfl"])
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "lr was chosen for ho_sfl among 0.001, 0.003" in page
    assert "--algorithms 'ho_sfl:lr=[0.001, 0.003],split_lora,frozen_bottom'" in page
    before = (tmp_path / "out" / "cells" / "ho_sfl-0" / "records.jsonl").read_bytes()
    assert hb.compare(WORK, variants, out=tmp_path / "out", **settings).rows == found.rows
    assert (tmp_path / "out" / "cells" / "ho_sfl-0" / "records.jsonl").read_bytes() == before


def test_a_variant_is_what_the_command_line_enters() -> None:
    from halfback.runs.variants import parse_variants

    made = [
        hb.Variant("ho_sfl", lr=[1e-3, 3e-3], steps_per_round=10),
        hb.Variant("ho_sfl", **{"codecs.activations_up": [{"name": "topk", "ratio": 0.25}, "int8"]}),
        hb.Variant("split_lora", lr=0.01, bottom={"optimizer": "sgd"}),
    ]
    for variant, again in zip(made, parse_variants(",".join(map(str, made))), strict=True):
        assert (again.label, again.algorithm, again.grid) == (variant.label, variant.algorithm, variant.grid)
        assert sorted(again.settings) == sorted(variant.settings)
    with pytest.raises(hb.UserError, match="compare sets seed itself"):
        hb.Variant("ho_sfl", seed=3)
    with pytest.raises(hb.UserError, match="two or more different values"):
        hb.Variant("ho_sfl", lr=[1e-3])


def test_a_comparison_without_a_folder_leaves_nothing_also_when_it_is_refused() -> None:
    found = hb.compare(WORK, ["frozen_bottom"], seeds=1, steps=1, progress=False)
    folder = found.folder
    assert (folder / "compare.html").exists()
    del found
    assert not folder.exists()
    with pytest.raises(hb.UserError, match="has learning rates of its own"):
        hb.compare(WORK, [hb.Variant("ho_sfl", lr=[1, 2])], tune={"lr": [1, 2]})


def test_a_class_is_checked_against_the_table(tmp_path: Path) -> None:
    """Some of the checks, on a class that nobody registered; in a process of its own, which then knows it."""
    script = """
import halfback as hb
from halfback.algorithms.frozen_bottom import FrozenBottom


class MyMethod(FrozenBottom):
    pass


found = hb.testing.check(MyMethod)
assert found.passed, found.failed
assert "no mode leaks out of a client" in {check.name for check in found.checks}
"""
    environment = os.environ | {"PYTEST_ADDOPTS": "-k 'mode_leaks or two_runs'"}
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1].startswith("my_method: 2 passed"), said.stdout
    with pytest.raises(hb.UserError, match="'ho_sfi' is unknown; did you mean ho_sfl"):
        hb.testing.check("ho_sfi")
