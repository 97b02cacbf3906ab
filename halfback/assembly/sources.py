"""Who has which rows: the clients, or one machine that has them all."""

from dataclasses import dataclass

import torch

from halfback.config import RunConfig
from halfback.data.augment import Augmentation, parse
from halfback.data.batches import ClientData, Split
from halfback.data.partition import partition
from halfback.zeroth.directions import seed_for


@dataclass(frozen=True)
class Seat:
    """Which client of the federation a machine of its own is, and what rows it has.

    Attributes:
        client: its number.
        own_rows: all training rows are this client's; if not, it takes its share of rows that all have.
        classes: the federation's, in order; empty where there are none.
    """

    client: int
    own_rows: bool
    classes: tuple[str, ...]


def site_source(config: RunConfig, train: Split, client: int, device: torch.device) -> ClientData:
    """The batches of a client whose rows nobody else has."""
    rows, seed = torch.arange(len(train.labels)).numpy(), seed_for(config.seed, "order", client)
    augment = _augmentation(config, client)  # its rows have numbers that others' have too
    return ClientData(train, rows, batch_size=config.batch_size, seed=seed, augment=augment, device=device)


def client_sources(config: RunConfig, train: Split, device: torch.device) -> list[ClientData]:
    """Each client's rows, in batches of its own order."""
    parts = partition(
        train.labels,
        config.clients,
        name=config.partition.name,
        alpha=config.partition.alpha,
        seed=seed_for(config.seed, "partition"),
    )
    augment = _augmentation(config)
    return [
        ClientData(
            train,
            rows,
            batch_size=config.batch_size,
            seed=seed_for(config.seed, "order", number),
            augment=augment,
            device=device,
        )
        for number, rows in enumerate(parts)
    ]


def pooled_source(config: RunConfig, train: Split, device: torch.device) -> list[ClientData]:
    """One machine's data: the rows of all clients, and in a batch as many as those of a cohort together."""
    rows = torch.arange(len(train.labels)).numpy()
    size = config.batch_size * config.sampled_clients
    seed, augment = seed_for(config.seed, "order", 0), _augmentation(config)
    return [ClientData(train, rows, batch_size=size, seed=seed, augment=augment, device=device)]


def _augmentation(config: RunConfig, *path: int) -> Augmentation | None:
    """What is done to training images; None where nothing is."""
    changes = parse(config.task.augment)
    return Augmentation(changes, seed_for(config.seed, "augment", *path)) if changes else None
