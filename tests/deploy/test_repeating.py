"""A deployed run, and the same once more in one process by what it has recorded of who took part."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import halfback as hb
from halfback import config as configuration
from halfback.assembly import build_client
from halfback.assembly.sources import Seat
from halfback.config import RunConfig
from halfback.deploy.serving import ENDED, RUN, Surroundings, serve
from halfback.deploy.site import SiteConfig
from halfback.engine.attendance import rounds_of
from halfback.engine.remote.frames import Frame
from halfback.telemetry.records import read_summary
from halfback.testing import small
from halfback.wire.messages import Slopes
from halfback.wire.packing import unpack
from tests.command import halfback
from tests.engine.test_attendance import Uneven

STEPS = 6


class Sites(Uneven):
    """Sites of which one is a gateway, as it says itself."""

    def counts(self) -> Mapping[str, Mapping[str, float]]:
        return {"one": {"devices": 2.0, "late_total": 1.0}}

    def silent(self) -> set[str]:
        return set()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of which client 1 left the third round in its middle, and client 3 was slow."""
    folder = tmp_path_factory.mktemp("repeating")
    changes = {"clients": 4, "steps": STEPS, "eval_every": 3, "checkpoint_every": 2, "batch_size": 4}
    few = {"deployment__min_cohort": 1, "deployment__spare": 1, "algorithm__directions": 2}
    config = small.images("ho_sfl", **changes, **few)
    carrier = Sites(lambda n: build_client(config, Seat(n, False, ())).side, 4, folder / "clients")
    carrier.slow, carrier.mute = frozenset({3}), _mute
    try:
        assert _served(folder, config, carrier) == {"how": "finished", "why": ""}
    finally:
        carrier.close()
    return folder / "job" / RUN


def _mute(number: int, question: Frame, reply: Frame) -> bool:
    return number == 1 and bool(reply.body) and isinstance(said := unpack(reply.body), Slopes) and said.step == 2


def _served(folder: Path, config: RunConfig, carrier: Sites) -> Any:
    around = Surroundings(
        site=lambda: SiteConfig(trial=True),
        folder=lambda _: folder / "server",
        sites=lambda: {"one": 4},
        carrier=lambda seats: carrier,
        job=folder / "job",
        listen=lambda _: None,
    )
    serve("run", configuration.to_tree(config), around)
    return json.loads((folder / "job" / RUN / ENDED).read_text())


def test_a_deployed_run_is_repeated_to_the_bit(left: Path, tmp_path: Path) -> None:
    rounds = rounds_of(left / "cohorts.jsonl", 4)
    assert [each.round for each in rounds] == [*range(STEPS)]
    assert {client for each in rounds for client in each.left} >= {3}
    assert '"took part"' not in (left / "events.jsonl").read_text()
    said = halfback("replay", left, "--out", tmp_path / "again")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines()[-1] == f"all 24 tensors have the bits of {left}"
    assert (tmp_path / "again" / "cohorts.jsonl").read_text() == (left / "cohorts.jsonl").read_text()


def test_with_somebody_else_the_bits_are_others(left: Path, tmp_path: Path) -> None:
    """And the first step that differs is named."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in left.glob("*"):
        (folder / path.name).symlink_to(path)
    lines = (left / "cohorts.jsonl").read_text().splitlines()
    row = json.loads(lines[4])
    lines[4] = json.dumps({"round": 4, "cohort": row["cohort"][:1], "left": {}})
    (folder / "cohorts.jsonl").unlink()
    (folder / "cohorts.jsonl").write_text("\n".join([*lines, ""]))
    said = halfback("replay", folder, "--out", tmp_path / "again")
    assert said.status == 1
    assert "tensors differ" in said.out
    assert said.out.endswith("the first other row of the history is number 4\n")


@pytest.mark.parametrize(
    ("missing", "said"), [("summary.json", "is not finished"), ("cohorts.jsonl", "cohorts.jsonl is not there")]
)
def test_a_run_that_can_not_be_repeated(left: Path, tmp_path: Path, missing: str, said: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for path in left.glob("*"):
        if path.name != missing:
            (folder / path.name).symlink_to(path)
    found = halfback("replay", folder, "--out", tmp_path / "again")
    assert (found.status, found.out) == (2, "")
    assert said in found.err
    assert not (tmp_path / "again").exists()


def test_what_gateways_have_counted_is_written_at_each_evaluation(left: Path) -> None:
    lines = [json.loads(line) for line in (left / "gateways.jsonl").read_text().splitlines()]
    assert lines == [{"round": number, "site": "one", "devices": 2.0, "late_total": 1.0} for number in (0, 3, STEPS)]


@pytest.mark.parametrize("asked", [{"budget__bytes": 1}, {"early_stopping__patience": 1}, {"budget__seconds": 1e-6}])
def test_a_deployed_run_may_end_before_its_steps_are_done(asked: dict[str, Any], tmp_path: Path) -> None:
    """Its server ends it; it is finished, says why, hands out its best, and is repeated up to there."""
    still = {"bottom__lr": 1e-30, "top__lr": 1e-30, "bottom__optimizer": "sgd", "top__optimizer": "sgd"}
    usual = {"clients": 2, "sampled_clients": 2, "steps": STEPS, "eval_every": 1, "batch_size": 4, "keep_best": True}
    config = small.images("ho_sfl", **(usual | still | asked))
    carrier = Sites(lambda n: build_client(config, Seat(n, False, ())).side, 2, tmp_path / "clients")
    try:
        assert _served(tmp_path, config, carrier) == {"how": "finished", "why": ""}
    finally:
        carrier.close()
    folder = tmp_path / "job" / RUN
    summary = read_summary(folder)
    assert summary["steps"] == 1
    assert summary["ended"].startswith(f"ended at step 1 of {STEPS}: ")
    assert [path.name for path in (folder / "best").iterdir()] == ["round-00000000"]
    assert hb.load(folder).evaluate(checkpoint="best", progress=False).metric == summary["metric"]["best"]
    said = halfback("replay", folder, "--out", tmp_path / "again")
    if "budget__seconds" in asked:
        assert "a budget of seconds ends no run at the same step again" in said.err
        return
    assert said.status == 0, said
    assert read_summary(tmp_path / "again")["steps"] == 1
