"""One algorithm against the table: `halfback conformance`, and `halfback.testing.check` from Python."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfback.algorithms import algorithm as known_as
from halfback.algorithms import algorithms
from halfback.config.values import paths_of, text_of
from halfback.errors import UserError, offer
from halfback.parties.protocol import Algorithm


@dataclass(frozen=True)
class Check:
    """How one check of the table ended.

    Attributes:
        name: of the check, as `the loss falls`.
        case: what it was made on, as `images-ho_sfl`.
        outcome: `passed`, `failed` or `skipped`.
        why: what a failure or a skip says, else nothing.
    """

    name: str
    case: str
    outcome: str
    why: str

    def __str__(self) -> str:
        return f"{self.outcome:<8}{self.name} [{self.case}]{f': {self.why}' if self.why else ''}"


@dataclass(frozen=True)
class Checks:
    """How an algorithm stands against every check of the table."""

    algorithm: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether there were checks, and none failed."""
        return bool(self.checks) and not self.failed

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.outcome == "failed"]

    def __str__(self) -> str:
        outcomes = [check.outcome for check in self.checks]
        counts = {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}
        return f"{self.algorithm}: {', '.join(f'{n} {outcome}' for outcome, n in counts.items()) or 'no checks'}"


def check(algorithm: str | type[Algorithm], **settings: Any) -> Checks:
    """Runs every check of the conformance table on an algorithm, in this process, and prints a line for each.

    Args:
        algorithm: its name, or its class; one that is not registered is, under the class's name in snake case.
        settings: by keyword, to check it with, as `halfback.train` takes them.

    Returns:
        What came of each check; `passed` says it in one word.

    Raises:
        UserError: an unknown algorithm, key or value; or pytest, which runs the checks, is not installed.
    """
    name = algorithm if isinstance(algorithm, str) else _name_of(algorithm)
    if name not in algorithms():
        raise UserError(f"algorithm {name!r} is unknown; {offer(name, algorithms())}")
    changes = paths_of(settings)
    try:
        import pytest
    except ImportError:
        raise UserError("the checks run on pytest; install it with `pip install 'halfback[test]'`") from None
    from halfback.testing import small

    small.images(name, **{key.replace(".", "__"): value for key, value in changes.items()})  # refused here, not in each
    lines, here = _Lines(lambda check: print(check, flush=True)), Path(__file__).parent
    given = [f"--setting={text_of(path, value)}" for path, value in changes.items()]
    # Nothing of the folder that somebody works in: no pytest settings, no cache.
    options = ["-c", os.devnull, "--rootdir", str(here), "-p", "no:cacheprovider", "-p", "no:terminal", "-m", ""]
    pytest.main([str(here), f"--algorithm={name}", *given, *options], plugins=[lines])
    found = Checks(name, tuple(lines.checks))
    print(found)
    return found


def _name_of(kind: type[Algorithm]) -> str:
    """The name that a class is registered by; it is, if it wasn't."""
    for name, known in algorithms().items():
        if known is kind:
            return name
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()
    known_as(name)(kind)
    return name


class _Lines:
    """A plug-in of pytest that keeps what came of each check, and tells of it."""

    def __init__(self, tell: Callable[[Check], object]) -> None:
        self.checks: list[Check] = []
        self._tell = tell

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        name, _, case = report.nodeid.rpartition("::")[2].removeprefix("test_").partition("[")
        self._keep(Check(name.replace("_", " "), case.removesuffix("]"), report.outcome, _why(report)))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._keep(Check(report.nodeid, "collection", "failed", report.longreprtext.splitlines()[-1]))

    def _keep(self, check: Check) -> None:
        self.checks.append(check)
        self._tell(check)


def _why(report: Any) -> str:
    if report.skipped:
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message.splitlines()[0]) if report.failed and crash is not None else ""
