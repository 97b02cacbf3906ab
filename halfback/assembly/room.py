"""How many rows at a time a client has memory for: it takes steps with the meter on, before the first round.

Nothing of these steps lasts: θ and its moments are put back, and what goes over a link goes over one of its own. The
server's answers are made here, in the shapes of the real ones; of its part of the model nothing is needed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from halfback.engine.client_side import ClientSide
from halfback.engine.link import tensors_of
from halfback.engine.links import Links
from halfback.errors import UserError
from halfback.models.cut import install
from halfback.models.exact import entries, exact_gradient
from halfback.models.running import in_rows
from halfback.parties.by_weights import take_weights
from halfback.parties.client_exchange import upload
from halfback.parties.client_feedback import feedback, feedback_slopes
from halfback.parties.client_local import local_slopes
from halfback.parties.holdings import Batch
from halfback.telemetry.meters import Full, MemoryMeter
from halfback.wire.messages import CutGradient, HeadGradient, Message, MiddleActivations, Weights
from halfback.zeroth.directions import forget_tables
from halfback.zeroth.slopes import Cotangent

_MEGA = 10**6


def rows_with_room(
    side: ClientSide, links: Links, batch: Callable[[], Batch], megabytes: float, *, history: int
) -> int:
    """The most rows at once with which the client's tensors stay within a budget, in a step on its largest batch.

    A pass in more rows than fit is given up at the operation that goes beyond the budget, so looking for them takes
    little more than it.

    Args:
        side: the client, at its start.
        links: that it may have another one of, for what it says here.
        batch: makes the largest batch.
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
            f"client.memory={megabytes:g}: client {side.party.id} can't take a step in it, {over}with one row at a time "
            f"{math.ceil(peak * 10 / _MEGA) / 10:g} or more is needed"
        )
    count = len(batch().sample_ids)
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
    batch: Callable[[], Batch]
    history: int


def _step_peak(trial: _Trial, rows: int, most: int | None) -> int:
    """The peak of a step in so many rows at once; Full where it is more than `most` bytes."""
    side = trial.side
    meter = MemoryMeter(side.resident(), most)
    forget_tables()  # it makes them anew, and is charged for them
    install(side.part, side.party.theta.parameters)
    with in_rows(side.party.bottom, rows):
        _join(trial, meter)
        _take_batch(trial, meter)
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


def _take_batch(trial: _Trial, meter: MemoryMeter) -> None:
    """What a client does with a batch, and the step behind it."""
    party, needs = trial.side.party, trial.side.algorithm.needs
    with meter.running():
        batch = trial.batch()
    slopes = torch.zeros(0)
    match needs.holds:
        case "bottom":
            slopes = _feedback(trial, meter, batch)
        case "auxiliary":
            with meter.running():
                trial.links.near(party.id).send(upload(batch, party.forward(batch)))
    if needs.holds != "bottom" and needs.probe is not None:
        with meter.running():
            slopes = local_slopes(party, batch, replace(needs.probe, directions=1))
        party.losses.pop()
    if needs.replays:
        replica = party.theta.replica
        agreed = slopes.new_zeros(1, replica.width(needs.directions))
        meter.receive([agreed])
        with replica.rehearsal(), meter.running():
            replica.replay(replica.position, agreed, [0])


def _feedback(trial: _Trial, meter: MemoryMeter, batch: Batch) -> Tensor:
    """Activations up, λ down, and the slopes from it; along one direction, as they are taken one after the other."""
    party, needs = trial.side.party, trial.side.algorithm.needs
    exact_blocks = needs.agreement.exact_blocks
    near, far = trial.links.near(party.id), trial.links.far(party.id)
    with meter.running():
        with entries(party.bottom, exact_blocks) as noted:
            hidden = party.forward(batch)
        talk = feedback(party, batch, hidden)
        message = next(talk)
    while True:
        with meter.running():
            data = near.send(message).data
        far.receive(data)  # it encodes its answer for the samples that were named
        answer = far.send(_answer(trial, message, hidden)).data
        del message, data
        with meter.running():
            reply = near.receive(answer)
            meter.receive(tensors_of(reply))
            try:
                message = talk.send(reply)
            except StopIteration as ended:
                gradient = ended.value
                break
            finally:
                del reply, answer
    with meter.running():
        cotangent = Cotangent.at(gradient, hidden, batch.inputs.get("lengths"))
        del hidden, gradient, talk
        exact = exact_gradient(noted, cotangent.of, party.theta.exact, party.bottom.layouts(batch.inputs))
        if needs.probe is None or not needs.directions:
            return exact
        seeds = party.theta.seeds(1)
        return torch.cat([feedback_slopes(party, batch, cotangent, seeds, replace(needs.probe, directions=1)), exact])


def _answer(trial: _Trial, message: Message, hidden: Tensor) -> Message:
    """What a server would say, in zeros."""
    head = trial.side.party.head
    if head is None or isinstance(message, HeadGradient):
        return CutGradient(torch.zeros_like(hidden))
    weights = tuple(parameter.detach().clone() for parameter in head.parameters.values())
    return MiddleActivations(hidden.new_zeros(len(hidden), *head.sizes), weights)
