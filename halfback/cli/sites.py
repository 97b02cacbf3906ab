"""Commands about runs whose clients are on other machines: deploy, and site for a machine of them."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from halfback.cli.printing import console, print_closing, recipe_and_settings
from halfback.errors import UserError, offer


def deploy(
    settings: Annotated[
        list[str],
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", show_default=False, help="The work, as for train."),
    ],
    env: Annotated[str, typer.Option(metavar="simulator|poc|prod", help="Where the sites are; see docs/deploy.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the fetched run; by default runs/NAME.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the run on the server's site: the same name goes on with it.")
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="prod: an admin's startup kit.")] = None,
    user: Annotated[str | None, typer.Option(help="prod: that admin's name.")] = None,
    workspace: Annotated[
        Path | None, typer.Option(help="simulator, poc: folder of the sites; by default OUT.flare.")
    ] = None,
) -> None:
    """Fine-tune with clients on other machines, through NVIDIA FLARE; fetches the run's folder (see docs/deploy.md)."""
    if env not in ("simulator", "poc", "prod"):
        raise UserError(f"--env {env}: {offer(env, ('simulator', 'poc', 'prod'))}")
    from halfback import config as configuration

    recipe, given = recipe_and_settings(settings)
    config = configuration.resolve(recipe, given)
    try:
        from halfback.deploy.command import Destination
        from halfback.deploy.command import deploy as deploying
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "nvflare":
            raise
        raise UserError("NVIDIA FLARE is not installed: pip install 'halfback[nvflare]'") from None
    from halfback.runs.progress import Bars

    called = name or (Path(recipe).stem if recipe else config.algorithm.name)
    folder = out or Path("runs") / called
    to = Destination(cast(Any, env), kit, user, workspace)
    with Bars(console) as bars:
        summary = deploying(config, called, folder, to, on_round=bars)
    print_closing([summary], folder)


def site(
    kit: Annotated[Path, typer.Argument(help="Startup kit of a FLARE server or client on this machine.")],
) -> None:
    """Make a site ready: allow our components, but no code that a job brings; write the site's file, to fill in."""
    from halfback.deploy.job import allow
    from halfback.deploy.site import TEMPLATE, write_site

    allow(kit)
    print(write_site(kit / "local", TEMPLATE))
