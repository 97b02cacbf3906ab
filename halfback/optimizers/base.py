"""What the optimisers of this room do alike: one tensor at a time, in float32, with a state whose form is known."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # what a length is divided by at least

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """How an optimiser of the table is made.

    Attributes:
        lr: learning rate, before a schedule. weight_decay: decoupled, where an optimiser has it.
        momentum: of `momentum` alone.
        rank, level, scale, gap: options of those that have them; None for the paper's own choice.
        seed: of what is drawn.
    """

    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    rank: int | None = None
    level: int | None = None
    scale: float | None = None
    gap: int | None = None
    seed: int = 0


class OneByOne(torch.optim.Optimizer, ABC):
    """An optimiser that moves each tensor by itself, so that it may do so while a backward pass still runs.

    Arithmetic and state are float32, whatever the dtype of a parameter is. A tensor's state is `form`, made of zeros at
    its first step; `step`, on the CPU, counts the steps that it has taken.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    eps: ClassVar[float] = 1e-8

    def __init__(self, parameters: Sequence[Tensor], hidden: Sequence[bool], settings: Settings) -> None:
        """`hidden`: of each parameter, whether it is a matrix of a hidden layer."""
        super().__init__(parameters, {"lr": settings.lr, "weight_decay": settings.weight_decay})
        self.settings = settings
        self.hidden = dict(zip(parameters, hidden, strict=True))
        self.place = {parameter: number for number, parameter in enumerate(parameters)}

    @abstractmethod
    def form(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter as tensors without values: their names, shapes and dtypes."""

    @abstractmethod
    def change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Moves a parameter and its state; the gradient is float32, and not to be changed."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that holds a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter)

    @torch.no_grad()
    def move(self, parameter: Tensor) -> None:
        """Moves one parameter on the gradient that it holds, which stays."""
        assert parameter.grad is not None, "a parameter is moved on a gradient"
        state = self.state[parameter]
        if not state:
            for name, like in self.form(parameter).items():
                device = "cpu" if name == "step" else parameter.device
                state[name] = torch.zeros(like.shape, dtype=like.dtype, device=device)
        state["step"] += 1
        self.change(parameter, parameter.grad.float(), state)

    def shift(self, parameter: Tensor, direction: Tensor, rate: float | None = None) -> None:
        """W ← W − ηλW − ηu, with η the learning rate of now unless another `rate` is given."""
        group = self.param_groups[0]
        rate = group["lr"] if rate is None else rate
        values = parameter.float()  # the parameter itself where it is float32
        values.mul_(1 - rate * group["weight_decay"]).sub_(direction, alpha=rate)
        if values is not parameter:
            parameter.copy_(values)

    def adam(self, gradient: Tensor, state: State) -> Tensor:
        """Adam's m̂ / (√v̂ + ε) of a gradient (arXiv 1412.6980), whose moments are in the state."""
        mean, square, count = state["mean"], state["square"], int(state["step"])
        beta1, beta2 = self.betas
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2**count)).sqrt_().add_(self.eps)
        return (mean / (1 - beta1**count)).div_(root)


def floats(*shape: int) -> Tensor:
    """A float32 tensor of this shape without values."""
    return torch.empty(shape, device="meta")


def adam_form(*shape: int) -> dict[str, Tensor]:
    """The state that `OneByOne.adam` needs for gradients of this shape."""
    return {"step": floats(), "mean": floats(*shape), "square": floats(*shape)}


def lying(matrix: Tensor) -> Tensor:
    """A matrix with its shorter side first (m ≤ n): itself, or a view of it."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
