"""Around a message of which the server is to learn the cohort's sum alone: what clients say of θ goes behind masks.

No algorithm knows of it. A client that has such a message says its keys, then sealed shares, then the message with
masked whole numbers in the place of its values, then opened shares; the answer to the last is that to the message. The
server passes keys and shares on, and hands its algorithm what each client has said with the cohort's mean in the place
of that client's own values.
"""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from halfback.errors import Peer, PeerError
from halfback.masking.fixed_point import Ring
from halfback.masking.rules import SumRules, share_of
from halfback.wire.messages import Exact, Masking, Message, Part, Slopes, Weights, name_of, of_parts, parts_of

_KEYS, _SHARES, _OPENED = range(3)  # phases of `Masking`
_VALUES = -1  # between the last two: the masked message


def is_summed(message: Message) -> bool:
    """Whether a client says something of θ with it."""
    return any(isinstance(part, Slopes | Exact | Weights) for part in parts_of(message))


def masked_talk(client: int, rows: int, message: Message, rules: SumRules) -> Generator[Message, Any, Message]:
    """What a client with so many rows says instead of a message; returns the last of it, which gets its answer.

    Every secret is new, lives in this talk, and ends with it.

    Raises:
        UserError: a value is larger than `secure.range`.
        Diverged: a value is not finite.
        PeerError: the server says what it may not say now.
    """
    from halfback.masking.participant import Participant  # it needs an extra, which few runs do

    own = Participant(client, rules)
    roster = _rows((yield _masking(_KEYS, {client: own.keys})), _KEYS)
    sealed = own.shares(roster)
    share = share_of(rows, roster) if rules.by_rows else 1.0
    values = [
        rules.fixed.encode(each, name_of([type(part)]), share) for part in parts_of(message) for each in _said(part)
    ]
    own.take(_rows((yield _masking(_SHARES, sealed)), _SHARES))
    hidden = own.masked(np.concatenate(values))
    asked = _rows((yield _put(message, hidden)), _OPENED)
    return _masking(_OPENED, own.opened(list(asked)))


@final
class Sums:
    """The server's side of the sums of a round, one at a time."""

    def __init__(self, rules: SumRules) -> None:
        self._rules = rules
        self.begin()

    def begin(self) -> None:
        """A round begins, or the next sum of one: what is under way is void."""
        from halfback.masking.collector import Collector

        self._collector = Collector(self._rules)
        self._due = _KEYS
        self._said: dict[int, Message] = {}
        self._opened: dict[int, dict[int, bytes]] = {}

    def concerns(self, messages: Mapping[int, Message]) -> bool:
        """Whether these belong to a sum."""
        message = next(iter(messages.values()))
        return isinstance(message, Masking) or is_summed(message)

    def answers(self, messages: Mapping[int, Any], rows: Mapping[int, int]) -> dict[int, Message] | None:
        """What the cohort is told; None where it has told all, and `mean` has what came of it.

        `rows`: by which clients count; empty where they count alike.

        Raises:
            PeerError: something else was due, or is not what a client may say.
            CohortLost: too few clients are left for a sum.
        """
        if not isinstance(next(iter(messages.values())), Masking):
            return self._take_masked(messages)
        if self._due == _VALUES:
            raise PeerError("", "Masking", "masked values are due", sender=min(messages))
        said = {client: _rows(message, self._due, client) for client, message in messages.items()}
        match self._due:
            case 0:  # keys
                if wrong := [client for client, keys in said.items() if list(keys) != [client]]:
                    raise PeerError("Masking.clients", "keys under another number", sender=wrong[0])
                roster = self._collector.keys({client: keys[client] for client, keys in said.items()}, rows)
                self._due = _SHARES
                return dict.fromkeys(messages, _masking(_KEYS, roster))
            case 1:  # shares
                sealed = self._collector.shares(said)
                self._due = _VALUES
                return {client: _masking(_SHARES, for_it) for client, for_it in sealed.items()}
            case _:
                self._opened = said
                return None

    def mean(self, messages: Mapping[int, Message], theta: Sequence[Tensor]) -> dict[int, Message]:
        """What each of the clients that are left has said, with the mean in the place of its own values.

        Args:
            messages: their last ones.
            theta: the agreed parameters, whose dtypes weights get.
        """
        total, count = self._collector.total(self._opened)
        mean = self._rules.fixed.mean(total, count)
        said = {client: self._said[client] for client in messages}
        self.begin()
        return {client: _put(message, mean, theta) for client, message in said.items()}

    def _take_masked(self, messages: Mapping[int, Message]) -> dict[int, Message]:
        if self._due != _VALUES:
            raise PeerError("", "values without masks", "keys are due first", sender=min(messages))
        shapes = {client: tuple(_form(part) for part in parts_of(message)) for client, message in messages.items()}
        common = Counter(shapes.values()).most_common(1)[0][0]
        if odd := [client for client, shape in shapes.items() if shape != common]:
            raise PeerError("", "masked values of another shape than the others'", sender=odd[0])
        dtype = torch.int64 if self._rules.fixed.bits == 64 else torch.int32
        flat = {client: _flat(message) for client, message in messages.items()}
        if wrong := [client for client, values in flat.items() if values.dtype != dtype]:
            raise PeerError("", f"{flat[wrong[0]].dtype}", f"masked values in {dtype} are allowed", sender=wrong[0])
        unsigned = f"u{self._rules.fixed.bits // 8}"
        rings = {client: values.cpu().numpy().view(unsigned) for client, values in flat.items()}
        survivors = self._collector.masked(rings)
        self._said, self._due = dict(messages), _OPENED
        return dict.fromkeys(messages, _masking(_OPENED, dict.fromkeys(survivors, b"")))


