"""Comparisons from Python: `compare`, and the typed result of one."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rich import get_console

from halfback.config import yaml_reading
from halfback.config.values import Config, paths_of, text_of, tree_of
from halfback.errors import HalfbackError, Interrupted
from halfback.runs.compare import RESULT, Request, carry_out
from halfback.runs.live import LiveTable
from halfback.runs.run import Run
from halfback.runs.variants import Grid, Variant
from halfback.telemetry.records import replace_text


@dataclass(frozen=True)
class Spread:
    """A number's mean over seeds, its standard deviation (of a sample; None of one), and its value for each seed."""

    mean: float
    sd: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Difference:
    """A mean difference of final metrics, paired by seed, its standard error (None of one seed), and each seed's."""

    mean: float
    se: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Recovered:
    """The part of the gap between frozen bottom and first order that a method recovers.

    Attributes:
        gap: first order − frozen bottom.
        established: whether the gap is sure enough for a ratio to mean something; if not, what follows is None.
        ratio: the part, from 0 for the frozen bottom to 1 for first order.
        low: where its 95 % interval begins.
        high: where it ends.
    """

    gap: Difference
    established: bool
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """What one variant came to; means over the seeds that finished, None where none did.

    Attributes:
        label: the variant's.
        seeds: how many runs were made.
        finished: how many of them finished; the others diverged.
        steps: of each run.
        final: the metric at the end.
        best: the best metric of a run.
        minus_frozen: final − that of the variant `frozen_bottom`, if there is one.
        minus_first_order: final − that of the variant `split_lora`, if there is one.
        gap_recovered: where both are there.
        up_bytes: sent by all clients together.
        down_bytes: received by all clients together.
        client_peak_bytes: the largest client's live tensors.
        forward_passes: of all clients.
        client_seconds: of all clients.
        server_seconds: of the server.
        wall_seconds: of a whole run.
    """

    label: str
    seeds: int
    finished: int
    steps: int | None
    final: Spread | None
    best: Spread | None
    minus_frozen: Difference | None
    minus_first_order: Difference | None
    gap_recovered: Recovered | None
    up_bytes: float | None
    down_bytes: float | None
    client_peak_bytes: float | None
    forward_passes: float | None
    client_seconds: float | None
    server_seconds: float | None
    wall_seconds: float | None


_SAME = (
    *("seeds", "finished", "steps", "up_bytes", "down_bytes", "client_peak_bytes", "forward_passes"),
    *("client_seconds", "server_seconds", "wall_seconds"),
)


@final
class Comparison:
    """What `compare` came to; `folder` has it as `compare.json`, `compare.md` and `compare.html` too.

    Attributes:
        folder: of the comparison.
        metric_name: what `final` and `best` are, as `accuracy` (in percent) or `perplexity`.
        rows: a row for each variant by its label, at equal steps.
        rows_at_equal_passes: the same at equal client forward passes, empty unless that was asked for.
        chosen: the value that a variant's learning rate, or what else there was to choose, was set to.
        values: everything, as `compare.json` has it.
    """

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        """`compare` makes one."""
        self.folder = folder
        self.values = values
        self.metric_name: str = values["metric"]["name"]
        parts = {part["equal"]: _rows(part["methods"]) for part in values["parts"]}
        self.rows: dict[str, Row] = parts["steps"]
        self.rows_at_equal_passes: dict[str, Row] = parts.get("passes", {})
        self.chosen: dict[str, str] = dict((values["tuning"] or {"chosen": {}})["chosen"])

    def __repr__(self) -> str:
        means = {label: row.final and round(row.final.mean, 4) for label, row in self.rows.items()}
        return f"<Comparison {str(self.folder)!r}: final {self.metric_name} {means}>"

    def runs(self, label: str) -> list[Run]:
        """The runs of a variant that finished, one for each seed.

        Args:
            label: the variant's, as in `rows`.

        Returns:
            The runs, which `load` would give too.
        """
        cells = self.values["parts"][0]["methods"][label]["cells"]
        return [Run(self.folder / cell["folder"]) for cell in cells if cell["status"] == "finished"]


