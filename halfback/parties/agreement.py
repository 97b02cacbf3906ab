"""How the clients of a run come to the same trained parameters θ: what every agreement supplies, and the plain ones.

By slopes, θ is a function of the history of agreed slopes, which everyone replays (`by_slopes`). By weights, each
client has a θ of its own and the server averages them, or hands one client's to the next (`by_weights`). Here are those
without an exchange: one machine alone, and a θ that never moves.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from halfback.errors import PeerError
from halfback.parties.client import Client
from halfback.parties.cohort import Aggregation
from halfback.parties.server import Server
from halfback.wire.messages import Message
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import Probe

GroupsOf = Callable[[Sequence[str], int], list[list[str]]]


@dataclass(frozen=True)
class Allowed:
    """The most that a client's messages of a round may hold of θ, by what its method agrees on.

    Attributes:
        up: slopes that it may send.
        down: slopes that it may be sent.
        weights: the tensors that a client may send, none where it sends none of θ.
    """

    up: int = 0
    down: int = 0
    weights: Mapping[str, Tensor] | None = None


class Agreement(Protocol):
    """What a method's agreement on θ supplies, so that nobody asks which one it has."""

    @property
    def name(self) -> str:
        """Of the kind, for reports."""
        ...

    @property
    def moves(self) -> bool:
        """Whether θ moves at all."""
        ...

    @property
    def pools(self) -> bool:
        """Whether one machine has the rows of all clients, and nothing is sent."""
        ...

    @property
    def averages(self) -> bool:
        """Whether θ becomes a mean of the clients' at the end of a round."""
        ...

    @property
    def keeps_history(self) -> bool:
        """Whether θ is a function of the agreed rows in `Server.agreed`."""
        ...

    @property
    def aggregation(self) -> Aggregation:
        """How much each client of a cohort counts in the means of the method."""
        ...

    @property
    def exact_blocks(self) -> int | str:
        """The last blocks of a device whose gradients are agreed on as they are, or "all"."""
        ...

    @property
    def groups(self) -> GroupsOf | None:
        """How θ is shared out, where a device measures only a part of it; None for one group of all.

        It maps the names of the parameters and the clients of a cohort to the names of each group.
        """
        ...

    def replica_for(self, agreed: Replica, client: int) -> Replica:
        """The θ that a client gets.

        Args:
            agreed: the server's.
            client: the client's number.

        Returns:
            In one process `agreed` itself where that is equal by construction; else one of the client's own that starts
            there.
        """
        ...

    def kept_of(self, client: Client) -> Replica | None:
        """What of a client a checkpoint of all parties holds.

        Args:
            client: whose it would be.

        Returns:
            The client's replica, of which a checkpoint then has moments and position; None where it has nothing.
        """
        ...

    def allowed(self, agreed: Replica, probe: Probe | None, steps: int) -> Allowed:
        """Bounds what messages may hold of θ, before any is read.

        Args:
            agreed: the server's θ.
            probe: how the method takes its slopes; None where it takes none.
            steps: the most that a round has.

        Returns:
            What a client's messages of a round may hold.
        """
        ...

    def join(self, client: Client) -> Generator[Message, Any, None]:
        """A client's first exchange of a round, after which it has the agreed θ.

        Args:
            client: which begins.

        Yields:
            What it says; the `yield` evaluates to the answer.
        """
        ...

    def close(self, client: Client) -> Generator[Message, Any, None]:
        """A client's last exchange of a round.

        Args:
            client: which ends.

        Yields:
            What it says; the `yield` evaluates to the answer.
        """
        ...

    def answer(self, server: Server, messages: Mapping[int, Any]) -> dict[int, Message]:
        """The server's side of `join` and `close`.

        Args:
            server: the agreed θ, and who counts how.
            messages: what each client has said, by its number; all of one kind.

        Returns:
            An answer for each of these clients.

        Raises:
            PeerError: the messages are of another kind, or hold what none of these may.
        """
        ...


def unexpected(messages: Mapping[int, Any]) -> PeerError:
    """The error for messages that have no place in an algorithm's conversation.

    Args:
        messages: by the clients' numbers, one or more.

    Returns:
        An error that names the first client and its message.
    """
    client, message = next(iter(messages.items()))
    return PeerError(type(message).__name__, "this algorithm expects no such message", sender=client)


@dataclass(frozen=True)
class Silent:
    """An agreement without an exchange; `ALONE` is one, and so is a θ that never moves.

    Attributes:
        name: of the kind, for reports.
        moves: whether θ moves at all.
        pools: whether one machine has the rows of all clients.
        aggregation: how much each client counts in the mean of the top's gradients.
    """

    name: str
    moves: bool
    pools: bool
    aggregation: Aggregation = "uniform"
    averages: ClassVar[bool] = False
    keeps_history: ClassVar[bool] = False
    exact_blocks: ClassVar[int] = 0
    groups: ClassVar[None] = None

    def replica_for(self, agreed: Replica, client: int) -> Replica:
        """The one that there is."""
        return agreed

    def kept_of(self, client: Client) -> Replica | None:
        """None: a client has no replica of its own."""
        return None

    def allowed(self, agreed: Replica, probe: Probe | None, steps: int) -> Allowed:
        """Nothing of θ."""
        return Allowed()

    def join(self, client: Client) -> Generator[Message, Any, None]:
        """Says nothing."""
        yield from ()

    def close(self, client: Client) -> Generator[Message, Any, None]:
        """Says nothing."""
        yield from ()

    def answer(self, server: Server, messages: Mapping[int, Any]) -> dict[int, Message]:
        """Expects nothing."""
        raise unexpected(messages)


ALONE = Silent("alone", moves=True, pools=True)


def frozen(aggregation: Aggregation) -> Silent:
    """The agreement that θ never moves.

    Args:
        aggregation: how much each client counts in the mean of the top's gradients.

    Returns:
        The agreement.
    """
    return Silent("frozen", moves=False, pools=False, aggregation=aggregation)
