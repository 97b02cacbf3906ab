"""Which client holds which training rows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from halfback.data.sources import nearest_first
from halfback.errors import UserError

SCHEMES = ("iid", "dirichlet", "shards")
_DRAWS = 100
_SHARDS_EACH = 2


def partition(
    labels: Tensor | np.ndarray,
    clients: int,
    *,
    name: Literal["iid", "dirichlet", "shards"],
    alpha: float,
    seed: int,
) -> list[np.ndarray]:
    """Share out the rows of `labels` (N,): for each client its row numbers, int64, ascending.

    Every row goes to one client and every client has at least one.

    - iid: a random order cut into parts whose sizes differ by at most one row.
    - dirichlet: each class is shared out by proportions drawn from Dirichlet(alpha, ..., alpha) over the clients: a
      small alpha gives clients with few classes and unequal sizes. A draw that leaves a client without rows is drawn
      again, at most 100 times.
    - shards: rows sorted by class are cut into two shards a client (McMahan et al., 2017), dealt at random.

    UserError if the numbers do not allow it, or if dirichlet or shards find a single class (as for causal_lm).
    """
    numbers = np.asarray(labels)
    if name not in SCHEMES:
        raise UserError(f"partition {name!r} is unknown; known: {nearest_first(name, SCHEMES)}")
    if not 1 <= clients <= len(numbers):
        raise UserError(f"clients={clients} must be from 1 to the number of training rows, {len(numbers)}")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    if name == "iid":
        return _ascending(np.array_split(rng.permutation(len(numbers)), clients))
    if len(np.unique(numbers)) < 2:
        raise UserError(f"partition {name!r} needs class labels, and these rows have a single one; use 'iid'")
    if name == "dirichlet":
        return _dirichlet(numbers, clients, alpha, rng)
    return _shards(numbers, clients, rng)


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
    if not (np.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha={alpha} must be a finite number greater than 0")
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    for _ in range(_DRAWS):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for rows in by_class:
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        shared_out = [np.concatenate(part) for part in parts]
        if all(len(part) for part in shared_out):
            return _ascending(shared_out)
    raise UserError(
        f"dirichlet with alpha={alpha} left one of {clients} clients without rows in each of {_DRAWS} draws; "
        "use a larger alpha, fewer clients or more rows"
    )


def _shards(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    count = _SHARDS_EACH * clients
    if len(labels) < count:
        raise UserError(f"shards needs {count} rows for {clients} clients; there are {len(labels)}")
    mixed = rng.permutation(len(labels))  # so that the cuts inside a class do not follow the file's order
    shards = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], count)
    dealt = rng.permutation(count).reshape(clients, _SHARDS_EACH)
    return _ascending([np.concatenate([shards[shard] for shard in hand]) for hand in dealt])


def _ascending(parts: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sort(part).astype(np.int64) for part in parts]
