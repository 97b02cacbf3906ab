"""Commands about what runs would cost: plan, profile."""

from pathlib import Path
from typing import Annotated

import typer

from halfback.cli.completing import recipe_or_setting
from halfback.cli.printing import console, parsed, print_table, recipe_and_settings
from halfback.runs.heartbeat import working


def plan(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            show_default=False,
            help="What is to be run, as for train.",
            autocompletion=recipe_or_setting,
        ),
    ],
    devices: Annotated[
        str | None,
        typer.Option(help="Fleet: a YAML file or a shipped name; by default the recipe's, else phones."),
    ] = None,
    pilot: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Run the best candidates for so many steps, to say the time to a target."),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="With --pilot: metric to say the time to; by default what all came to.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for plan.html, plan.json and recommended.yaml, which train takes.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what binds, class by class.")] = False,
) -> None:
    """Say what a recipe would cost on a fleet with each cut, method, codec and precision, and which to take."""
    with working("planning"):
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


def profile(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...", show_default=False, help="As for train; by default quickstart."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The fleet file that is written, of one class.")] = Path("profile.yaml"),
    name: Annotated[str, typer.Option(help="Of the class.")] = "this-machine",
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="That each of three measurements takes.")] = 3.0,
    up: Annotated[float, typer.Option(min=0.001, help="Megabits a second up: no machine measures its link.")] = 10.0,
    down: Annotated[float, typer.Option(min=0.001, help="Megabits a second down.")] = 50.0,
    latency: Annotated[float, typer.Option(min=0, help="Seconds of a round trip.")] = 0.05,
) -> None:
    """Measure this machine with a recipe's own passes, and write it as a class of devices (see docs/planning.md)."""
    from halfback import config as configuration
    from halfback.planning.measure import Link, fleet_of, measured, write_fleet
    from halfback.planning.profiles import check_name

    recipe, given = recipe_and_settings(settings or [])
    recipe = recipe or (None if given else "quickstart")
    config = configuration.resolve(recipe, given)
    check_name(name)
    link = Link(up_megabits=up, down_megabits=down, latency_seconds=latency)
    with working("measuring"):
        rates = measured(config, seconds=seconds)
    write_fleet(fleet_of(rates, link, name=name, recipe=recipe or config.model.name), out)
    ahead, back = rates.bottom.forward / 1e9, rates.top.backward / 1e9
    print(f"{ahead:.3g} · 10^9 operations a second forward, {back:.3g} back: {out}")
