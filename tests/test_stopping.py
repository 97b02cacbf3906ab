"""Runs that end before their steps are done, what they keep of their best, and a first evaluation over some rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import digits, halfback, refusal

import halfback as hb
from halfback import config
from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.errors import UserError
from halfback.runs.folder import BEST, CHECKPOINT
from halfback.runs.opening import reload
from halfback.runs.stopping import Watch
from halfback.telemetry.records import Record, read_summary
from halfback.testing import small

QUIET: dict[str, Any] = {"progress": False}


def watched(metrics: list[float], objective: Any, **asked: Any) -> tuple[list[int], int | None]:
    """The evaluations that were the best so far, and the one behind which the run is over."""
    base = config.resolve(None, ["algorithm.name=ho_sfl", "task.name=digits", "model={name: resnet8, cut: 1}"])
    stopping = base.early_stopping.model_copy(update=asked)
    watch, best = Watch(base.model_copy(update={"early_stopping": stopping}), objective), []
    for number, metric in enumerate(metrics):
        if watch.saw(Record(number, number, 0.5, None, metric, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, {})):
            best.append(number)
        if watch.is_over:
            return best, number
    return best, None


@pytest.mark.parametrize(
    ("metrics", "objective", "asked", "found"),
    [
        ([10, 20, 20, 15, 30], "classification", {"patience": 2}, ([0, 1], 3)),
        ([10, 20, 20, 30, 30, 29], "classification", {"patience": 2}, ([0, 1, 3], 5)),
        ([9.0, 8.0, 8.5, 8.0, 7.0], "causal_lm", {"patience": 2}, ([0, 1], 3)),
        ([9.0, 8.0, 7.9, 7.8, 7.7], "generation", {"patience": 2, "min_delta": 0.5}, ([0, 1, 2, 3], 3)),
        ([10, 10.4, 10.8, 11.2], "classification", {"patience": 2, "min_delta": 1.0}, ([0, 1, 2], 2)),
        ([10, 10.6, 11.2, 11.8, 12.4], "classification", {"patience": 2, "min_delta": 1.0}, ([0, 1, 2, 3, 4], None)),
        ([10, 9, 8, 7], "classification", {}, ([0], None)),
    ],
)
def test_when_nothing_gets_better(
    metrics: list[float], objective: str, asked: dict[str, Any], found: tuple[list[int], int | None]
) -> None:
    """Accuracy rises and perplexity falls; small gains count once they have added up to `min_delta`."""
    assert watched(metrics, objective, **asked) == found


def bits(folder: Path, name: str = CHECKPOINT) -> tuple[int, dict[str, torch.Tensor]]:
    found = checkpoint.load(folder / name)
    assert found is not None
    return found[0], found[1]


def assert_equal(one: Path, other: Path, name: str = CHECKPOINT) -> None:
    (round_one, tensors), (round_other, others) = bits(one, name), bits(other, name)
    assert (round_one, tensors.keys()) == (round_other, others.keys())
    assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []


def run_of(**changes: Any) -> RunConfig:
    usual = {"steps": 12, "eval_every": 2, "checkpoint_every": 100, "top__lr": 3e-3}
    return small.images("ho_sfl", **(usual | changes))


def stopped_at(config: RunConfig, out: Path, step: int) -> hb.Run:
    """The run, stopped behind a step and gone on with."""

    def told(state: hb.RunState) -> None:
        if state.step == step:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hb.train(config, out, on_round=told, **QUIET)
    return hb.load(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> hb.Run:
    """A run over all its steps, which keeps its best."""
    return hb.train(run_of(keep_best=True), tmp_path_factory.mktemp("runs") / "whole", **QUIET)


def test_the_best_model_is_kept_and_used(whole: hb.Run, tmp_path: Path) -> None:
    metrics = [record.metric for record in whole.records]
    best = max(metrics)  # type: ignore[type-var]
    place = metrics.index(best)
    assert metrics[-1] != best, "else the last one would do"
    assert checkpoint.rounds(whole.folder / BEST) == [whole.records[place].round]
    for which, metric in (("best", best), ("last", metrics[-1])):
        said = halfback("evaluate", whole.folder, "--json", "--checkpoint", which)
        assert json.loads(said.out)["metric"] == metric
        assert whole.evaluate(checkpoint=which, **QUIET).metric == metric  # type: ignore[arg-type]
        halfback("export", whole.folder, "--out", tmp_path / which, "--checkpoint", which)
    weights = [(tmp_path / which / "model.safetensors").read_bytes() for which in ("best", "last")]
    assert weights[0] != weights[1]
    assert whole.summary.metric.best == best
    for which, record in (("best", whole.records[place]), ("last", whole.records[-1])):
        card = (tmp_path / which / "README.md").read_text(encoding="utf-8")
        assert f"at step {record.step}, with one seed" in card


@pytest.mark.parametrize("step", [3, 8])
def test_a_run_that_was_stopped_keeps_the_same_best(whole: hb.Run, tmp_path: Path, step: int) -> None:
    run = stopped_at(run_of(keep_best=True), tmp_path / "run", step).resume(**QUIET)
    assert_equal(run.folder, whole.folder)
    assert_equal(run.folder, whole.folder, BEST)


def test_a_kill_between_a_checkpoint_and_its_copy_loses_no_best(whole: hb.Run, tmp_path: Path) -> None:
    metrics = [record.metric for record in whole.records]
    at = whole.records[metrics.index(max(metrics))].step  # type: ignore[type-var]
    run = stopped_at(run_of(keep_best=True), tmp_path / "run", at)
    (run.folder / BEST).rename(tmp_path / "lost")
    run.resume(**QUIET)
    assert_equal(run.folder, whole.folder, BEST)


def test_a_best_of_another_run_is_refused(whole: hb.Run, tmp_path: Path) -> None:
    run = hb.train(run_of(keep_best=True, steps=2), tmp_path / "run", **QUIET)
    (run.folder / BEST).rename(tmp_path / "own")
    (run.folder / BEST).symlink_to(whole.folder / BEST)
    with pytest.raises(UserError, match=r"best belongs to another configuration: steps was 12"):
        run.model(checkpoint="best")


def test_a_budget_of_bytes_ends_a_run_where_it_is_used_up(whole: hb.Run, tmp_path: Path) -> None:
    """At a step without an evaluation of its own, and with the bits of the longer run there."""
    full: list[tuple[int, int]] = []
    hb.train(run_of(), tmp_path / "full", on_round=lambda state: full.append((state.step, state.total_bytes)), **QUIET)
    budget = {"budget__bytes": full[5][1] - 1}
    said = halfback(*_arguments(run_of(**budget), tmp_path / "config.yaml", tmp_path / "run"))
    assert said.status == 0, said.err
    why = f"ended at step 5 of 12: {full[5][1]:,} bytes have used up budget.bytes={full[5][1] - 1:,}"
    assert f"{tmp_path / 'run'}: {why}" in said.out.splitlines()
    run = hb.load(tmp_path / "run")
    assert (run.summary.steps, run.summary.ended, run.finished) == (5, why, True)
    assert [record.step for record in run.records] == [0, 2, 4, 5]
    assert_equal(stopped_at(run_of(), tmp_path / "five", 5).folder, run.folder)
    assert f"complete, {why}; a new run may have other settings" in halfback("resume", run.folder).out
    assert_equal(stopped_at(run_of(**budget), tmp_path / "twice", 3).resume(**QUIET).folder, run.folder)
    assert read_summary(tmp_path / "twice")["ended"] == why


def _arguments(config_: RunConfig, file: Path, out: Path) -> list[str]:
    file.write_text(config.dump(config_))
    return ["train", str(file), "--out", str(out)]


def test_a_run_that_ended_and_was_killed_before_its_summary(tmp_path: Path) -> None:
    run = hb.train(run_of(budget__bytes=1), tmp_path / "run", **QUIET)
    assert run.summary.steps == 1
    (run.folder / "summary.json").unlink()
    assert run.resume(**QUIET).summary.steps == 1
    assert len(run.records) == 2


def test_a_budget_of_seconds(tmp_path: Path) -> None:
    run = hb.train(run_of(budget__seconds=1e-6), tmp_path / "run", **QUIET)
    assert run.summary.steps == 1
    assert "have used up budget.seconds=1e-06" in str(run.summary.ended)


def test_a_run_ends_early_at_the_same_step_wherever_it_was_stopped(tmp_path: Path) -> None:
    """Nothing moves here, so nothing gets better."""
    still = {"early_stopping__patience": 2, "bottom__lr": 1e-30, "top__lr": 1e-30, "keep_best": True}
    still |= {"top__optimizer": "sgd", "bottom__optimizer": "sgd"}
    run = hb.train(run_of(**still), tmp_path / "run", **QUIET)
    assert (run.summary.steps, [record.step for record in run.records]) == (4, [0, 2, 4])
    said = "accuracy got no better in 2 evaluations (early_stopping.patience=2)"
    assert run.summary.ended == f"ended at step 4 of 12: {said}"
    again = stopped_at(run_of(**still), tmp_path / "again", 3).resume(**QUIET)
    assert_equal(again.folder, run.folder)
    assert again.summary.ended == run.summary.ended
    assert checkpoint.rounds(run.folder / BEST) == [0]


def test_the_first_evaluation_is_over_so_many_rows(tmp_path: Path) -> None:
    """The record and the tables say so, and the best is none of it; the bits of training are what they were."""
    some = run_of(first_eval_rows=7, eval_batch_size=4, steps=4)
    run = hb.train(some, tmp_path / "run", **QUIET)
    every = hb.train(run_of(first_eval_rows=None, eval_batch_size=4, steps=4), tmp_path / "all", **QUIET)
    assert [record.rows for record in run.records] == [7, None, None]
    assert [record.rows for record in every.records] == [None, None, None]
    assert [r.metric for r in run.records[1:]] == [r.metric for r in every.records[1:]]
    assert_equal(run.folder, every.folder)
    first = run.records[0].metric
    assert first is not None
    assert abs(first * 7 / 100 - round(first * 7 / 100)) < 1e-9, "an accuracy of 7 rows"
    summary = run.summary.metric
    assert (summary.initial, summary.initial_rows) == (first, 7)
    assert summary.best == max(record.metric for record in run.records[1:])  # type: ignore[type-var]
    assert "(7 rows)" in (run.folder / "report.html").read_text()
    assert stopped_at(some, tmp_path / "again", 1).resume(**QUIET).records[0].metric == first
    heard: list[tuple[int, int]] = []
    built = reload(run.folder)
    assert built.evaluate(None, lambda *done: heard.append(done)).metric == run.records[-1].metric
    rows = len(built.task.validation)
    assert heard == [(done, rows) for done in range(0, rows, 4)]


def test_rows_enough_for_all_leave_the_first_evaluation_as_it_was(tmp_path: Path) -> None:
    run = hb.train(run_of(steps=1), tmp_path / "run", **QUIET)
    assert run.config.first_eval_rows == 512
    assert [record.rows for record in run.records] == [None, None]


def test_what_is_compared_has_taken_all_its_steps(tmp_path: Path) -> None:
    given = ["compare", "quickstart", "--algorithms", "ho_sfl,frozen_bottom", "--out", tmp_path / "c"]
    for setting in ("early_stopping.patience=1", "budget.bytes=5", "budget.seconds=5"):
        assert "runs are compared at equal steps" in refusal(halfback(*given, setting))
    assert "compare sets first_eval_rows itself" in refusal(halfback(*given, "first_eval_rows=7"))


def test_a_dry_run_says_what_a_run_would_cost_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as the run then sends, and the same peak."""
    monkeypatch.chdir(tmp_path)
    arguments = digits(tmp_path / "run", "beside=[split_lora]")
    said = halfback(*arguments, "--dry-run")
    assert said.status == 0, said.err
    assert list(tmp_path.iterdir()) == []
    assert halfback(*arguments).status == 0
    sent = read_summary(tmp_path / "run")["up_bytes"]
    row = next(line for line in said.out.splitlines() if line.startswith("up, the whole run")).split()
    assert f"{sent / 1e6:.3g} MB" == f"{row[4]} {row[5]}"
    peak = next(line for line in said.out.splitlines() if line.startswith("peak of a client")).split()
    assert f"{read_summary(tmp_path / 'run')['client_peak_bytes'] / 1e6:.3g}" == peak[4]
    assert "steps: 4" in said.out
    assert "sampled_clients=9: at most clients=4" in refusal(halfback(*arguments, "sampled_clients=9", "--dry-run"))


def test_rates_fall_at_milestones(tmp_path: Path) -> None:
    """Before the first milestone nothing differs from a constant rate, and a fall by nothing is none."""

    def trained(name: str, **falls: Any) -> dict[str, torch.Tensor]:
        return bits(hb.train(run_of(**falls), tmp_path / name, **QUIET).folder)[1]

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], part: str) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one if name.startswith(part))

    falls = {f"{part}__schedule": "multistep" for part in ("bottom", "top")}
    falls |= {f"{part}__milestones": [2] for part in ("bottom", "top")}
    steady = trained("steady", steps=3)
    assert same(trained("by-nothing", steps=3, bottom__gamma=1.0, top__gamma=1.0, **falls), steady, "")
    fallen = trained("fallen", steps=3, **falls)
    assert not same(fallen, steady, "bottom.")
    assert not same(fallen, steady, "top.")
    assert same(trained("before", steps=2, **falls), trained("steady-before", steps=2), "")
