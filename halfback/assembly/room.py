"""How many rows at a time a client has memory for: it takes steps with the meter on, before the first round.

Nothing of these steps lasts: θ and its moments are put back, and what goes over a link goes over one of its own. The
server's answers are made here, in the shapes of the real ones; of its part of the model nothing is needed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halfback.engine.client_side import ClientSide
from halfback.engine.link import End, tensors_of
from halfback.engine.links import Links
from halfback.errors import UserError
from halfback.models.cut import install
from halfback.models.exact import entries, exact_gradient
from halfback.models.running import Bottom, in_rows
from halfback.parties.agreed import Agreed
from halfback.parties.by_weights import take_weights
from halfback.parties.client_exchange import upload
from halfback.parties.client_feedback import feedback, feedback_slopes, submit
from halfback.parties.client_local import local_slopes
from halfback.parties.client_probing import probe
from halfback.parties.holdings import Batch
from halfback.telemetry.meters import Full, MemoryMeter
from halfback.wire.messages import (
    Both,
    CutGradient,
    Exact,
    HeadGradient,
    History,
    Message,
    MiddleActivations,
    Nothing,
    Slopes,
    Weights,
)
from halfback.zeroth.directions import forget_tables
from halfback.zeroth.slopes import Cotangent

_MEGA = 10**6


def rows_with_room(
    side: ClientSide, links: Links, batch: Callable[[int], Batch], megabytes: float, *, history: int
) -> int:
    """The most rows at once with which the client's tensors stay within a budget, in a step on its largest batch.

    A pass in more rows than fit is given up at the operation that goes beyond the budget, so looking for them takes
    little more than it.

    Args:
        side: the client, at its start.
        links: that it may have another one of, for what it says here.
        batch: makes the largest batch, with so many of its shortest rows before the longest.
        megabytes: the budget, in units of 10^6 bytes.
        history: the most agreed steps that the client may be told at once.

    Raises:
        UserError: one row at a time is too much.
    """
    budget = math.floor(megabytes * _MEGA)
    step = partial(_step_peak, _Trial(side, links, batch, history))
    peak = step(1, None)
    if peak > budget:
        held = MemoryMeter(side.resident()).peak_bytes
        over = f"what it holds between two steps alone takes {held / _MEGA:.1f}; " if held > budget else ""
        raise UserError(
            f"client.memory={megabytes:g}: client {side.party.id} can't take a step in it, {over}with one row at a "
            f"time {math.ceil(peak * 10 / _MEGA) / 10:g} or more is needed"
        )
    count = len(batch(0).sample_ids)
    fits, too_many, of_a_row = 1, count + 1, 0.0
    while too_many - fits > 1:
        guess = fits + int((budget - peak) / of_a_row) if of_a_row > 0 else 2 * fits
        between = (fits + too_many) // 2 if too_many <= count else 2 * fits
        guess = max(fits + 1, min(guess, between, too_many - 1))
        try:
            found = step(guess, budget)
        except Full:
            too_many = guess
        else:
            of_a_row = (found - peak) / (guess - fits)
            fits, peak = guess, found
    return fits


@dataclass(frozen=True)
class _Trial:
    """What a step is tried with, as `rows_with_room` has it."""

    side: ClientSide
    links: Links
    batch: Callable[[int], Batch]
    history: int


def _step_peak(trial: _Trial, rows: int, most: int | None) -> int:
    """The peak of a step in so many rows at once; Full where it is more than `most` bytes."""
    side = trial.side
    meter = MemoryMeter(side.resident(), most)
    forget_tables()  # it makes them anew, and is charged for them
    install(side.part, side.party.theta.parameters)
    with in_rows(side.party.bottom, rows):
        _join(trial, meter)
        count = len(trial.batch(0).sample_ids)
        # The longest rows together, and where there are several groups, together behind others' activations.
        for behind in [0] if rows >= count else [rows] if 2 * rows <= count else [0, rows]:
            _take_batch(trial, meter, behind)
    return meter.peak_bytes


def _join(trial: _Trial, meter: MemoryMeter) -> None:
    """What a client does as a round begins: it takes the history's rows, or θ."""
    party, needs = trial.side.party, trial.side.algorithm.needs
    replica = party.theta.replica
    if needs.agreement.allowed(replica, needs.probe, 1).weights:
        said = Weights(tuple(parameter.detach().clone() for parameter in replica.parameters.values()))
        meter.receive(said.tensors)
        with meter.running():
            take_weights(party, said)
        return
    if not needs.replays:
        return
    width = replica.width(needs.directions) - replica.width(0)
    state = [torch.zeros_like(tensor) for tensor in replica.exact_state().values()] if replica.exact else []
    rows = torch.zeros(trial.history, width)
    meter.receive([rows, *state])
    with replica.rehearsal(), meter.running():
        if replica.exact:
            replica.take_state(replica.position, rows[:1], state)
        else:
            replica.replay(replica.position, rows[:1], [0])
    if replica.exact:
        del state
        _take_missed(trial, meter, rows)


