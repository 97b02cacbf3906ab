"""The rules about optimisers: what moves a part of the model, and what it can't do there."""

from typing import get_args

import torch

from halfback.config.facts import Chosen, Moved, dtypes_of
from halfback.config.rule import Rule
from halfback.optimizers.table import TABLE
from halfback.zeroth.radius import least_move, swallowed
from halfback.zeroth.update import Replayed

_REPLAYED = get_args(Replayed)

OF_OPTIMIZERS: tuple[Rule[Chosen], ...] = (
    Rule(
        "sign of gradients",
        lambda f: f.config.bottom.optimizer == "sign" and f.method.gradients,
        lambda _: "bottom.optimizer=sign: it is for replayed slopes; use adamw, or another of docs/optimizers.md",
    ),
    Rule(
        "bottom replayed by an optimiser of gradients",
        lambda f: f.method.replays and f.config.bottom.optimizer not in _REPLAYED,
        lambda f: (
            f"bottom.optimizer={f.config.bottom.optimizer}: {f.config.algorithm.name} replays slopes; sgd, momentum, "
            "adamw or sign are allowed"
        ),
    ),
    Rule(
        "top replayed by an optimiser of gradients",
        lambda f: f.method.replays_top and f.config.top.optimizer not in _REPLAYED,
        lambda f: (
            f"top.optimizer={f.config.top.optimizer}: {f.config.algorithm.name} replays slopes there too; sgd, "
            "momentum or adamw are allowed"
        ),
    ),
    Rule(
        "option of another optimiser",
        lambda f: f.foreign_option is not None,
        lambda f: f"{f.foreign_option}: it has no such option; set it to null",
    ),
    Rule(
        "milestones of another schedule",
        lambda f: f.misplaced_milestones is not None,
        lambda f: (
            f"{f.misplaced_milestones}: milestones and schedule=multistep go together; set both, or leave both away"
        ),
    ),
    Rule(
        "milestones out of order",
        lambda f: f.disordered_milestones is not None,
        lambda f: f"{f.disordered_milestones}: steps from 1 on in rising order are allowed, each once",
    ),
    Rule(
        "clipping what is never there at once",
        lambda f: f.unclipped is not None,
        lambda f: (
            f"{f.unclipped}.clip: adalomo uses each gradient as it comes, so there is no norm of all of them; set "
            f"{f.unclipped}.clip=null, or another optimizer"
        ),
    ),
)

MOVED: tuple[Rule[Moved], ...] = (
    Rule(
        "squares in float16",
        lambda f: (
            not f.replays
            and not (f.settings.optimizer in TABLE and TABLE[f.settings.optimizer].float16)
            and any(parameter.dtype == torch.float16 for parameter in f.parameters.values())
        ),
        lambda f: (
            f"{f.side}.optimizer={f.settings.optimizer}: its squared gradients vanish in float16; use "
            f"model.dtype=bfloat16 or float32, or {f.side}.optimizer=sgd"
        ),
    ),
    Rule(
        "rate that rounds away",
        lambda f: f.is_as_long_as_the_rate and swallowed(f.parameters, f.settings.lr) > 0.5,
        lambda f: (
            f"{f.side}.lr={f.settings.lr:g} is too small for {dtypes_of(f.parameters)}: a step rounds away in "
            f"{swallowed(f.parameters, f.settings.lr):.0%} of the weights; use at least "
            f"{least_move(f.parameters, f.settings.lr):.2g}, or train in float32"
        ),
    ),
)
