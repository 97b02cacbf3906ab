"""The seam between algorithms and engines: an algorithm writes a conversation, an engine carries it.

The client side is a generator: each ``yield`` is one message up and one answer down. The server side is a function
from the cohort's messages to its answers. Between two yields only one party runs, so the engine measures bytes, time
and memory around it. Never yield inside ``no_grad``, ``inference_mode`` or ``autocast``: the mode leaks into whoever
runs next.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from halfback.errors import UserError
from halfback.parties.agreement import Agreement
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.server import Lasting, Server
from halfback.wire.messages import Message
from halfback.zeroth.slopes import Probe

Conversation = Generator[Message, Any, None]


@dataclass(frozen=True)
class Boundaries:
    """Where zeroth order ends in each device's own model.

    Attributes:
        blocks: entry i is the number of blocks below client i's boundary, in turn; None for the recipe's cut.
    """

    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Needs:
    """What a method with its options needs to be prepared: all that an engine or a recipe's check may ask of it.

    Attributes:
        agreement: how the clients come to the same trained parameters θ.
        holds: what θ belongs to on a device. `bottom`; `auxiliary`, it and an auxiliary head; `whole`, the whole
            model, and then the server has no part of it. With the last two `Client.local` is there.
        backpropagates: whether a device backpropagates, and `Client.descent` is there; if not, building a graph is an
            error.
        top: how the server's part moves. `backpropagated` (`Top.descent` is there), `replayed` (`Top.replica` is
            there), or `none`.
        turns: the clients of a cohort speak step by step `together`; or `one_by_one`, one client's round after the
            other's; or `pipelined`, together, but in one turn a device measures at θ and then takes a step that was
            agreed on, so that clients who share one θ must each find it as it was before.
        fits: `u_shape` where the devices can keep the head and their labels: they speak of a batch through `feedback`.
            `mixed_cuts` where each client can have a cut of its own: it measures `Theta.measured`, and the server has
            what is above the cut from `Top.of`.
        probe: how a party takes its slopes; None for a method that takes none.
        boundaries: where the devices of a method move the lower part of their model by zeroth order, and the upper part
            by backpropagation: each has a `Boundary`, at which `Client.local` is cut.
        cut_gradient: whether a device with the bottom alone is sent the gradient at its cut for each batch; if not, it
            has no need of its memory.
        lasting: the kind of `Server.memory`, where that lasts from round to round: it is in checkpoints.
    """

    agreement: Agreement
    holds: Literal["bottom", "auxiliary", "whole"] = "bottom"
    backpropagates: bool = False
    top: Literal["backpropagated", "replayed", "none"] = "backpropagated"
    turns: Literal["together", "one_by_one", "pipelined"] = "together"
    fits: frozenset[Literal["u_shape", "mixed_cuts"]] = frozenset()
    probe: Probe | None = None
    boundaries: Boundaries | None = None
    cut_gradient: bool = True
    lasting: type[Lasting] | None = None

    @property
    def directions(self) -> int:
        """Slopes of a step; 0 for a method that takes none."""
        return 0 if self.probe is None else self.probe.directions

    @property
    def replays(self) -> bool:
        """Whether slopes move θ."""
        return self.agreement.moves and not self.backpropagates


class Algorithm(Protocol):
    """A method: a dataclass of options that all have defaults, two functions, and what must be prepared for them."""

    @property
    def needs(self) -> Needs:
        """What must be prepared for the method with these options."""
        ...

    def client_round(self, client: Client, round: Round) -> Conversation:
        """The client's side of one round.

        Args:
            client: the device that this runs on: its part of the model, its θ and its batches.
            round: which it is, and how many batches belong to it.

        Yields:
            A message to the server, a value of one of the kinds in `halfback.messages`; the server's answer to it is
            what the `yield` evaluates to. When the generator returns, the round is over for this client.
        """
        ...

    def answer(self, server: Server, messages: Mapping[int, Any]) -> Mapping[int, Message]:
        """The server's side of one exchange with all clients that take part in it.

        Args:
            server: its part of the model, the agreed θ, and who counts how.
            messages: what each client has said, by its number; all of one kind, the engine sees to it.

        Returns:
            An answer for each of these clients, by its number.

        Raises:
            PeerError: a message is none that a client may send now.
            Diverged: a message's numbers, or what follows from them, are not finite.
        """
        ...


@runtime_checkable
class ChoosesClients(Protocol):
    """What a method has beside that doesn't sample its clients alike."""

    def inclusion(self, server: Server, sampled: int) -> Sequence[float]:
        """How likely each client is to be in a round's cohort.

        Args:
            server: as `Algorithm.answer` gets it, between two rounds.
            sampled: how many clients a cohort has.

        Returns:
            A probability for each client of the run, by its number; together they are `sampled`.
        """
        ...


def check_blocks(option: str, value: int | str) -> None:
    """Refuses what is neither a number of blocks nor all of them.

    Args:
        option: the name of the algorithm's option that has the value.
        value: the number, or "all".

    Raises:
        UserError: names the option and what is allowed.
    """
    if value != "all" and (isinstance(value, str) or value < 0):
        raise UserError(f"algorithm.{option}={value}: 0 or more are allowed, or all")


def check_count(option: str, value: int, *, fewest: int = 1) -> None:
    """Refuses a number of steps, batches or blocks that is too small.

    Args:
        option: the name of the algorithm's option that has the number.
        value: the number.
        fewest: the smallest that is allowed.

    Raises:
        UserError: names the option and what is allowed.
    """
    if value < fewest:
        raise UserError(f"algorithm.{option}={value}: {fewest} or more are allowed")