def _take_missed(trial: _Trial, meter: MemoryMeter, slopes: Tensor) -> None:
    """What a client does with the most rows of exact gradients that it may be sent, in zeros."""
    links, replica, near = trial.links, trial.side.party.theta.replica, trial.links.near(trial.side.party.id)
    agreed = Agreed(replica, encode=None if (broadcast := links.broadcast()) is None else broadcast.encode)
    while len(agreed.recent) == len(agreed.rows) < len(slopes):
        agreed.append_exact(slopes.new_zeros(slopes.shape[1] + replica.width(0)))
    if not (count := len(agreed.recent)):
        return
    data = links.far(trial.side.party.id).send(Both(History(0, slopes[:count]), agreed.missed_exact(count))).data
    del agreed
    with replica.rehearsal(), meter.running():
        reply: Any = near.receive(data)
        meter.receive(tensors_of(reply))
        rows = torch.cat([reply.first.slopes, reply.second.values.view(count, -1)], dim=1)
        replica.replay(replica.position, rows[:1], [0])


def _take_batch(trial: _Trial, meter: MemoryMeter, behind: int) -> None:
    """What a client does with a batch, and the step behind it."""
    party, needs = trial.side.party, trial.side.algorithm.needs
    with meter.running():
        batch = trial.batch(behind)
    mask = _mask(party.bottom, batch)
    meter.receive([mask])
    slopes, near = torch.zeros(0), trial.links.near(party.id)
    if party.theta.exact:  # what codecs have lost of these is there from the second step on
        nothing = torch.zeros(party.theta.replica.width(0), device=trial.links.device)
        near.send(Both(Slopes(0, nothing[:0]), Exact(nothing)))
        meter.receive(near.tensors())
        del nothing
    match needs.holds:
        case "bottom":
            slopes = _exchange(trial, meter, batch, near)
        case "auxiliary":
            with meter.running():
                near.send(upload(batch, party.forward(batch)))
    if needs.holds != "bottom" and needs.probe is not None:
        own, places = party.theta.groups, range(len(party.theta.replica.groups))
        try:
            for groups in [own] if needs.agreement.groups is None else [(place,) for place in places]:
                party.theta.groups = groups  # where the server says which one, it may be any
                with meter.running():
                    slopes = local_slopes(party, batch, replace(needs.probe, directions=1))
        finally:
            party.theta.groups, party.losses = own, []
    if needs.replays:
        replica = party.theta.replica
        agreed = slopes.new_zeros(needs.directions * len(replica.groups), dtype=torch.float32)
        meter.receive([agreed])
        if replica.exact:
            agreed = _with_exact(trial, meter, near, agreed)
        with replica.rehearsal(), meter.running():
            replica.replay(replica.position, agreed.unsqueeze(0), [0])


