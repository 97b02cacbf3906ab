"""Which client has which of the rows that all of them hold, and which rows of a file are trained on at all.

The reference's choices (halfback/data/partition.py and tasks.py), with the same draws of NumPy's Philox generator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfback_device.plan import check_client
from halfback_device.seeds import seed_for
from halfback_device.tables import RowError

_DRAWS, _SHARDS_EACH = 100, 2
_HOLDOUT, _TRAIN_ROWS = 1, 2  # purposes of random choices: each has a stream of its own
_DEFAULT_HOLDOUT = 0.1


def own_share(
    config: Mapping[str, Any], client: int, labels: np.ndarray, inputs: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """A client's share of rows that every client of the run has in full.

    Args:
        config: the recipe, as the package has it.
        client: its number.
        labels: (N,) int64 of all rows of the file.
        inputs: what a row is told by: rows of one input are on one side where some are held back to validate on.

    Returns:
        Its rows in the file, (n,) int64, ascending, and the numbers of these among all that the run trains on.

    Raises:
        RowError: the recipe takes more rows than there are, or has more clients.
        PackageError: it has no client of this number.
    """
    check_client(config, client)
    trained = _trained_on(config, len(labels), inputs)
    seed = seed_for(config["seed"], "partition")
    mine = partition(labels[trained], config["clients"], config["partition"], seed)[client]
    return trained[mine], mine


def _trained_on(config: Mapping[str, Any], count: int, inputs: Sequence[Any]) -> np.ndarray:
    task, seed = config["task"], seed_for(config["seed"], "task")
    rows = np.arange(count)
    named = task["name"] not in ("csv", "images", "hub")  # sets that have validation rows of their own
    if not named and task.get("validation") is None:
        rows = _hold_out(rows, _DEFAULT_HOLDOUT, 0, inputs)  # seed 0: runs with different seeds stay comparable
    if task["holdout"]:
        rows = _hold_out(rows, task["holdout"], seed, inputs)
    wanted = task.get("train_rows")
    if wanted is None:
        return rows
    if wanted > len(rows):
        raise RowError(f"the run trains on {wanted} rows, and this file has {len(rows)} of them")
    chosen = _philox([seed, _TRAIN_ROWS]).choice(rows, size=wanted, replace=False)
    return np.sort(chosen)


def _hold_out(rows: np.ndarray, share: float, seed: int, inputs: Sequence[Any]) -> np.ndarray:
    """The rows that stay where a share of the different inputs is held back."""
    seen: dict[Any, int] = {}
    firsts = np.array([seen.setdefault(inputs[row], int(row)) for row in rows], dtype=np.int64)
    units = np.unique(firsts)
    count = round(share * len(units))
    if not 0 < count < len(units):
        raise RowError(
            f"{share:g} of {len(units)} rows are held back to validate on, which leaves one side without any"
        )
    held = np.isin(firsts, _philox([seed, _HOLDOUT]).permutation(units)[:count])
    return rows[~held]


def _philox(entropy: Any) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def partition(labels: np.ndarray, clients: int, how: Mapping[str, Any], seed: int) -> list[np.ndarray]:
    """Shares out the rows of `labels` (N,): for each client its row numbers, int64, ascending.

    Args:
        labels: class numbers, int64.
        clients: how many share.
        how: `name`, one of iid, dirichlet and shards, and `alpha` of dirichlet.
        seed: of the draws.

    Returns:
        One array a client; every row goes to one client, and every client has at least one.

    Raises:
        RowError: the numbers do not allow it.
    """
    rng, name = _philox(seed), how["name"]
    if not 1 <= clients <= len(labels):
        raise RowError(f"{clients} clients can't share {len(labels)} rows")
    if name == "iid":
        return _ascending(np.array_split(rng.permutation(len(labels)), clients))
    if len(np.unique(labels)) < 2:
        raise RowError(f"partition {name!r} needs class labels, and these rows have a single one")
    if name == "dirichlet":
        return _dirichlet(labels, clients, how["alpha"], rng)
    return _shards(labels, clients, rng)


def _dirichlet(labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
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
    raise RowError(f"dirichlet with alpha={alpha} left one of {clients} clients without rows in each of {_DRAWS} draws")


def _shards(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    count = _SHARDS_EACH * clients
    if len(labels) < count:
        raise RowError(f"shards needs {count} rows for {clients} clients; there are {len(labels)}")
    mixed = rng.permutation(len(labels))  # so that the cuts inside a class do not follow the file's order
    shards = np.array_split(mixed[np.argsort(labels[mixed], kind="stable")], count)
    dealt = rng.permutation(count).reshape(clients, _SHARDS_EACH)
    return _ascending([np.concatenate([shards[shard] for shard in hand]) for hand in dealt])


def _ascending(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.sort(part).astype(np.int64) for part in parts]
