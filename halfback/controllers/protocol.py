"""The seam between controllers and whoever runs the rounds: what a controller sees of a round, and what it says.

A link is one way of one field across the cut (`activations_up`, `gradient_down`, …) on which the `temporal` codec
leaves out a sample whose tensor is still like the one that the other side remembers: it is sent when their cosine
similarity is below the link's threshold. So 1 sends (nearly) everything, and a lower threshold sends less. One
controller a run, on the server, sets the threshold of every link.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class LinkUse:
    """One link in one round, all clients together.

    Attributes:
        threshold: the cosine similarity below which a sample was sent, in [-1, 1].
        compared: samples that the other side remembered.
        skipped: how many of these were not sent.
        mean_similarity: of the samples compared; None where there was none.
        std_similarity: of the samples compared; None where there was none.
        bytes: what was sent.
        full_bytes: what would have been sent with nothing skipped.
    """

    threshold: float
    compared: int
    skipped: int
    mean_similarity: float | None
    std_similarity: float | None
    bytes: int
    full_bytes: int


@dataclass(frozen=True)
class Observation:
    """One round as the server saw it.

    Attributes:
        round: its number, from 0.
        train_loss: mean training loss of the round.
        validation_loss: mean per-token loss, after an evaluation only; the validation perplexity is its exponential.
        links: use by link.
    """

    round: int
    train_loss: float
    validation_loss: float | None
    links: Mapping[str, LinkUse]


class Controller(Protocol):
    """Sets the thresholds of a run."""

    def thresholds(self) -> dict[str, float]:
        """Says how alike a sample must be, in the round to come, to be left out.

        Returns:
            By link, such as "activations_up", the cosine similarity in [-1, 1] below which a sample is sent.
        """
        ...

    def observe(self, seen: Observation) -> None:
        """Takes in one round; called once a round, in order.

        Args:
            seen: the round that is over.
        """
        ...

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next decisions depend on, for a checkpoint.

        Returns:
            Named tensors, and values that JSON can hold.
        """
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes on, to the bit, from what `state_dict` gave.

        Args:
            tensors: the first of what it gave.
            values: the second, after it was written as JSON and read again.
        """
        ...


class Options(Protocol):
    """A rule with its settings: a frozen dataclass whose fields are the options."""

    def start(self, links: Sequence[str], seed: int) -> Controller:
        """Makes a controller for the start of a run.

        Args:
            links: those that reuse values, such as "activations_up".
            seed: whatever the controller draws at random follows from it.

        Returns:
            The controller, which knows nothing of any round yet.

        Raises:
            UserError: an option doesn't fit the links, or an optional package is missing.
        """
        ...
