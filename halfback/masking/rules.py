"""What all parties of a secure sum know before it begins, and how they call what they have heard."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from halfback.masking.fixed_point import FixedPoint

SECRET = 16
"""Bytes of a secret, and of a share of it."""
PUBLIC = 32
"""Bytes of a public key, and of a commitment."""
KEYS = 3 * PUBLIC
"""Bytes of what a client says first."""


@dataclass(frozen=True)
class SumRules:
    """How a cohort adds up.

    Attributes:
        threshold: clients whose shares tell a secret, and the fewest whose values are added up.
        fixed: how values stand for whole numbers, with the most clients that a cohort has.
    """

    threshold: int
    fixed: FixedPoint

    @property
    def most(self) -> int:
        """Clients of a cohort."""
        return self.fixed.clients

    def transcript(self, roster: Mapping[int, bytes]) -> bytes:
        """A digest of who takes part with which keys, by these rules; every key of a sum is bound to it.

        Two clients that were told of other cohorts come to other keys, so neither can read the other's shares, and
        both stop before they say anything of their values.
        """
        digest = hashlib.sha256(struct.pack("<QQ", self.threshold, self.fixed.bits))
        for client, keys in sorted(roster.items()):
            digest.update(struct.pack("<qQ", client, len(keys)) + keys)
        return digest.digest()


def between(transcript: bytes, purpose: bytes, first: int, second: int) -> bytes:
    """What a key of two clients is for: masks of both, or what the first seals for the second."""
    return purpose + transcript + struct.pack("<qq", first, second)
