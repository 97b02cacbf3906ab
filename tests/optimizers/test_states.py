"""What optimisers hold: form and size, in every dtype, through a checkpoint, with gradients freed one by one."""

import math
from collections.abc import Sequence

import pytest
import torch
from test_formulas import HIDDEN, STEPS, descent, give, weights
from torch import Tensor, nn

from halfback.optimizers.base import OneByOne, Settings
from halfback.optimizers.table import TABLE, form, held, take
from halfback.parties.holdings import Descent

M, N = 24, 90  # a matrix
NUMBERS = {  # of a matrix of a hidden layer beside the count of its steps, by the papers; r is a quarter of M
    "sgd": 0,
    "momentum": M * N,
    "adamw": 2 * M * N,
    "adafactor": M + N,
    "adalomo": M + N,
    "apollo": 2 * (M // 4) * N + 1,
    "apollo_mini": 2 * N + 1,
    "foam": 2 * M * math.ceil(N / 4),
    "galore": 2 * (M // 4) * N + M * (M // 4),
    "muon": M * N,
}
ONE_BY_ONE = ["adamw8bit", "adalomo", "apollo", "apollo_mini", "foam", "galore"]
HALVES = [(name, dtype) for name in TABLE for dtype in (torch.bfloat16, torch.float16)]


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["name"]
    pytest.importorskip(TABLE[name].package or "torch")


@pytest.mark.parametrize("name", NUMBERS)
def test_the_size_of_a_state(name: str) -> None:
    matrix = torch.randn(M, N, requires_grad=True)
    optimizer = TABLE[name].make([matrix], [True], Settings(1e-3))
    matrix.grad = torch.randn(M, N)
    optimizer.step()
    assert sum(tensor.numel() for key, tensor in held(optimizer).items() if key != "0.step") == NUMBERS[name]
    assert all(tensor.dtype == torch.float32 for tensor in held(optimizer).values())


@pytest.mark.parametrize("name", ["adamw8bit"])
def test_the_size_of_a_state_of_eight_bits(name: str) -> None:
    matrix = torch.randn(M, 10 * N, requires_grad=True)
    optimizer = TABLE[name].make([matrix], [True], Settings(1e-3))
    matrix.grad = torch.randn(M, 10 * N)
    optimizer.step()
    size = M * 10 * N
    assert sum(tensor.nbytes for tensor in held(optimizer).values()) == 2 * size + 2 * 4 * math.ceil(size / 256) + 4


@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_at_half_precision_all_move(name: str, dtype: torch.dtype) -> None:
    """A state is what `form` says; those of this room come to what float32 comes to, rounded once."""
    if dtype == torch.float16 and not TABLE[name].float16:
        return  # a rule refuses it
    half = weights(dtype)
    fine = [parameter.detach().float().requires_grad_() for parameter in half]
    of_half, of_fine = descent(name, half), descent(name, fine)
    give(half, 0)
    for coarse, parameter in zip(half, fine, strict=True):
        assert coarse.grad is not None
        parameter.grad = coarse.grad.float()
    for moving in (of_half, of_fine):
        moving.step(0)
    for number, parameter in enumerate(parameter for g in of_half.optimizer.param_groups for parameter in g["params"]):
        wanted = form(of_half.optimizer, parameter)
        found = {k.partition(".")[2]: t for k, t in held(of_half.optimizer).items() if k.startswith(f"{number}.")}
        assert {k: (t.shape, t.dtype) for k, t in found.items()} == {k: (t.shape, t.dtype) for k, t in wanted.items()}
    if isinstance(of_half.optimizer, OneByOne):
        for coarse, parameter in zip(half, fine, strict=True):
            assert torch.equal(coarse, parameter.to(dtype))


@pytest.mark.parametrize("name", list(TABLE))
def test_a_state_goes_on_to_the_bit(name: str) -> None:
    """Behind three steps, of which the tensors alone are kept; bfloat16 shows whether a state of float32 is cast."""
    dtype = torch.bfloat16 if name in ONE_BY_ONE else torch.float32
    unbroken, resumed = weights(dtype), weights(dtype)
    of_unbroken = descent(name, unbroken)
    for step in range(3):
        give(unbroken, step)
        of_unbroken.step(step)
    kept = {key: tensor.clone() for key, tensor in held(of_unbroken.optimizer).items()}
    with torch.no_grad():
        for parameter, value in zip(resumed, unbroken, strict=True):
            parameter.copy_(value)
    of_resumed = descent(name, resumed)
    give(resumed, 5)
    of_resumed.step(5)  # a state that has to go
    with torch.no_grad():
        for parameter, value in zip(resumed, unbroken, strict=True):
            parameter.copy_(value)
    take(of_resumed.optimizer, kept)
    for step in range(3, STEPS):
        for parameters, moving in ((unbroken, of_unbroken), (resumed, of_resumed)):
            give(parameters, step)
            moving.step(step)
    assert all(torch.equal(one, other) for one, other in zip(unbroken, resumed, strict=True))
    after, wanted = held(of_resumed.optimizer), held(of_unbroken.optimizer)
    assert after.keys() == wanted.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", ["adamw8bit"])
def test_eight_bits_go_on_to_the_bit(name: str) -> None:
    """Of a tensor that is large enough for them; of the numbers of bfloat16 that move, none is cast."""
    gradients = torch.randn(4, 80, 60, generator=torch.Generator().manual_seed(0)).bfloat16()
    both = []
    for breaks in (False, True):
        matrix = torch.ones(80, 60, dtype=torch.bfloat16).requires_grad_()
        optimizer = TABLE[name].make([matrix], [True], Settings(1e-2))
        for step, gradient in enumerate(gradients):
            if breaks and step == 2:
                kept = {key: tensor.clone() for key, tensor in held(optimizer).items()}
                optimizer = TABLE[name].make([matrix], [True], Settings(1e-2))
                take(optimizer, kept)
            matrix.grad = gradient
            optimizer.step()
        both.append({"weights": matrix.detach()} | held(optimizer))
    assert both[0]["0.mean"].dtype == torch.uint8
    assert all(torch.equal(both[1][key], tensor) for key, tensor in both[0].items())


@pytest.mark.parametrize("name", list(TABLE))
def test_a_gradient_of_zeros_and_none(name: str) -> None:
    """Nothing but the decay moves a weight then, and the steps after it are as good as any."""
    parameters = weights()
    before = [parameter.detach().clone() for parameter in parameters]
    moving = descent(name, parameters)
    for parameter in parameters[:-1]:
        parameter.grad = torch.zeros_like(parameter)
    moving.step(0)
    assert torch.equal(parameters[-1], before[-1]), "it had no gradient"
    for parameter, was in zip(parameters[:-1], before, strict=False):
        assert bool((parameter.detach().abs() <= was.abs()).all())
    for step in (1, 2):
        give(parameters, step)
        moving.step(step)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in parameters)
    assert all(not torch.equal(parameter, was) for parameter, was in zip(parameters, before, strict=True))


class Tied(nn.Module):
    """A weight that is used twice, a bias, a scalar, and a part that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.idle = nn.Linear(8, 8)

    def forward(self, rows: Tensor) -> Tensor:
        return (self.both(torch.tanh(self.both(rows))) * self.scale).square().mean()


def passes(moving: Descent, module: nn.Module, batches: Sequence[Tensor], step: int) -> list[bool]:
    """A step on the mean gradient of so many backward passes; whether parameters held a gradient behind the last."""
    moving.begin()
    for batch in batches[:-1]:
        module(batch).backward()
    with moving.last_pass(step, len(batches)):
        module(batches[-1]).backward()
    assert moving.has_gradients
    there = [parameter.grad is not None for parameter in module.parameters()]
    moving.step(step)
    assert not moving.has_gradients
    return there


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_gradients_freed_one_by_one_come_to_the_same_bits(name: str, count: int) -> None:
    """A bound on the norm of all gradients needs all of them; one of infinity changes nothing else."""
    torch.manual_seed(0)
    fused, whole = Tied(), Tied()
    whole.load_state_dict(fused.state_dict())
    make = lambda moved: TABLE[name].make(moved, [p.ndim == 2 for p in moved], Settings(1e-2, 0.1))  # noqa: E731
    of_fused = Descent(list(fused.parameters()), make)
    of_whole = Descent(list(whole.parameters()), make, clip=math.inf)
    for step in range(3):
        batches = torch.randn(count, 5, 8)
        assert passes(of_fused, fused, batches, step) == [False] * 5
        assert passes(of_whole, whole, batches, step) == [True] * 3 + [False] * 2
        for one, other in zip(fused.parameters(), whole.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["apollo", "apollo_mini"])
def test_a_projection_is_the_seeds_alone(name: str) -> None:
    found = []
    for seed in (0, 0, 1):
        parameters = weights()
        moving = Descent(parameters, lambda moved, s=seed: TABLE[name].make(moved, HIDDEN, Settings(1e-2, seed=s)))  # type: ignore[misc]
        give(parameters, 0)
        torch.manual_seed(len(found))  # the global generator has no part in it
        moving.step(0)
        found.append(parameters[0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
