"""The seam between algorithms and engines: an algorithm writes a conversation, an engine carries it.

The client side is a generator: each ``yield`` is one message up and one answer down. The server side is a function
from the cohort's messages to its answers. Between two yields only one party runs, so the engine measures bytes, time
and memory around it. Never yield inside ``no_grad``, ``inference_mode`` or ``autocast``: the mode leaks into whoever
runs next.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.server import Server
from halfback.wire.messages import Message

Conversation = Generator[Message, Any, None]


@dataclass(frozen=True)
class Traits:
    """What an engine must prepare for a method.

    Attributes:
        agreement: how the clients come to the same trained parameters θ. `slopes`: θ is a function of the history of
            agreed slopes, which everyone replays. `weights`: each client has a θ of its own, and the method averages
            them. `relay`: as `weights`, but one client hands its θ to the next. `alone`: one machine holds the rows of
            all clients, and nothing is sent. `frozen`: θ never moves.
        device: what θ belongs to. `bottom`; `auxiliary`, the bottom and an auxiliary head; `whole`, the whole model,
            and then the server has no part of it.
        backpropagates: whether a device backpropagates and gets an optimiser; if not, building a graph is an error.
        top: how the server's part moves. `backpropagated` (`Server.optimizer` is there), `replayed`
            (`Server.top_replica` is there), or `none`.
        u_shape: whether the devices can keep the head and their labels: they speak of a batch through `feedback`.
        mixed_cuts: whether each client can have a cut of its own: it measures `Client.measured`, and the server has its
            top from `Server.of`.
        one_by_one: the clients of a cohort take their turns one after another, not step by step together.
        pipelined: in one turn a device measures at θ and then takes a step that was agreed on. Clients that share one θ
            must each find it as it was before.
        lasting: the server keeps something of each client from round to round, in `Server.lasting`.
        boundaries: a device has a `Boundary` of its own in the whole model, from the option `boundaries` (blocks below
            it, in turn for the clients). `Local.device` is cut there.
        groups: how θ is shared out, where a device measures only a part of it: (names of the parameters, clients of a
            cohort) → names of each group. The replicas then have these groups; None for one of all.
    """

    agreement: Literal["slopes", "weights", "relay", "alone", "frozen"]
    device: Literal["bottom", "auxiliary", "whole"] = "bottom"
    backpropagates: bool = False
    top: Literal["backpropagated", "replayed", "none"] = "backpropagated"
    u_shape: bool = False
    mixed_cuts: bool = False
    one_by_one: bool = False
    pipelined: bool = False
    lasting: bool = False
    boundaries: bool = False
    groups: Callable[[Sequence[str], int], list[list[str]]] | None = None


class Algorithm(Protocol):
    """A method: two functions, and what the engine must prepare for them."""

    traits: ClassVar[Traits]

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The client's side of one round."""
        ...

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """Answers one exchange of the cohort: messages by client id, all of one kind (the engine sees to it)."""
        ...


@runtime_checkable
class ChoosesClients(Protocol):
    """What a method has beside that doesn't sample its clients alike."""

    def inclusion(self, server: Server, sampled: int) -> Sequence[float]:
        """Of each client, the probability to be in a round's cohort; their sum is `sampled`."""
        ...
