"""The real command line, called in this process or in one of its own."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from halfback import cli


class Said(NamedTuple):
    """Exit status and what was written."""

    status: int
    out: str
    err: str


def halfback(*arguments: object) -> Said:
    """`halfback ARGUMENTS` in this process."""
    out, err, argv, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["halfback", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
    return Said(status, out.getvalue(), err.getvalue())


def process(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """`halfback ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "halfback", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def refusal(said: Said) -> str:
    """The one line with which the user's error ended."""
    assert said.status == 2, said
    assert "Traceback" not in said.err
    assert said.err.startswith("halfback: "), said.err
    assert said.err.count("\n") == 1, said.err
    assert said.err.endswith("\n")
    return said.err.removeprefix("halfback: ").rstrip("\n")


def digits(out: Path, *settings: str, algorithm: str = "ho_sfl") -> list[str]:
    """Arguments of `train` for a run of a second or two."""
    return [
        "train",
        f"algorithm.name={algorithm}",
        "task.name=digits",
        "task.train_rows=120",
        "task.validation_rows=60",
        "model.name=resnet8",
        "model.cut=1",
        "bottom.train=full",
        "bottom.optimizer=sgd",
        "bottom.lr=1e-3",
        "top.train=full",
        "top.lr=1e-3",
        "clients=4",
        "sampled_clients=2",
        "batch_size=8",
        "steps=4",
        "eval_every=2",
        "device=cpu",
        *settings,
        "--out",
        str(out),
    ]
