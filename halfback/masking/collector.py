"""The server's side of a secure sum: it passes on what clients seal for one another, and takes the sum's masks off.

See `participant` for the protocol. A client may leave before any of its four messages. What has come of it until then
is in the sum, or is taken out, and where too few are left to do either there is no sum.
"""

from collections.abc import Mapping
from typing import final

from halfback.errors import CohortLost, PeerError
from halfback.masking.fixed_point import Ring
from halfback.masking.primitives import TAG, KeyPair, commitment, derived, joined, stream
from halfback.masking.rules import KEYS, PUBLIC, SECRET, SumRules, between, with_rows

SEALED = 2 * SECRET + TAG
"""Bytes of what it seals for another one."""


@final
class Collector:
    """One sum; each method is called once, in the order in which they stand, with what has come by client."""

    def __init__(self, rules: SumRules) -> None:
        self._rules = rules
        self._roster: dict[int, bytes] = {}
        self._rows: Mapping[int, int] = {}
        self._sharing: set[int] = set()  # whose shares came
        self._masked: dict[int, Ring] = {}

    def keys(self, said: Mapping[int, bytes], rows: Mapping[int, int] | None = None) -> dict[int, bytes]:
        """What each of them is told of all: their keys, and where they count by their `rows`, how many all have.

        Raises:
            CohortLost: too few are there; so do all methods here.
            PeerError: what a client said has another size.
        """
        self._enough(len(said), "keys")
        for client, keys in said.items():
            _check("keys", client, keys, KEYS)
        self._roster = dict(sorted(said.items()))
        if self._rules.by_rows:
            assert rows is not None, "the server knows how many rows each client has"
            self._rows = {client: rows[client] for client in said}
            total = sum(self._rows.values())
            self._roster = {client: with_rows(keys, total) for client, keys in self._roster.items()}
        return self._roster

    def shares(self, said: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """What was sealed for each client, by who sealed it.

        Raises:
            PeerError: a client sealed something for others than the cohort.
        """
        self._enough(len(said), "shares")
        for client, sealed in said.items():
            if sealed.keys() != self._roster.keys() - {client}:
                raise PeerError("Masking.clients", "shares for others than those of the cohort", sender=client)
            for text in sealed.values():
                _check("sealed shares", client, text, SEALED)
        self._sharing = set(said)
        return {client: {peer: said[peer][client] for peer in said if peer != client} for client in said}

    def masked(self, said: Mapping[int, Ring]) -> list[int]:
        """Those whose values are in the sum, who are then asked for shares."""
        self._enough(len(said), "masked values")
        self._masked = dict(said)
        return sorted(said)

    def total(self, said: Mapping[int, Mapping[int, bytes]]) -> tuple[Ring, float]:
        """The sum without masks, and how many clients it is of, or what the shares of these add up to.

        Raises:
            PeerError: a client told shares of others than it was asked for.
            CohortLost: a share is wrong, and nobody knows whose.
        """
        self._enough(len(said), "opened shares")
        for client, shares in said.items():
            if shares.keys() != self._sharing:
                raise PeerError("Masking.clients", "shares of others than it was asked for", sender=client)
            for share in shares.values():
                _check("shares", client, share, SECRET)
        transcript, bits = self._rules.transcript(self._roster), self._rules.fixed.bits
        count = len(next(iter(self._masked.values())))
        total = sum(list(self._masked.values())[1:], next(iter(self._masked.values())))
        for client in self._sharing:
            secret, keys = self._secret(client, said), self._roster[client]
            if client in self._masked:
                _fits(client, commitment(secret), keys[2 * PUBLIC : KEYS])
                total = total - stream(derived(secret, b"own mask" + transcript), count, bits)
                continue
            pair = KeyPair(secret)
            _fits(client, pair.public, keys[PUBLIC : 2 * PUBLIC])
            for peer in self._masked:
                low, high = sorted((client, peer))
                public = self._roster[peer][PUBLIC : 2 * PUBLIC]
                mask = stream(pair.shared(public, between(transcript, b"mask", low, high)), count, bits)
                total = total - mask if peer == low else total + mask
        if not self._rules.by_rows:
            return total, len(self._masked)
        return total, sum(self._rows[client] for client in self._masked) / sum(self._rows.values())

    def _secret(self, client: int, said: Mapping[int, Mapping[int, bytes]]) -> bytes:
        places = {each: place for place, each in enumerate(self._roster)}
        telling = sorted(said)[: self._rules.threshold]
        return joined({places[peer]: said[peer][client] for peer in telling})

    def _enough(self, count: int, what: str) -> None:
        if count < self._rules.threshold:
            needed = self._rules.threshold
            raise CohortLost(f"a secure sum: {what} of {count} clients came, {needed} are needed (secure.threshold)")


def _check(what: str, client: int, came: bytes, size: int) -> None:
    if len(came) != size:
        raise PeerError("Masking.values", f"{what} of {len(came)} bytes", f"{size} are allowed", sender=client)


def _fits(client: int, found: bytes, known: bytes) -> None:
    if found != known:
        raise CohortLost(f"a secure sum: the shares of a secret of client {client} don't fit what it said first")
