"""The pieces that a secure sum is made of, each from a library that is kept: nothing here is a cipher of our own.

Keys: X25519, and HKDF with SHA-256. Masks: the key stream of ChaCha20. What one client sends to another through the
server: ChaCha20-Poly1305. Shares: Shamir's, over GF(2^128), of PyCryptodome. Secrets have 16 bytes.

All secrets come from the operating system. A run's seed is in its recipe, which the server has: whoever knows it would
know every mask.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from halfback.errors import PeerError
from halfback.masking.fixed_point import Ring
from halfback.masking.rules import SECRET

TAG = 16
"""Bytes by which a sealed text is longer."""
_ONCE = bytes(12)  # each key seals one text, so it needs no number of its own
_FROM_THE_FIRST_BLOCK = bytes(16)


def new_secret() -> bytes:
    """A secret that nobody can guess."""
    return secrets.token_bytes(SECRET)


def commitment(secret: bytes) -> bytes:
    """What tells nothing of a secret, and by which everybody can tell the secret once it is known."""
    return hashlib.sha256(b"halfback secure sum: commitment" + secret).digest()


def derived(secret: bytes, info: bytes) -> bytes:
    """A key of 32 bytes for one purpose, which `info` says."""
    return HKDF(SHA256(), 32, salt=None, info=b"halfback secure sum: " + info).derive(secret)


@dataclass(frozen=True)
class KeyPair:
    """A pair of keys that follows from a secret, so that shares of the secret are shares of the pair."""

    secret: bytes

    @cached_property
    def _private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(derived(self.secret, b"key pair"))

    @cached_property
    def public(self) -> bytes:
        """The public key."""
        return self._private.public_key().public_bytes_raw()

    def shared(self, public: bytes, info: bytes) -> bytes:
        """The key for one purpose that both sides of a pair come to.

        Raises:
            PeerError: the other side's key is one with which everybody would come to the same.
        """
        try:
            agreed = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise PeerError("Masking.values", "a public key of low order") from None
        return derived(agreed, info)


def stream(key: bytes, count: int, bits: int) -> Ring:
    """So many numbers modulo 2^bits that a key gives, uniform to whoever doesn't know it."""
    size = count * bits // 8
    cipher = Cipher(ChaCha20(key, _FROM_THE_FIRST_BLOCK), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(size)), dtype=f"<u{bits // 8}")


def seal(key: bytes, text: bytes) -> bytes:
    """What only who has the key can read; a key seals once."""
    return ChaCha20Poly1305(key).encrypt(_ONCE, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The text; PeerError where it was sealed with another key, or changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(_ONCE, sealed, None)
    except InvalidTag:
        raise PeerError("Masking.values", "shares that were sealed with another key, or changed") from None


def split(secret: bytes, *, threshold: int, count: int) -> Sequence[bytes]:
    """Shares of a secret, of which `threshold` tell it and fewer tell nothing."""
    return [share for _, share in Shamir.split(threshold, count, secret)]


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from as many shares as the threshold says, by their places from 0."""
    return bytes(Shamir.combine([(place + 1, share) for place, share in shares.items()]))
