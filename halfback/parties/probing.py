"""Zeroth order through the server: a device sends perturbed activations, and learns what loss they came to."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.parties.checks import check_activations
from halfback.parties.client import Client
from halfback.parties.client_replies import loss_value
from halfback.parties.exchange import forward, upload
from halfback.parties.holdings import Batch
from halfback.parties.server import Server
from halfback.parties.server_passes import loss_of
from halfback.parties.shares import mean
from halfback.wire.messages import Activations, Message, Nothing
from halfback.zeroth.perturb import perturbed
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import estimate_slopes


@dataclass
class Kept:
    """What the server keeps of a client's step: its unperturbed batch, and the losses of its probes so far."""

    batch: Activations
    losses: list[float] = field(default_factory=list)


def probe_slopes(client: Client, batch: Batch, directions: int, radius: float) -> Generator[Message, Any, Tensor]:
    """(ℓ⁺ − ℓ⁻) / 2μ along each direction of a replica's next step, (P,) float32; two uploads and two scalars each."""
    slopes = []
    for seed in client.replica.seeds(directions):
        losses = []
        for side in (radius, -radius):
            losses.append(loss_value((yield probe(client, batch, seed, side))))
        slopes.append(difference(losses, radius))
    return torch.tensor(slopes, dtype=torch.float32)


def probe(client: Client, batch: Batch, seed: int, side: float) -> Activations:
    """The upload of f_b(x; θ + side·u): activations alone, since the batch is known."""
    with perturbed(client.bottom, client.measured, seed, side, law=client.replica.law):
        hidden = forward(client, batch)
    return upload(batch, hidden, repeated=True)


def difference(losses: list[float], radius: float) -> float:
    """The central difference of ℓ⁺ and ℓ⁻, alike on whichever side it is taken."""
    ahead, behind = losses
    return (ahead - behind) / (2 * radius)


def keep_batches(server: Server, messages: Mapping[int, Activations]) -> dict[int, Message]:
    """Keeps the unperturbed batches, for their labels and for the server's own step.

    Raises:
        PeerError: the top can't take the activations.
        Diverged: they are not finite.
    """
    for client, message in messages.items():
        check_activations(server, client, message)
        server.kept[client] = Kept(message)
    return {client: Nothing() for client in messages}


@torch.no_grad()
def probe_loss(server: Server, client: int, hidden: Activations) -> Tensor:
    """The loss of perturbed (or unperturbed) activations of the batch that the client sent before, a scalar.

    Raises:
        PeerError: no batch with labels came before, or the top can't take the activations.
        Diverged: the loss is not finite.
    """
    check_activations(server, client, hidden)
    first = server.kept[client].batch if client in server.kept else None
    if first is None or first.labels is None or len(first.labels) != len(hidden.hidden):
        raise PeerError(f"client {client}: Activations: a probe came before the batch and its labels")
    return loss_of(server, client, hidden.hidden, first.mask, first.labels)


@torch.no_grad()
def top_slopes(server: Server, directions: int, radius: float) -> tuple[Tensor, float]:
    """Central differences of the cohort's mean loss along the directions of the top's next step, and that loss.

    Returns ((P,) float32, the mean loss of the kept batches, by shares); raises as `probe_loss` does.
    """
    replica = replica_of_top(server)

    def mean_loss() -> Tensor:
        losses = [probe_loss(server, client, kept.batch) for client, kept in server.kept.items()]
        return mean(torch.stack(losses), server.shares(server.kept)).reshape(1)

    base = mean_loss()
    slopes = estimate_slopes(
        mean_loss,
        server.top,
        replica.parameters,
        cotangent=torch.ones_like(base),
        base=base,
        seeds=replica.seeds(directions),
        radius=radius,
        estimator="central",
        law=replica.law,
    )
    return slopes.to(torch.float32), base.item()


def replica_of_top(server: Server) -> Replica:
    """The top's parameters as replay moves them."""
    assert server.top_replica is not None, "an algorithm with a replayed top gets a replica of it"
    return server.top_replica
