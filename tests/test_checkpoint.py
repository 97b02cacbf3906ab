"""A checkpoint appears whole or not at all."""

from pathlib import Path

import pytest
import torch

from halfback.engine import checkpoint
from halfback.errors import UserError

TENSORS = {"weight": torch.arange(6.0).view(2, 3).t(), "steps": torch.tensor(3), "half": torch.ones(2).bfloat16()}
VALUES = {"config": {"seed": 1}, "losses": [0.1 + 0.2, 1e-300], "nothing": None}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint", 7, TENSORS, VALUES)
    found = checkpoint.load(tmp_path / "checkpoint")
    assert found is not None
    number, tensors, values = found
    assert number == 7
    assert values == VALUES  # floats to the last bit
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        checkpoint.save(tmp_path, number, TENSORS, VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000010"]


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent") is None
    assert checkpoint.load(tmp_path) is None


@pytest.mark.parametrize("files", [(), ("tensors.safetensors",), ("tensors.safetensors", "values.json")])
def test_what_a_killed_save_left_is_passed_over_and_removed(tmp_path: Path, files: tuple[str, ...]) -> None:
    checkpoint.save(tmp_path, 4, TENSORS, VALUES)
    (tmp_path / "unfinished-00000005").mkdir()
    for name in files:
        (tmp_path / "unfinished-00000005" / name).write_bytes(b"torn")
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[0] == 4
    checkpoint.save(tmp_path, 5, TENSORS, VALUES)
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000005"]


def test_a_kill_before_the_old_one_is_removed_leaves_the_new_one_in_force(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", 9, TENSORS, VALUES)
    checkpoint.save(tmp_path / "b", 10, TENSORS, VALUES)
    (tmp_path / "a" / "round-00000009").rename(tmp_path / "b" / "round-00000009")
    found = checkpoint.load(tmp_path / "b")
    assert found is not None
    assert found[0] == 10


@pytest.mark.parametrize("name", ["tensors.safetensors", "values.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damage_is_an_error_of_one_line(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, 3, TENSORS, VALUES)
    file = tmp_path / "round-00000003" / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    else:
        file.unlink()
    with pytest.raises(UserError, match="round-00000003 can't be read: ") as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint of round 3 .* the last one is kept"):
        checkpoint.save(tmp_path / "checkpoint", 3, TENSORS, VALUES)
