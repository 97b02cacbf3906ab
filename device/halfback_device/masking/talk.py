"""What a device says instead of a message of which the server is to learn the cohort's sum alone.

Keys, then shares of its secrets sealed for each other client, then the message with masked whole numbers in the place
of its values, then of each client one opened share. Bonawitz et al., "Practical Secure Aggregation", CCS 2017; byte for
byte in docs/protocol.md. All secrets are new, and end with the talk.
"""

import struct
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np

from halfback_device.errors import PeerError
from halfback_device.masking.primitives import (
    agreed,
    commitment,
    derived,
    new_secret,
    private_key,
    seal,
    split,
    stream,
    unseal,
)
from halfback_device.masking.rules import KEYS, PUBLIC, ROWS, SECRET, SumRules
from halfback_device.messages import (
    Array,
    Exact,
    Masking,
    Message,
    Part,
    Slopes,
    kinds_of,
    name_of,
    of_parts,
    parts_of,
)
from halfback_device.wire import described

_KEYS, _SHARES, _OPENED = range(3)  # phases of `Masking`


def masked_talk(client: int, rows: int, message: Message, rules: SumRules) -> Generator[Message, Any, Message]:
    """What a client with so many rows says instead of a message; returns the last, which gets the message's answer.

    Raises:
        DeviceError: a value is larger than `secure.range`.
        Diverged: a value is not finite.
        PeerError: the server says what it may not say now.
    """
    own = Secrets(client, rules)
    roster = _rows((yield _masking(_KEYS, {client: own.keys})), _KEYS)
    sealed = own.shares(roster)
    share = _share(rows, roster) if rules.by_rows else 1.0
    values = [rules.encode(part.values, type(part).__name__, share) for part in _said(message)]
    own.take(_rows((yield _masking(_SHARES, sealed)), _SHARES))
    hidden = own.masked(np.concatenate(values))
    asked = _rows((yield _put(message, hidden)), _OPENED)
    return _masking(_OPENED, own.opened(asked))


@final
class Secrets:
    """One client's secrets in one sum; each method is called once, in the order in which they stand."""

    def __init__(self, client: int, rules: SumRules) -> None:
        self._me, self._rules = client, rules
        self._mask, sealing, self._secret = new_secret(), new_secret(), new_secret()
        self._sealing, self._sharing = private_key(sealing), private_key(self._secret)
        self._roster: dict[int, bytes] = {}
        self._transcript = b""
        self._held: dict[int, bytes] = {}  # of each client whose shares came, both

    @property
    def keys(self) -> bytes:
        """What all may know."""
        public = [key.public_key().public_bytes_raw() for key in (self._sealing, self._sharing)]
        return b"".join(public) + commitment(self._mask)

    def shares(self, roster: Mapping[int, bytes]) -> dict[int, bytes]:
        """What it seals for each other client, from what it is told of all.

        Raises:
            PeerError: too few or too many take part, or another key than its own came under its number.
        """
        least, most, count = self._rules.threshold, self._rules.most, len(roster)
        if not least <= count <= most:
            raise PeerError("Masking.clients", f"{count} clients", f"{least} to {most} are allowed")
        if wrong := [told for told in roster.values() if len(told) != self._rules.told]:
            raise PeerError("Masking.values", f"keys of {len(wrong[0])} bytes", f"{self._rules.told} are allowed")
        if roster.get(self._me, b"")[:KEYS] != self.keys:
            raise PeerError("Masking.values", "other keys than this client's came under its number")
        self._roster, self._transcript = dict(sorted(roster.items())), self._rules.transcript(roster)
        parts = [split(secret, least, count) for secret in (self._mask, self._secret)]
        texts = {peer: mask + secret for peer, mask, secret in zip(self._roster, *parts, strict=True)}
        self._held[self._me] = texts.pop(self._me)
        return {peer: seal(self._sealed_with(peer, self._me, peer), text) for peer, text in texts.items()}

    def take(self, sealed: Mapping[int, bytes]) -> None:
        """Takes what the others have sealed for it; with these it shares masks.

        Raises:
            PeerError: too few came, of others than the cohort's, or what can't be read.
        """
        if strange := sealed.keys() - (self._roster.keys() - {self._me}):
            raise PeerError("Masking.clients", f"client {min(strange)}", "others of the cohort are allowed")
        if len(sealed) + 1 < self._rules.threshold:
            raise PeerError("Masking.clients", f"{len(sealed)}", f"{self._rules.threshold - 1} or more are allowed")
        for peer, text in sealed.items():
            shares = unseal(self._sealed_with(peer, peer, self._me), text)
            if len(shares) != 2 * SECRET:
                raise PeerError("Masking.values", f"{len(shares)} bytes of shares", f"{2 * SECRET} are allowed")
            self._held[peer] = shares

    def masked(self, values: Array) -> Array:
        """Whole numbers behind its own mask and those that it shares."""
        count, bits = len(values), self._rules.bits
        total = values + stream(derived(self._mask, b"own mask" + self._transcript), count, bits)
        for peer in self._held.keys() - {self._me}:
            info = b"mask" + self._transcript + struct.pack("<qq", *sorted((self._me, peer)))
            mask = stream(agreed(self._sharing, self._roster[peer][PUBLIC : 2 * PUBLIC], info), count, bits)
            if peer > self._me:
                total += mask
            else:
                total -= mask
        return total

    def opened(self, asked: Mapping[int, bytes]) -> dict[int, bytes]:
        """Of each client one share: of its own mask where its values came, of the masks that it shares where not.

        Raises:
            PeerError: the list of those whose values came can't be right.
        """
        came, least = asked.keys(), self._rules.threshold
        if not came <= self._held.keys() or self._me not in came or len(came) < least:
            said = f"{len(came)} clients whose values came"
            raise PeerError("Masking.clients", said, f"{least} or more with masks, and this one of them, are allowed")
        return {peer: two[:SECRET] if peer in came else two[SECRET:] for peer, two in self._held.items()}

    def _sealed_with(self, peer: int, by: int, reader: int) -> bytes:
        info = b"seal" + self._transcript + struct.pack("<qq", by, reader)
        return agreed(self._sealing, self._roster[peer][:PUBLIC], info)


