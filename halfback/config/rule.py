"""One line of the table of `rules`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

F = TypeVar("F")


@dataclass(frozen=True)
class Rule(Generic[F]):
    """What facts of one kind may not be: a name, when they break it, and what is then said to the user."""

    name: str
    broken: Callable[[F], bool]
    says: Callable[[F], str]
