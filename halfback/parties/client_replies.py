"""What a device takes from the server, checked: bytes from a peer are a claim, also when the peer is the server."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from halfback.errors import Diverged, PeerError
from halfback.parties.checks import all_finite, check_tensors
from halfback.parties.client import Client
from halfback.wire.messages import (
    CutGradient,
    History,
    HistoryAndState,
    HistoryOfTurns,
    Losses,
    Share,
    Slopes,
    SlopesAndGradient,
)

Kind = TypeVar("Kind")


def received(reply: Any, kind: type[Kind]) -> Kind:
    """The server's message, which must be of this kind.

    Raises:
        PeerError: it is another one.
    """
    if not isinstance(reply, kind):
        raise PeerError(f"server: {type(reply).__name__} came, {kind.__name__} is allowed")
    return reply


def cut_gradient(reply: Any, hidden: Tensor) -> Tensor:
    """λ for the activations `hidden`, in their shape and dtype.

    Raises:
        PeerError: another shape or dtype came.
        Diverged: λ is not finite.
    """
    gradient = received(reply, CutGradient).gradient
    if gradient.shape != hidden.shape or gradient.dtype != hidden.dtype:
        raise PeerError(
            f"server: CutGradient.gradient: {gradient.dtype} {tuple(gradient.shape)} came, "
            f"{hidden.dtype} {tuple(hidden.shape)} is allowed"
        )
    if not all_finite(gradient):
        raise Diverged("server: CutGradient.gradient is not finite; lower top.lr or clip the top (top.clip)")
    return gradient


def gradient_and_slopes(reply: Any, hidden: Tensor) -> tuple[Tensor, Slopes]:
    """λ for the activations `hidden`, and the agreed slopes of the step before; raises as `cut_gradient` does.

    The slopes are for `take_agreed`, which checks them.
    """
    both = received(reply, SlopesAndGradient)
    return cut_gradient(CutGradient(both.gradient), hidden), Slopes(both.step, both.values)


def loss_value(reply: Any) -> float:
    """The loss that answers a probe.

    Raises:
        PeerError: it is no single float32.
        Diverged: it is not finite.
    """
    values = received(reply, Losses).values
    if values.shape != (1,) or values.dtype != torch.float32:
        raise PeerError(
            f"server: Losses.values: {values.dtype} {tuple(values.shape)} came, torch.float32 (1,) is allowed"
        )
    if not all_finite(values):
        raise Diverged("server: Losses.values is not finite; lower the learning rates (top.lr, bottom.lr)")
    return float(values)


def catch_up(client: Client, reply: Any, directions: int, kind: type[History] | type[Share] = History) -> None:
    """Replays the steps that the client missed, from the answer to its `Join`.

    Raises:
        PeerError: other steps or shapes came than were asked for.
        Diverged: a slope is not finite.
    """
    if client.replica.exact:
        _take_state(client, received(reply, HistoryAndState), directions)
    elif isinstance(reply, HistoryOfTurns) and client.replica.own_pace:
        _replay(client, "HistoryOfTurns", reply.first, reply.slopes, directions, _turns(reply))
    else:
        said = received(reply, kind)
        _replay(client, kind.__name__, said.first, said.slopes, directions)


def take_share(client: Client, reply: Any, directions: int) -> None:
    """Catches up, and from now on measures the group of θ that the server says; raises as `catch_up` does."""
    group, count = received(reply, Share).group, len(client.replica.groups)
    if not 0 <= group < count:
        raise PeerError(f"server: Share.group: {group} came, 0 to {count - 1} are allowed")
    catch_up(client, reply, directions, Share)
    client.groups = (group,)


def take_agreed(client: Client, reply: Any, directions: int, *, steps: int = 1) -> None:
    """Replays the step, or the steps, that the cohort has just agreed on; raises as `catch_up` does."""
    agreed = received(reply, Slopes)
    count = steps * client.replica.width(directions)
    if agreed.values.shape != (count,):
        raise PeerError(f"server: Slopes: slopes {tuple(agreed.values.shape)} came, ({count},) is allowed")
    _replay(client, "Slopes", agreed.step, agreed.values.view(steps, -1), directions)


def _take_state(client: Client, said: HistoryAndState, directions: int) -> None:
    rows, field = said.slopes, "server: HistoryAndState.tensors"
    width = directions * len(client.replica.groups)
    _check_rows(client, "HistoryAndState", said.first, rows, width)
    check_tensors(field, said.tensors, client.replica.exact_state() if len(rows) else {})
    if not all(all_finite(tensor) for tensor in said.tensors):
        raise Diverged(f"{field} are not finite; lower bottom.lr or top.lr")
    client.take_state(said.first, rows, said.tensors)


def _replay(
    client: Client, kind: str, first: int, rows: Tensor, directions: int, steps: Sequence[int] | None = None
) -> None:
    _check_rows(client, kind, first, rows, client.replica.width(directions))
    client.replay(first, rows, range(first, first + len(rows)) if steps is None else steps)


def _turns(said: HistoryOfTurns) -> Sequence[int]:
    steps, count = said.steps, len(said.slopes)
    if steps.shape != (count,) or steps.dtype != torch.int32 or bool((steps < 0).any()):
        came = f"{steps.dtype} {tuple(steps.shape)}"
        raise PeerError(f"server: HistoryOfTurns.steps: {came} came, torch.int32 ({count},) from 0 on are allowed")
    return steps.tolist()


def _check_rows(client: Client, kind: str, first: int, rows: Tensor, width: int) -> None:
    if first != client.position:
        raise PeerError(f"server: {kind}: step {first} came, {client.position} is allowed")
    if rows.ndim != 2 or (len(rows) and rows.shape[1] != width) or rows.dtype != torch.float32:
        raise PeerError(
            f"server: {kind}: slopes {rows.dtype} {tuple(rows.shape)} came, torch.float32 with {width} a step "
            "are allowed"
        )
    if not all_finite(rows):
        raise Diverged(f"server: {kind}: slopes from step {first} on are not finite; lower bottom.lr or top.lr")
