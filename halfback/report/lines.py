"""What a figure shows: lines, and the colours and markers that tell runs apart."""

from collections.abc import Sequence
from dataclasses import dataclass

# Middle tones: at least 3 : 1 against white and against the page's dark ground.
COLOURS = ("#2f7fc1", "#d0661a", "#2a9468", "#9365cc", "#d04a58", "#1f93a5", "#8f8420", "#c2559c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Line:
    """One run's curve; `order` chooses colour and marker."""

    order: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def colour(order: int) -> str:
    return COLOURS[order % len(COLOURS)]


def marker(order: int) -> str:
    """Colour and marker together tell 64 runs apart."""
    return MARKERS[(order + order // len(COLOURS)) % len(MARKERS)]
