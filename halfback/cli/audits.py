"""The command about what a server reads: audit."""

from pathlib import Path
from typing import Annotated

import typer

from halfback.cli.completing import recipe_or_setting
from halfback.cli.printing import console, parsed, print_table, recipe_and_settings
from halfback.errors import UserError, one_line, shown


def audit(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|RECIPE [KEY=VALUE]...",
            show_default=False,
            help="Folder of a run, or what is to be run, as for train.",
            autocompletion=recipe_or_setting,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for audit.html and audit.json.")],
    minutes: Annotated[
        float,
        typer.Option(min=0.05, max=1440, help="That attacks may take, about: more make them stronger."),
    ] = 5.0,
    cuts: Annotated[
        str | None, typer.Option(help="Cuts to look at, as 1,2,5; by default the recipe's and a few others.")
    ] = None,
) -> None:
    """Attack your own set-up from the server's seat, on this machine: what is read of rows (see docs/privacy.md)."""
    print("audit: getting ready", flush=True)
    from halfback.auditing.audit import PAGE
    from halfback.auditing.audit import audit as audited
    from halfback.report.audited import audit_table

    named, given = recipe_and_settings(settings)
    found = audited(named, minutes=minutes, cuts=_numbers(cuts), **parsed(given))
    print_table(*audit_table(found.values))
    for sentence in found.said:
        console.print(one_line(sentence), markup=False, highlight=False)
    console.print(f"audit: {found.write(out) / PAGE}", soft_wrap=True, markup=False)


def _numbers(cuts: str | None) -> list[int] | None:
    if cuts is None:
        return None
    try:
        return [int(cut) for cut in cuts.split(",")]
    except ValueError:
        raise UserError(f"--cuts {shown(cuts)}: whole numbers between commas are allowed, as 1,2,5") from None
