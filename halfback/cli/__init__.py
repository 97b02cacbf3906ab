"""The command line of `halfback`: train, resume, compare, report, generate, export, and what there is to name."""

import dataclasses
import errno
import inspect
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from halfback.errors import HalfbackError, UserError, offer, one_line, shown

# Read when torch is first imported: threads that wait should sleep, or two runs on a shared machine starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Split federated fine-tuning in which the devices never backpropagate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
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
        way = "the same command" if sys.argv[1:2] == ["compare"] else "`halfback resume DIR`"
        print(f"halfback: stopped; {way} continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        print(version("halfback"))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            show_default=False,
            help="As in: quickstart steps=100 partition.name=dirichlet",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE, without a recipe runs/ALGORITHM.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that OUT holds; any other folder is refused.")
    ] = False,
) -> None:
    """Fine-tune: a shipped recipe or a YAML file, with settings changed by key=value (see docs/quick_start.md)."""
    from halfback import config as configuration
    from halfback.runs import run

    recipe, given = _recipe_and_settings(settings or [])
    config = configuration.resolve(recipe, given)
    folder = out or Path("runs") / (Path(recipe).stem if recipe else config.algorithm.name)
    with _Display() as display:
        summaries = run.train(config, folder, overwrite=overwrite, watch=display)
    _close(summaries, folder)


@app.command()
def resume(folder: Annotated[Path, typer.Argument(help="Folder of a run that was interrupted.")]) -> None:
    """Continue a run from its last checkpoint, bit for bit."""
    from halfback.runs import run

    with _Display() as display:
        summaries = run.resume(folder, watch=display)
    _close(summaries, folder)


@app.command()
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

    recipe, given = _recipe_and_settings(settings)
    config = configuration.resolve(recipe, given)
    try:
        from halfback.deploy.command import deploy as deploying
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "nvflare":
            raise
        raise UserError("NVIDIA FLARE is not installed: pip install 'halfback[nvflare]'") from None
    called = name or (Path(recipe).stem if recipe else config.algorithm.name)
    folder = out or Path("runs") / called
    with _Display() as display:
        summary = deploying(
            config,
            called,
            folder,
            kind=cast(Any, env),
            kit=kit,
            user=user,
            workspace=workspace,
            display=display,
        )
    _close([summary], folder)


@app.command()
def site(
    kit: Annotated[Path, typer.Argument(help="Startup kit of a FLARE server or client on this machine.")],
) -> None:
    """Make a site ready: allow our components, but no code that a job brings; write the site's file, to fill in."""
    from halfback.deploy.job import allow
    from halfback.deploy.site import TEMPLATE, write_site

    allow(kit)
    print(write_site(kit / "local", TEMPLATE))


@app.command()
def compare(
    settings: Annotated[
        list[str],
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", show_default=False, help="The work, as for train."),
    ],
    algorithms: Annotated[
        str, typer.Option(help="Separated by commas; settings of one behind colons: split_lora:steps_per_round=10")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the comparison; the same command goes on with it.")],
    seeds: Annotated[int, typer.Option(help="Run seeds 0 to SEEDS − 1.")] = 3,
    tune: Annotated[
        str | None, typer.Option(help="Choose for each algorithm: lr=1e-4,1e-3 (both parts) or KEY=VALUE,VALUE...")
    ] = None,
    tune_steps: Annotated[int | None, typer.Option(help="Steps of a tuning run; by default the recipe's.")] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Metric to say the cost of; by default 95 % of the way to the best mean final one."),
    ] = None,
    equal: Annotated[
        str,
        typer.Option(metavar="steps|passes", help="passes: once more, with the client forward passes of the first."),
    ] = "steps",
) -> None:
    """Run several algorithms on the same work with several seeds; write compare.json, compare.md and compare.html."""
    from halfback.report.comparison import TITLES, results_table, tuning_notes
    from halfback.runs import compare as comparing
    from halfback.runs.live import LiveTable

    recipe, given = _recipe_and_settings(settings)
    request = comparing.Request(
        recipe=recipe,
        settings=tuple(given),
        algorithms=algorithms,
        out=out,
        command=shlex.join(["halfback", *sys.argv[1:]]),
        seeds=seeds,
        tune=tune,
        tune_steps=tune_steps,
        target=target,
        equal=equal,
    )
    with LiveTable(console) as live:
        comparison = comparing.compare(request, live)
    for part in comparison["parts"]:
        header, body = results_table(part, comparison)
        console.print(TITLES[part["equal"]], style="bold")
        _print_table(["", *(row[0] for row in body)], zip(header[1:], *(row[1:] for row in body), strict=True))
    said = [*(tuning_notes(comparison) if comparison["tuning"] else []), comparison["target"]["said"]]
    console.print("\n".join([*said, f"report: {out / 'compare.html'}"]), soft_wrap=True, highlight=False, markup=False)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
) -> None:
    """Write one self-contained HTML page with the curves, the bytes and the memory of runs."""
    from halfback.report.page import write_report

    print(write_report(folders, out or folders[0] / "report.html"))


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="Folder of a run with task.objective generation or causal_lm.")],
    texts: Annotated[list[str], typer.Argument(help="What to continue; the task's template is put around it.")],
    beams: Annotated[int | None, typer.Option(min=1, help="1 is greedy; by default the run's task.beams.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="By default the run's task.max_new_tokens.")] = None,
) -> None:
    """Print what the fine-tuned model writes behind each text."""
    from halfback.runs import generation, run

    built = run.reload(folder)
    if built.task.objective == "classification":
        raise UserError(f"{folder} holds a classifier; generate takes runs with task.objective=generation or causal_lm")
    given: dict[str, Any] = {"beams": beams, "max_new_tokens": max_new_tokens}
    options = dataclasses.replace(built.config.task, **{key: value for key, value in given.items() if value})
    batch_size = built.config.eval_batch_size
    for written in generation.respond(built.model.whole, built.tokenizer, texts, options, batch_size):
        print(written)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
) -> None:
    """Write the fine-tuned model, both parts joined and adapters merged, as a folder that `model.name` takes.

    Transformers loads it too, but for our ResNets.
    """
    from halfback.runs import exporting

    exporting.export(folder, out)
    print(out)


