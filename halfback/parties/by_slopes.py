"""Agreement by slopes: θ is a function of the history of agreed slopes, which everyone replays.

A client that joins is told the rows that it missed. It replays them in order, with the moments that it kept.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfback.errors import Diverged, PeerError
from halfback.parties.agreed import Agreed
from halfback.parties.agreement import Allowed, GroupsOf, unexpected
from halfback.parties.checks import all_finite, check_exact, check_slopes, check_tensors
from halfback.parties.client import Client
from halfback.parties.client_exchange import received, received_both
from halfback.parties.cohort import Aggregation
from halfback.parties.server import Server
from halfback.wire.messages import (
    Both,
    Exact,
    History,
    Join,
    Message,
    Share,
    Slopes,
    Turns,
    Weights,
    kinds_of,
    name_of,
)
from halfback.zeroth.replay import Replica
from halfback.zeroth.slopes import Probe


@dataclass(frozen=True)
class BySlopes:
    """θ moves along seeded directions, by slopes that the clients agree on.

    Attributes:
        directions: P, slopes of a step.
        aggregation: how much each client counts in their mean.
        exact_blocks: the last blocks of a device whose gradients are agreed on as they are, and ride behind the slopes:
            a number, or "all".
        groups: how θ is shared out, where a device measures only a part of it.
    """

    name: ClassVar[str] = "slopes"
    moves: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    keeps_history: ClassVar[bool] = True

    directions: int
    aggregation: Aggregation = "uniform"
    exact_blocks: int | str = 0
    groups: GroupsOf | None = None

    def replica_for(self, agreed: Replica, client: int) -> Replica:
        """The agreed one: θ of all clients is equal by construction."""
        return agreed

    def kept_of(self, client: Client) -> Replica | None:
        """None: the history has it."""
        return None

    def allowed(self, agreed: Replica, probe: Probe | None, steps: int) -> Allowed:
        """P slopes a step, those of every group on the way down; of a method that takes none, no more than θ has."""
        if probe is None:  # it measures something else
            count = sum(tensor.numel() for tensor in agreed.parameters.values())
            return Allowed(up=count, down=count)
        slopes = steps * probe.directions
        return Allowed(up=slopes, down=slopes * len(agreed.groups))

    def join(self, client: Client) -> Generator[Message, Any, None]:
        """The client replays the steps that it missed; raises as `catch_up` does."""
        catch_up(client, (yield Join(client.theta.position)), self.directions)

    def close(self, client: Client) -> Generator[Message, Any, None]:
        """Nothing is left to say."""
        yield from ()

    def agree(self, client: Client, said: Slopes | Both, *, steps: int = 1) -> Generator[Message, Any, None]:
        """The client says its slopes and exact gradients, and takes the step, or steps, that the cohort agrees on."""
        take_agreed(client, (yield said), self.directions, steps=steps)

    def answer(self, server: Server, messages: Mapping[int, Any]) -> dict[int, Message]:
        """The missed rows for clients that join; PeerError for any other message."""
        if not isinstance(next(iter(messages.values())), Join):
            raise unexpected(messages)
        return _missed(server, messages)

    def mean(self, server: Server, messages: Mapping[int, Slopes | Both], *, steps: int = 1) -> Tensor:
        """The cohort's slopes of a step, or of several behind one another, as one; as `mean_slopes`."""
        return mean_slopes(server, messages, steps * self.directions)


def catch_up(client: Client, reply: Any, directions: int, kind: type[History] | type[Share] = History) -> None:
    """Replays the steps that the client missed, from the answer to its `Join`.

    Raises:
        PeerError: other steps or shapes came than were asked for.
        Diverged: a slope is not finite.
    """
    if client.theta.replica.exact:
        if isinstance(reply, Both) and isinstance(reply.second, Exact):
            _take_exact(client, *received_both(reply, History, Exact), directions)
        else:
            _take_state(client, *received_both(reply, History, Weights), directions)
    elif isinstance(reply, Both) and client.theta.replica.own_pace:
        said, turns = received_both(reply, History, Turns)
        _replay(client, "History", said.first, said.slopes, directions, _steps(turns, len(said.slopes)))
    else:
        heard = received(reply, kind)
        _replay(client, kind.__name__, heard.first, heard.slopes, directions)


