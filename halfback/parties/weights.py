"""How clients agree by weights: each starts a round from the mean of the last one."""

from collections.abc import Mapping
from typing import Any

import torch

from halfback.parties.checks import check_weights
from halfback.parties.client import Client
from halfback.parties.client_replies import received
from halfback.parties.server import Server
from halfback.parties.shares import mean
from halfback.wire.messages import HandOver, Message, Nothing, Weights


@torch.no_grad()
def take_weights(client: Client, reply: Any, kind: type[Weights] | type[HandOver] = Weights) -> None:
    """The client's θ becomes what the server says.

    Raises:
        PeerError: something else came, or tensors that are not θ's.
        Diverged: a weight is not finite.
    """
    said = received(reply, kind)
    parameters = client.replica.parameters
    check_weights("server", said, parameters, client.cursor)
    for parameter, value in zip(parameters.values(), said.tensors, strict=True):
        parameter.copy_(value)


def weights_of(client: Client) -> Weights:
    """The client's θ, to be averaged with the others'."""
    return Weights(tuple(client.replica.parameters.values()))


def agreed_weights(server: Server, messages: Mapping[int, Any]) -> dict[int, Message]:
    """The answer to clients that join: the agreed θ."""
    return {client: Weights(tuple(server.replica.parameters.values())) for client in messages}


@torch.no_grad()
def average_weights(server: Server, messages: Mapping[int, Weights]) -> dict[int, Message]:
    """The agreed θ becomes the mean of the clients', each by its share (`Server.shares`).

    Raises:
        PeerError: a client's tensors are not θ's.
        Diverged: a weight is not finite.
    """
    agreed = server.replica.parameters
    for client, message in messages.items():
        check_weights(f"client {client}", message, agreed, server.steps)
    shares = server.shares(messages)
    for place, parameter in enumerate(agreed.values()):
        parameter.copy_(mean(torch.stack([message.tensors[place] for message in messages.values()]), shares))
    return {client: Nothing() for client in messages}
