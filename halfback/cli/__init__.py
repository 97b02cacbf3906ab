"""The command line of `halfback`: a thin layer over the functions of the package."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from halfback.cli import audits, health, home, listing, plans, runs, sites, using
from halfback.cli.printing import console
from halfback.errors import HalfbackError, Interrupted, one_line, shown

# Read when torch is first imported: threads that wait should sleep, or two runs on a shared machine starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _InGroups(TyperGroup):
    """Says in which group a command is, in the help of all of them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            says = " ".join((command.help or "").partition("\n\n")[0].split())
            groups.setdefault(command.rich_help_panel, []).append((name, says))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=_InGroups,
    help="Split federated fine-tuning in which the devices never backpropagate.",
    epilog="A first run: halfback train quickstart. What a setting is: halfback keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Never a bug of ours, wherever a file or folder is first looked at.
_OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EIO}


class _Lines(logging.Handler):
    """What the package tells while it works, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(one_line(record.getMessage()), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the command line; an error of the user is one line and exit status 2."""
    logging.getLogger("halfback").addHandler(_Lines())
    logging.getLogger("halfback").setLevel(logging.INFO)
    try:
        app()
    except HalfbackError as error:
        print(f"halfback: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_DISK or error.filename is None:
            raise
        print(f"halfback: {shown(str(error.filename))}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # Typer's own status for an interrupt
            raise
        stopped = _stopped(end)
        if stopped is None:  # nothing had begun
            way = ": the same command goes on with what it had begun" if sys.argv[1:2] == ["deploy"] else ""
            print(f"halfback: stopped{way}", file=sys.stderr)
        else:
            resumes = sys.argv[1:2] not in (["compare"], ["deploy"])
            way = f"`halfback resume {stopped.folder}`" if resumes else "the same command"
            where = "the last checkpoint" if stopped.step is None else f"step {stopped.step}"
            print(f"halfback: stopped; {way} continues from {where}", file=sys.stderr)
        sys.exit(128 + (signal.SIGINT if stopped is None else stopped.signal))


def _stopped(end: BaseException | None) -> Interrupted | None:
    """What is told of the run that was interrupted, if one had begun; Typer has wrapped it."""
    while end is not None and not isinstance(end, Interrupted):
        end = end.__cause__ or end.__context__
    return end


def _version(wanted: bool) -> None:
    if wanted:
        print(version("halfback"))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (runs.train, runs.resume, runs.compare, runs.report),
    "Use what was trained": (using.predict, using.evaluate, using.generate),
    "Take it home": (home.export, home.apply),
    "Say before what it costs": (plans.plan, plans.profile),
    "On other machines": (sites.deploy, runs.replay, runs.package),
    "What there is to name": (
        *(listing.recipes, listing.algorithms, listing.tasks, listing.models, listing.codecs, listing.controllers),
        listing.keys,
    ),
    "Is all well": (health.doctor, listing.conformance, audits.audit),
}
for group, commands in _GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=group)(command)
app.add_typer(sites.site, name="site", rich_help_panel="On other machines")
