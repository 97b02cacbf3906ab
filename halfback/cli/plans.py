"""Commands about what runs would cost: profile."""

from pathlib import Path
from typing import Annotated

import typer

from halfback.cli.printing import recipe_and_settings


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

    recipe, given = recipe_and_settings(settings or [])
    recipe = recipe or (None if given else "quickstart")
    config = configuration.resolve(recipe, given)
    link = Link(up_megabits=up, down_megabits=down, latency_seconds=latency)
    rates = measured(config, seconds=seconds)
    write_fleet(fleet_of(rates, link, name=name, recipe=recipe or config.model.name), out)
    print(f"{rates.bottom / 1e9:.3g} · 10^9 operations a second forward, {rates.top_back / 1e9:.3g} back: {out}")
