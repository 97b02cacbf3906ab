"""The server's steps on means of weights: the paper's algorithm in float64 over what real clients said, and by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from halfback import config
from halfback.errors import UserError
from halfback.parties.server_step import Averaging, ServerStep
from halfback.testing import small
from halfback.testing.wrapped import wrap
from halfback.wire.messages import Message, Weights

STEPS = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]


def ran(
    rounds: int, algorithm: str = "fedavg", **changes: Any
) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """θ before the first round and behind each, and the mean of what the clients said in each, in float64."""
    settings = {"sampled_clients": 2, "algorithm__aggregation": "uniform", **changes}
    simulation = small.built(small.images(algorithm, **settings)).federation
    honest, party = simulation.server.algorithm.answer, simulation.server.party
    said: list[list[np.ndarray]] = []

    def answer(server: Any, messages: Mapping[int, Message]) -> Mapping[int, Message]:
        closing = [message for message in messages.values() if isinstance(message, Weights)]
        if closing:
            columns = zip(*(message.tensors for message in closing), strict=True)
            said.append([np.mean([each.detach().double().numpy() for each in column], axis=0) for column in columns])
        return honest(server, messages)

    def theta() -> list[np.ndarray]:
        return [parameter.detach().double().numpy().copy() for parameter in party.agreed.replica.parameters.values()]

    wrap(simulation, answer=answer)
    found = [theta()]
    for number in range(rounds):
        small.run(simulation, 1, first=number, steps=2)
        found.append(theta())
    return found, said


def algorithm_2(name: str, begun: list[np.ndarray], said: list[list[np.ndarray]], eta: float) -> list[list[np.ndarray]]:
    """Of arXiv 2003.00295, lines 9 to 14, with its β₁ = 0.9, β₂ = 0.99, τ = 1e-3; x_t follows from x_{t−1} as it is."""
    x, found = [each.copy() for each in begun], []
    m, v = ([np.zeros_like(each) for each in x] for _ in range(2))
    v = [each + 1e-3**2 for each in v]
    for means in said:
        for place, mean in enumerate(means):
            delta = mean - x[place]
            if name == "fedavgm":
                m[place] = 0.9 * m[place] + delta
                x[place] = x[place] + eta * m[place]
                continue
            m[place] = 0.9 * m[place] + 0.1 * delta
            if name == "fedadagrad":
                v[place] = v[place] + delta**2
            elif name == "fedyogi":
                v[place] = v[place] - 0.01 * delta**2 * np.sign(v[place] - delta**2)
            else:
                v[place] = 0.99 * v[place] + 0.01 * delta**2
            x[place] = x[place] + eta * m[place] / (np.sqrt(v[place]) + 1e-3)
        found.append([each.copy() for each in x])
    return found


@pytest.mark.parametrize("name", STEPS)
def test_a_run_is_the_papers_algorithm(name: str) -> None:
    eta = 1.0 if name == "fedavgm" else 0.02
    found, said = ran(3, server_step__name=name, server_step__lr=eta)
    for ours, papers in zip(found[1:], algorithm_2(name, found[0], said, eta), strict=True):
        for one, other in zip(ours, papers, strict=True):
            # Float32 weights of up to about 1, whose differences Δ have its rounding: 6e-8, over √v + τ ≥ 1e-3 and
            # times η = 0.02 it is 1e-6 a round; less where nothing is divided.
            np.testing.assert_allclose(one, other, rtol=0, atol=4e-6)
    moved = max(np.abs(last - first).max() for first, last in zip(found[0], found[3], strict=True))
    assert moved > 1e-3


@pytest.mark.parametrize("algorithm", ["split_lora", "sfl_v1", "heron_sfl", "mu_splitfed"])
def test_other_methods_that_average_take_them(algorithm: str) -> None:
    """Momentum 0 at rate ½ goes half of the way to the mean; float32 sums of weights of about 1."""
    found, said = ran(1, algorithm, server_step={"name": "fedavgm", "momentum": 0.0, "lr": 0.5})
    for begun, now, mean in zip(*found, said[0], strict=True):
        np.testing.assert_allclose(now, (begun + mean) / 2, rtol=0, atol=3e-7)


def test_in_half_precision_the_moments_are_float32() -> None:
    theta = torch.ones(4, dtype=torch.bfloat16)
    averaging = Averaging(ServerStep("fedadam"), {"w": theta})
    moved = averaging.moved("w", torch.full((4,), 1.5, dtype=torch.bfloat16))
    assert moved.dtype == torch.bfloat16
    # m = 0.05, v = 0.01 · 0.25 + 0.99e-6: 1 + 0.01 · 0.05 / (0.05 + 0.001), a hundredth above 1, to bfloat16's 1/128.
    assert moved.tolist() == [1.0078125] * 4
    assert {each.dtype for each in averaging.tensors().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["server_step.name=adam"], "server_step.name='adam': input should be 'none', 'fedavgm', 'fedadagrad', 'fed"),
        (["server_step.lr=0"], "server_step.lr=0: a positive number is allowed"),
        (["server_step.tau=-1"], "server_step.tau=-1: a positive number is allowed"),
        (["server_step.beta2=1"], "server_step.beta2=1: 0 or more and less than 1 is allowed"),
        (["server_step.name=fedadam", "algorithm.name=vanilla_split"], "server_step.name=fedadam: vanilla_split takes"),
    ],
)
def test_what_is_refused(settings: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        config.resolve("quickstart", ["beside=[]", *settings])
    assert str(caught.value).startswith(line)
