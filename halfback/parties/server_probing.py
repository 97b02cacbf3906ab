"""Zeroth order through the server, on the server: the losses of perturbed activations, and slopes of its own part."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.parties.checks import check_activations
from halfback.parties.cohort import mean
from halfback.parties.server import ByClient, Server
from halfback.parties.server_top import loss_of
from halfback.wire.messages import Activations, Message, Nothing
from halfback.zeroth.slopes import Cotangent, Probe, estimate_slopes
from halfback.zeroth.widening import has_half, in_float32


@dataclass
class Kept:
    """What the server keeps of a client's step: its unperturbed batch, and the losses of its probes so far."""

    batch: Activations
    losses: list[float] = field(default_factory=list)


def kept_of(server: Server) -> dict[int, Kept]:
    """What the server keeps of each client's step."""
    memory: ByClient[Kept] = server.recall(ByClient)
    return memory.of


def keep_batches(server: Server, messages: Mapping[int, Activations]) -> dict[int, Message]:
    """Keeps the unperturbed batches, for their labels and for the server's own step.

    Raises:
        PeerError: the top can't take the activations.
        Diverged: they are not finite.
    """
    for client, message in messages.items():
        check_activations(server, client, message)
        kept_of(server)[client] = Kept(message)
    return {client: Nothing() for client in messages}


@torch.no_grad()
def probe_loss(server: Server, client: int, hidden: Activations) -> Tensor:
    """The loss of perturbed (or unperturbed) activations of the batch that the client sent before, a scalar.

    In float32 also where the top's weights are of half precision: losses are compared.

    Raises:
        PeerError: no batch with labels came before, or the top can't take the activations.
        Diverged: the loss is not finite.
    """
    check_activations(server, client, hidden)
    kept = kept_of(server)
    first = kept[client].batch if client in kept else None
    if first is None or first.labels is None or len(first.hidden) != len(hidden.hidden):
        raise PeerError("Activations", "a probe came before the batch and its labels", sender=client)
    run = partial(loss_of, server, client, hidden.hidden, first.lengths, first.labels)
    return (in_float32(run) if has_half(server.top.module) else run)()


@torch.no_grad()
def top_slopes(server: Server, probe: Probe) -> tuple[Tensor, float]:
    """Central differences of the cohort's mean loss along the directions of the top's next step, and that loss.

    Returns ((P,) float32, the mean loss of the kept batches, by shares); raises as `probe_loss` does.
    """
    replica, kept = server.top.replayed, kept_of(server)

    def mean_loss() -> Tensor:
        losses = [probe_loss(server, client, each.batch) for client, each in kept.items()]
        return mean(torch.stack(losses), server.cohort.shares(kept)).reshape(1)

    base = mean_loss()
    cotangent, seeds = Cotangent(torch.ones_like(base)), replica.seeds(probe.directions)
    settled = probe.settled(replica.parameters)
    slopes = estimate_slopes(mean_loss, server.top.module, replica.parameters, cotangent, seeds, settled)
    return slopes.to(torch.float32), base.item()
