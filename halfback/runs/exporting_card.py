"""The model card of what is exported, written from the run's own record; it names no place of this machine."""

import logging
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halfback.algorithms import algorithms
from halfback.assembly import Built
from halfback.data.options import GIVEN
from halfback.errors import UserError, one_line
from halfback.models.adapters import trainable
from halfback.report.tables import count, number, size
from halfback.runs.exporting_snippets import Loading
from halfback.runs.folder import BESIDE, COHORTS
from halfback.runs.naming import hub_name, is_path, shown_name
from halfback.runs.summary import Spent, versions_here
from halfback.telemetry.records import RECORDS, SUMMARY, Record, read_records, read_summary

log = logging.getLogger(__name__)

FILE = "README.md"
_OWN = {"csv": "a table of one's own", "images": "a folder of images of one's own", GIVEN: "rows given in Python"}
_TASKS = {"image": "image-classification", "decoder": "text-generation", "encoder": "text-classification"}


@dataclass(frozen=True)
class Said:
    """What an export says of itself.

    Attributes:
        what: it is, in words.
        loading: how it is loaded.
        limits: what it doesn't do, a sentence each.
    """

    what: str
    loading: Loading
    limits: Sequence[str] = ()


def write(built: Built, ran: tuple[Path, Sequence[Record]], said: Said, folder: Path) -> None:
    """Writes `README.md` into the folder of an export, where the hub's client is installed.

    `ran`: the folder of the run, and its records up to the checkpoint that is exported.
    """
    if find_spec("huggingface_hub") is None:  # it says what a card may hold
        log.info("no model card is written; with `pip install huggingface-hub` one is")
        return
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    (run, records), config = ran, built.ground.config
    model, data = shown_name(config.model.name), _data_name(built)
    title = f"{model} on {data}"
    metric = built.task.metric
    value = records[-1].metric
    task = _TASKS[
        "encoder" if built.task.objective == "classification" and built.tokenizer else built.model.family.kind
    ]
    results = []
    if value is not None:
        results = [
            EvalResult(
                task_type=task,
                dataset_type=data,
                dataset_name=data,
                dataset_split="validation",
                metric_type=metric,
                metric_value=round(value / 100, 6) if metric == "accuracy" else value,
            )
        ]
    told = ModelCardData(
        base_model=hub_name(config.model.name),
        datasets=_on_hub(built),
        metrics=[metric],
        library_name=said.loading.library,
        license=_license(config.model.name),
        tags=["halfback", "split-learning", "federated-learning", config.algorithm.name],
        pipeline_tag=task,
        model_name=title,
        eval_results=results or None,
    )
    body = "\n\n".join(_sections(built, run, records, said, title))
    ModelCard(f"---\n{told.to_yaml()}\n---\n\n{body}\n").save(folder / FILE)


def _sections(built: Built, run: Path, records: Sequence[Record], said: Said, title: str) -> Iterable[str]:
    config = built.config
    loading = said.loading
    steps = max(records[-1].step, built.federation.server.party.steps)
    unfinished = "" if steps >= config.steps else f" The run is to have {config.steps}; this is where it stood."
    yield f"# {_text(title)}"
    yield (f"{said.what} It was fine-tuned with halfback: {_method(built)}, over {steps} steps.{unfinished}")
    yield f"## How to load it\n\n`pip install {loading.needs}`, then in this folder:\n\n```python\n{loading.code}\n```"
    yield f"## Result\n\n{_results(built, run, records)}"
    yield f"## Data\n\n{_table(_data(built, deployed=(run / COHORTS).exists()))}"
    yield f"## Training\n\n{_table([*_training(built), *_noise(run)])}"
    yield f"## What it cost\n\n{_table(_cost(built, run, records))}"
    limits = [*said.limits, *_limits(built)]
    yield "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)
    yield f"## Versions\n\n{', '.join(f'{name} {number}' for name, number in _versions(run).items())}"


def _noise(run: Path) -> list[tuple[str, str]]:
    """What the noise of a private run that is over came to; nothing of any other."""
    spent = read_summary(run)["privacy"] if (run / SUMMARY).exists() else None
    return [] if spent is None else [("differential privacy", Spent(**spent).said)]


def _method(built: Built) -> str:
    kind = algorithms()[built.config.algorithm.name]
    first = (sys.modules[kind.__module__].__doc__ or built.config.algorithm.name).splitlines()[0]
    return first.rstrip(".").replace("\n", " ")


def _results(built: Built, run: Path, records: Sequence[Record]) -> str:
    metric, rows = built.task.metric, len(built.task.validation)
    lines = [f"| | {metric} before | {metric} |", "| --- | ---: | ---: |"]
    lines.append(f"| this model | {_value(built, records[0])} | {_value(built, records[-1])} |")
    for name in built.config.beside:
        other = run / BESIDE / name
        if (other / RECORDS).exists() and (found := read_records(other)):
            cells = f"{_value(built, found[0])} | {_value(built, found[-1])}"
            lines.append(f"| beside it: {name}, on the same work | {cells} |")
    spread = " ± is one standard error of a share of so many rows." if metric == "accuracy" else ""
    before = "" if records[0].rows is None else f" (before training on {count(records[0].rows)} of them)"
    when = f"at step {records[-1].step}, with one seed ({built.config.seed})"
    lines.append(f"\nOn {count(rows)} validation rows{before}, {when}.{spread}")
    return "\n".join(lines)


