"""What all parties of a secure sum know before it begins, and how they call what they have heard."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from halfback.errors import PeerError
from halfback.masking.fixed_point import FixedPoint

SECRET = 16
"""Bytes of a secret, and of a share of it."""
PUBLIC = 32
"""Bytes of a public key, and of a commitment."""
KEYS = 3 * PUBLIC
"""Bytes of what a client says first."""
ROWS = 8
"""Bytes behind a client's keys, where clients count by their rows, that say how many all of them have."""


@dataclass(frozen=True)
class SumRules:
    """How a cohort adds up.

    Attributes:
        threshold: clients whose shares tell a secret, and the fewest whose values are added up.
        fixed: how values stand for whole numbers, with the most clients that a cohort has.
        by_rows: a client counts by its training rows.
    """

    threshold: int
    fixed: FixedPoint
    by_rows: bool = False

    @property
    def most(self) -> int:
        """Clients of a cohort."""
        return self.fixed.clients

    @property
    def told(self) -> int:
        """Bytes of what a client is told of each at first."""
        return KEYS + (ROWS if self.by_rows else 0)

    def transcript(self, roster: Mapping[int, bytes]) -> bytes:
        """A digest of who takes part with which keys, by these rules; every key of a sum is bound to it.

        Two clients that were told of other cohorts come to other keys, so neither can read the other's shares, and
        both stop before they say anything of their values. So do two that were told of other numbers of rows.
        """
        digest = hashlib.sha256(struct.pack("<QQ", self.threshold, self.fixed.bits))
        for client, keys in sorted(roster.items()):
            digest.update(struct.pack("<qQ", client, len(keys)) + keys)
        return digest.digest()


def with_rows(keys: bytes, rows: int) -> bytes:
    """What a client is told of each where clients count by their rows, of which all together have so many."""
    return keys + struct.pack("<Q", rows)


def share_of(rows: int, roster: Mapping[int, bytes]) -> float:
    """What a client with so many rows counts in a sum, from what it was told of all: n_k / Σ n, in float64.

    Raises:
        PeerError: the server says more than one number of all rows, or fewer than this client has.
    """
    totals = {struct.unpack("<Q", told[-ROWS:])[0] for told in roster.values()}
    if len(totals) != 1 or rows > min(totals):
        came = f"rows of all clients: {', '.join(map(str, sorted(totals)[:3]))}"
        raise PeerError("Masking.values", came, f"one number, {rows} or more, is allowed")
    return rows / int(min(totals))


def between(transcript: bytes, purpose: bytes, first: int, second: int) -> bytes:
    """What a key of two clients is for: masks of both, or what the first seals for the second."""
    return purpose + transcript + struct.pack("<qq", first, second)