def _share(rows: int, roster: Mapping[int, bytes]) -> float:
    """What a client with so many rows counts, from how many all have: the server says that behind each one's keys."""
    totals = {struct.unpack("<Q", told[-ROWS:])[0] for told in roster.values()}
    if len(totals) != 1 or rows > min(totals):
        came = f"rows of all clients: {', '.join(map(str, sorted(totals)[:3]))}"
        raise PeerError("Masking.values", came, f"one number, {rows} or more, is allowed")
    return rows / int(min(totals))


def _masking(phase: int, rows: Mapping[int, bytes]) -> Masking:
    values = np.frombuffer(b"".join(rows.values()), dtype=np.uint8)
    return Masking(phase, np.array(list(rows), dtype=np.int64), values.reshape(len(rows), -1))


def _rows(reply: Message, phase: int) -> dict[int, bytes]:
    """What came, by the client that each row is of or for."""
    if not isinstance(reply, Masking) or reply.phase != phase:
        came = f"phase {reply.phase}" if isinstance(reply, Masking) else name_of(kinds_of(reply))
        raise PeerError("Masking.phase", came, f"{phase} is due")
    clients, values = reply.clients, reply.values
    if clients.ndim != 1 or clients.dtype != np.int64 or len(np.unique(clients)) != len(clients):
        raise PeerError("Masking.clients", described(clients), "one row each is allowed")
    if values.ndim != 2 or values.dtype != np.uint8 or len(values) != len(clients):
        raise PeerError("Masking.values", described(values), f"uint8 ({len(clients)}, bytes) is allowed")
    return {client: row.tobytes() for client, row in zip(clients.tolist(), values, strict=True)}


def _said(message: Message) -> list[Slopes | Exact]:
    """The parts that say something of θ."""
    return [part for part in parts_of(message) if isinstance(part, Slopes | Exact)]


def _put(message: Message, hidden: Array) -> Message:
    """The message with masked numbers in the place of its values; the wire has dtypes with a sign."""
    parts: list[Part] = []
    for part in parts_of(message):
        if isinstance(part, Slopes | Exact):
            count = part.values.size
            part, hidden = replace(part, values=hidden[:count].view(f"i{hidden.itemsize}")), hidden[count:]
        parts.append(part)
    return of_parts(parts)
