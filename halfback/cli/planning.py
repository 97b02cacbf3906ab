"""Commands about what a run would cost: plan."""

from pathlib import Path
from typing import Annotated

import typer

from halfback.cli.printing import console, parsed, print_table, recipe_and_settings


def plan(
    settings: Annotated[
        list[str],
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", show_default=False, help="What is to be run, as for train."),
    ],
    devices: Annotated[
        str | None,
        typer.Option(help="Fleet: a YAML file or a shipped name; by default the recipe's, else phones."),
    ] = None,
    pilot: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Run the two best for so many steps, to say the time to a target."),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="With --pilot: metric to say the time to; by default what both came to.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for plan.html, plan.json and recommended.yaml, which train takes.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what binds, class by class.")] = False,
) -> None:
    """Say what a recipe would cost on a fleet with each cut, method, codec and precision, and which to take."""
    from halfback.report.planned import NOTE, pilot_note, pilot_table, plan_table
    from halfback.runs.plan import plan as planned

    recipe, given = recipe_and_settings(settings)
    found = planned(recipe, devices=devices, target=target, pilot=pilot, **parsed(given))
    print_table(*plan_table(found.values))
    console.print(NOTE, markup=False, highlight=False)
    if found.values["pilot"]:
        print_table(*pilot_table(found.values["pilot"]))
        console.print(pilot_note(found.values["pilot"]), markup=False, highlight=False)
    for sentence in [*found.values["said"], *(found.explain() if explain else ())]:
        console.print(sentence, markup=False, highlight=False)
    if out is not None:
        console.print(f"plan: {found.write(out) / 'plan.html'}", soft_wrap=True, markup=False)
