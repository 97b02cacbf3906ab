"""Batch norm that trains: held against plain PyTorch loops over the whole model, and what evaluation takes of it."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from halfback.assembly import Built
from halfback.errors import UserError
from halfback.models.normalising import statistics
from halfback.testing import small

TRAINED: dict[str, Any] = {"bottom__batch_norm": "train", "top__batch_norm": "train"}
ALONE: dict[str, Any] = {"clients": 1, "sampled_clients": 1, "top__optimizer": "sgd", "top__lr": 1e-2}
STEPS = 5


def plain_loop(built: Built, steps: int) -> torch.nn.Module:
    """The same model and batches in the loop that everybody writes, batch norm in training mode."""
    model = copy.deepcopy(built.model.whole).requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    data = small.sources(built)[0]
    for number in range(steps):
        batch = data.batch(number)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs["pixel_values"]), batch.labels).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("algorithm", ["cse_fsl", "fsl_sage", "sfl_v2"])
def test_other_methods_whose_devices_backpropagate(algorithm: str) -> None:
    """The clients' statistics become their mean."""
    simulation = small.built(small.images(algorithm, bottom__batch_norm="train")).federation
    small.run(simulation, 1)
    agreed = simulation.server.party.agreed.replica.parameters
    clients = [side.party.theta.parameters for side in simulation.clients.values()]
    for name in (name for name in agreed if "running" in name):
        assert not torch.equal(clients[0][name], clients[1][name])
        # One rounding of the sum of two, and one of the quotient.
        torch.testing.assert_close(agreed[name], (clients[0][name] + clients[1][name]) / 2, rtol=2**-22, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["centralised", "split_lora", "sfl_v1", "vanilla_split", "fedavg"])
def test_one_client_is_a_plain_loop(algorithm: str) -> None:
    """Also where server and device each have a part, whose norms follow the same batches."""
    built = small.built(small.images(algorithm, **ALONE, **TRAINED))
    begun = {name: tensor.clone() for name, tensor in built.model.whole.state_dict().items()}
    wanted = plain_loop(built, STEPS)
    for number in range(STEPS):
        small.run(built.federation, 1, first=number)
    found = built.evaluate()
    whole = built.model.whole.state_dict()
    for name, tensor in wanted.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            # The same operations but for the order in which float32 gradients are added up, over five steps.
            torch.testing.assert_close(whole[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            if "running" in name:
                assert (tensor - begun[name]).abs().max() > 1e-3, "it has followed"
    validation = built.task.validation.batch(range(60))
    with torch.no_grad():
        logits = wanted.eval()(validation.inputs["pixel_values"])
    assert found.loss == pytest.approx(F.cross_entropy(logits, validation.labels).item(), rel=1e-4)


def test_frozen_is_the_default_and_moves_no_statistics() -> None:
    built = small.built(small.images("split_lora"))
    before = {name: tensor.clone() for name, tensor in statistics(built.model.whole).items()}
    small.run(built.federation, 2)
    built.evaluate()
    assert all(torch.equal(before[name], now) for name, now in statistics(built.model.whole).items())


def test_one_side_trains_and_the_other_does_not() -> None:
    for side, other in (("bottom", "top"), ("top", "bottom")):
        built = small.built(small.images("split_lora", **{f"{side}__batch_norm": "train"}))
        parts = {"bottom": built.model.bottom, "top": built.model.top}
        before = {name: {n: t.clone() for n, t in statistics(part).items()} for name, part in parts.items()}
        small.run(built.federation, 2)
        built.evaluate()
        assert all(not torch.equal(before[side][name], now) for name, now in statistics(parts[side]).items())
        assert all(torch.equal(before[other][name], now) for name, now in statistics(parts[other]).items())


@pytest.mark.parametrize("algorithm", ["ho_sfl", "ho_sfl_pipelined", "frozen_bottom"])
def test_a_forward_only_method_may_train_the_top_alone(algorithm: str) -> None:
    built = small.built(small.images(algorithm, top__batch_norm="train"))
    before = {name: tensor.clone() for name, tensor in statistics(built.model.top).items()}
    small.run(built.federation, 1)
    assert all(not torch.equal(before[name], now) for name, now in statistics(built.model.top).items())


def test_a_part_without_batch_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"top\.batch_norm=train: this part of resnet8 has no batch norm of images"):
        small.built(small.images("split_lora", model__cut=3, top__batch_norm="train"))
