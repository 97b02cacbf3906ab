"""Plans: what is looked at, what is recommended and why, what happens where nothing fits, and a real pilot."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import halfback, refusal
from fleets import device, fleet, work

from halfback import config as configuration
from halfback.config import RunConfig
from halfback.errors import UserError
from halfback.planning.choosing import Cohorts, known
from halfback.planning.mixing import for_all, mixed
from halfback.planning.profiles import Fleet, read_fleet
from halfback.planning.steps import cohort_time, step_time
from halfback.planning.variants import variants
from halfback.planning.work import Values, Workload
from halfback.runs import run
from halfback.runs.pilot import Curve
from halfback.runs.plan import Plan, plan
from halfback.testing import small

ROOMY = [{"name": "quick", "up_megabits": 80}, {"name": "slow", "operations_per_second": 1e7, "latency_seconds": 0.1}]


def written(folder: Path, *classes: dict[str, Any], **shared: Any) -> Path:
    """A fleet's file."""
    made: Fleet = fleet(*(device(**each) for each in classes), **shared)
    path = folder / "fleet.yaml"
    path.write_text(made.model_dump_json())
    return path


def recipe(**changes: Any) -> RunConfig:
    """A run of four steps, all of which a plan looks at."""
    return small.images("ho_sfl", steps=4, eval_every=2, **changes)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """On two classes with room for everything."""
    return plan(recipe(), devices=written(tmp_path_factory.mktemp("fleet"), *ROOMY))


def recommended_row(of: Plan) -> dict[str, Any]:
    row: dict[str, Any] = of.values["variants"][of.values["recommended"]["variant"]]
    return row


def test_what_slopes_know_is_how_near_their_estimate_comes() -> None:
    """Against drawn directions: E⟨g, ĝ⟩² / (|g|² E|ĝ|²), of 20,000 draws, whose error is about a hundredth."""
    generator, d, count = np.random.default_rng(1), 12, 3
    gradient = generator.standard_normal(d)
    u = generator.standard_normal((20_000, count, d))
    estimates = np.einsum("npd,np->nd", u, u @ gradient) / count
    near = (estimates @ gradient).mean() ** 2 / (gradient @ gradient * (estimates**2).sum(1).mean())
    config = recipe(algorithm__directions=count)
    assert known(config, Values(exact=0, along=d, top=0)) == pytest.approx(near, rel=0.05)
    assert known(config, Values(exact=d, along=0, top=5)) == 1
    assert known(recipe(algorithm__exact_blocks="all", algorithm__directions=0), Values(3, 1, 0)) == 0.75


def test_what_is_recommended_costs_what_was_said(tmp_path: Path, planned: Plan) -> None:
    row, out = recommended_row(planned), planned.write(tmp_path / "plan")
    done = run.train(str(out / "recommended.yaml"), tmp_path / "run", memory_every=1, progress=False).summary
    steps = done.steps * done.sampled_clients
    assert row["up_bytes"] * steps == pytest.approx(done.up_bytes, rel=1e-12)
    assert row["down_bytes"] * steps == pytest.approx(done.down_bytes, rel=1e-12)
    assert row["peak_bytes"] == pytest.approx(done.client_peak_bytes, rel=0.1)  # the plan's promise
    assert json.loads((out / "plan.json").read_text()) == planned.values
    assert row["method"] in (out / "plan.html").read_text()


def test_seconds_of_a_step_are_those_of_the_slowest(planned: Plan) -> None:
    row = recommended_row(planned)
    slow, server = ROOMY[1], (row["server_forward"] + row["server_backward"]) / 1e10
    computing = (row["passes"] * row["device_forward"] + row["device_backward"]) / slow["operations_per_second"]
    links = 8 * (row["up_bytes"] + row["down_bytes"]) / 8e6 + row["exchanges"] * slow["latency_seconds"]
    assert row["by_class"]["slow"]["total"] == pytest.approx(computing + links + server)
    assert row["by_class"]["quick"]["total"] < row["seconds"] <= row["by_class"]["slow"]["total"] + server
    assert any(sentence.startswith("slow: ") and "bound by" in sentence for sentence in planned.explain())


