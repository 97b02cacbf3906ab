"""Commands about what there is to name: algorithms (and the checks of one), tasks, models, recipes."""

import dataclasses
import inspect
from typing import Annotated, Any, cast

import typer

from halfback.cli.printing import parsed, print_rows


def algorithms() -> None:
    """The algorithms and their options."""
    from halfback.algorithms import algorithms as registered

    rows = []
    for name, kind in registered().items():
        options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(cast(Any, kind))) or "no options"
        first = (inspect.getdoc(inspect.getmodule(kind)) or "").splitlines()[0]
        rows.append((name, f"{first} [{options}]"))
    print_rows(rows)


def conformance(
    name: Annotated[str, typer.Argument(help="An algorithm, of this package or another.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="Settings to check it with."),
    ] = None,
) -> None:
    """Hold an algorithm against every check of the conformance table; exit status 1 if one fails."""
    from halfback.testing import check

    if not check(name, **parsed(settings or [])).passed:
        raise typer.Exit(1)


def tasks() -> None:
    """The tasks."""
    from halfback.data.tasks import describe_tasks

    print_rows(describe_tasks())


def models() -> None:
    """The models and families of models."""
    from halfback.models.loading import describe_models

    print_rows(describe_models())


def recipes() -> None:
    """The shipped recipes."""
    from halfback.config import recipes as shipped

    print_rows(list(shipped().items()))
