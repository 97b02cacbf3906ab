"""How the server moves θ from what its clients' weights come to: their mean, or a step of an optimiser towards it.

Reddi et al. (2021, arXiv 2003.00295, algorithm 2): a round's pseudo-gradient Δ is the mean of the clients' θ_m − θ.

    m ← β₁ m + (1 − β₁) Δ
    v ← v + Δ²                                  (FedAdagrad)
    v ← v − (1 − β₂) Δ² sign(v − Δ²)            (FedYogi)
    v ← β₂ v + (1 − β₂) Δ²                      (FedAdam)
    θ ← θ + η m / (√v + τ)

m begins at 0 and v at τ², and nothing is corrected for that. FedAvgM (Hsu et al., arXiv 1909.06335): m ← βm + Δ, and
θ ← θ + ηm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from halfback.errors import UserError


@dataclass(frozen=True)
class ServerStep:
    """The server's step on the mean of the clients' weights, for methods that take such a mean.

    Attributes:
        name: `none`: θ becomes the mean; else a step towards it: `fedavgm`, `fedadagrad`, `fedadam`, `fedyogi`.
        lr: η, the rate of that step; null for 1 of `fedavgm`, and 0.01 of the others.
        momentum: β of `fedavgm`, how much of the last step goes on in the next one.
        beta1: β₁ of the others, how much of m stays.
        beta2: β₂ of `fedadam` and `fedyogi`, how much of v stays.
        tau: τ of all but `fedavgm`, how adaptive they are: the less, the more.
    """

    name: Literal["none", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = "none"
    lr: float | None = None
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        for option in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, option) < 1:
                raise UserError(f"server_step.{option}={getattr(self, option):g}: 0 or more and less than 1 is allowed")
        for option, value in (("lr", self.lr), ("tau", self.tau)):
            if value is not None and not value > 0:
                raise UserError(f"server_step.{option}={value:g}: a positive number is allowed")

    @property
    def rate(self) -> float:
        """η."""
        if self.lr is not None:
            return self.lr
        return 1.0 if self.name == "fedavgm" else 0.01


@dataclass
class Averaging:
    """The server's steps on means of weights, and what they have come to.

    Attributes:
        settings: which step. parameters: θ, by name.
        state: m and, of the adaptive ones, v, float32, each by the parameter's name.
    """

    settings: ServerStep
    parameters: Mapping[str, Tensor]
    state: dict[str, dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        like = {name: p.detach().float() for name, p in self.parameters.items()}
        self.state = {"m": {name: torch.zeros_like(each) for name, each in like.items()}}
        if self.settings.name != "fedavgm":
            self.state["v"] = {name: torch.full_like(each, self.settings.tau**2) for name, each in like.items()}

    def moved(self, name: str, mean: Tensor) -> Tensor:
        """What a parameter becomes where the clients' mean of it is `mean`, in its dtype."""
        own, now, m = self.settings, self.parameters[name].float(), self.state["m"][name]
        delta = mean.float() - now
        if own.name == "fedavgm":
            m.mul_(own.momentum).add_(delta)
            return (now + own.rate * m).to(mean.dtype)
        v, squared = self.state["v"][name], delta.square()
        m.lerp_(delta, 1 - own.beta1)
        match own.name:
            case "fedadagrad":
                v.add_(squared)
            case "fedyogi":
                v.sub_((1 - own.beta2) * squared * torch.sign(v - squared))
            case _:
                v.lerp_(squared, 1 - own.beta2)
        return (now + own.rate * m / (v.sqrt() + own.tau)).to(mean.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the steps so far: the tensors themselves, named `MOMENT.NAME`."""
        return {f"{moment}.{name}": each for moment, of in self.state.items() for name, each in of.items()}
