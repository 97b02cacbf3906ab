"""Commands about runs: train, resume, compare, report, package."""

from pathlib import Path
from typing import Annotated

import typer

from halfback.cli.completing import recipe_or_setting
from halfback.cli.dry import show_costs
from halfback.cli.printing import console, parsed, print_closing, print_table, recipe_and_settings
from halfback.errors import one_line
from halfback.runs.heartbeat import working


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            show_default=False,
            help="As in: quickstart steps=100 partition.name=dirichlet",
            autocompletion=recipe_or_setting,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/RECIPE, without a recipe runs/ALGORITHM.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that OUT holds; any other folder is refused.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and what it would cost; train and write nothing.")
    ] = False,
) -> None:
    """Fine-tune: a shipped recipe or a YAML file, with settings changed by key=value (see docs/quick_start.md)."""
    from halfback import config as configuration

    recipe, given = recipe_and_settings(settings or [])
    config = configuration.resolve(recipe, given)
    if dry_run:
        show_costs(config)
        return
    with working("getting ready"):
        from halfback.runs import run

    folder = out or Path("runs") / (Path(recipe).stem if recipe else config.algorithm.name)
    trained = run.train(config, folder, overwrite=overwrite)
    print_closing([trained.summary, *(other.summary for other in trained.beside)], folder)


def resume(folder: Annotated[Path, typer.Argument(help="Folder of a run that was interrupted.")]) -> None:
    """Continue a run from its last checkpoint, bit for bit."""
    with working("getting ready"):
        from halfback.runs import run

    trained = run.load(folder).resume()
    print_closing([trained.summary, *(other.summary for other in trained.beside)], folder)


def replay(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run that was deployed.")],
    out: Annotated[Path, typer.Option(help="A new folder for the run in one process.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", show_default=False, help="What is other here: client.runtime=device"),
    ] = None,
) -> None:
    """Run once more, in one process, what was deployed, with who took part then; say whether the bits are the same."""
    from halfback.runs.progress import following
    from halfback.runs.repeating import repeat

    with following(None, progress=True) as told:
        found = repeat(folder, out, parsed(settings or []), on_round=told.on_round)
    if found.differ:
        first = "" if found.row is None else f"; the first other row of the history is number {found.row}"
        print(f"{len(found.differ)} of {found.tensors} tensors differ from {folder}, as {found.differ[0]}{first}")
        raise typer.Exit(1)
    print(f"all {found.tensors} tensors have the bits of {folder}")


def compare(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            show_default=False,
            help="The work, as for train.",
            autocompletion=recipe_or_setting,
        ),
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
    from halfback.report.comparison import verdict_of
    from halfback.report.comparison_tables import TITLES, results_table, tuning_notes
    from halfback.runs.compare import Request
    from halfback.runs.comparison import compared
    from halfback.runs.variants import Grid, parse_variants

    recipe, given = recipe_and_settings(settings)
    request = Request(
        recipe=recipe,
        settings=tuple(given),
        variants=parse_variants(algorithms),
        out=out,
        seeds=seeds,
        tune=None if tune is None else Grid.parse(tune),
        tune_steps=tune_steps,
        target=target,
        equal=equal,
    )
    comparison = compared(request, progress=True).values
    for part in comparison["parts"]:
        header, body = results_table(part, comparison)
        console.print(TITLES[part["equal"]], style="bold")
        print_table(["", *(row[0] for row in body)], zip(header[1:], *(row[1:] for row in body), strict=True))
    said = [*(tuning_notes(comparison) if comparison["tuning"] else []), comparison["target"]["said"]]
    print()
    for sentence in verdict_of(comparison["parts"][0], comparison).sentences:
        console.print(one_line(sentence), highlight=False, markup=False)
    console.print("\n".join([*said, f"report: {out / 'compare.html'}"]), soft_wrap=True, highlight=False, markup=False)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
) -> None:
    """Write one self-contained HTML page with the curves, the bytes and the memory of runs."""
    from halfback.report.page import write_report

    print(write_report(folders, out or folders[0] / "report.html"))


def package(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|RUN [KEY=VALUE]...", show_default=False, help="A recipe as for train, or a run's folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the package.")],
    weights: Annotated[
        str | None, typer.Option(metavar="float32|int8", help="Of the frozen matrices; by default bottom.weights.")
    ] = None,
    client: Annotated[int | None, typer.Option(help="Only where clients have other cuts: the one it is for.")] = None,
) -> None:
    """Write what a device needs to take part with an inference runtime alone (see docs/devices.md)."""
    from halfback.runs.package import package as make

    recipe, given = recipe_and_settings(settings)
    changes = parsed(given) | ({} if weights is None else {"bottom.weights": weights})
    with working("packaging"):
        made = make(recipe, out, client=client, **changes)
    for what, error in made.items():
        print(f"{what}: {error:.1e} of the largest value beside the reference")
    print(out)
