"""What a method on a device works with, and what it takes from the server, checked: bytes from a peer are a claim."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from halfback_device.batches import Batch, Feed
from halfback_device.errors import Diverged, PeerError
from halfback_device.messages import (
    Activations,
    Array,
    Both,
    CutGradient,
    Exact,
    HeadGradient,
    History,
    Join,
    Losses,
    Message,
    MiddleActivations,
    Slopes,
    Turns,
    Weights,
    kinds_of,
    name_of,
)
from halfback_device.replay import Replica
from halfback_device.runtime import Bottom, Head
from halfback_device.slopes import Cotangent, Probe, Weight, estimate
from halfback_device.wire import described

Conversation = Generator[Message, Message, None]
"""A round of one client: each message that it says, and the server's answer to it."""
Kind = TypeVar("Kind")
Other = TypeVar("Other")
_PIECE = 1 << 16  # values looked at together


@dataclass(frozen=True)
class Round:
    """One conversation: `steps` batches, after `first` steps of earlier rounds."""

    number: int
    steps: int
    first: int


@dataclass
class Party:
    """One client.

    Attributes:
        bottom: its part of the model; head: what takes the loss on the device, in the U-shape.
        theta: the trained parameters, moved by what is agreed on.
        feed: its batches.
        probe: how it takes slopes.
        exact_blocks: the last blocks of the bottom whose gradient it takes exactly.
        rows_at_once: rows of a batch that go through the bottom at a time; None for all.
        passes: forward passes so far.
    """

    bottom: Bottom
    head: Head | None
    theta: Replica
    feed: Feed
    probe: Probe
    exact_blocks: int = 0
    rows_at_once: int | None = None
    passes: int = 0

    def forward(self, batch: Batch, weight: Weight | None = None) -> Array:
        """The activations of a batch at θ, or at other weights."""
        weight = weight or self.theta.parameters.__getitem__
        self.passes += 1
        groups = in_groups(batch.inputs, self.rows_at_once)
        if len(groups) == 1:
            return self.bottom.forward(batch.inputs, weight)
        return np.concatenate([self.bottom.forward(group, weight) for group in groups])

    def noting(self, batch: Batch) -> tuple[Array, list[tuple[int, Any]]]:
        """The activations at θ, and for each group of rows how many it has and what entered its exact blocks."""
        self.passes += 1
        made, noted = [], []
        for group in in_groups(batch.inputs, self.rows_at_once):
            hidden, entered = self.bottom.noting(group, self.theta.parameters.__getitem__, self.exact_blocks)
            made.append(hidden)
            noted.append((len(hidden), entered))
        return made[0] if len(made) == 1 else np.concatenate(made), noted

    def exact(self, noted: list[tuple[int, Any]], gradient: Array) -> Array:
        """∂⟨λ, z⟩/∂ of the exact parameters, flattened one behind the other, (d,) float32; `noted` is used up."""
        sums: dict[str, Array] = {}
        end = len(gradient)
        while noted:
            count, entered = noted.pop()
            found = self.bottom.exact(entered, gradient[end - count : end], self.theta.parameters.__getitem__)
            end -= count
            sums = {name: sums[name] + found[name] if sums else found[name] for name in self.theta.exact}
        return np.concatenate([sums[name].reshape(-1) for name in self.theta.exact])


def in_groups(inputs: Mapping[str, Array], rows: int | None) -> list[Mapping[str, Array]]:
    """The inputs of a batch in groups of so many rows; all of them in one where that is None."""
    lengths = inputs.get("lengths")
    count = len(next(iter(inputs.values()))) if lengths is None else len(lengths)
    if rows is None or rows >= count:
        return [inputs]
    groups: list[Mapping[str, Array]] = []
    ends = list(range(count + 1)) if lengths is None else [0, *accumulate(lengths.tolist())]
    for first in range(0, count, rows):
        last = min(first + rows, count)
        places = slice(ends[first], ends[last])
        groups.append({n: v[first:last] if n == "lengths" else v[places] for n, v in inputs.items()})
    return groups


