"""What a machine is measured to do, as a plan reads it."""

from pathlib import Path

import pytest
from command import halfback, refusal

from halfback.planning.measure import line
from halfback.planning.profiles import read_fleet


def test_a_line_has_what_takes_time_with_few_rows_too() -> None:
    found = line((10e6, 0.5 + 10e6 / 1e8), (2e6, 0.5 + 2e6 / 1e8))
    assert (1 / found.slope, found.offset) == pytest.approx((1e8, 0.5), rel=1e-9)


@pytest.mark.parametrize("few", [(9e6, 0.01), (2e6, 0.2)], ids=["hardly fewer", "slower"])
def test_what_gives_no_line_is_a_rate(few: tuple[float, float]) -> None:
    found = line((10e6, 0.1), few)
    assert (1 / found.slope, found.offset) == pytest.approx((1e8, 0), abs=1e-12)


def test_a_line_never_starts_below_nothing() -> None:
    assert line((10e6, 0.1), (4e6, 0.001)).offset == 0


def test_a_machine_is_profiled_and_the_file_is_a_fleet(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    small = ["task.train_rows=120", "task.validation_rows=60", "clients=2", "sampled_clients=2", "model.cut=3"]
    said = halfback("profile", "quickstart", *small, "--seconds", "0.1", "--out", str(out))
    assert said.status == 0
    fleet = read_fleet(out)
    mine = fleet.classes[0]
    # A top without a block has no rate of its own: it would be a hundredth of the bottom's.
    assert fleet.server_operations_per_second == mine.operations_per_second > 1e6
    assert fleet.server_block_seconds == mine.block_seconds >= 0


def test_a_class_is_called_what_a_fleet_can_be_read_with(tmp_path: Path) -> None:
    said = refusal(halfback("profile", "quickstart", "--name", "my/phone", "--out", str(tmp_path / "mine.yaml")))
    assert "name 'my/phone': 1 to 60 letters, digits, spaces and any of _.,+()- are allowed" in said
