"""What is said of runs, against sentences written by hand."""

from pathlib import Path
from typing import Any

import pytest
from report_folders import records, summary, write_run

from halfback.report.page import verdict_of, write_report
from halfback.report.verdict import Method, Metric, method_of, rises, tiles, verdict

ACCURACY = Metric("accuracy", is_percent=True)
PERPLEXITY = Metric("perplexity", rises=False)
FLOOR = {0: 80.0, 1: 81.0, 2: 82.0}
FIRST = {0: 84.0, 1: 85.0, 2: 87.0}  # gaps 4, 4, 5
COSTS: dict[str, Any] = {"initial": 10.0, "steps": 1200, "inference": 100.0, "wall": 12.0}


def methods(mine: dict[int, float], first: dict[int, float] = FIRST, low: dict[int, float] = FLOOR) -> list[Method]:
    return [
        Method("ours", "ho_sfl", mine, total_bytes=2e6, peak=104.0, **COSTS),
        Method("frozen_bottom", "frozen_bottom", low, total_bytes=1e6, peak=100.0, **COSTS),
        Method("split_lora", "split_lora", first, total_bytes=16e6, peak=260.0, **COSTS),
    ]


def test_with_three_seeds_differences_are_paired_and_the_gap_is_told() -> None:
    found = verdict(methods({0: 81.0, 1: 83.0, 2: 85.0}), ACCURACY, "digits")  # gains 1, 2, 3; short by 3, 2, 2
    assert found.said == (
        "ours ended at 83.0 % accuracy on digits (mean of 3 seeds), from 10.0 % before training: 2.3 ± 0.3 points "
        "below split_lora (backpropagation on the device) and 2.0 ± 0.6 points above frozen_bottom (the device's part "
        "left as it was). It moved 12 % of split_lora's bytes and needed 40 % of its device memory, which is 1.04 "
        "times that of plain inference: a device that can run its part of the model can train it."
    )
    # 7 standard errors below the one, 3.5 above the other; t(2) at 97.5 % is 4.303.
    assert found.care == (
        "With 3 seeds, the difference to frozen_bottom can't be told from chance. Of what split_lora gains over "
        "frozen_bottom, it recovered 46 % (25 % to 60 % by resampling the seeds)."
    )


def test_no_gap_is_no_part_of_one() -> None:
    level = verdict(methods({0: 81.0, 1: 83.0, 2: 85.0}, first={0: 80.5, 1: 80.5, 2: 82.5}), ACCURACY, "digits")
    assert "There is no gap to recover: split_lora did not end above frozen_bottom" in level.care
    figures = tiles(methods({0: 81.0, 1: 83.0, 2: 85.0}, first=FLOOR), ACCURACY)
    assert (figures[3].value, figures[3].name) == ("no gap", "to recover")
    figures = tiles(methods({0: 81.0, 1: 83.0, 2: 85.0}), ACCURACY)
    assert figures[3].value == "46 %"


def test_one_seed_is_said_to_be_one() -> None:
    found = verdict(methods({0: 83.0}, first={0: 84.0}, low={0: 80.0}), ACCURACY, "digits")
    assert "from 10.0 % before training, beside 84.0 % with split_lora" in found.said
    assert found.care == "Each ran with one seed, so differences may be chance; several seeds would tell."
    assert "gap" not in " ".join(found.sentences)
    assert [tile.value for tile in tiles(methods({0: 83.0}), ACCURACY)] == ["83.0 %", "2 MB", "104 B", "12.0 s"]
    two = verdict(methods({0: 83.0, 1: 83.0}), ACCURACY, "digits")
    assert two.care.startswith("With 2 seeds no difference can be told from chance. There is no gap to recover")


def test_alone_it_is_worth_nothing_that_could_be_said() -> None:
    found = verdict(methods({0: 83.0})[:1], ACCURACY, "digits")
    assert found.said == (
        "ours ended at 83.0 % accuracy on digits, from 10.0 % before training. It moved 2 MB between devices and "
        "server in 1,200 steps and needed 1.04 times the memory of plain inference on a device: a device that can run "
        "its part of the model can train it."
    )
    assert found.care == "Nothing ran beside it, so this says what was reached and not what that is worth."


def test_without_fences_it_stands_beside_the_best_other() -> None:
    ours = Method("ours", "a", {0: 9.0}, total_bytes=100.0, peak=300.0, inference=100.0)
    others = [Method("worse", "b", {0: 12.0}, total_bytes=5.0), Method("better", "c", {0: 8.0}, total_bytes=100.0)]
    found = verdict([ours, *others], PERPLEXITY, "e2e")
    assert found.said == (
        "ours ended at perplexity 9 on e2e, beside 8 with better. It moved as much as better and needed a device "
        "memory 3.00 times that of plain inference."
    )
    with_a_fence = [ours, Method("split_lora", "split_lora", {0: 9.5}), *others]
    assert (
        ", beside 9.5 with split_lora (backpropagation on the device) and 8 with better."
        in verdict(with_a_fence, PERPLEXITY, "e2e").said
    )


def test_what_diverged_is_no_result() -> None:
    lost = Method("ours", "ho_sfl", {}, lost=2)
    assert verdict([lost, *methods({})[1:]], ACCURACY, "digits").said == (
        "ours came to no result on digits: every run diverged."
    )
    assert tiles([lost], ACCURACY) == []
    some = verdict([Method("ours", "ho_sfl", {0: 83.0}, lost=2), *methods({})[1:]], ACCURACY, "digits")
    assert some.care.startswith("2 of 3 runs of ours diverged.")


@pytest.mark.parametrize(
    ("initial", "final", "best", "expected"),
    [(10, 90, 95, True), (90, 10, 5, False), (10, 90, 90, True), (90, 10, 10, False), (5, 5, 5, True)],
)
def test_the_best_tells_which_way_is_better(initial: float, final: float, best: float, expected: bool) -> None:
    assert rises({"metric": {"initial": initial, "final": final, "best": best}}) is expected


def test_only_runs_of_the_same_work_are_compared() -> None:
    metric = {"name": "accuracy", "initial": 10.0, "final": 91.0, "best": 92.0}
    found = verdict_of([summary(metric=metric), summary(metric=metric, task="mnist", algorithm="split_lora")])
    assert "beside" not in found.said
    assert found.said.startswith(
        "ho_sfl ended at 91.0 % accuracy on digits, from 10.0 % before training. It moved 19 MB"
    )
    assert method_of("x", [summary()]).total_bytes == 12_582_912 + 6_400_123


def test_runs_that_differ_in_their_seed_alone_are_one_method(tmp_path: Path) -> None:
    folders = []
    for name, gain in (("ho_sfl", 3.0), ("split_lora", 4.0)):
        for seed in range(3):
            metric = {"name": "accuracy", "initial": 10.0, "final": 80.0 + gain + 0.01 * seed, "best": 90.0}
            made = summary(algorithm=name, seed=seed, metric=metric)
            text = f"algorithm:\n  name: {name}\nseed: {seed}\nbeside:\n- split_lora\nsteps: 3\n"
            folders.append(write_run(tmp_path / f"{name}-{seed}", records(3), made, text))
    page = write_report(folders, tmp_path / "page.html").read_text()
    assert "accuracy on digits (mean of 3 seeds)" in page
    assert "1.0 ± 0.0 points below split_lora" in page