def upload(batch: Batch, hidden: Array, *, repeated: bool = False, labels: bool = True) -> Activations:
    """The message that carries one batch's activations.

    `repeated`: all but these were sent earlier in the step; `labels=False`: they stay on the device.
    """
    lengths = batch.inputs.get("lengths")
    return Activations(
        hidden=hidden,
        lengths=None if repeated or lengths is None else lengths.astype(np.int32),
        labels=batch.labels.astype(np.int32) if labels and not repeated else None,
        sample_ids=None if repeated else batch.sample_ids.astype(np.int32),
    )


def feedback(party: Party, batch: Batch, hidden: Array) -> Generator[Message, Message, Array]:
    """λ = ∂ℓ/∂z for the activations `hidden`, in their shape, whoever takes the loss.

    Raises:
        PeerError: something else came than was asked for.
        Diverged: what came is not finite.
    """
    if party.head is None:
        return cut_gradient((yield upload(batch, hidden)), hidden)
    middle = received((yield upload(batch, hidden, labels=False)), MiddleActivations)
    said = _head_gradient(party, batch, len(hidden), middle)
    del middle
    return cut_gradient((yield said), hidden)


def _head_gradient(party: Party, batch: Batch, rows: int, middle: MiddleActivations) -> HeadGradient:
    head = party.head
    assert head is not None, "in the U-shape a device has a head"
    check_array("MiddleActivations.hidden", middle.hidden, (rows, *head.sizes))
    if len(middle.head) != len(head.shapes):
        raise PeerError("MiddleActivations.head", len(middle.head), f"{len(head.shapes)} are allowed", sender="server")
    for (name, shape), tensor in zip(head.shapes.items(), middle.head, strict=True):
        check_array(f"MiddleActivations.head, {name}", tensor, shape)
    if not all(map(is_finite, (middle.hidden, *middle.head))):
        cure = "lower top.lr or clip the top (top.clip)"
        raise Diverged("MiddleActivations", "is not finite", cure, sender="server")
    lengths = batch.inputs.get("lengths")
    gradient, loss, of_head = head.loss(middle.hidden, list(middle.head), lengths, batch.labels, batch.scored)
    return HeadGradient(gradient, np.array([loss], dtype=np.float32), tuple(of_head))


def feedback_slopes(party: Party, batch: Batch, cotangent: Cotangent, row: int) -> Array:
    """How ⟨λ, z⟩ changes along each direction of agreed row `row`, by forward passes: (P,) float32."""
    theta, measured = party.theta, party.theta.measured
    seeds = theta.seeds(party.probe.directions, row)
    run = lambda weight: party.forward(batch, weight)  # noqa: E731
    slopes = estimate(run, theta.parameters, measured, cotangent, seeds, party.probe.settled(measured))
    return slopes.astype(np.float32)


def received(reply: Message, kind: type[Kind]) -> Kind:
    """The server's message, which must be of this kind; PeerError where it is another one."""
    if not isinstance(reply, kind):
        raise PeerError("", name_of(kinds_of(reply)), f"{kind.__name__} is allowed", sender="server")
    return reply


def received_both(reply: Message, first: type[Kind], second: type[Other]) -> tuple[Kind, Other]:
    """The two messages in the server's, which must be of these kinds; raises as `received` does."""
    if isinstance(reply, Both) and isinstance(reply.first, first) and isinstance(reply.second, second):
        return reply.first, reply.second
    came = name_of(kinds_of(reply))
    raise PeerError("", came, f"{first.__name__}And{second.__name__} is allowed", sender="server")


def cut_gradient(reply: Message, hidden: Array) -> Array:
    """λ for the activations `hidden`; PeerError for another shape or dtype, Diverged where it is not finite."""
    gradient = received(reply, CutGradient).gradient
    check_array("CutGradient.gradient", gradient, hidden.shape)
    if not is_finite(gradient):
        cure = "lower top.lr or clip the top (top.clip)"
        raise Diverged("CutGradient.gradient", "is not finite", cure, sender="server")
    return gradient


def loss_value(reply: Message) -> float:
    """The loss that answers a probe; PeerError where it is no single float32, Diverged where it is not finite."""
    values = received(reply, Losses).values
    check_array("Losses.values", values, (1,))
    if not is_finite(values):
        raise Diverged(
            "Losses.values", "is not finite", "lower the learning rates (top.lr, bottom.lr)", sender="server"
        )
    return float(values[0])


