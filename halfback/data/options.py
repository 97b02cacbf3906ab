"""What a recipe says about its data."""

from dataclasses import dataclass
from typing import Any, Final, Literal

Objective = Literal["classification", "causal_lm", "generation"]
GIVEN: Final = "given"
"""The name, in a configuration, of what was given in Python and has no name of its own."""


@dataclass(frozen=True)
class TaskOptions:
    """What a recipe says about its data; see `describe_tasks` for the names.

    `train` and `validation` are files (csv), folders (images), or a data set's name and a split's name (hub); `text`,
    `pair`, `label` and `target` (the text to generate) are columns of csv and hub ("text", "label" and "target" unless
    given). `delimiter` (one character, or "tab") and `encoding` are those of CSV and JSON files: unless given, the
    header shows the one, and the other is UTF-8 or what a byte order mark says. `skip_bad_rows` leaves out rows without
    label or text and rows of too few or too many fields, which are errors otherwise. `objective` None is the task's
    own. `train_rows` and `validation_rows` take that many rows at random. `holdout` > 0 replaces the validation rows by
    that share of the training rows, which leave training: for tuning without a look at the validation set. `template`
    and `max_length` (tokens) are for `encode`; `verbaliser` has one word for each class. `generated_rows` different
    validation inputs are continued at the end of a run and scored, by `beams` beams (1 is greedy) and with
    `max_new_tokens` tokens at most. `loss` and `metric` say that a run has functions of its own in their places, which
    are given in Python. `image_size` is that of both sides of images from folders: unless given the model's
    own, or 32 where it takes any.
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
    """What is done to training images, anew in each epoch: `crop`, `flip`, or mappings of a name and options."""
    generated_rows: int = 0
    beams: int = 1
    max_new_tokens: int = 64
    loss: Literal["given"] | None = None
    metric: Literal["given"] | None = None
