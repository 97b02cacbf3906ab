"""Seeds are hashed paths: no arithmetic, so no two paths share a seed by construction of a sum (docs/protocol.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

Law = Literal["rademacher", "gaussian"]


def seed_for(*path: int | str) -> int:
    """The 64-bit seed of a path such as ``(run_seed, "direction", "bottom", step, 3)``.

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


@lru_cache(maxsize=4096)
def name_number(name: str) -> int:
    """The 64 bits by which a parameter's name stands in a counter."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, person=b"halfback.name").digest(), "little")


def seeds_under(*path: int | str) -> Callable[[int, int], int]:
    """The seed of direction p of a row, as (row, p) → seed: that of the path which goes on by these two from `path`."""
    return lambda row, p: seed_for(*path, row, p)


@dataclass(frozen=True)
class Seeds:
    """The directions of one step: a seed each, and the law that all of them have."""

    numbers: tuple[int, ...]
    law: Law = "rademacher"

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Directions:
    """The directions of all steps: `seed_of(row, p)` is the seed of direction p of a row of the history."""

    seed_of: Callable[[int, int], int]
    law: Law = "rademacher"

    def of(self, row: int, count: int) -> Seeds:
        """The first `count` directions of a row."""
        return Seeds(tuple(self.seed_of(row, p) for p in range(count)), self.law)