def _with_exact(trial: _Trial, meter: MemoryMeter, near: End, slopes: Tensor) -> Tensor:
    """A row of agreed slopes and exact gradients, in zeros, as a client makes it of the message."""
    links, party = trial.links, trial.side.party
    exact: Any = slopes.new_zeros(party.theta.replica.width(0))
    if (broadcast := links.broadcast()) is not None:
        exact, _ = broadcast.encode(exact)
    data = links.far(party.id).send(Both(Slopes(0, slopes), Exact(exact))).data
    del exact
    with meter.running():
        reply: Any = near.receive(data)
        meter.receive(tensors_of(reply))
        return torch.cat([reply.first.values, reply.second.values])


def _mask(bottom: Bottom, batch: Batch) -> Tensor:
    """As large as what says which tokens see one another may be, where the largest batch does without.

    It does where each row is one text, all of the same length. Texts of other lengths are laid out so that they cost
    less, mask and all, than one a row; with this beside the largest batch, they therefore take no more memory either.
    """
    layouts = [layout for layout in bottom.layouts(batch.inputs) if layout is not None and len(layout.lengths) > 1]
    dtype = next(bottom.parameters()).dtype
    places = (
        layout.samples.numel() * layout.samples.shape[1]
        for layout in layouts
        if layout.bias(dtype, causal=False) is None
    )
    return torch.empty(max(places, default=0), dtype=dtype)


def _exchange(trial: _Trial, meter: MemoryMeter, batch: Batch, near: End) -> Tensor:
    """Activations up, and what follows: slopes along one direction, as they are taken one after the other."""
    party, needs = trial.side.party, trial.side.algorithm.needs
    far = trial.links.far(party.id)
    with meter.running():
        with entries(party.bottom, needs.agreement.exact_blocks) as noted:
            hidden = party.forward(batch)
        talk = feedback(party, batch, hidden) if needs.cut_gradient else submit(party, batch, hidden)
        like = torch.empty_like(hidden, device="meta")
        kept = hidden if needs.cut_gradient else None  # as the method does, which needs it once more
        del hidden
        message: Message | None = next(talk)
    gradient: Any = None
    while message is not None:
        with meter.running():
            data = near.send(message).data
        far.receive(data)  # it encodes its answer for the samples that were named
        answer = far.send(_answer(trial, message, like)).data
        message = None
        del data
        with meter.running():
            reply = near.receive(answer)
            meter.receive(tensors_of(reply))
            try:
                message = talk.send(reply)
            except StopIteration as ended:
                gradient = ended.value
            del reply, answer
    del talk
    with meter.running():
        if kept is None:
            return _probed(trial, near, batch, like)
        cotangent = Cotangent.at(gradient, kept, batch.inputs.get("lengths"))
        del kept, gradient
        exact = exact_gradient(noted, cotangent.of, party.theta.exact, party.bottom.layouts(batch.inputs))
        slopes = cotangent.of.new_zeros(0)
        if needs.probe is not None and needs.directions:
            probe_once = replace(needs.probe, directions=1)
            slopes = feedback_slopes(party, batch, cotangent, party.theta.seeds(1), probe_once)
        del cotangent
        if party.theta.exact:
            near.send(Both(Slopes(0, slopes), Exact(exact)))
        return slopes


def _probed(trial: _Trial, near: End, batch: Batch, like: Tensor) -> Tensor:
    """The upload of perturbed activations, of methods that learn no more of them than a loss."""
    party, probing = trial.side.party, trial.side.algorithm.needs.probe
    if probing is not None:
        moved = probing.settled(party.theta.measured, like.dtype).moved
        near.send(probe(party, batch, party.theta.seeds(1).numbers[0], moved, like.dtype))
    return torch.zeros(0)


def _answer(trial: _Trial, message: Message, like: Tensor) -> Message:
    """What a server would say, in zeros; `like`: the activations."""
    head, device = trial.side.party.head, trial.links.device
    if head is not None and not isinstance(message, HeadGradient):
        weights = tuple(parameter.detach().clone() for parameter in head.parameters.values())
        return MiddleActivations(torch.zeros(len(like), *head.sizes, dtype=like.dtype, device=device), weights)
    if head is None and not trial.side.algorithm.needs.cut_gradient:
        return Nothing()
    return CutGradient(torch.zeros(like.shape, dtype=like.dtype, device=device))