@app.command()
def algorithms() -> None:
    """The algorithms and their options."""
    from halfback.algorithms import algorithms as registered

    rows = []
    for name, kind in registered().items():
        options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(cast(Any, kind))) or "no options"
        first = (inspect.getdoc(inspect.getmodule(kind)) or "").splitlines()[0]
        rows.append((name, f"{first} [{options}]"))
    _list(rows)


@app.command()
def conformance(
    name: Annotated[str, typer.Argument(help="An algorithm, of this package or another.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="Settings to check it with."),
    ] = None,
) -> None:
    """Hold an algorithm against every check of the conformance table; exit status 1 if one fails."""
    from halfback.testing.command import check

    if not check(name, settings or []):
        raise typer.Exit(1)


@app.command()
def tasks() -> None:
    """The tasks."""
    from halfback.data.tasks import describe_tasks

    _list(describe_tasks())


@app.command()
def models() -> None:
    """The models and families of models."""
    from halfback.models.loading import describe_models

    _list(describe_models())


@app.command()
def recipes() -> None:
    """The shipped recipes."""
    from halfback.config import recipes as shipped

    _list(list(shipped().items()))


def _recipe_and_settings(given: list[str]) -> tuple[str | None, list[str]]:
    named = bool(given) and "=" not in given[0]
    return (given[0], given[1:]) if named else (None, given)


def _list(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, line in rows:
        print(f"{name:<{width}}  {line}")


class _Display:
    """A progress bar on a terminal; one plain line an evaluation elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._metric: dict[str, str] = {}

    def __enter__(self) -> "_Display":
        if console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if console.is_terminal:
            self._bar.stop()

    def __call__(self, built: Any, step: int, record: Any) -> None:
        self.show(built.config.algorithm.name, built.config.steps, built.task.metric, step, record)

    def show(self, name: str, steps: int, metric: str, step: int, record: Any) -> None:
        """Where a run stands after `step` of `steps`."""
        from halfback.report.tables import short_size

        if record.metric is not None:
            self._metric[name] = f"{record.metric:.1f}"
        loss = "" if record.train_loss != record.train_loss else f"loss {record.train_loss:.3f}  "
        now = (
            f"{loss}{metric} {self._metric.get(name, '–')}  "
            f"up {short_size(record.up_bytes)} down {short_size(record.down_bytes)}"
        )
        if console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=steps, now=now)
            self._bar.update(self._tasks[name], completed=step, now=now)
        elif record.metric is not None:
            print(f"{name}  step {step}/{steps}  {now}", flush=True)


def _close(summaries: list[dict[str, Any]], folder: Path) -> None:
    from halfback.report.tables import rows

    header, body = rows(summaries)
    _print_table(header, body)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True, markup=False)


def _print_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> None:
    table = Table(*map(one_line, header), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    for row in body:
        table.add_row(*map(one_line, row))
    console.print(table, markup=False)
