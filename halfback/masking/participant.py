"""A client's side of a secure sum: Bonawitz et al., "Practical Secure Aggregation", CCS 2017.

Without what the paper adds against a server that breaks the protocol (docs/privacy.md says what such a one could do).

One object a sum, all of whose secrets are new and are gone with it: none is in a checkpoint or in a log.

1. keys: two public keys, for what it seals and for masks, and a commitment to its own mask's secret b_u
2. shares: of b_u and of the secret of its masks' key s_u, sealed for each of the cohort
3. masked: x_u + PRG(b_u) + Σ_{u<v} PRG(s_uv) − Σ_{u>v} PRG(s_uv) over all v whose shares have come
4. opened: of each client whose masked values came the share of b_v, of each that has left the share of s_v

Why two masks: a client that is only late has its s_v told, since it was held to be gone; what then comes of it is still
behind b_v. Nobody ever tells both of one client.

Ours: the commitment, by which the server finds a wrong share; every key is bound to the cohort (`SumRules.transcript`).
"""

from collections.abc import Mapping, Sequence
from typing import final

from halfback.errors import PeerError
from halfback.masking.fixed_point import Ring
from halfback.masking.primitives import (
    KeyPair,
    commitment,
    derived,
    new_secret,
    seal,
    split,
    stream,
    unseal,
)
from halfback.masking.rules import KEYS, PUBLIC, SECRET, SumRules, between


@final
class Participant:
    """One client in one sum; each method is called once, in the order in which they stand."""

    def __init__(self, client: int, rules: SumRules) -> None:
        self._me = client
        self._rules = rules
        self._own = new_secret()  # b_u
        self._sealing, self._masking = KeyPair(new_secret()), KeyPair(new_secret())
        self._roster: dict[int, bytes] = {}
        self._transcript = b""
        self._held: dict[int, bytes] = {}  # of each client whose shares came: those of b_v and s_v
        self._opened = False

    @property
    def keys(self) -> bytes:
        """What all may know: the public keys for sealing and for masks, and the commitment."""
        return self._sealing.public + self._masking.public + commitment(self._own)

    def shares(self, roster: Mapping[int, bytes]) -> dict[int, bytes]:
        """What this client seals for each other client, from what it is told of all: their keys.

        Raises:
            PeerError: too few or too many take part, or the client is told of other keys than its own, or of what is
                none.
        """
        count, least = len(roster), self._rules.threshold
        if not least <= count <= self._rules.most:
            raise PeerError("Masking.clients", f"{count} clients", f"{least} to {self._rules.most} are allowed")
        if wrong := [told for told in roster.values() if len(told) != self._rules.told]:
            raise PeerError("Masking.values", f"keys of {len(wrong[0])} bytes", f"{self._rules.told} are allowed")
        if roster.get(self._me, b"")[:KEYS] != self.keys:
            raise PeerError("Masking.values", "other keys than this client's came under its number")
        self._roster, self._transcript = dict(sorted(roster.items())), self._rules.transcript(roster)
        parts = [split(each, threshold=least, count=count) for each in (self._own, self._masking.secret)]
        texts = {peer: own + key for peer, own, key in zip(self._roster, *parts, strict=True)}
        self._held[self._me] = texts.pop(self._me)
        return {peer: seal(self._key(b"seal", self._me, peer, peer), text) for peer, text in texts.items()}

    def take(self, sealed: Mapping[int, bytes]) -> None:
        """Takes what the others have sealed for this client; with these it shares masks.

        Raises:
            PeerError: too few came, or one that can't be read: its sender was told of another cohort.
        """
        if strange := sealed.keys() - (self._roster.keys() - {self._me}):
            raise PeerError("Masking.clients", f"client {min(strange)}", "others of the cohort are allowed")
        if len(sealed) + 1 < self._rules.threshold:
            raise PeerError("Masking.clients", f"{len(sealed)}", f"{self._rules.threshold - 1} or more are allowed")
        for peer, text in sealed.items():
            opened = unseal(self._key(b"seal", peer, self._me, peer), text)
            if len(opened) != 2 * SECRET:
                raise PeerError("Masking.values", f"{len(opened)} bytes of shares", f"{2 * SECRET} are allowed")
            self._held[peer] = opened

    def masked(self, values: Ring) -> Ring:
        """The values behind this client's own mask and those that it shares."""
        count, bits = len(values), self._rules.fixed.bits
        total = values + stream(derived(self._own, b"own mask" + self._transcript), count, bits)
        for peer in self._held.keys() - {self._me}:
            low, high = sorted((self._me, peer))
            mask = stream(self._key(b"mask", low, high, peer), count, bits)
            total = total + mask if self._me == low else total - mask
        return total

    def opened(self, survivors: Sequence[int]) -> dict[int, bytes]:
        """For each client one share: of its own mask where its values came, of its masks' key where they didn't.

        Raises:
            PeerError: it is asked a second time, or the list of those whose values came can't be right.
        """
        if self._opened:
            raise PeerError("Masking", "it came twice, once is allowed")
        came, least = set(survivors), self._rules.threshold
        if len(came) != len(survivors) or not came <= self._held.keys() or self._me not in came or len(came) < least:
            said = f"{len(survivors)} clients whose values came"
            raise PeerError("Masking.clients", said, f"{least} or more with masks, and this one of them, are allowed")
        self._opened = True
        held, self._held = self._held, {}
        return {peer: text[:SECRET] if peer in came else text[SECRET:] for peer, text in held.items()}

    def _key(self, purpose: bytes, first: int, second: int, peer: int) -> bytes:
        pair, at = (self._masking, PUBLIC) if purpose == b"mask" else (self._sealing, 0)
        info = between(self._transcript, purpose, first, second)
        return pair.shared(self._roster[peer][at : at + PUBLIC], info)
