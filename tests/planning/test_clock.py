"""Simulated time: of rounds by hand, and in runs, whose bits it leaves as they are."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from command import digits, halfback, refusal
from fleets import device, fleet, work

from halfback import config
from halfback.deploy.here import check_apart
from halfback.engine import checkpoint
from halfback.errors import UserError
from halfback.planning.clock import Clock
from halfback.runs import run
from halfback.runs.told import RunState
from halfback.telemetry.records import read_records, read_summary


def test_rounds_by_hand() -> None:
    """Two clients of three: 2 s and 4 s a pass, 1 MB a second shared, half a second of server a step each."""
    quick, slow = device(operations_per_second=5e8, latency_seconds=0.5), device("b", operations_per_second=2.5e8)
    of = fleet(quick, slow, uplink_megabits=8)
    clock = Clock(of, [quick, slow, quick], lambda _: work(), in_turn=False)
    for client in (0, 1):
        for size in (1_000_000, 500_000):
            clock.hear(client, "up", bytes(size))
        clock.hear(client, "down", bytes(250_000))
    clock.end_round(steps=2, passes=6)  # 3 each
    # Up 1.5 MB at half a megabyte a second, down 0.25 s, two exchanges of 0.5 s for the quick; 2 steps of the server
    # for two clients. The quick: 6 + 3 + 0.25 + 1; the slow: 12 + 3 + 0.25.
    assert clock.seconds == pytest.approx(12 + 3 + 0.25 + 2 * 2 * 0.5)
    clock.hear(2, "up", bytes(1_000_000))
    clock.end_round(steps=1, passes=1)  # alone, with the whole uplink and no answer
    assert clock.seconds == pytest.approx(17.25 + 2 + 1 + 0.5 + 0.5)


def test_clients_in_turn_add_up_and_each_has_the_whole_link() -> None:
    one, other = device(), device("b", operations_per_second=5e8)
    of = fleet(one, other, uplink_megabits=8)
    clock = Clock(of, [one, other], lambda _: work(), in_turn=True)
    for client in (0, 1):
        clock.hear(client, "up", bytes(1_000_000))
    clock.end_round(steps=1, passes=2)
    assert clock.seconds == pytest.approx((1 + 1 + 0.5) + (2 + 1 + 0.5))


def test_what_a_voided_round_said_is_forgotten() -> None:
    clock = Clock(fleet(uplink_megabits=1), [device()], lambda _: work(), in_turn=False)
    clock.hear(0, "up", bytes(1_000_000))
    clock.void()
    clock.end_round(steps=1, passes=3)
    assert clock.seconds == 0


def written(folder: Path, **changes: float) -> Path:
    """A fleet of one class."""
    path = folder / "fleet.json"
    path.write_text(fleet(device(**changes), server_operations_per_second=1e18).model_dump_json())
    return path


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load(out / "checkpoint")
    assert found is not None
    return found[1]


def test_a_runs_time_is_that_of_its_bytes_on_the_link(tmp_path: Path) -> None:
    """One client, on a device that computes in no time, so that each record's time is that of the ledger's bytes."""
    named = written(tmp_path, operations_per_second=1e18, up_megabits=1, down_megabits=2, latency_seconds=0.25)
    settings = ["clients=1", "sampled_clients=1", "eval_every=1", "codecs.activations_up=[int8]"]
    said = halfback(*digits(tmp_path / "run", *settings, f"fleet={named}"))
    assert said.status == 0, said
    records = read_records(tmp_path / "run")
    assert records[0].simulated_seconds == 0
    for before, after in pairwise(records):
        up, down = after.up_bytes - before.up_bytes, after.down_bytes - before.down_bytes
        seconds = 8 * up / 1e6 + 8 * down / 2e6 + 3 * 0.25  # join, batch, slopes
        assert before.simulated_seconds is not None
        assert after.simulated_seconds is not None
        # The operations of a pass take 1e-10 s here.
        assert after.simulated_seconds - before.simulated_seconds == pytest.approx(seconds, abs=1e-6)
    assert read_summary(tmp_path / "run")["simulated_seconds"] == records[-1].simulated_seconds
    assert "fleet" in said.out
    assert "seconds on the fleet" in (tmp_path / "run" / "report.html").read_text()


def test_a_fleet_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    assert halfback(*digits(tmp_path / "with", "fleet=phones")).status == 0
    assert halfback(*digits(tmp_path / "without")).status == 0
    with_fleet, without = tensors_of(tmp_path / "with"), tensors_of(tmp_path / "without")
    assert with_fleet.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_fleet.items())
    assert [r.simulated_seconds for r in read_records(tmp_path / "without")] == [None, None, None]
    assert "seconds on the fleet" not in (tmp_path / "without" / "report.html").read_text()


def test_a_run_goes_on_with_the_time_that_it_had(tmp_path: Path) -> None:
    """The file is gone by then: the fleet is the run's own from its beginning."""
    named = written(tmp_path, latency_seconds=0.1)
    settings = (f"fleet={named}", "checkpoint_every=1", "eval_every=1")
    assert halfback(*digits(tmp_path / "unbroken", *settings)).status == 0

    def stop(state: RunState) -> None:
        if state.step == 2:
            raise StopIteration

    out = tmp_path / "broken"
    with pytest.raises(StopIteration):
        run.train(config.resolve(None, digits(out, *settings)[1:-2]), out, on_round=stop)
    named.unlink()
    assert halfback("resume", out).status == 0
    found = [read_records(tmp_path / folder) for folder in ("unbroken", "broken")]
    times = [[record.simulated_seconds or 0.0 for record in records] for records in found]
    assert times[0] == times[1]
    assert sorted(times[0]) == times[0]
    assert len(set(times[0])) == 5


def test_a_checkpoint_without_the_time_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out, "fleet=phones")).status == 0
    (out / "summary.json").unlink()
    (values,) = (out / "checkpoint").rglob("values.json")
    kept = json.loads(values.read_text())
    for changed, said in ((None, "simulated_seconds and fleet go together"), (1.0, "simulated_seconds is 1.0")):
        values.write_text(json.dumps(kept | {"simulated_seconds": changed}))
        assert said in refusal(halfback("resume", out))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["fleet=phons"], "fleet 'phons' is unknown; did you mean phones?"),
        (["fleet=there/is/none.yaml"], "fleet 'there/is/none.yaml' can't be read: No such file or directory"),
        (["fleet=phones", "algorithm.name=centralised"], "centralised runs on one machine, without devices and links"),
        (["fleet=phones", "client.runtime=device"], "its clock doesn't hear clients on device packages"),
    ],
)
def test_a_fleet_that_is_none_is_refused_before_anything_runs(tmp_path: Path, settings: list[str], said: str) -> None:
    assert said in refusal(halfback(*digits(tmp_path / "run", *settings)))
    assert not (tmp_path / "run").exists()


def test_a_deployment_has_a_time_of_its_own() -> None:
    with pytest.raises(UserError, match="a deployment has devices and links of its own"):
        check_apart(config.resolve("quickstart", ["fleet=phones"]))
