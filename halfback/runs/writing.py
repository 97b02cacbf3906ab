"""What a trained model writes behind texts, as somebody asks for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from halfback.assembly import OnRows
from halfback.errors import UserError, offer
from halfback.runs.generation import Drawn, respond
from halfback.runs.subject import Subject


@dataclass(frozen=True)
class Asked:
    """How somebody wants texts written.

    Attributes:
        changes: of the task's `beams` and `max_new_tokens`.
        drawn: what is drawn at random.
    """

    changes: Mapping[str, Any]
    drawn: Drawn


def asked(beams: int | None, max_new_tokens: int | None, drawn: Mapping[str, Any]) -> Asked:
    """Checks what is asked for, before a model is loaded; what is None is the task's own, or as usual.

    Raises:
        UserError: a value is out of range, or `drawn` has a name that is none of `Drawn`.
    """
    chosen = {"beams": beams, "max_new_tokens": max_new_tokens}
    changes = {key: value for key, value in chosen.items() if value is not None}
    for key, value in changes.items():
        if value < 1:
            raise UserError(f"{key}={value}: 1 or more are allowed")
    names = [field.name for field in fields(Drawn)]
    for key in drawn:
        if key not in names:
            raise UserError(f"{key}=…: {offer(key, names)}")
    found = Drawn(**drawn)
    found.sampling(changes.get("beams", 1))
    return Asked(changes, found)


def written(subject: Subject, texts: Sequence[str], how: Asked, told: OnRows | None = None) -> list[str]:
    """The continuations of each text, in their order; several samples of one stand one behind the other.

    Raises:
        UserError: the model is a classifier, or a text is blank or too long.
    """
    if subject.objective == "classification":
        raise UserError(
            f"{subject.where} holds a classifier; generate takes runs with task.objective=generation or causal_lm"
        )
    options = replace(subject.options, **how.changes)
    return respond(replace(subject.writer, options=options), texts, how.drawn.sampling(options.beams), told)
