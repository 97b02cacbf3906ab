"""A confusion matrix as a picture: which class was taken for which.

Importing this imports Matplotlib, so whoever draws imports it then.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from halfback.errors import UserError

SUFFIXES = (".png", ".svg", ".pdf")
_MOST_NUMBERS = 25  # classes up to which each cell says its number


def draw(names: Sequence[str], counts: Sequence[Sequence[int]], out: Path) -> None:
    """Draws the rows of each class (down) by what was said of them (across); shades are shares of the class.

    Raises:
        UserError: the file's ending is no picture's, or it can't be written.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--picture {out}: a file that ends in {', '.join(SUFFIXES)} is allowed")
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    side = min(max(3.2, 1.6 + 0.5 * len(names)), 24)
    shown = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    # A name with dollars is a name.
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9, "svg.hashsalt": "confusion"}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), shown, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), shown)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        for row, line in enumerate(counts if len(names) <= _MOST_NUMBERS else ()):
            for column, count in enumerate(line):
                ink = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise UserError(f"--picture {out} can't be written: {error.strerror}") from None
