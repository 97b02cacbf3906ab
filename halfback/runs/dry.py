"""What a run would cost, before it begins: nothing is trained, and nothing is written."""

from dataclasses import dataclass

from halfback.config import RunConfig
from halfback.errors import UserError
from halfback.planning.choosing import Cohorts, Looked
from halfback.planning.profiles import read_fleet
from halfback.planning.variants import Variant
from halfback.planning.work import Workload
from halfback.report.tables import seconds, short_size
from halfback.runs import devices, simulated
from halfback.runs.execution import beside_of
from halfback.runs.plan import FLEET

_MEASURES = [
    "cut",
    "peak of a client",
    "up, a client's step",
    "down, a client's step",
    "up, the whole run",
    "down, the whole run",
    "seconds of a step",
    "bound by",
]


@dataclass(frozen=True)
class Costs:
    """What a run, and those beside it, would cost.

    Attributes:
        header, rows: a measure a row, a column for each algorithm that can be planned.
        said: what has to be said beside them, a sentence each.
    """

    header: list[str]
    rows: list[list[str]]
    said: list[str]


def costs(config: RunConfig) -> Costs:
    """Looks at a run as `plan` would, as it stands, on its fleet or on the shipped one called phones.

    The rows are read, and of the model its shape, not its blocks' weights.

    Raises:
        UserError: the run could not begin.
    """
    fleet = read_fleet(config.fleet or FLEET)
    cohorts, workload = Cohorts(config, fleet), Workload(config)
    columns, said = [], []
    for each in (config, *(beside_of(config, name) for name in config.beside)):
        devices.check(each)
        simulated.check(each)
        name = each.algorithm.name
        cut = each.model.cut_of(0)
        try:
            work, trained = workload.work(each), workload.trained(each)
        except UserError as error:
            said.append(f"{name}: {error}")
            continue
        looked = cohorts.look(Variant(each, name, cut, "", each.bottom.weights), work, trained)
        columns.append((name, _column(each, looked)))
        if looked.lacking:
            short = ", ".join(f"{short_size(lack)} on {where}" for where, lack in looked.lacking.items())
            said.append(f"{name} doesn't fit: memory lacks {short}.")
    sampled = min(config.sampled_clients, config.clients)
    where = f"the fleet {config.fleet or FLEET}"
    said.append(
        f"The whole run: {sampled} clients in each of {config.steps} steps. Seconds of a step: on {where}. Nothing was "
        "trained or written."
    )
    rows = [[measure, *(cells[at] for _, cells in columns)] for at, measure in enumerate(_MEASURES)] if columns else []
    return Costs(["", *(name for name, _ in columns)], rows, said)


def _column(config: RunConfig, looked: Looked) -> list[str]:
    work, clients = looked.work, min(config.sampled_clients, config.clients)
    about = "≤ " if work.estimated else ""
    return [
        str(config.model.cut),
        short_size(work.peak_bytes),
        about + short_size(work.up_bytes),
        about + short_size(work.down_bytes),
        about + short_size(work.up_bytes * clients * config.steps),
        about + short_size(work.down_bytes * clients * config.steps),
        seconds(looked.step.total),
        looked.step.binds,
    ]
