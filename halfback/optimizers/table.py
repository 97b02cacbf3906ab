"""The table of optimisers by gradients: how each is made, what it holds of a parameter, and what may be set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from halfback.errors import UserError
from halfback.optimizers.adalomo import AdaLomo
from halfback.optimizers.apollo import Apollo
from halfback.optimizers.base import OneByOne, Settings, floats
from halfback.optimizers.foam import Foam
from halfback.optimizers.galore import GaLore
from halfback.optimizers.muon import Muon

Make = Callable[[Sequence[Tensor], Sequence[bool], Settings], torch.optim.Optimizer]


@dataclass(frozen=True)
class Row:
    """An optimiser of the table.

    Attributes:
        make: (parameters, of each whether it is a matrix of a hidden layer, settings) → the optimiser.
        options: the settings that are its own, beside rate and weight decay.
        float16: whether it takes weights of float16; not where squared gradients are kept in the weights' dtype.
        clips: whether gradients may be clipped by their common norm, for which all must be there at once.
        package: what must be installed, with the extra `halfback[optimizers]`; None for nothing.
    """

    make: Make
    options: tuple[str, ...] = ()
    float16: bool = True
    clips: bool = True
    package: str | None = None


def _sgd(parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings, *, heavy: bool) -> torch.optim.SGD:
    momentum = settings.momentum if heavy else 0.0
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=momentum, weight_decay=settings.weight_decay)


def _adamw(parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _adafactor(parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings) -> torch.optim.Adafactor:
    # The paper adds 1e-30 to squared gradients. PyTorch bounds their estimate by the square of this number, which
    # would be 1e-14 by its default: more than the square of many a gradient.
    bounds = (1e-15, 1e-3)
    return torch.optim.Adafactor(parameters, lr=settings.lr, eps=bounds, weight_decay=settings.weight_decay)


def _adamw8bit(parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings) -> torch.optim.Optimizer:
    made: Make = import_module("halfback.optimizers.eight_bits").AdamW8bit
    return made(parameters, hidden, settings)


TABLE: Mapping[str, Row] = {
    "sgd": Row(partial(_sgd, heavy=False)),
    "momentum": Row(partial(_sgd, heavy=True)),
    "adamw": Row(_adamw, float16=False),
    "adamw8bit": Row(_adamw8bit, package="bitsandbytes"),
    "adafactor": Row(_adafactor, float16=False),
    "adalomo": Row(AdaLomo, clips=False),
    "apollo": Row(Apollo, options=("rank", "scale", "gap")),
    "apollo_mini": Row(partial(Apollo, mini=True), options=("scale", "gap")),
    "foam": Row(Foam, options=("level", "scale")),
    "galore": Row(GaLore, options=("rank", "scale", "gap")),
    "muon": Row(Muon, float16=False),
}


def check_installed(name: str, setting: str) -> None:
    """Refuses an optimiser whose package isn't there.

    Raises:
        UserError: names the setting and the extra.
    """
    package = TABLE[name].package
    if package is not None and find_spec(package) is None:
        raise UserError(f"{setting}={name}: needs {package}; pip install 'halfback[optimizers]'")


def form(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What an optimiser of the table holds of a parameter from its first step on, as tensors without values."""
    if isinstance(optimizer, OneByOne | Muon):
        return optimizer.form(parameter)
    like, found = parameter.to("meta"), dict[str, Tensor]()
    match optimizer:
        case torch.optim.SGD():
            return {"momentum_buffer": like} if optimizer.param_groups[0]["momentum"] else {}
        case torch.optim.AdamW():
            found = {"exp_avg": like, "exp_avg_sq": like}
        case torch.optim.Adafactor() if parameter.ndim > 1:
            found = {"row_var": like[..., :1], "col_var": like[..., :1, :]}
        case torch.optim.Adafactor():
            found = {"variance": like}
        case _:
            raise TypeError(f"{type(optimizer).__name__} is no optimiser of the table")
    return {"step": floats()} | found


def held(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors: `<parameter number>.<entry>`; nothing of one that has taken no step."""
    return {
        f"{number}.{entry}": value
        for number, parameter in enumerate(_moved(optimizer))
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def take(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Goes on from what `held` gave, whose form was checked: to the bit, since nothing is cast."""
    parameters = _moved(optimizer)
    optimizer.state.clear()
    for name, tensor in tensors.items():
        number, entry = name.split(".", 1)
        parameter = parameters[int(number)]
        state: dict[str, Any] = optimizer.state[parameter]
        state[entry] = tensor.clone() if entry == "step" else tensor.to(parameter.device, copy=True)


def _moved(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
