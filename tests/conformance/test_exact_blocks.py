"""HO-SFL with exact blocks: what is agreed on, against autograd, and what a client that was away takes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from halfback.assembly import Built
from halfback.errors import Diverged, PeerError
from halfback.models.adapters import trainable
from halfback.parties.by_slopes import catch_up
from halfback.testing import small
from halfback.wire.messages import History, Join, Weights

P = 2


def _world(**changes: Any) -> Built:
    """Three clients with six rows each, of whom two take part."""
    settings = {"clients": 3, "sampled_clients": 2, "batch_size": 4, "task__train_rows": 18, "top__lr": 1e-6}
    settings |= {"bottom__lr": 1e-6, "algorithm__directions": P}
    return small.built(small.images("ho_sfl", **settings | changes))


def _gradients(run: Built, inputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    theta = trainable(run.model.bottom)
    loss = cross_entropy(run.model.top(run.model.bottom(inputs), None), labels.long())
    return dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))


@pytest.mark.parametrize("blocks", [2, "all"])
def test_exact_gradients_are_the_cohorts_mean(blocks: int | str) -> None:
    """Of all blocks too: the stem, which is none, stays as it is."""
    changes = {"model__cut": 3, "algorithm__exact_blocks": blocks, "algorithm__directions": 0}
    run, before = _world(**changes), _world(**changes)
    small.run(run.federation, 1)
    simulation = run.federation
    total = torch.zeros_like(simulation.server.party.agreed.rows[0])
    for client in simulation.server.cohort(0):
        batch = simulation.client(client).party.feed.data.batch(0)
        gradients = _gradients(before, batch.inputs, batch.labels)
        total += torch.cat([gradients[name].flatten() for name in simulation.server.party.agreed.replica.exact])
    exact, theta = set(simulation.server.party.agreed.replica.exact), trainable(before.model.bottom)
    assert len({name.split(".")[1] for name in theta.keys() - exact} & {"blocks"}) == (blocks != "all")
    run.federation.server.agreed_bottom()
    now = trainable(run.model.bottom)
    moved = {name for name, tensor in theta.items() if not torch.equal(tensor, now[name])}
    assert moved
    assert moved <= exact  # a weight of 1 doesn't feel a step of 1e-6 of its gradient
    # float32 sums over four rows and all positions, in another order.
    torch.testing.assert_close(simulation.server.party.agreed.rows[0], total / 2, rtol=1e-3, atol=1e-6)


EXACT = {"model__cut": 2, "algorithm__exact_blocks": 1, "bottom__optimizer": "adamw"}


def test_the_history_keeps_no_exact_gradients() -> None:
    simulation = _world(**EXACT).federation
    small.run(simulation, 3)
    tensors, _ = simulation.state()
    assert tensors["history"].shape == (3, P)
    assert simulation.server.party.agreed.replica.position == 3


SPOILT: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "step": (lambda m: replace(m, first=replace(m.first, first=1)), PeerError, "History: step 1 came, 0 is allowed"),
    "width": (
        lambda m: replace(m, first=History(0, m.first.slopes[:, :1])),
        PeerError,
        r"slopes .* \(3, 1\) came, .* with 2 a step",
    ),
    "slopes": (
        lambda m: replace(m, first=History(0, m.first.slopes / 0)),
        Diverged,
        "slopes from step 0 on are not finite",
    ),
    "fewer": (lambda m: replace(m, second=Weights(m.second.tensors[1:])), PeerError, "Weights.tensors: .* are allowed"),
    "none": (lambda m: replace(m, second=Weights(())), PeerError, "Weights.tensors: 0 came"),
    "shape": (
        lambda m: replace(m, second=Weights((*m.second.tensors[:-1], torch.zeros(3)))),
        PeerError,
        "square.*: torch.float32",
    ),
    "finite": (
        lambda m: replace(m, second=Weights((m.second.tensors[0] / 0, *m.second.tensors[1:]))),
        Diverged,
        "tensors are not finite",
    ),
    "without-steps": (lambda m: replace(m, first=History(0, m.first.slopes[:0])), PeerError, "came, 0 are allowed"),
    "kind": (lambda m: m.first, PeerError, "History came, HistoryAndWeights is allowed"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_state_from_the_server_is_checked(what: str) -> None:
    """Of a client that missed three steps: the gradients of two are fewer bytes than parameters and two moments."""
    simulation = _world(**EXACT).federation
    small.run(simulation, 3)
    away = simulation.client(2).party
    away.theta.position = 0
    said: Any = simulation.server.algorithm.answer(simulation.server.party, {2: Join(0)})[2]
    spoil, error, message = SPOILT[what]
    before = {name: tensor.clone() for name, tensor in away.theta.replica.parameters.items()}
    with pytest.raises(error, match=message):
        catch_up(away, spoil(said), P)
    assert all(torch.equal(tensor, away.theta.replica.parameters[name]) for name, tensor in before.items())
    catch_up(away, said, P)  # as it came, it is taken
    assert away.theta.position == 3