def take_share(client: Client, reply: Any, directions: int) -> None:
    """Catches up, and from now on measures the group of θ that the server says; raises as `catch_up` does."""
    group, count = received(reply, Share).group, len(client.theta.replica.groups)
    if not 0 <= group < count:
        raise PeerError("Share.group", group, f"0 to {count - 1} are allowed", sender="server")
    catch_up(client, reply, directions, Share)
    client.theta.groups = (group,)


def take_agreed(client: Client, reply: Any, directions: int, *, steps: int = 1) -> None:
    """Replays the step, or the steps, that the cohort has just agreed on; raises as `catch_up` does."""
    replica = client.theta.replica
    agreed, exact = received_both(reply, Slopes, Exact) if replica.exact else (received(reply, Slopes), None)
    count, values = steps * directions * len(replica.groups), agreed.values
    if values.shape != (count,):
        raise PeerError("Slopes", f"slopes {tuple(values.shape)}", f"({count},) is allowed", sender="server")
    if exact is not None:
        check_exact("server", exact, replica.width(0), agreed.step)
        values = torch.cat([values, exact.values])
    _replay(client, "Slopes", agreed.step, values.view(steps, -1), directions)


def _take_exact(client: Client, said: History, exact: Exact, directions: int) -> None:
    rows, replica = said.slopes, client.theta.replica
    _check_rows(client, "History", said.first, rows, replica.width(directions) - replica.width(0))
    check_exact("server", exact, len(rows) * replica.width(0), said.first)
    whole = torch.cat([rows, exact.values.view(len(rows), replica.width(0))], dim=1)
    _replay(client, "History", said.first, whole, directions)


def _take_state(client: Client, said: History, state: Weights, directions: int) -> None:
    rows, field = said.slopes, "Weights.tensors"
    width = directions * len(client.theta.replica.groups)
    _check_rows(client, "History", said.first, rows, width)
    allowed = client.theta.replica.exact_state() if len(rows) else {}
    check_tensors(field, state.tensors, allowed, sender="server")
    if not all(all_finite(tensor) for tensor in state.tensors):
        raise Diverged(field, "are not finite", "lower bottom.lr or top.lr", sender="server")
    client.theta.take_state(said.first, rows, state.tensors)


def _replay(
    client: Client, kind: str, first: int, rows: Tensor, directions: int, steps: Sequence[int] | None = None
) -> None:
    _check_rows(client, kind, first, rows, client.theta.replica.width(directions))
    client.theta.replay(first, rows, range(first, first + len(rows)) if steps is None else steps)


def _steps(said: Turns, count: int) -> Sequence[int]:
    steps = said.steps
    if steps.shape != (count,) or steps.dtype != torch.int32 or bool((steps < 0).any()):
        came = f"{steps.dtype} {tuple(steps.shape)}"
        allowed = f"torch.int32 ({count},) from 0 on are allowed"
        raise PeerError("Turns.steps", came, allowed, sender="server")
    return steps.tolist()


def _check_rows(client: Client, kind: str, first: int, rows: Tensor, width: int) -> None:
    if first != client.theta.position:
        raise PeerError(kind, f"step {first}", f"{client.theta.position} is allowed", sender="server")
    if rows.ndim != 2 or (len(rows) and rows.shape[1] != width) or rows.dtype != torch.float32:
        came = f"slopes {rows.dtype} {tuple(rows.shape)}"
        raise PeerError(kind, came, f"torch.float32 with {width} a step are allowed", sender="server")
    if not all_finite(rows):
        what, cure = f"{kind}: slopes from step {first} on", "lower bottom.lr or top.lr"
        raise Diverged(what, "are not finite", cure, sender="server")


