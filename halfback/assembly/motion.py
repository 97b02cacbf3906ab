"""How parameters move: replicas, optimisers and schedules."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from halfback.config import BottomConfig, RunConfig, TopConfig
from halfback.zeroth.directions import Directions, seeds_under
from halfback.zeroth.replay import PLAIN, Replica, RowForm, Schedule, schedule
from halfback.zeroth.update import UpdateRule


def make_replica(
    config: RunConfig,
    part: BottomConfig | TopConfig | None,
    parameters: Mapping[str, Tensor],
    side: str,
    *,
    form: RowForm = PLAIN,
    own_pace: bool = False,
) -> Replica:
    """`part` is None for parameters that no replay moves: they need no moments."""
    return Replica(
        parameters,
        UpdateRule() if part is None else update_rule(config, part),
        Directions(seeds_under(config.seed, "direction", side), config.bottom.law),
        schedule=make_schedule(config, config.bottom if part is None else part),
        form=form,
        own_pace=own_pace,
    )


def update_rule(config: RunConfig, part: BottomConfig | TopConfig) -> UpdateRule:
    """How agreed slopes move a part."""
    return UpdateRule(
        optimizer=part.optimizer,
        lr=part.lr,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        clip=part.clip,
        normalize=config.bottom.normalize,
    )


def make_optimizer(part: BottomConfig | TopConfig, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """How gradients move a part."""
    if part.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=part.lr, weight_decay=part.weight_decay)
    momentum = part.momentum if part.optimizer == "momentum" else 0.0
    return torch.optim.SGD(parameters, lr=part.lr, momentum=momentum, weight_decay=part.weight_decay)


def make_schedule(config: RunConfig, part: BottomConfig | TopConfig) -> Schedule:
    """The learning rate's factor by the run's step."""
    return schedule(part.schedule, warmup=part.warmup, total=config.steps)