def test_nothing_recommended_is_beaten_or_needs_backpropagation(planned: Plan) -> None:
    rows = planned.values["variants"]
    kept = [rows[place] for place in planned.values["best"]]
    assert recommended_row(planned) in kept
    for row in (row for row in rows if row["algorithm"] != "split_lora"):
        assert any(one["seconds"] <= row["seconds"] and one["known"] >= row["known"] - 0.01 for one in kept), row
    assert "split_lora" in {row["algorithm"] for row in rows}
    assert "split_lora" not in {row["algorithm"] for row in kept}


def test_memory_is_a_hard_limit(tmp_path: Path, planned: Plan) -> None:
    roomy = recommended_row(planned)
    limit = (roomy["peak_bytes"] - 1) / 1e6
    tight = plan(recipe(), devices=written(tmp_path, ROOMY[0], ROOMY[1] | {"memory_megabytes": limit}))
    assert recommended_row(tight)["peak_bytes"] < roomy["peak_bytes"]
    for row in tight.values["variants"]:
        assert bool(row["lacking"]) == (row["peak_bytes"] > limit * 1e6)
    assert any(sentence.startswith("Memory of slow keeps") for sentence in tight.explain())


def test_a_fleet_that_nothing_fits_gets_the_smallest_change(tmp_path: Path, planned: Plan) -> None:
    least = min(row["peak_bytes"] for row in planned.values["variants"] if row["algorithm"] != "split_lora")
    found = plan(recipe(), devices=written(tmp_path, device := {"memory_megabytes": 0.97 * least / 1e6}))
    assert "the smallest change that helps is client.rows_at_once=4" in found.values["said"][1]
    assert found.recommended.client.rows_at_once == 4
    assert recommended_row(found)["peak_bytes"] <= device["memory_megabytes"] * 1e6
    with pytest.raises(UserError, match=r"^a has no room for any: the least peak is [\d.]+ MB, [\d.]+ MB too much"):
        plan(recipe(), devices=written(tmp_path, {"memory_megabytes": 0.01}))


def test_classes_that_differ_much_get_cuts_of_their_own(tmp_path: Path) -> None:
    """One computes for nothing and has a thin link, the other the reverse: no cut is right for both."""
    thin = {"name": "thin", "operations_per_second": 1e12, "up_megabits": 0.2, "down_megabits": 0.2}
    weak = {"name": "weak", "operations_per_second": 3e7, "up_megabits": 800, "down_megabits": 800}
    config, path = recipe(sampled_clients=4), written(tmp_path, thin, weak)
    said = plan(config, devices=path).values["said"][-1]
    assert re.match(r"ho_sfl, P = 2 could have cut .* s a step instead of .* with cut 1\.$", said)
    fleet, workload = read_fleet(path), Workload(config)
    cohorts = Cohorts(config, fleet)
    looked = [
        cohorts.look(each, workload.work(each.config), workload.trained(each.config))
        for each in variants(config, workload.blocks)
        if each.method == "ho_sfl, P = 2" and each.codecs == "int8"
    ]
    found = mixed(config, fleet, looked, min(looked, key=lambda each: each.step.total))
    assert found is not None
    assert found.cuts["thin"] > found.cuts["weak"]
    assert sorted(found.config.model.cut) == sorted([*found.cuts.values()] * 2)  # type: ignore[arg-type]
    works = {each.variant.cut: each.work for each in looked}
    alone = [step_time(works[found.cuts[each.name]], each, fleet) for each in fleet.classes]
    server = 2 * sum(each.server for each in alone)
    assert found.seconds == pytest.approx(max(each.total - each.server for each in alone) + server)
    run.train(found.config, tmp_path / "run", steps=1, progress=False)


