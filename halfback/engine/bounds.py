"""How much a peer may send, and what it may say of itself: all of it follows from the recipe, and from a clock.

A message is bounded before it is read: a frame by `End.most_bytes`, a field by `wire.packing.Most`. So is how often a
client speaks in a round, and what it reports when the round is over.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

from torch import Tensor

from halfback.codecs.protocol import Receiver
from halfback.engine.remote.frames import Done
from halfback.errors import PeerError
from halfback.masking.rules import SumRules
from halfback.parties.agreed import rows_below_state
from halfback.parties.holdings import HiddenForm, LinkForm
from halfback.parties.protocol import Needs
from halfback.wire.messages import (
    Activations,
    Exact,
    HandOver,
    HeadGradient,
    Join,
    Message,
    Part,
    Role,
    Slopes,
    Weights,
    parts_of,
)
from halfback.wire.packing import Direction, Most
from halfback.zeroth.replay import Replica

_CLOCKS = 1.01, 1.0  # by what share, and how many seconds, a client's clock may be ahead of the server's


@dataclass(frozen=True)
class Bounds:
    """What a recipe allows, whoever the client is.

    Attributes:
        rows: of a batch; steps: of the run, as a server counts them.
        directions: P of a step, 0 for a method that has none.
        slopes: values of all slopes in one message, by direction.
        exact: values of the exact gradients of a step.
        kept: bytes of a step's exact gradients, as they are sent → of how many steps they may go down at once.
        weights: what one message may hold of the model, by direction.
        sums: how a cohort adds up what its clients say of θ; None where the server hears each.
    """

    rows: int
    steps: int
    directions: int
    slopes: Mapping[Direction, int]
    exact: int
    kept: Callable[[int], int]
    weights: Mapping[Direction, Most]
    sums: SumRules | None = None

    def receiving(
        self, direction: Direction, forms: Mapping[str, LinkForm], receivers: Mapping[str, Receiver]
    ) -> dict[Role, Most]:
        """The most that the fields of a message may hold which goes this way, by role."""
        hidden = {link: form for link, form in forms.items() if isinstance(form, HiddenForm)}
        first = next(iter(hidden.values()))
        places = (self.rows * first.shape[0] if first.has_texts else self.rows,)
        most: dict[Role, Most] = {
            "lengths": _shaped((self.rows,), 4),
            "labels": _shaped(places, 4),
            "sample_ids": _shaped((self.rows,), 4),
            "slopes": self._slopes(direction, forms, receivers),
            "losses": Most(4),
            "steps": Most(4 * self.steps),  # a number for each, where a message has them as a tensor
            "caches": Most(8 * len(forms)),
            "thresholds": Most(4 * len(forms)),
            "weights": self.weights[direction],
        }
        if self.sums is not None:
            most |= self._masked(direction, most, self.sums)
        for role in ("activations", "gradient"):
            link = f"{role}_{direction}"
            if link in receivers:
                most[role] = Most(*receivers[link].most(self.rows * forms[link].rows, self.rows))
            elif link in hidden:
                shape, texts = hidden[link].shape, hidden[link].has_texts
                most[role] = _shaped(
                    (self.rows * shape[0], *shape[1:]) if texts else (self.rows, *shape), hidden[link].dtype.itemsize
                )
        return most

    def _masked(self, direction: Direction, most: Mapping[Role, Most], sums: SumRules) -> dict[Role, Most]:
        """Of keys and shares a row a client; and up, whole numbers of so many bits, in the place of floats."""
        found: dict[Role, Most] = {"masks": Most(sums.told * sums.most)}
        if direction == "up":
            item = sums.fixed.bits // 8
            found["slopes"] = Most(most["slopes"].bytes * item // 4, most["slopes"].tensors)
            found["weights"] = Most(most["weights"].bytes * item // 2, most["weights"].tensors)  # of half precision
        return found

    def _slopes(self, direction: Direction, forms: Mapping[str, LinkForm], receivers: Mapping[str, Receiver]) -> Most:
        """Slopes, or exact gradients, whichever are more; down these may be those of several steps."""
        exact, link = Most(4 * self.exact), f"slopes_{direction}"
        if link in receivers:
            exact = Most(*receivers[link].most(forms[link].rows, 1))
        steps = max(self.kept(exact.bytes), 1) if direction == "down" else 1
        return Most(max(4 * self.slopes[direction], steps * exact.bytes), exact.tensors)


@final
class Tab:
    """One client's round, as the server keeps count of it."""

    def __init__(self, client: int, bounds: Bounds, *, cursor: int, steps: int) -> None:
        """`cursor`: the number of the client's next batch; `steps`: of the round."""
        self._client = client
        self._bounds = bounds
        self._cursor = cursor
        self._steps = steps
        self._said = Counter[str]()
        self.seconds = 0.0
        """For which the client was waited for."""

    def hear(self, message: Message) -> None:
        """One more message.

        Raises:
            PeerError: that is one too many.
        """
        for part in parts_of(message):
            self._hear(part)

    def _hear(self, message: Part) -> None:
        kind, most = type(message).__name__, self._steps
        match message:
            case Join() | Weights() | HandOver():
                most = 1
            case Activations(sample_ids=None):
                kind, most = "Activations of a batch that came before", most * 2 * max(self._bounds.directions, 1)
            case Activations():
                kind = "Activations of a new batch"
            case Slopes() | Exact() | HeadGradient():
                pass
            case _:
                return  # the greeting; of the others no method takes any from a client
        self._said[kind] += 1
        if self._said[kind] > most:
            came = f"{self._said[kind]} came in a round of {self._steps} steps, at most {most} are allowed"
            raise PeerError(kind, came, sender=self._client)

    def check(self, report: Done) -> None:
        """What the client says that the round has cost it, against what that can have cost.

        Raises:
            PeerError: a figure is outside of what is possible.
        """
        share, more = _CLOCKS
        figures = (
            ("cursor", report.cursor, self._cursor, self._cursor + self._steps),
            ("forward_passes", report.forward_passes, 0, self._steps * (2 * self._bounds.directions + 2)),
            ("client_seconds", report.client_seconds, 0, self.seconds * share + more),
            ("wire_seconds", report.wire_seconds, 0, self.seconds * share + more),
            ("losses", len(report.losses), 0, self._steps),
        )
        for what, came, least, most in figures:
            if not least <= came <= most:
                possible = f"{least} to {most:.10g} are possible"
                raise PeerError(f"Done.{what}", f"{came:.10g}", possible, sender=self._client)


