"""The pieces of a secure sum, each from a library that is kept: `cryptography`, and PyCryptodome for Shamir's shares.

All secrets come from the operating system; none follows from a run's seed, which the server has.
"""

import hashlib
import secrets
from collections.abc import Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from halfback_device.errors import PeerError
from halfback_device.masking.rules import SECRET
from halfback_device.messages import Array

_NONCE, _FIRST = bytes(12), bytes(16)  # each key is for one text, or one stream


def new_secret() -> bytes:
    """A secret that nobody can guess."""
    return secrets.token_bytes(SECRET)


def commitment(secret: bytes) -> bytes:
    """By which everybody can tell a secret once it is known, and nobody before."""
    return hashlib.sha256(b"halfback secure sum: commitment" + secret).digest()


def derived(secret: bytes, info: bytes) -> bytes:
    """H(secret, info) of docs/protocol.md: a key of 32 bytes for one purpose."""
    return HKDF(SHA256(), 32, salt=None, info=b"halfback secure sum: " + info).derive(secret)


def private_key(secret: bytes) -> X25519PrivateKey:
    """The private key that follows from a secret."""
    return X25519PrivateKey.from_private_bytes(derived(secret, b"key pair"))


def agreed(own: X25519PrivateKey, public: bytes, info: bytes) -> bytes:
    """The key for one purpose that both sides of a pair come to.

    Raises:
        PeerError: the other side's key is none, or one with which everybody would come to the same.
    """
    try:
        both = own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PeerError("Masking.values", "a public key of low order") from None
    return derived(both, info)


def stream(key: bytes, count: int, bits: int) -> Array:
    """The first numbers modulo 2^bits of a key's stream."""
    cipher = Cipher(ChaCha20(key, _FIRST), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(count * bits // 8)), dtype=f"<u{bits // 8}")


def seal(key: bytes, text: bytes) -> bytes:
    """What only who has the key can read; a key seals once."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """The text; PeerError where it was sealed with another key, or changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        raise PeerError("Masking.values", "shares that were sealed with another key, or changed") from None


def split(secret: bytes, threshold: int, count: int) -> Sequence[bytes]:
    """Shares of a secret, of which `threshold` tell it and fewer tell nothing."""
    return [bytes(share) for _, share in Shamir.split(threshold, count, secret)]
