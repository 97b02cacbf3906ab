"""The device's sides of the methods that it can take part in, as conversations: each yield is one message up, one down.

They are those of the reference (halfback/algorithms, where the papers and the whole of each step are): HO-SFL, its
pipelined form, HOSL and ZO-SFL.
"""

from collections.abc import Callable, Generator

import numpy as np

from halfback_device.batches import Batch
from halfback_device.messages import Array, Both, CutGradient, Exact, Message, Slopes
from halfback_device.party import (
    Conversation,
    Party,
    Round,
    cut_gradient,
    feedback,
    feedback_slopes,
    join,
    loss_value,
    received_both,
    take_agreed,
    upload,
)
from halfback_device.slopes import Cotangent, perturbed


def ho_sfl(party: Party, round: Round) -> Conversation:
    """Activations up, λ down, slopes and exact gradients up, the cohort's down, and θ moves along them."""
    theta, directions = party.theta, party.probe.directions
    yield from join(theta, directions)
    for _ in range(round.steps):
        said = yield from _measured(party, party.feed.next())
        take_agreed(theta, (yield said), directions)


def _measured(party: Party, batch: Batch) -> Generator[Message, Message, Message]:
    """What a batch says of the direction in which θ should move."""
    theta = party.theta
    hidden, noted = party.noting(batch) if theta.exact else (party.forward(batch), [])
    gradient = yield from feedback(party, batch, hidden)
    cotangent = Cotangent.at(gradient, hidden, batch.inputs.get("lengths"))
    del hidden  # the device needs its memory for what follows
    exact = party.exact(noted, gradient) if theta.exact else None
    del gradient
    slopes = Slopes(theta.position, feedback_slopes(party, batch, cotangent, theta.position))
    return slopes if exact is None else Both(slopes, Exact(exact))


def ho_sfl_pipelined(party: Party, round: Round) -> Conversation:
    """A step's slopes travel with the next step's activations, and what is agreed on with its λ."""
    theta, directions = party.theta, party.probe.directions
    yield from join(theta, directions)
    said: Slopes | None = None  # of the step before
    for row in range(theta.position, theta.position + round.steps):
        batch = party.feed.next()
        hidden = party.forward(batch)
        agreed: Slopes | None = None
        if said is None:
            gradient = cut_gradient((yield upload(batch, hidden)), hidden)
        else:
            agreed, answer = received_both((yield Both(said, upload(batch, hidden))), Slopes, CutGradient)
            gradient = cut_gradient(answer, hidden)
            del answer
        cotangent = Cotangent.at(gradient, hidden, batch.inputs.get("lengths"))
        del hidden, gradient  # the device needs their memory for what follows
        said = Slopes(row, feedback_slopes(party, batch, cotangent, row))
        del cotangent
        if agreed is not None:  # behind the probes, which belong to the θ of the activations
            take_agreed(theta, agreed, directions)
    if said is not None:
        take_agreed(theta, (yield said), directions)


def hosl(party: Party, round: Round) -> Conversation:
    """Perturbed activations up, their losses down; clients take turns, each on slopes of its own."""
    theta = party.theta
    yield from join(theta, party.probe.directions)
    for step in range(round.first, round.first + round.steps):
        batch = party.feed.next()
        yield upload(batch, party.forward(batch))
        slopes = yield from _through_losses(party, batch)
        theta.replay(theta.position, slopes[None], [step])


def zo_sfl(party: Party, round: Round) -> Conversation:
    """Perturbed activations up, their losses down, slopes up, the cohort's down."""
    theta, directions = party.theta, party.probe.directions
    yield from join(theta, directions)
    for _ in range(round.steps):
        batch = party.feed.next()
        yield upload(batch, party.forward(batch))
        slopes = yield from _through_losses(party, batch)
        take_agreed(theta, (yield Slopes(theta.position, slopes)), directions)


def _through_losses(party: Party, batch: Batch) -> Generator[Message, Message, Array]:
    """(ℓ⁺ − ℓ⁻) / 2μ along each direction of the next row, (P,) float32; two uploads and two scalars each."""
    theta, measured = party.theta, party.theta.measured
    radius = party.probe.settled(measured).moved
    seeds = theta.seeds(party.probe.directions)
    slopes = []
    for place in range(len(seeds)):
        losses = []
        for side in (radius, -radius):
            weight = perturbed(theta.parameters, measured, seeds, place, side)
            losses.append(loss_value((yield upload(batch, party.forward(batch, weight), repeated=True))))
        slopes.append((losses[0] - losses[1]) / (2 * radius))
    return np.array(slopes, dtype=np.float32)


METHODS: dict[str, Callable[[Party, Round], Conversation]] = {
    "ho_sfl": ho_sfl,
    "ho_sfl_pipelined": ho_sfl_pipelined,
    "hosl": hosl,
    "zo_sfl": zo_sfl,
}