def bounds_of(needs: Needs, theta: Replica, head: Mapping[str, Tensor], *, rows: int, steps: int) -> Bounds:
    """The bounds of a run with batches of so many rows and with so many steps.

    `theta`: what is agreed on; `head`: the trained tensors of the devices' head, in the U-shape.
    """
    allowed = needs.agreement.allowed(theta, needs.probe, steps)
    own = [] if allowed.weights is None else [allowed.weights]
    return Bounds(
        rows=rows,
        steps=steps,
        directions=needs.directions,
        slopes={"up": allowed.up, "down": allowed.down},
        exact=theta.width(0),
        kept=partial(rows_below_state, theta),
        weights={"up": _all(*own, head), "down": _all(*own, head, theta.exact_state())},
    )


def model_bound(held: Mapping[str, Tensor]) -> dict[Role, Most]:
    """Of the message with the weights to begin with."""
    return {"weights": _all(held)}


def _shaped(shape: tuple[int, ...], size: int) -> Most:
    count = size
    for length in shape:
        count *= length
    return Most(count, shape=shape)


def _all(*choices: Mapping[str, Tensor]) -> Most:
    """Any one of these sets of tensors."""
    return Most(
        max(sum(tensor.nbytes for tensor in tensors.values()) for tensors in choices),
        tensors=max(len(tensors) for tensors in choices),
    )
