"""HO-SFL with directions of a client's or a sample's own, and exact blocks: what is agreed on, against autograd."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from halfback.algorithms.replies import catch_up
from halfback.build import Built
from halfback.conformance import small
from halfback.errors import Diverged, PeerError
from halfback.models.adapters import trainable
from halfback.wire.messages import History, HistoryAndState, Join
from halfback.zeroth.directions import direction_of

P = 2
RADIUS = 1e-3
TOLERANCE = 1e-3


def _world(**changes: Any) -> Built:
    """Three clients with six rows each; batches of four, so every second one has two."""
    settings = {"clients": 3, "sampled_clients": 2, "batch_size": 4, "task__train_rows": 18, "top__lr": 1e-6}
    settings |= {"bottom__lr": 1e-6, "algorithm__directions": P, "algorithm__estimator": "central"}
    return small.built(small.images("ho_sfl", **settings | {"algorithm__radius": RADIUS} | changes))


def _gradients(run: Built, inputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    theta = trainable(run.model.bottom)
    loss = cross_entropy(run.model.top(run.model.bottom(inputs), None), labels.long())
    return dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))


def _slope(run: Built, inputs: dict[str, Tensor], labels: Tensor, seed: int) -> float:
    """The same central difference of ⟨λ, z⟩ as a device's, in float64."""
    bottom, top = copy.deepcopy((run.model.bottom, run.model.top))
    theta, sides = trainable(bottom.double()), []
    hidden = bottom(inputs).detach().requires_grad_()
    (cotangent,) = torch.autograd.grad(cross_entropy(top.double()(hidden, None), labels.long()), hidden)
    for move in (RADIUS, -2 * RADIUS):  # from one side to the other
        with torch.no_grad():
            for name, parameter in theta.items():
                parameter += move * direction_of(seed, name, parameter)
            sides.append((cotangent * bottom(inputs)).sum().item())
    return (sides[0] - sides[1]) / (2 * RADIUS)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("per", ["client", "sample"])
