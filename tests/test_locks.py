"""One process at work in a run's folder: whoever comes second hears so in one line and changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from command import digits, halfback, refusal

from halfback import config
from halfback.errors import UserError
from halfback.runs import run
from halfback.runs.locks import alone, unchanging

HOLD = """
import sys
from pathlib import Path
from halfback.runs.locks import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("locks") / "run"
    assert halfback(*digits(out, "beside=[frozen_bottom]")).status == 0
    return out


def second(out: Path) -> list[list[object]]:
    """Every command that works in a run's folder, or loads what is in it."""
    return [
        [*digits(out), "--overwrite"],
        ["resume", out],
        ["export", out, "--out", out.parent / "model"],
        ["generate", out, "the film"],
    ]


def test_another_process_has_the_folder_and_dies_with_its_lock(finished: Path) -> None:
    before = bytes_of(finished)
    holding = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(finished)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holding:
        assert holding.stdout is not None
        assert holding.stdout.readline() == "held\n"
        for arguments in second(finished):
            assert f"{finished} is in use: another process" in refusal(halfback(*arguments)), arguments
        assert halfback("report", finished, "--out", finished.parent / "page.html").status == 0  # it reads alone
        holding.kill()
        holding.wait()
    assert bytes_of(finished) == before
    assert {path.name for path in finished.parent.iterdir()} == {"run", "page.html"}
    assert halfback("resume", finished).status == 0


def test_a_run_holds_its_folder_and_that_of_what_runs_beside_it(tmp_path: Path) -> None:
    """From its first round on; `watch` is told in the middle of it."""
    out, seen = tmp_path / "run", set()

    def watch(state: object) -> None:
        for folder in (out, out / "beside" / "frozen_bottom"):
            if folder.is_dir():
                with pytest.raises(UserError, match="in use: another process writes in it"), unchanging(folder):
                    pass
                seen.add(folder)
        assert "is in use" in refusal(halfback("resume", out))

    run.train(config.resolve(None, digits(out, "beside=[frozen_bottom]")[1:-2]), out, on_round=watch)
    assert len(seen) == 2
    with alone(out), alone(out / "beside" / "frozen_bottom"):
        pass


def test_a_run_whose_turn_beside_is_taken_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out)).status == 0
    settings = config.to_tree(config.load(out / "config.yaml")) | {"beside": ["frozen_bottom"]}
    beside = tmp_path / "again" / "beside" / "frozen_bottom"
    beside.mkdir(parents=True)
    (tmp_path / "again" / "config.yaml").write_text(config.dump(config.from_tree(settings, {})))
    with alone(beside):
        assert f"{beside} is in use: another process is at work" in refusal(halfback("resume", tmp_path / "again"))


def test_two_that_only_read_are_no_trouble(finished: Path) -> None:
    with unchanging(finished):
        assert halfback("export", finished, "--out", finished.parent / "read").status == 0
        assert "is in use: another process is at work in it" in refusal(halfback("resume", finished))


def test_a_comparison_holds_its_folder_and_its_cells(tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    work = ["compare", *digits(out, "steps=1")[2:-2], "--algorithms", "frozen_bottom", "--seeds", 1, "--out", out]
    cell = out / "cells" / "frozen_bottom-0"
    cell.mkdir(parents=True)
    for folder in (out, cell):
        with alone(folder):
            assert f"{folder} is in use: another process is at work" in refusal(halfback(*work))
    assert [path.name for path in out.iterdir()] == ["cells"]
    assert halfback(*work).status == 0
    with alone(cell):  # what is over is read, as a report reads it
        assert halfback(*work).status == 0


def test_a_new_run_in_a_folder_that_another_has_just_taken_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with alone(tmp_path / "run"):
        assert "is in use" in refusal(halfback(*digits(tmp_path / "run")))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_overwrite_that_is_refused_has_the_lock_on_what_it_puts_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert halfback(*digits(out, "steps=1")).status == 0
    assert "cut is 9" in refusal(halfback(*digits(out, "model.cut=9"), "--overwrite"))
    with alone(out):
        pass
