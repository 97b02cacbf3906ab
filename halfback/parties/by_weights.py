"""Agreement by weights: each client has a θ of its own, and starts a round from the mean of the last one.

Or from the θ of the client before it, which hands it over (`RELAY`).
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halfback.parties.agreement import Allowed, unexpected
from halfback.parties.checks import check_weights
from halfback.parties.client import Client
from halfback.parties.client_exchange import received
from halfback.parties.cohort import Aggregation, mean
from halfback.parties.server import Server
from halfback.wire.messages import HandOver, Join, Message, Nothing, Weights
from halfback.zeroth.directions import Directions, seed_for
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import Probe


@dataclass(frozen=True)
class ByWeights:
    """Each client has a θ of its own, which the server averages.

    Attributes:
        aggregation: how much each client counts in the mean.
        kind: of the message that carries θ; a `HandOver` is passed on as it came, and is the mean of one.
    """

    moves: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    keeps_history: ClassVar[bool] = False
    exact_blocks: ClassVar[int] = 0
    groups: ClassVar[None] = None

    aggregation: Aggregation = "uniform"
    kind: type[Weights] | type[HandOver] = Weights

    @property
    def name(self) -> str:
        """Of the kind, for reports."""
        return "relay" if self.kind is HandOver else "weights"

    @property
    def averages(self) -> bool:
        """Not where θ is handed on."""
        return self.kind is Weights

    def replica_for(self, agreed: Replica, client: int) -> Replica:
        """Parameters of the client's own, which start as the agreed ones; and directions of its own."""

        def seed_of(row: int, p: int) -> int:
            return seed_for(agreed.directions.seed_of(row, p), "client", client)

        return agreed.alike(
            copied(agreed.parameters),
            directions=Directions(seed_of, agreed.directions.law),
            own_pace=True,
        )

    def kept_of(self, client: Client) -> Replica | None:
        """The client's own: its parameters come anew with each round, what they are moved by does not."""
        return client.theta.replica

    def allowed(self, agreed: Replica, probe: Probe | None, steps: int) -> Allowed:
        """θ, and the slopes of methods that say theirs too."""
        slopes = 0 if probe is None else steps * probe.directions
        return Allowed(up=slopes, down=slopes, weights=agreed.parameters)

    def join(self, client: Client) -> Generator[Message, Any, None]:
        """The client takes the agreed θ; raises as `take_weights` does."""
        take_weights(client, (yield Join(client.theta.position)), self.kind)

    def close(self, client: Client) -> Generator[Message, Any, None]:
        """The client says its θ."""
        yield self.kind(tuple(client.theta.parameters.values()))

    def answer(self, server: Server, messages: Mapping[int, Any]) -> dict[int, Message]:
        """The agreed θ for clients that join; their mean from those that close; PeerError for any other message."""
        match next(iter(messages.values())):
            case Join():
                return {m: self.kind(tuple(server.agreed.replica.parameters.values())) for m in messages}
            case Weights() | HandOver() as said if isinstance(said, self.kind):
                return average_weights(server, messages)
            case _:
                raise unexpected(messages)


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of somebody's own that start as these, and running statistics among them."""
    copies = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    return {name: nn.Parameter(copy) if parameters[name].requires_grad else copy for name, copy in copies.items()}


RELAY = ByWeights(kind=HandOver)
"""One client at a time: it hands its θ over to the next."""


@torch.no_grad()
def take_weights(client: Client, reply: Any, kind: type[Weights] | type[HandOver] = Weights) -> None:
    """The client's θ becomes what the server says.

    Raises:
        PeerError: something else came, or tensors that are not θ's.
        Diverged: a weight is not finite.
    """
    said = received(reply, kind)
    parameters = client.theta.parameters
    check_weights("server", said, parameters, client.feed.cursor)
    for parameter, value in zip(parameters.values(), said.tensors, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def average_weights(server: Server, messages: Mapping[int, Weights]) -> dict[int, Message]:
    """The agreed θ becomes the mean of the clients', each by its share (`Cohort.shares`), or takes a step towards it.

    Raises:
        PeerError: a client's tensors are not θ's.
        Diverged: a weight is not finite.
    """
    agreed = server.agreed.replica.parameters
    for client, message in messages.items():
        check_weights(client, message, agreed, server.steps)
    shares = server.cohort.shares(messages)
    for place, (name, parameter) in enumerate(agreed.items()):
        said = [message.tensors[place] for message in messages.values()]
        found = said[0] if server.cohort.summed else mean(torch.stack(said), shares)
        parameter.copy_(server.averaging.moved(name, found) if server.averaging and parameter.requires_grad else found)
    return {client: Nothing() for client in messages}