def _value(built: Built, record: Record) -> str:
    value, rows = record.metric, record.rows or len(built.task.validation)
    if value is None or not math.isfinite(value):
        return "–"
    if built.task.metric != "accuracy":
        return number(value)
    # Of two more rows of each kind (Agresti and Coull): where all are right, that doesn't make it certain.
    share = (value / 100 * rows + 2) / (rows + 4)
    error = 100 * math.sqrt(share * (1 - share) / (rows + 4))
    return f"{value:.2f} ± {error:.2f} %"


def _data(built: Built, *, deployed: bool) -> list[tuple[str, str]]:
    """`deployed`: the clients' rows are on their machines, and nobody here knows how many they are."""
    config, sources = built.config, built.clients.sources.values()
    rows = sorted(len(source) for source in sources)
    shared = config.partition.name + (
        f" (alpha {config.partition.alpha:g})" if config.partition.name == "dirichlet" else ""
    )
    pooled = built.federation.server.algorithm.needs.agreement.pools
    said = [
        ("data", _data_name(built)),
        ("objective", built.task.objective),
        ("training rows", "on the clients' machines" if deployed else count(len(built.task.train))),
        ("validation rows", count(len(built.task.validation))),
        ("clients", "one machine with all rows" if pooled else f"{config.clients}, partition {shared}"),
    ]
    if not pooled and not deployed:
        said.append(("rows of a client", f"{count(rows[0])} to {count(rows[-1])}"))
    if built.task.label_names:
        names = [_text(name) for name in built.task.label_names[:20]]
        said.append(("classes", ", ".join(names) + (", …" if len(built.task.label_names) > 20 else "")))
    if built.skipped_rows:
        said.append(("rows left out", count(built.skipped_rows)))
    return said


def _training(built: Built) -> list[tuple[str, str]]:
    config, needs, model = built.config, built.federation.server.algorithm.needs, built.model
    options = ", ".join(f"{key} {value}" for key, value in config.algorithm.options().items() if value is not None)
    behind = [part for part in (model.top, model.head) if part is not None]
    top = sum(p.numel() for part in behind for p in trainable(part).values())
    bottom = sum(p.numel() for p in trainable(model.bottom).values()) if needs.agreement.moves else 0
    said = [
        ("algorithm", config.algorithm.name + (f" ({options})" if options else "")),
        ("cut", f"{config.model.cut} of {model.blocks} blocks on devices"),
        ("devices train", f"{count(bottom)} parameters ({config.bottom.train}), {config.bottom.optimizer}"),
        ("the rest trains", f"{count(top)} parameters ({config.top.train}), {config.top.optimizer}"),
        ("learning rates", f"{config.bottom.lr:g} of the devices' part, {config.top.lr:g} of the rest"),
        ("devices", "backpropagate" if needs.backpropagates else "run forward only, without a graph"),
        ("batch", f"{config.batch_size} rows of each of {config.sampled_clients} clients a step"),
        ("precision", config.model.dtype),
    ]
    if needs.probe is not None and needs.directions:
        said.insert(3, ("slopes", needs.probe.said(model.whole)))
    if config.model.head is not None:
        said.append(("labels", f"stay on devices, with the last {config.model.head} blocks and the head"))
    return said


def _cost(built: Built, run: Path, records: Sequence[Record]) -> list[tuple[str, str]]:
    last, clients = records[-1], built.config.clients
    said = [
        ("bytes up, all clients", size(last.up_bytes)),
        ("bytes down, all clients", size(last.down_bytes)),
        ("bytes of one client, mean", size((last.up_bytes + last.down_bytes) // clients)),
        ("forward passes, all clients", count(last.forward_passes)),
    ]
    if (run / SUMMARY).exists():
        summary = read_summary(run)
        peaks = {
            "client peak memory": summary["client_peak_bytes"],
            "of plain inference of that part": summary["client_inference_peak_bytes"],
            "server peak memory": summary["server_peak_bytes"],
        }
        said += [(name, size(value)) for name, value in peaks.items() if value]
    return said


def _limits(built: Built) -> list[str]:
    found = [
        f"It was validated on {count(len(built.task.validation))} rows of one source; other data were not tried.",
        "One run with one seed says nothing about the spread over seeds.",
        "What the base model may not be used for, this one may not either.",
    ]
    if built.task.label_names:
        found.append("It knows the classes above and no others: whatever it is given, it names one of them.")
    return found


def _versions(run: Path) -> dict[str, str]:
    if (run / SUMMARY).exists():
        return {str(name): str(found) for name, found in read_summary(run)["versions"].items()}
    return versions_here()


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_text(value)} |" for name, value in rows)])


def _text(value: str) -> str:
    """What somebody else wrote, as text of Markdown in a cell."""
    escaped = one_line(value)
    for character in "\\`*_[]<>|#":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def _data_name(built: Built) -> str:
    task = built.config.task
    if task.name == "hub":
        name = task.train or "a data set"
        return shown_name(name) if is_path(name) else name
    return _OWN.get(task.name, task.name)


def _on_hub(built: Built) -> list[str] | None:
    """The data set as the hub knows it: by the name that was given, or the task's own."""
    task = built.config.task
    if task.name in _OWN or (task.name == "hub" and is_path(task.train or ".")):
        return None
    return [_data_name(built)]


def _license(name: str) -> str | None:
    """What the card beside a base says; None where none is here."""
    from huggingface_hub import ModelCard

    from halfback.models.packages import packaged_models

    package = packaged_models().get(name)
    folder = Path(name) if package is None else package.folder()
    card = None if folder is None else folder / FILE
    if card is None or not card.is_file():
        return None
    try:
        found: Any = ModelCard.load(card).data.to_dict().get("license")
    except (ValueError, OSError, UserError):
        return None
    return found if isinstance(found, str) else None