def test_a_class_that_hardly_anyone_has_is_planned_for_too(tmp_path: Path) -> None:
    """Of 200 clients two have it, of the 30 that cuts are looked for with none."""
    thin = {"name": "thin", "operations_per_second": 1e12, "up_megabits": 0.2, "down_megabits": 0.2, "share": 99}
    path = written(tmp_path, thin, {"name": "rare", "operations_per_second": 3e7}, {"name": "nobody", "share": 1e-6})
    row = recommended_row(plan(recipe(clients=110, task__train_rows=600), devices=path))
    assert row["by_class"].keys() == {"thin", "rare", "nobody"}


def test_the_recipe_as_it_stands_is_looked_at() -> None:
    own = recipe(
        algorithm__directions=5, algorithm__exact_blocks=1, codecs__slopes_up=["int8"], codecs__gradient_down=["int8"]
    )
    found = [each for each in variants(own, 3) if each.config.algorithm == own.algorithm and each.cut == 1]
    assert "ho_sfl, P = 5, exact 1 as int8 up and – down" in {each.method for each in found}
    assert own.codecs in [each.config.codecs for each in found]
    # What differs has another name, and what a plan says of bits on the links is what would be run.
    assert len({(each.method, each.codecs, each.weights) for each in found}) == len(found)
    every = list(variants(recipe(), 3))
    assert all(("sign" in each.method) == bool(each.config.codecs.slopes_up) for each in every)


def test_the_dtype_of_weights_is_the_models() -> None:
    assert {each.weights for each in variants(recipe(model__dtype="bfloat16", bottom__train="lora"), 1)} <= {
        "bfloat16",
        "int8",
    }


def test_a_server_of_a_grown_fleet_is_that_of_a_cohort() -> None:
    """All that a server is, for twice as many: a step of the cohort takes as long."""
    of = fleet(uplink_megabits=4, server_block_seconds=0.5, server_step_seconds=0.25)
    one = cohort_time([step_time(work(), device(), of, 2e6)] * 2)
    two = cohort_time([step_time(work(), device(), for_all(of, 2.0), 2e6)] * 4)
    assert two == one


def test_time_to_a_target_lies_between_two_evaluations() -> None:
    curve = Curve("accuracy", True, [(0.0, 50.0), (10.0, 70.0), (20.0, 60.0), (30.0, 90.0)])
    assert [curve.time_to(target) for target in (40, 60, 70, 75, 91)] == [0.0, 5.0, 10.0, 25.0, None]
    falls = Curve("perplexity", False, [(0.0, 8.0), (4.0, 4.0)])
    assert [falls.time_to(target) for target in (9, 5, 3)] == [0.0, 3.0, None]


def test_a_pilot_says_when_each_is_at_the_target(tmp_path: Path) -> None:
    path = written(tmp_path, *ROOMY)
    found = plan(recipe(), devices=path, pilot=2, target=1.0)  # percent: all are there from the start
    pilot = found.values["pilot"]
    assert len(pilot["candidates"]) == 2
    assert all(one["to_target"] == [0.0, 0.0, 0.0] for one in pilot["candidates"])
    never = plan(recipe(), devices=path, pilot=2, target=100.5).values["pilot"]
    assert all(one["to_target"] == [None] * 3 for one in never["candidates"])


def test_the_command_writes_a_recipe_that_train_takes(tmp_path: Path) -> None:
    settings = tmp_path / "recipe.yaml"
    settings.write_text(configuration.dump(recipe()))
    path, out = written(tmp_path, *ROOMY), tmp_path / "plan"
    said = halfback("plan", str(settings), "--devices", str(path), "--out", str(out), "--explain")
    assert "Recommended: " in said.out
    assert "quick: " in said.out
    assert configuration.resolve(str(out / "recommended.yaml")).task.name == "digits"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--target", "90"], "target=90: only a pilot tells the time to it; give pilot=50 too"),
        (["--target", "nan", "--pilot", "50"], "target=nan: a finite number is allowed"),
        (["--pilot", "1"], "pilot=1: 2 to 100000 steps are allowed"),
        (["--devices", "moon"], "fleet 'moon' is unknown"),
    ],
)
def test_what_can_not_be_planned_is_one_line(given: list[str], says: str) -> None:
    assert says in refusal(halfback("plan", "quickstart", *given))