def compare(
    config: Config = None,
    variants: Sequence[Variant | str] = (),
    *,
    seeds: int = 3,
    out: str | Path | None = None,
    tune: Mapping[str, Sequence[Any]] | None = None,
    tune_steps: int | None = None,
    target: float | None = None,
    equal: str = "steps",
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Runs several algorithms on the same work, each with several seeds; what is there already is not run again.

    Args:
        config: the work, as `train` takes it.
        variants: algorithms by name, or with settings of their own as `Variant`.
        seeds: how many; they are 0, 1 and so on.
        out: the folder of the comparison, in which the same call goes on after an interruption; without it a temporary
            one, for as long as the returned `Comparison`.
        tune: a setting and the values that each algorithm's is chosen among, on rows held back from training, as in
            `{"lr": [1e-4, 1e-3]}` (`lr` is the rate of both parts). A `Variant` may have rates of its own instead.
        tune_steps: steps of a run that is made to choose; by default as many as of any run.
        target: a metric to say the cost of; by default 95 % of the way to the best mean final one.
        equal: `"passes"` runs all once more, with as many client forward passes as the first algorithm had.
        progress: whether to show how the runs go.
        **settings: by keyword, for all algorithms, as `train` takes them.

    Returns:
        The comparison, whose runs are all over.

    Raises:
        UserError: a setting is wrong, or `out` holds anything else.
        Interrupted: Ctrl-C.
    """
    folder = Path(tempfile.mkdtemp(prefix="halfback-")) if out is None else Path(out)
    request = Request(
        recipe=_recipe(config, folder),
        settings=tuple(text_of(path, value) for path, value in paths_of(settings).items()),
        variants=[variant if isinstance(variant, Variant) else Variant(variant) for variant in variants],
        out=folder,
        seeds=seeds,
        tune=None if tune is None else Grid.of_mapping(tune),
        tune_steps=tune_steps,
        target=target,
        equal=equal,
    )
    try:
        found = compared(request, progress=progress)
    except HalfbackError:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if out is None:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def compared(request: Request, *, progress: bool) -> Comparison:
    """Carries out a request, shown while it runs if that is wanted; errors are those of `compare`."""
    try:
        if not progress:
            return Comparison(request.out, carry_out(request, lambda *_: None))
        with LiveTable(get_console()) as live:
            return Comparison(request.out, carry_out(request, live))
    except KeyboardInterrupt:
        raise Interrupted(request.out, f"the same call with out={str(request.out)!r}") from None


def _recipe(config: Config, folder: Path) -> str | None:
    """The recipe's name or path; a mapping is written down first, so that each run can be repeated by a command."""
    if config is None or isinstance(config, str | Path):
        return None if config is None else str(config)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{RESULT}.recipe.yaml"
    replace_text(path, yaml_reading.dump(tree_of(config)))
    return str(path)


def _rows(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    return {
        label: Row(
            label=label,
            final=_spread(row["final"]),
            best=_spread(row["best"]),
            minus_frozen=_difference(row["minus_frozen"]),
            minus_first_order=_difference(row["minus_first_order"]),
            gap_recovered=_recovered(row["gap_recovered"]),
            **{key: row[key] for key in _SAME},
        )
        for label, row in methods.items()
    }


def _spread(found: Mapping[str, Any] | None) -> Spread | None:
    return None if found is None else Spread(found["mean"], found["sd"], _by_seed(found))


def _difference(found: Mapping[str, Any] | None) -> Difference | None:
    return None if found is None else Difference(found["mean"], found["se"], _by_seed(found))


def _by_seed(found: Mapping[str, Any]) -> dict[int, float]:
    return {int(seed): value for seed, value in found["by_seed"].items()}


def _recovered(found: Mapping[str, Any] | None) -> Recovered | None:
    gap = None if found is None else _difference(found["gap"])
    if found is None or gap is None:
        return None
    return Recovered(gap, found["established"], found["ratio"], found["low"], found["high"])
