"""One algorithm against the table, for the command line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfback import config as configuration
from halfback.algorithms import algorithms
from halfback.errors import UserError, offer


def check(name: str, overrides: Sequence[str]) -> bool:
    """Runs every check on this algorithm, with `key=value` settings, and prints a line for each; whether all passed.

    Raises:
        UserError: an unknown algorithm, key or value; or pytest, which runs the checks, is not installed.
    """
    if name not in algorithms():
        raise UserError(f"algorithm {name!r} is unknown; {offer(name, algorithms())}")
    changes = dict(configuration.parse_override(text) for text in overrides)
    try:
        import pytest
    except ImportError:
        raise UserError("the checks run on pytest; install it with `pip install 'halfback[test]'`") from None
    from halfback.testing import small

    small.images(name, **{key.replace(".", "__"): value for key, value in changes.items()})  # refused here, not in each
    lines, here = _Lines(), Path(__file__).parent
    settings = [f"--setting={text}" for text in overrides]
    # Nothing of the folder that somebody works in: no pytest settings, no cache.
    options = ["-c", os.devnull, "--rootdir", str(here), "-p", "no:cacheprovider", "-p", "no:terminal", "-m", ""]
    status = pytest.main([str(here), f"--algorithm={name}", *settings, *options], plugins=[lines])
    print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in lines.counts.items()) or 'no checks'}")
    return status == pytest.ExitCode.OK


class _Lines:
    """A plug-in of pytest that prints one line a check."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        check, _, case = report.nodeid.rpartition("::")[2].removeprefix("test_").partition("[")
        self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        print(f"{report.outcome:<8}{check.replace('_', ' ')} [{case}{_why(report)}", flush=True)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            print(f"failed  {report.nodeid}: {report.longreprtext.splitlines()[-1]}", flush=True)


def _why(report: Any) -> str:
    if report.skipped:
        return f": {report.longrepr[2].removeprefix('Skipped: ')}"
    crash = getattr(report.longrepr, "reprcrash", None)
    return f": {crash.message.splitlines()[0]}" if report.failed and crash is not None else ""
