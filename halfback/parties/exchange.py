"""What several algorithms say and answer alike: the upload of a batch, the missed steps, the mean of slopes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.parties.checks import check_slopes
from halfback.parties.client import Client
from halfback.parties.holdings import Batch
from halfback.parties.server import Server
from halfback.wire.messages import (
    Activations,
    History,
    HistoryAndState,
    HistoryOfTurns,
    Join,
    Slopes,
    SlopesAndActivations,
)


@torch.no_grad()
def forward(client: Client, batch: Batch) -> Tensor:
    """Activations at the cut, (B, T, H) or (B, C, H, W), without a graph."""
    return client.bottom(batch.inputs)


def upload(batch: Batch, hidden: Tensor, *, repeated: bool = False, labels: bool = True) -> Activations:
    """The message that carries one batch's activations.

    `repeated`: all but these were sent earlier in the step; `labels=False`: they stay on the device.
    """
    return Activations(
        hidden=hidden,
        mask=None if repeated else batch.inputs.get("attention_mask"),
        labels=batch.labels.to(torch.int32) if labels and not repeated else None,
        sample_ids=None if repeated else batch.sample_ids.to(torch.int32),
    )


def with_slopes(batch: Activations, slopes: Slopes) -> SlopesAndActivations:
    """One message of a batch's activations and the slopes of the step before it."""
    return SlopesAndActivations(slopes.step, slopes.values, batch.hidden, batch.mask, batch.labels, batch.sample_ids)


def parted(messages: Mapping[int, SlopesAndActivations]) -> tuple[dict[int, Slopes], dict[int, Activations]]:
    """What `with_slopes` put together, by client."""
    slopes = {client: Slopes(said.step, said.values) for client, said in messages.items()}
    return slopes, {
        client: Activations(said.hidden, said.mask, said.labels, said.sample_ids) for client, said in messages.items()
    }


def unexpected(messages: Mapping[int, Any]) -> PeerError:
    """The error for messages that have no place in an algorithm's conversation."""
    client, message = next(iter(messages.items()))
    return PeerError(f"client {client}: {type(message).__name__}: this algorithm expects no such message")


def missed_slopes(
    server: Server, messages: Mapping[int, Join]
) -> Mapping[int, History | HistoryOfTurns | HistoryAndState]:
    """The answer to a client that joins: the agreed slopes of the steps that it has not replayed.

    Where clients took turns, so that rows are not numbered as steps, the steps come too. Where blocks have exact
    gradients, these are not kept: the state that they led to comes instead.

    Raises:
        PeerError: a client says that it replayed steps which were never taken.
    """
    for client, join in messages.items():
        if not 0 <= join.position <= len(server.history):
            raise PeerError(
                f"client {client}: Join.position: {join.position} came, 0 to {len(server.history)} are allowed"
            )
    if not server.replica.exact:
        return {client: _history(server, join.position) for client, join in messages.items()}
    server.settle()
    state = tuple(tensor.detach() for tensor in server.replica.exact_state().values())
    return {
        client: HistoryAndState(
            join.position, server.missed(join.position), state if join.position < len(server.history) else ()
        )
        for client, join in messages.items()
    }


def _history(server: Server, position: int) -> History | HistoryOfTurns:
    rows = server.missed(position)
    steps = server.steps_of(position, len(rows))
    if steps == list(range(position, position + len(rows))):
        return History(position, rows)
    return HistoryOfTurns(position, rows, torch.tensor(steps, dtype=torch.int32))


def mean_slopes(server: Server, messages: Mapping[int, Slopes], directions: int) -> Tensor:
    """v̄ = the mean over the cohort, by shares, or what the setting `robust` takes in its place: (P,) float32.

    Where θ has groups, (groups · P,): for each that of the clients that measured it, zeros where none did **(ours)**.
    Exact gradients come behind.

    Raises:
        PeerError: a client's slopes belong to another step or are not P floats.
        Diverged: a slope is not finite.
    """
    exact = server.replica.width(0)
    for client, message in messages.items():
        check_slopes(server, client, message, directions + exact)
    means = []
    for place in range(len(server.replica.groups)) if directions else ():
        measured = {
            client: m.values[:directions]
            for client, m in messages.items()
            if place in server.groups.get(client, (place,))
        }
        if measured:
            means.append(server.robust.agreed(torch.stack(list(measured.values())), server.shares(measured)))
        else:
            means.append(torch.zeros_like(next(iter(messages.values())).values[:directions]))
    if exact:
        given = torch.stack([m.values[directions:] for m in messages.values()])
        means.append(server.robust.agreed(given, server.shares(messages)))
    return torch.cat(means)