def missed_slopes(server: Server, messages: Mapping[int, Join]) -> dict[int, History]:
    """The agreed slopes of the steps that each client which joins has not replayed.

    Raises:
        PeerError: a client says that it replayed steps which were never taken.
    """
    agreed = server.agreed
    for client, join in messages.items():
        if not 0 <= join.position <= len(agreed.rows):
            allowed = f"0 to {len(agreed.rows)} are allowed"
            raise PeerError("Join.position", join.position, allowed, sender=client)
    agreed.settle()
    return {client: History(join.position, agreed.missed(join.position)) for client, join in messages.items()}


def _missed(server: Server, messages: Mapping[int, Join]) -> dict[int, Message]:
    """The answer to clients that join.

    Where blocks have exact gradients, those of the newest rows come behind the slopes, as long as they are fewer bytes
    than the state that they led to, which comes in their place where more rows were missed; of no rows, none of it
    comes as a state. Where clients took turns, so that rows are not numbered as steps, the steps come.
    """
    agreed, answers = server.agreed, dict[int, Message]()
    for client, history in missed_slopes(server, messages).items():
        first, count = history.first, len(history.slopes)
        steps = agreed.steps_of(first, count)
        if agreed.replica.exact:
            kept = 0 < count <= len(agreed.recent)
            answers[client] = Both(history, agreed.missed_exact(count) if kept else _state(agreed, count))
        elif steps != list(range(first, first + count)):
            answers[client] = Both(history, Turns(torch.tensor(steps, dtype=torch.int32)))
        else:
            answers[client] = history
    return answers


def _state(agreed: Agreed, missed: int) -> Weights:
    """What exact gradients have made of θ; nothing where no row of them was missed."""
    state = agreed.replica.exact_state().values() if missed else ()
    return Weights(tuple(tensor.detach() for tensor in state))


def mean_slopes(server: Server, messages: Mapping[int, Slopes | Both], directions: int) -> Tensor:
    """v̄ = the mean over the cohort, by shares, or what the setting `robust` takes in its place: (P,) float32.

    Where θ has groups, (groups · P,): for each that of the clients that measured it, zeros where none did **(ours)**.
    Exact gradients come behind.

    Raises:
        PeerError: a client's slopes belong to another step or are not P floats.
        Diverged: a slope is not finite.
    """
    said = {client: _checked(server, client, message, directions) for client, message in messages.items()}
    # In a secure sum each has said the mean already, so any share of it would be a rounding for nothing.
    shares = (lambda _: None) if server.cohort.summed else server.cohort.shares
    means = []
    for place in range(len(server.agreed.replica.groups)) if directions else ():
        measured = {
            client: slopes.values
            for client, (slopes, _) in said.items()
            if place in server.cohort.groups.get(client, (place,))
        }
        if measured:
            means.append(server.cohort.robust.agreed(torch.stack(list(measured.values())), shares(measured)))
        else:
            means.append(torch.zeros_like(next(iter(said.values()))[0].values))
    if given := [exact.values for _, exact in said.values() if exact is not None]:
        means.append(server.cohort.robust.agreed(torch.stack(given), shares(messages)))
    return torch.cat(means)


def _checked(server: Server, client: int, message: Slopes | Both, directions: int) -> tuple[Slopes, Exact | None]:
    """A client's slopes, and its exact gradients where blocks have any."""
    count = server.agreed.replica.width(0)
    match message:
        case Slopes() if not count:
            check_slopes(server, client, message, directions)
            return message, None
        case Both(Slopes() as slopes, Exact() as exact) if count:
            check_slopes(server, client, slopes, directions)
            check_exact(client, exact, count, slopes.step)
            return slopes, exact
        case _:
            allowed = f"{'SlopesAndExact' if count else 'Slopes'} is allowed"
            raise PeerError("", name_of(kinds_of(message)), allowed, sender=client)
