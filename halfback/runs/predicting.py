"""What a trained model says of rows: classes with their probabilities, perplexities, or texts."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfback.assembly import OnRows
from halfback.data import reading
from halfback.data.batches import Batch
from halfback.data.reading import Rows
from halfback.data.tables import NoText
from halfback.errors import UserError
from halfback.runs import generation
from halfback.runs.subject import Subject
from halfback.telemetry.records import writing

PREDICTED, PERPLEXITY, GENERATED, PROBABILITY = "predicted", "perplexity", "generated", "probability_"


def predictions(subject: Subject, rows: Rows, told: OnRows | None = None) -> Iterator[dict[str, Any]]:
    """Each row in turn, as it came and with what the model says of it.

    A classifier gives `predicted`, the class, and `probability_…` of each; a language model `perplexity`, None for a
    text of one token; one that writes, `generated`. A column of that name that the rows had is not there any more.
    """
    answers = _written(subject, rows, told) if subject.objective == "generation" else _scored(subject, rows, told)
    for place, answer in enumerate(answers):
        came = {name: _plain(column[place]) for name, column in rows.columns.items() if name not in answer}
        yield came | answer


def columns(subject: Subject, rows: Rows) -> list[str]:
    """The columns of `predictions` in order."""
    own = {"generation": [GENERATED], "causal_lm": [PERPLEXITY]}.get(subject.objective)
    own = own or [PREDICTED, *(f"{PROBABILITY}{name}" for name in subject.names)]
    return [*(name for name in rows.columns if name not in own), *own]


def table(subject: Subject, rows: Rows, found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows for a terminal: of a class's probabilities only that of the one that was predicted."""
    names = [name for name in columns(subject, rows) if not name.startswith(PROBABILITY)]
    body = [[row.get(name) for name in names] for row in found]
    if subject.objective == "classification":
        body = [[*cells, row[f"{PROBABILITY}{row[PREDICTED]}"]] for cells, row in zip(body, found, strict=True)]
        names = [*names, "probability"]
    return names, body


def write(subject: Subject, rows: Rows, out: Path, told: OnRows | None = None) -> int:
    """Writes the predictions as a CSV file, whole or not at all, and returns how many they are.

    Raises:
        UserError: it can't be written.
    """
    unfinished = out.with_name(f"{out.name}.unfinished")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)  # not written through, where it is a link
        with unfinished.open("x", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, columns(subject, rows), lineterminator="\n")
            table.writeheader()
            table.writerows(predictions(subject, rows, told))
        os.replace(unfinished, out)
    return len(rows)


def _plain(cell: Any) -> Any:
    return f"({cell.kind})" if isinstance(cell, NoText) else cell


def _scored(subject: Subject, rows: Rows, told: OnRows | None) -> Iterator[dict[str, Any]]:
    done = 0
    for split in subject.splits(rows, answers=False):
        for logits, batch in subject.batches(split):
            answers = (
                _classes(subject, logits) if subject.objective == "classification" else _perplexities(logits, batch)
            )
            yield from answers
            done += len(batch.sample_ids)
            if told is not None:
                told(done, len(rows))


def _classes(subject: Subject, logits: Tensor) -> Iterator[dict[str, Any]]:
    chances = logits.float().softmax(dim=-1).tolist()
    names = subject.names or [str(place) for place in range(logits.shape[-1])]
    for best, of_row in zip(logits.argmax(dim=-1).tolist(), chances, strict=True):
        told = {f"{PROBABILITY}{name}": float(f"{chance:.6g}") for name, chance in zip(names, of_row, strict=False)}
        yield {PREDICTED: names[best]} | told


def _perplexities(logits: Tensor, batch: Batch) -> Iterator[dict[str, Any]]:
    """From the loss of each text's tokens behind its first."""
    assert batch.scored is not None, "a language model's tokens have labels"
    losses = F.cross_entropy(logits.float(), batch.labels[batch.scored + 1], reduction="none").double()
    ends = batch.inputs["lengths"].cumsum(0)
    owner = torch.searchsorted(ends, batch.scored, right=True)
    count = len(ends)
    totals = torch.zeros(count, dtype=torch.float64, device=losses.device).index_add_(0, owner, losses)
    tokens = torch.bincount(owner, minlength=count)
    for total, number in zip(totals.tolist(), tokens.tolist(), strict=True):
        mean = total / number if number else None
        yield {PERPLEXITY: None if mean is None or mean > 700 else float(f"{torch.tensor(mean).exp():.6g}")}


def _written(subject: Subject, rows: Rows, told: OnRows | None) -> Iterator[dict[str, Any]]:
    texts, pairs, step = rows.source.texts or [], rows.source.pairs, subject.batch_size
    for begin in range(0, len(texts), step):
        some = slice(begin, begin + step)
        prompts = generation.prompts_of(subject.writer, texts[some], None if pairs is None else pairs[some])
        yield from ({GENERATED: text} for text in generation.continued(subject.writer, prompts))
        if told is not None:
            told(min(begin + step, len(texts)), len(texts))


def first(rows: Rows, count: int) -> Rows:
    """The first so many of the rows."""
    source, size = rows.source, min(count, len(rows))
    short: dict[str, Any] = {
        name: None if value is None else value[:size]
        for name, value in (("texts", source.texts), ("pairs", source.pairs), ("targets", source.targets))
    }
    return replace(
        rows,
        source=replace(source, size=size, labels=source.labels[:size], **short),
        columns={name: column[:size] for name, column in rows.columns.items()},
        numbers=rows.numbers[:size],
    )


def of_texts(subject: Subject, texts: Sequence[str]) -> Rows:
    """Rows of texts alone.

    Raises:
        UserError: the model reads images, or pairs of texts; or a text is blank.
    """
    if subject.tokenizer is None:
        raise UserError(f"{subject.where} takes images, not texts: name an image or a folder of images")
    own = reading.columns_of(subject.options)
    if own.pair is not None:
        both = f"{own.text} and {own.pair}"
        raise UserError(f"{subject.where} reads pairs of texts: give a file with columns {both}")
    return subject.read({own.text: list(texts)}, answers=False)
