"""What a run takes from Python objects instead of from the names in its configuration."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Own:
    """Somebody's own parts of a run, each None where the configuration names it.

    Attributes:
        model: the whole model, before it is cut.
        tokenizer: what makes tokens of texts for that model.
        data: the rows to train and validate on.
    """

    model: nn.Module | None = None
    tokenizer: Any = None
    data: Any = None
