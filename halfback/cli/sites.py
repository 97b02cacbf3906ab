"""Commands about runs whose clients are on other machines: deploy, and site for a machine of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from halfback.cli.completing import recipe_or_setting
from halfback.cli.printing import console, parsed, print_closing, recipe_and_settings
from halfback.errors import UserError, of_extra, offer, one_line

if TYPE_CHECKING:
    from halfback.config import RunConfig


def deploy(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            show_default=False,
            help="The work, as for train.",
            autocompletion=recipe_or_setting,
        ),
    ],
    env: Annotated[str, typer.Option(metavar="simulator|poc|prod", help="Where the sites are; see docs/deploy.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the fetched run; by default runs/NAME.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the run on the server's site: the same name goes on with it.")
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="prod: an admin's startup kit.")] = None,
    user: Annotated[str | None, typer.Option(help="prod: that admin's name.")] = None,
    sites: Annotated[
        int | None,
        typer.Option(min=1, help="prod: wait for so many sites; by default one a client. A gateway has several."),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="poc: so many devices of one gateway are the clients, all started here.")
    ] = None,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser",
            help="poc: tabs of a browser are the clients that no --devices are, one unless `clients` says more; prints "
            "a link for each to open.",
        ),
    ] = False,
    workspace: Annotated[
        Path | None, typer.Option(help="simulator, poc: folder of the sites; by default OUT.flare.")
    ] = None,
) -> None:
    """Fine-tune with clients on other machines, through NVIDIA FLARE; fetches the run's folder (see docs/deploy.md)."""
    if env not in ("simulator", "poc", "prod"):
        raise UserError(f"--env {env}: {offer(env, ('simulator', 'poc', 'prod'))}")
    from halfback import config as configuration

    recipe, given = recipe_and_settings(settings)
    if devices is None and not browser:
        config = configuration.resolve(recipe, given)
    else:
        if env != "poc":
            said = "--browser" if devices is None else f"--devices {devices}"
            raise UserError(f"{said}: it is for --env poc, which starts them; see docs/gateway.md")
        config = _with_clients(recipe, given, devices or 0, browser)
    with of_extra("nvflare"):
        from halfback.deploy.command import Destination
        from halfback.deploy.command import deploy as deploying
        from halfback.deploy.trying import Kinds
    from halfback.runs.progress import Bars

    called = name or (Path(recipe).stem if recipe else config.algorithm.name)
    folder = out or Path("runs") / called
    kinds = None if devices is None and not browser else Kinds(devices or 0, config.clients - (devices or 0))
    to = Destination(cast(Any, env), kit, user, workspace, sites, kinds)
    with Bars(console) as bars:
        summary = deploying(config, called, folder, to, on_round=bars)
    print_closing([summary], folder)
    if summary.ended is not None:
        console.print(summary.ended, soft_wrap=True, markup=False, highlight=False)


def _with_clients(recipe: str | None, given: list[str], devices: int, browser: bool) -> "RunConfig":
    """The recipe with so many clients, and no larger cohorts; UserError where the settings say otherwise.

    `browser`: as many tabs as the settings have clients beside the devices, one where they say nothing.
    """
    from halfback import config as configuration

    said = parsed(given)
    clients = said.get("clients", devices + 1) if browser else devices
    if said.get("clients", clients) != clients:
        raise UserError(f"clients={said['clients']}: --devices {devices} makes as many clients; leave it away")
    if devices and browser and isinstance(clients, int) and clients <= devices:
        raise UserError(f"clients={clients}: --devices {devices} leaves none for --browser; say more")
    rest = [word for word in given if not word.startswith("clients=")]
    own = []
    if "sampled_clients" not in said and isinstance(clients, int):
        own = [f"sampled_clients={min(configuration.resolve(recipe, rest).sampled_clients, clients)}"]
    return configuration.resolve(recipe, [*rest, f"clients={clients}", *own])


class _KitFirst(TyperGroup):
    """`halfback site KIT` makes a site ready; where the first word names what else there is, it is that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["ready", *args]
        return super().parse_args(ctx, args)


site = typer.Typer(
    cls=_KitFirst, no_args_is_help=True, help="Make a site ready (`halfback site KIT`), or the tokens of its devices."
)


@site.command()
def ready(
    kit: Annotated[Path, typer.Argument(help="Startup kit of a FLARE server or client on this machine.")],
) -> None:
    """Make a site ready: allow our components, but no code that a job brings; write the site's file, to fill in."""
    from halfback.deploy.job import allow
    from halfback.deploy.site import TEMPLATE, write_site

    allow(kit)
    print(write_site(kit / "local", TEMPLATE))


@site.command()
def tokens(
    kit: Annotated[Path, typer.Argument(help="Startup kit of a FLARE client whose file has `devices`.")],
    action: Annotated[str, typer.Argument(metavar="add|list|revoke|rotate", help="What to do.")],
    token: Annotated[str | None, typer.Argument(metavar="[ID]", help="revoke, rotate: which, as list shows.")] = None,
    label: Annotated[str, typer.Option(help="add: whose it is, for you.")] = "",
) -> None:
    """Make, list, end or change the tokens by which devices join (see docs/gateway.md); one is shown once."""
    from halfback.deploy import tokens as kept
    from halfback.deploy.site import FILE, read_site, tokens_of

    known = ("add", "list", "revoke", "rotate")
    if action not in known:
        raise UserError(f"{action}: {offer(action, known)}")
    if (token is None) == (action in ("revoke", "rotate")):
        raise UserError(f"{action}: " + ("which? its ID, as list shows" if token is None else "no ID is due"))
    if label and action != "add":
        raise UserError("--label is for add")
    own = read_site(kit / "local" / FILE)
    path = tokens_of(own, kit / "local")
    assert own.devices is not None, "it has tokens"
    if action == "add":
        print(kept.add(path, own.devices.seats, one_line(label)[:200]))
    elif action == "list":
        for number, entry in sorted(kept.listed(path).items(), key=lambda one: one[1].place):
            print(f"{number}  place {entry.place}  {entry.made}  {entry.label}".rstrip())
    elif action == "revoke":
        kept.revoke(path, str(token))
    else:
        print(kept.rotate(path, str(token)))
