"""How good a trained model is on rows: by the metric of its run, and by what one wants to know beside it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from halfback.assembly import OnRows
from halfback.data.batches import Split
from halfback.data.encode import Prompt
from halfback.data.reading import Rows, inputs_of
from halfback.errors import UserError, of_extra
from halfback.models.objectives import evaluate
from halfback.runs import generation
from halfback.runs.subject import Subject
from halfback.runs.summary import Written


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others.

    Attributes:
        name: of the class.
        precision: percent of the rows said to be of it that are.
        recall: percent of its rows that were found.
        f1: the harmonic mean of both, in percent.
        support: rows of it.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """How good a model is on some rows.

    Attributes:
        rows: how many they were.
        loss: mean cross-entropy of a row, or of a token.
        metric: that of the run: accuracy in percent, perplexity, or one's own.
        metric_name: what it is.
        accuracy: in percent, of a classifier, else None.
        macro_f1: mean F1 in percent of the classes that occur, in the rows or in what was said of them; else None.
        classes: each class, of a classifier.
        confusion: rows of class i that were said to be of class j, at `[i][j]`; empty where there are no classes.
        generation: BLEU and chrF, where something was generated, else None.
    """

    rows: int
    loss: float
    metric: float
    metric_name: str
    accuracy: float | None = None
    macro_f1: float | None = None
    classes: tuple[ClassScores, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    generation: Written | None = None

    def to_dict(self) -> dict[str, Any]:
        """Makes plain values of the scores.

        Returns:
            By the attributes' names, fit for JSON.
        """
        return asdict(self)


def scored(subject: Subject, rows: Rows | None, *, generated: int | None = None, told: OnRows | None = None) -> Scores:
    """Scores a model on rows, on its run's own validation rows where none are given.

    Args:
        subject: the model.
        rows: with their answers.
        generated: different inputs that a model which writes continues; by default as many as the run's own
            `task.generated_rows`, and of other rows all.
        told: hears how far it is.

    Raises:
        UserError: an exported model was given no rows, or it has no inputs to continue.
    """
    if rows is None and subject.task is None:
        raise UserError(f"{subject.where} is an exported model, which has no rows of its own: name a file of some")
    pairs = _Pairs(subject, rows, told)
    found = evaluate(subject.objective, pairs, subject.own_loss, subject.own_metric)
    scores = Scores(pairs.rows, found.loss, found.metric, subject.metric)
    if subject.objective == "classification":
        return _with_classes(scores, subject, torch.cat(pairs.labels), torch.cat(pairs.said))
    if subject.objective == "generation":
        return replace(scores, generation=_written(subject, rows, generated, told))
    if generated is not None:
        raise UserError(f"generated={generated}: {subject.where} has no inputs to continue: it learned to tell texts")
    return scores


class _Pairs:
    """The logits and labels of all rows, batch by batch; what was said of each is kept, where classes are."""

    def __init__(self, subject: Subject, rows: Rows | None, told: OnRows | None) -> None:
        self.labels: list[Tensor] = []
        self.said: list[Tensor] = []
        self.rows = 0
        self._subject, self._given, self._told = subject, rows, told

    def _splits(self) -> Iterator[Split]:
        if self._given is not None:
            return self._subject.splits(self._given, answers=True)
        assert self._subject.task is not None, "who has no rows was refused"
        return iter([self._subject.task.validation])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        total = len(self._subject.task.validation) if self._subject.task is not None else 0
        total = total if self._given is None else len(self._given)
        for split in self._splits():
            for logits, batch in self._subject.batches(split):
                if self._subject.objective == "classification":
                    self.labels.append(batch.labels.cpu())
                    self.said.append(logits.argmax(dim=-1).cpu())
                self.rows += len(batch.sample_ids)
                yield logits, batch.labels
                if self._told is not None:
                    self._told(self.rows, total)


def _with_classes(scores: Scores, subject: Subject, labels: Tensor, said: Tensor) -> Scores:
    with of_extra("metrics"):
        from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    names = list(subject.names) or [str(place) for place in range(int(max(labels.max(), said.max())) + 1)]
    truth, found, places = labels.numpy(), said.numpy(), list(range(len(names)))
    of_classes = precision_recall_fscore_support(truth, found, labels=places, zero_division=0.0)
    classes = tuple(
        ClassScores(name, 100 * float(precision), 100 * float(recall), 100 * float(f1), int(support))
        for name, precision, recall, f1, support in zip(names, *of_classes, strict=True)
    )
    matrix = confusion_matrix(truth, found, labels=places)
    return replace(
        scores,
        accuracy=100 * float(accuracy_score(truth, found)),
        macro_f1=100 * float(f1_score(truth, found, average="macro", zero_division=0.0)),
        classes=classes,
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
    )


def _written(subject: Subject, rows: Rows | None, generated: int | None, told: OnRows | None) -> Written | None:
    writer = subject.writer
    if rows is None:
        assert subject.task is not None, "who has no rows was refused"
        prompts, usual = list(subject.task.prompts), subject.options.generated_rows
    else:
        source = rows.source
        firsts, references = inputs_of(source)
        texts = [(source.texts or [])[row] for row in firsts]
        pairs = None if source.pairs is None else [source.pairs[row] for row in firsts]
        encoded = generation.prompts_of(writer, texts, pairs)
        prompts = [Prompt(row, said) for row, said in zip(encoded, references, strict=True)]
        usual = len(prompts)
    count = usual if generated is None else generated
    if not 0 <= count <= len(prompts):
        raise UserError(f"generated={count}: 0 to {len(prompts)} are allowed, the different inputs of the rows")
    found = generation.score(replace(writer, options=replace(writer.options, generated_rows=count)), prompts, told)
    return None if found is None else Written(**found)
