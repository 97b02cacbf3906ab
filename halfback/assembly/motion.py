"""How parameters move: replicas, optimisers and schedules."""

from collections.abc import Collection, Mapping
from typing import Literal, cast

from torch import Tensor

from halfback.config import BottomConfig, RunConfig, TopConfig
from halfback.optimizers.base import Settings
from halfback.optimizers.table import TABLE, check_installed
from halfback.parties.holdings import Descent
from halfback.zeroth.directions import Directions, seed_for, seeds_under
from halfback.zeroth.replay import PLAIN, Falls, Replica, RowForm, Schedule, schedule
from halfback.zeroth.update import Replayed, UpdateRule


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
        optimizer=cast(Replayed, part.optimizer),  # others are refused by a rule
        lr=part.lr,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        clip=part.clip,
        normalize=config.bottom.normalize,
    )


def make_descent(
    config: RunConfig, side: Literal["bottom", "top"], parameters: Mapping[str, Tensor], hidden: Collection[str]
) -> Descent:
    """How gradients move a part; `hidden`: the names of those that are matrices of hidden layers.

    Raises:
        UserError: the optimiser needs a package that isn't there.
    """
    part: BottomConfig | TopConfig = getattr(config, side)
    check_installed(part.optimizer, f"{side}.optimizer")
    settings = Settings(
        part.lr,
        part.weight_decay,
        part.momentum,
        seed=seed_for(config.seed, "projection", side),
        **part.options.chosen(),
    )
    row, inside = TABLE[part.optimizer], [name in hidden for name in parameters]
    make = lambda moved: row.make(moved, inside, settings)  # noqa: E731
    return Descent(list(parameters.values()), make, part.clip, make_schedule(config, part))


def make_schedule(config: RunConfig, part: BottomConfig | TopConfig) -> Schedule:
    """The learning rate's factor by the run's step."""
    falls = Falls(part.milestones, part.gamma)
    return schedule(part.schedule, warmup=part.warmup, total=config.steps, falls=falls)