def _masking(phase: int, rows: Mapping[int, bytes]) -> Masking:
    width = len(next(iter(rows.values()), b""))
    values = np.frombuffer(bytearray(b"".join(rows.values())), dtype=np.uint8).reshape(len(rows), width)
    return Masking(phase, torch.tensor(list(rows), dtype=torch.int64), torch.from_numpy(values))


def _rows(message: Any, phase: int, sender: Peer = "server") -> dict[int, bytes]:
    """What came, by the client that each row is of or for."""
    if not isinstance(message, Masking) or message.phase != phase:
        came = f"phase {message.phase}" if isinstance(message, Masking) else type(message).__name__
        raise PeerError("Masking.phase", came, f"{phase} is due", sender=sender)
    clients, values = message.clients, message.values
    if clients.ndim != 1 or clients.dtype != torch.int64 or len(clients.unique()) != len(clients):
        raise PeerError("Masking.clients", f"{clients.dtype} {tuple(clients.shape)}", "one row each", sender=sender)
    if values.ndim != 2 or values.dtype != torch.uint8 or len(values) != len(clients):
        came = f"{values.dtype} {tuple(values.shape)}"
        raise PeerError("Masking.values", came, f"torch.uint8 ({len(clients)}, bytes) is allowed", sender=sender)
    rows = values.cpu().numpy()
    return {client: row.tobytes() for client, row in zip(clients.tolist(), rows, strict=True)}


def _said(part: Part) -> Sequence[Tensor]:
    """The values of θ in a message."""
    match part:
        case Slopes() | Exact():
            return (part.values,)
        case Weights():
            return part.tensors
        case _:
            return ()


def _form(part: Part) -> tuple[Any, ...]:
    return (type(part), *(tuple(each.shape) for each in _said(part)))


def _flat(message: Message) -> Tensor:
    parts = [each.reshape(-1) for part in parts_of(message) for each in _said(part)]
    if len({part.dtype for part in parts}) > 1:
        return torch.empty(0)  # floats, which nobody masks
    return torch.cat(parts)


def _put(message: Message, values: Ring | Tensor, theta: Sequence[Tensor] = ()) -> Message:
    """The message with these values, one behind the other, in the place of its own.

    Masked ones become a tensor of whole numbers with a sign, of which the wire has the dtypes; means become what the
    message had before it was masked, weights in the dtypes of `theta`.
    """
    if not isinstance(values, Tensor):
        values = torch.from_numpy(values.view(f"i{values.itemsize}"))
    parts: list[Part] = []
    at = 0
    for part in parts_of(message):
        tensors = []
        for place, own in enumerate(_said(part)):
            new = values[at : at + own.numel()].reshape(own.shape)
            at += own.numel()
            if values.dtype == torch.float64:
                weights = isinstance(part, Weights) and place < len(theta)
                new = new.to(own.device, theta[place].dtype if weights else torch.float32)
            tensors.append(new)
        match part:
            case Slopes() | Exact():
                parts.append(replace(part, values=tensors[0]))
            case Weights():
                parts.append(replace(part, tensors=tuple(tensors)))
            case _:
                parts.append(part)
    return of_parts(parts)