def join(theta: Replica, directions: int) -> Conversation:
    """The device replays the steps that it missed.

    Raises:
        PeerError: other steps or shapes came than were asked for.
        Diverged: a slope is not finite.
    """
    reply = yield Join(theta.position)
    if theta.exact and isinstance(reply, Both) and isinstance(reply.second, Exact):
        said, exact = received_both(reply, History, Exact)
        _take_exact(theta, said, exact, directions)
    elif theta.exact:
        said, state = received_both(reply, History, Weights)
        _take_state(theta, said, state, directions)
    elif isinstance(reply, Both):
        said, turns = received_both(reply, History, Turns)
        _replay(theta, "History", said.first, said.slopes, directions, _steps(turns, len(said.slopes)))
    else:
        heard = received(reply, History)
        _replay(theta, "History", heard.first, heard.slopes, directions)


def take_agreed(theta: Replica, reply: Message, directions: int) -> None:
    """Replays the step that the cohort has just agreed on; raises as `join` does."""
    agreed, exact = received_both(reply, Slopes, Exact) if theta.exact else (received(reply, Slopes), None)
    row = agreed.values
    check_array("Slopes.values", row, (directions * len(theta.groups),))
    if exact is not None:
        check_array("Exact.values", exact.values, (theta.width(0),))
        row = np.concatenate([row, exact.values])
    _replay(theta, "Slopes", agreed.step, row[None], directions)


def _take_exact(theta: Replica, said: History, exact: Exact, directions: int) -> None:
    rows = said.slopes
    _check_rows(theta, "History", said.first, rows, directions * len(theta.groups))
    check_array("Exact.values", exact.values, (len(rows) * theta.width(0),))
    whole = np.concatenate([rows, exact.values.reshape(len(rows), theta.width(0))], axis=1)
    _replay(theta, "History", said.first, whole, directions)


def _take_state(theta: Replica, said: History, state: Weights, directions: int) -> None:
    rows = said.slopes
    _check_rows(theta, "History", said.first, rows, directions * len(theta.groups))
    allowed = theta.exact_state() if len(rows) else {}
    if len(state.tensors) != len(allowed):
        raise PeerError("Weights.tensors", len(state.tensors), f"{len(allowed)} are allowed", sender="server")
    for (name, mine), tensor in zip(allowed.items(), state.tensors, strict=True):
        check_array(f"Weights.tensors, {name}", tensor, mine.shape)
    if not all(map(is_finite, state.tensors)):
        raise Diverged("Weights.tensors", "are not finite", "lower bottom.lr or top.lr", sender="server")
    theta.take_state(said.first, rows, state.tensors)


def _replay(
    theta: Replica, kind: str, first: int, rows: Array, directions: int, steps: Sequence[int] | None = None
) -> None:
    _check_rows(theta, kind, first, rows, theta.width(directions))
    theta.replay(first, rows, steps)


def _steps(said: Turns, count: int) -> list[int]:
    steps = said.steps
    if steps.shape != (count,) or steps.dtype != np.int32 or bool((steps < 0).any()):
        allowed = f"int32 ({count},) from 0 on are allowed"
        raise PeerError("Turns.steps", described(steps), allowed, sender="server")
    found: list[int] = steps.tolist()
    return found


def _check_rows(theta: Replica, kind: str, first: int, rows: Array, width: int) -> None:
    if first != theta.position:
        raise PeerError(kind, f"step {first}", f"{theta.position} is allowed", sender="server")
    if rows.ndim != 2 or (len(rows) and rows.shape[1] != width) or rows.dtype != np.float32:
        came = f"slopes {described(rows)}"
        raise PeerError(kind, came, f"float32 with {width} a step are allowed", sender="server")
    if not is_finite(rows):
        what, cure = f"{kind}: slopes from step {first} on", "lower bottom.lr or top.lr"
        raise Diverged(what, "are not finite", cure, sender="server")


def check_array(field: str, array: Array, shape: tuple[int, ...]) -> None:
    """Refuses what isn't float32 of this shape; PeerError names the field, what came and what is allowed."""
    if array.shape != shape or array.dtype != np.float32:
        raise PeerError(field, described(array), f"float32 {shape} is allowed", sender="server")


def is_finite(array: Array) -> bool:
    """Whether every value is; looked at in pieces, because a device has no memory for a second such array."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[at : at + _PIECE]).all()) for at in range(0, len(flat), _PIECE))
