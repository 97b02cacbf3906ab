"""Rows set apart: those that are attacked, and those that the attacker has; no row is both."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halfback.assembly import Built
from halfback.data.batches import Split
from halfback.errors import UserError

_FEWEST = 16


@dataclass(frozen=True)
class Apart:
    """Rows of a run, in two heaps.

    Attributes:
        victims: clients' training rows, which are attacked.
        own: the attacker's: validation rows, of which none is equal to a training row.
        doubled: validation rows that were left out because they are equal to a training row, or to another one.
    """

    victims: Split
    own: Split
    doubled: int


def apart(built: Built, seed: int, most: int) -> Apart:
    """Draws at most so many rows for each heap.

    Raises:
        UserError: there are too few rows that nobody trains on.
    """
    train, validation = built.task.train, built.task.validation
    held = sorted({int(row) for source in built.clients.sources.values() for row in source.rows})
    seen = set(_contents(train, held))
    free = []
    for row, content in enumerate(_contents(validation, range(len(validation)))):
        if content not in seen:
            seen.add(content)
            free.append(row)
    if len(free) < _FEWEST or len(held) < _FEWEST:
        raise UserError(
            f"{len(held)} training rows and {len(free)} validation rows that are none of them: an audit needs "
            f"{_FEWEST} of each, those that are attacked and those that the attacker has"
        )
    generator = torch.Generator().manual_seed(seed)
    return Apart(
        train.take(drawn(held, most, generator)),
        validation.take(drawn(free, most, generator)),
        len(validation) - len(free),
    )


def first_rows(split: Split, most: int) -> Split:
    """The first rows, this many at most."""
    return split.take(range(min(most, len(split))))


def pooled(values: Tensor, lengths: Tensor | None) -> Tensor:
    """One vector for each row: of a text the sum over its tokens, of an image all that there is."""
    if lengths is None:
        return values.flatten(1)
    return torch.stack([part.sum(dim=0) for part in values.split(lengths.tolist())])


def drawn(rows: Sequence[int], most: int, generator: torch.Generator) -> list[int]:
    """Some of the rows, this many at most."""
    return [rows[place] for place in torch.randperm(len(rows), generator=generator)[:most].tolist()]


def _contents(split: Split, rows: Sequence[int]) -> list[object]:
    """What each row is, whatever its label: tokens, or an image's bytes."""
    tokens = split.some_tokens(len(split))
    if tokens:
        return [tuple(tokens[row]) for row in rows]
    return [split.batch([row]).inputs["pixel_values"].numpy().tobytes() for row in rows]
