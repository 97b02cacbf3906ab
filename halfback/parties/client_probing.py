"""Zeroth order through the server, on a device: it sends perturbed activations, and learns what loss they came to."""

from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from halfback.parties.client import Client
from halfback.parties.client_exchange import loss_value, upload
from halfback.parties.holdings import Batch
from halfback.wire.messages import Activations, Message
from halfback.zeroth.slopes import Probe, perturbed
from halfback.zeroth.widening import has_half, in_float32


def probe_slopes(client: Client, batch: Batch, probing: Probe, sent: torch.dtype) -> Generator[Message, Any, Tensor]:
    """(ℓ⁺ − ℓ⁻) / 2μ along each direction of a replica's next step, (P,) float32; two uploads and two scalars each.

    `sent`: the dtype of the activations that were sent before.
    """
    slopes = []
    for seed in client.theta.seeds(probing.directions).numbers:
        losses = []
        for side in (probing.moved, -probing.moved):
            losses.append(loss_value((yield probe(client, batch, seed, side, sent))))
        slopes.append(difference(losses, probing))
    return torch.tensor(slopes, dtype=torch.float32)


def probe(client: Client, batch: Batch, seed: int, side: float, sent: torch.dtype) -> Activations:
    """The upload of f_b(x; θ + side·u): activations alone, since the batch is known.

    They are computed in float32 and rounded once, to the dtype in which they are `sent`.
    """
    run = partial(client.forward, batch)
    with perturbed(client.bottom, client.theta.measured, seed, side, law=client.theta.replica.directions.law):
        hidden = (in_float32(run) if has_half(client.bottom) else run)()
    return upload(batch, hidden.to(sent), repeated=True)


def difference(losses: list[float], probing: Probe) -> float:
    """The central difference of ℓ⁺ and ℓ⁻, alike on whichever side it is taken."""
    ahead, behind = losses
    return (ahead - behind) / (2 * probing.moved)
