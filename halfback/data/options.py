"""What a recipe says about its data."""

from dataclasses import dataclass
from typing import Any, Final, Literal

Objective = Literal["classification", "causal_lm", "generation"]
GIVEN: Final = "given"
"""The name, in a configuration, of what was given in Python and has no name of its own."""


@dataclass(frozen=True)
class TaskOptions:
    """What a recipe says about its data.

    Attributes:
        name: which task; see `halfback tasks`.
        train: a file (csv), a folder (images), or the name of a data set (hub).
        validation: a file or a folder, or the name of a split (hub); unless given, a tenth of the training rows.
        text: the column of texts (csv, hub); "text" unless given.
        pair: the column of second texts.
        label: the column of labels; "label" unless given.
        target: the column of texts to generate; "target" unless given.
        delimiter: of CSV files, one character or "tab"; unless given, the header shows it.
        encoding: of CSV and JSON files; unless given, what a byte order mark says, else UTF-8.
        skip_bad_rows: leave out rows without label or text, and of too few or too many fields, which are errors else.
        objective: what is learned; unless given, the task's own.
        template: the text around a row's columns, as in "{text} It was".
        verbaliser: a word for each class, by which a language model classifies.
        max_length: tokens of a text, at most.
        train_rows: so many training rows, drawn at random; all unless given.
        validation_rows: so many validation rows, drawn at random; all unless given.
        holdout: above 0, that share of the training rows replaces the validation rows and is not trained on: for
            tuning without a look at the validation rows.
        image_size: of both sides of images from folders; unless given the model's own, or 32 where it takes any.
        augment: what is done to training images, anew in each epoch: `crop`, `flip`, or mappings of a name and options.
        generated_rows: different validation inputs that are continued and scored at the end of a run.
        beams: of the search with which they are continued; 1 is greedy.
        max_new_tokens: of a continuation, at most.
        loss: "given" where a run has a loss of one's own, given in Python.
        metric: "given" where a run has a metric of one's own, given in Python.
    """

    name: str
    train: str | None = None
    validation: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    target: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    skip_bad_rows: bool = False
    objective: Objective | None = None
    template: str | None = None
    verbaliser: tuple[str, ...] | None = None
    max_length: int = 128
    train_rows: int | None = None
    validation_rows: int | None = None
    holdout: float = 0.0
    image_size: int | None = None
    augment: tuple[str | dict[str, Any], ...] = ()
    generated_rows: int = 0
    beams: int = 1
    max_new_tokens: int = 64
    loss: Literal["given"] | None = None
    metric: Literal["given"] | None = None