def test_every_slope_stands_where_its_direction_does(per: str, step: int) -> None:
    """A row holds, at each client's seat, the slopes of its own loss or of its samples' own; zeros for absent rows."""
    run = _world(algorithm__directions_per=per, steps_per_round=2)
    simulation = run.simulation
    before = _world(algorithm__directions_per=per, steps_per_round=2)  # θ as it is throughout, at these rates
    small.run(simulation, 1, steps=2)
    agreed, wanted, cohort = simulation.server.history[step], [], simulation.cohort(0)
    seeds = simulation.server.replica.seeds(len(agreed), step=step)
    for client in cohort:
        batch = simulation.sources[client].batch(step)
        count = len(batch.labels)
        assert count == (4, 2)[step]
        if per == "client":
            wanted += [_slope(before, batch.inputs, batch.labels, seeds[len(wanted) + p]) for p in range(P)]
            continue
        for row in range(4):
            if row >= count:
                wanted += [0.0] * P
                continue
            only = {name: tensor[row : row + 1] for name, tensor in batch.inputs.items()}
            own = [_slope(before, only, batch.labels[row : row + 1], seeds[len(wanted) + p]) for p in range(P)]
            # The mean over four places is the mean over the rows that are there.
            wanted += [4 / count * slope for slope in own]
    expected = torch.tensor(wanted)
    assert agreed.shape == expected.shape
    assert torch.equal(agreed == 0, expected == 0)
    # Activations near 1 are rounded at 6e-8, which a difference over 2μ makes 3e-5 of, in thousands of terms.
    torch.testing.assert_close(agreed, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())
    # Directions of other places would give other slopes: the test can fail.
    assert not torch.allclose(agreed.roll(P), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("per", ["cohort", "client", "sample"])
def test_the_number_of_directions_rises(per: str) -> None:
    """The first of a step's directions alone are measured at first, and count for as many more."""
    changes = {"algorithm__directions": 4, "algorithm__directions_per": per, "steps_per_round": 4}
    rising, full = _world(algorithm__directions_rise=3, **changes).simulation, _world(**changes).simulation
    for simulation in (rising, full):
        small.run(simulation, 1, steps=4)
    measured = [2, 3, 4, 4]  # 4/3, 8/3, 4: rounded up
    for few, first, all_of_them in zip(measured, rising.server.history, full.server.history, strict=True):
        one, other = first.view(-1, 4), all_of_them.view(-1, 4)
        assert (one[:, few:] == 0).all()
        # At these rates θ is the same in both runs up to 1e-6, and slopes to their rounding.
        torch.testing.assert_close(one[:, :few], other[:, :few] * (4 / few), rtol=1e-2, atol=2e-2)
    # Forward and 2 a direction, central: of 2 clients in 4 steps.
    assert rising.meters.forward_passes == 2 * sum(1 + 2 * few for few in measured)


def test_exact_gradients_are_the_cohorts_mean() -> None:
    changes = {"model__cut": 3, "algorithm__exact_blocks": 2, "algorithm__directions": 0}
    run, before = _world(**changes), _world(**changes)
    small.run(run.simulation, 1)
    simulation = run.simulation
    total = torch.zeros_like(simulation.server.history[0])
    for client in simulation.cohort(0):
        batch = simulation.sources[client].batch(0)
        gradients = _gradients(before, batch.inputs, batch.labels)
        total += torch.cat([gradients[name].flatten() for name in simulation.server.replica.exact])
    # float32 sums over four rows and all positions, in another order.
    torch.testing.assert_close(simulation.server.history[0], total / 2, rtol=1e-3, atol=1e-6)


EXACT = {"model__cut": 2, "algorithm__exact_blocks": 1, "bottom__optimizer": "adamw"}


def test_the_history_keeps_no_exact_gradients() -> None:
    simulation = _world(**EXACT).simulation
    small.run(simulation, 3)
    tensors, _ = simulation.state()
    assert tensors["history"].shape == (3, P)
    assert simulation.server.replica.position == 3


SPOILT: dict[str, tuple[Callable[[HistoryAndState], Any], type[Exception], str]] = {
    "step": (lambda m: replace(m, first=1), PeerError, "HistoryAndState: step 1 came, 0 is allowed"),
    "width": (lambda m: replace(m, slopes=m.slopes[:, :1]), PeerError, r"slopes .* \(2, 1\) came, .* with 2 a step"),
    "slopes": (lambda m: replace(m, slopes=m.slopes / 0), Diverged, "slopes from step 0 on are not finite"),
    "fewer": (lambda m: replace(m, tensors=m.tensors[1:]), PeerError, "HistoryAndState.tensors: .* are allowed"),
    "none": (lambda m: replace(m, tensors=()), PeerError, "HistoryAndState.tensors: 0 came"),
    "shape": (lambda m: replace(m, tensors=(*m.tensors[:-1], torch.zeros(3))), PeerError, "square.*: torch.float32"),
    "finite": (lambda m: replace(m, tensors=(m.tensors[0] / 0, *m.tensors[1:])), Diverged, "tensors are not finite"),
    "without-steps": (lambda m: replace(m, slopes=m.slopes[:0]), PeerError, "came, 0 are allowed"),
    "kind": (lambda m: History(0, m.slopes), PeerError, "History came, HistoryAndState is allowed"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_state_from_the_server_is_checked(what: str) -> None:
    simulation = _world(**EXACT).simulation
    small.run(simulation, 2)
    away = simulation.client(2)
    away.position = 0
    said: Any = simulation.algorithm.answer(simulation.server, {2: Join(0)})[2]
    spoil, error, message = SPOILT[what]
    before = {name: tensor.clone() for name, tensor in away.replica.parameters.items()}
    with pytest.raises(error, match=message):
        catch_up(away, spoil(said), P)
    assert all(torch.equal(tensor, away.replica.parameters[name]) for name, tensor in before.items())
    catch_up(away, said, P)  # as it came, it is taken
    assert away.position == 2
