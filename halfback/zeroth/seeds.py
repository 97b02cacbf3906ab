"""Seeds are hashed paths: no arithmetic, so no two paths share a seed by construction of a sum."""

from hashlib import blake2b


def seed_for(*path: int | str) -> int:
    """The 64-bit seed of a path such as ``(run_seed, "direction", step, 3)``.

    Each element is written with its type and length before hashing, so ``("1", 2)``, ``(1, 2)`` and ``(12,)`` differ.

    Raises:
        TypeError: an element is neither an integer nor a string.
    """
    digest = blake2b(digest_size=8, person=b"halfback.seed")
    for element in path:
        if isinstance(element, bool) or not isinstance(element, int | str):
            raise TypeError(f"a seed path holds integers and strings, not {element!r}")
        kind = b"s" if isinstance(element, str) else b"i"
        text = str(element).encode()
        digest.update(kind + len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")
