"""First order on a device: backpropagation through its part of the model, and a step of its optimiser."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from halfback.models.checkpointing import checkpointed
from halfback.parties.client import Client
from halfback.parties.client_feedback import feedback
from halfback.parties.holdings import Round
from halfback.wire.messages import Message


def first_order_steps(client: Client, round: Round, *, checkpointing: bool = False) -> Generator[Message, Any, None]:
    """The batches of a round: z → λ from the server → a step on ∂⟨λ, z⟩/∂θ.

    `checkpointing`: the client stores only what enters each block and computes the rest again in its backward pass.
    Raises as `feedback` does.
    """
    for place, batch in enumerate(client.batches(round)):
        with checkpointed(client.bottom, checkpointing):
            hidden = client.bottom(batch.inputs)
        gradient = yield from feedback(client, batch, hidden)
        hidden.backward(gradient)
        del hidden, gradient  # the device needs their memory for what follows
        descend(client, round.first + place)


def descend(client: Client, step: int) -> None:
    """A step of a client's optimiser on the gradients that its parameters hold, which are then used up.

    `step`: of the run, from which the schedule takes the learning rate.
    """
    optimizer, parameters = client.optimizer, list(client.replica.parameters.values())
    assert optimizer is not None, "an algorithm that backpropagates gets an optimiser"
    if client.clip is not None:
        nn.utils.clip_grad_norm_(parameters, client.clip)
    set_rate(optimizer, client.schedule(step))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def moments_for_now(client: Client) -> Iterator[None]:
    """While this context is open the client's optimiser has moments, which start anew; none are left behind."""
    assert client.optimizer is not None, "an algorithm that backpropagates gets an optimiser"
    try:
        yield
    finally:
        client.optimizer.state.clear()


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the learning rate to this part of the one that the optimiser was made with."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * factor
