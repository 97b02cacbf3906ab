"""The command about this machine: doctor."""

import json
import logging
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say what this machine has, which extras are missing and what installs them, and test that runs work (seconds).

    Exit status 1 if something is wrong; what is optional and missing is not.
    """
    from halfback.runs.health import Finding, found_here

    logging.getLogger("halfback").setLevel(logging.WARNING)  # of the self-test's runs
    found: list[Finding] = []
    for finding in found_here():
        if not as_json:
            if not found or finding.part != found[-1].part:
                print(f"{'' if not found else chr(10)}{finding.part}")
            print(f"  {finding.state:<8}{finding.name:<16}{finding.says}", flush=True)
        found.append(finding)
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
    else:
        print(f"\n{wrong} wrong" if wrong else "\nAll is well.")
    if wrong:
        raise typer.Exit(1)
