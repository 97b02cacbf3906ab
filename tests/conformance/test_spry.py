"""Spry's shares: who measures which layers, what the server makes of it, and what neither side believes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hostile_server import spoil_answers
from torch import Tensor

from halfback.algorithms.spry import layers_in_turn
from halfback.errors import PeerError, UserError
from halfback.parties.by_slopes import mean_slopes
from halfback.testing import small
from halfback.wire.messages import Message, Share, Slopes


@pytest.mark.parametrize(("clients", "groups"), [(1, [10]), (2, [6, 4]), (3, [4, 4, 2]), (9, [2] * 5)])
def test_a_layer_is_in_one_group_with_all_of_its_tensors(clients: int, groups: list[int]) -> None:
    layers = ["bottom.body.0.query", "bottom.body.0.value", "head.body.1.query", "head.body.1.value"]
    names = [f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"]
    names += ["head.body.classifier.weight", "head.body.classifier.bias"]
    shared = layers_in_turn(names, clients)
    assert [len(group) for group in shared] == groups
    assert sorted(name for group in shared for name in group) == sorted(names)
    for layer in (*layers, "head.body.classifier"):
        assert len({place for place, group in enumerate(shared) for name in group if name.startswith(layer)}) == 1


def test_a_group_takes_the_mean_of_those_that_had_it() -> None:
    server = small.built(small.images("spry", sampled_clients=3, clients=5)).federation.server.party
    server.cohort.groups = {0: (1,), 2: (2,), 4: (1,)}
    values = {client: torch.tensor([client + 0.5, -2.0 * client]) for client in server.cohort.groups}
    row = mean_slopes(server, {client: Slopes(0, value) for client, value in values.items()}, 2)
    assert row.tolist() == [0.0, 0.0, 2.5, -4.0, 2.5, -4.0]


def test_the_groups_turn_with_the_rounds() -> None:
    simulation = small.built(small.images("spry", clients=3, sampled_clients=3)).federation
    seen = []
    for number in range(3):
        small.run(simulation, 1, first=number)
        seen.append([simulation.server.party.cohort.groups[client][0] for client in range(3)])
    assert seen == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]


def test_the_slopes_of_a_group_point_where_backpropagation_does(tiny_bert: Path, sentences: Path) -> None:
    """Each group of d parameters moves along its own client's gradient: cosine √(P/(P+d+1)) for Gaussian directions."""
    directions = 200
    changes = {"clients": 2, "lora__rank": 1, "bottom__lr": 1.0, "bottom__law": "gaussian", "steps": 1}
    changes |= {"algorithm__directions": directions}
    built = small.built(small.texts("spry", tiny_bert, sentences, **changes))
    simulation, local = built.federation, built.holdings.local
    replica = simulation.server.party.agreed.replica
    assert local is not None
    exact: dict[int, Tensor] = {}
    for place, names in enumerate(replica.groups):
        parameters = [replica.parameters[name] for name in names]
        loss = local(place).of(built.holdings.sources[place].batch(0))
        # The start of an adapter's second matrix is zero, and so is the gradient of its first: it counts all the same.
        exact[place] = _flat(list(torch.autograd.grad(loss, parameters)))
    before = {name: parameter.detach().clone() for name, parameter in replica.parameters.items()}
    small.run(simulation, 1)
    simulation.server.agreed_bottom()
    for place, names in enumerate(replica.groups):
        estimated = _flat([before[name] - replica.parameters[name] for name in names])
        expected = (directions / (directions + len(estimated) + 1)) ** 0.5
        cosine = torch.nn.functional.cosine_similarity(exact[place], estimated, dim=0).item()
        # It scatters by about (1 - expected²)/√(2·d) ≈ 0.02 around it: four of these. Another's batch gives < 0.5.
        assert abs(cosine - expected) < 0.08, (cosine, expected, len(estimated))
        length = torch.dot(exact[place], estimated) / torch.dot(exact[place], exact[place])
        assert abs(length.item() - 1) < 4 * (2 / directions) ** 0.5  # unbiased; standard error √(2/P) for Gaussians


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        pytest.param(Share, lambda m: replace(m, group=2), "Share.group: 2 came, 0 to 1 are allowed", id="no-group"),
        pytest.param(Share, lambda m: replace(m, group=-1), "Share.group: -1 came", id="negative"),
        pytest.param(Share, lambda m: replace(m, first=4), "Share: step 4 came, 0 is allowed", id="later"),
        pytest.param(
            Share, lambda m: replace(m, slopes=torch.zeros(2, 1)), r"\(2, 1\) came.* 2 a step", id="one-group"
        ),
        pytest.param(Slopes, lambda m: replace(m, values=m.values[:1]), r"Slopes: .*\(1,\) came, \(2,\)", id="slopes"),
    ],
)
def test_a_device_refuses(kind: type[Message], change: Callable[[Any], Message], said: str) -> None:
    simulation = small.built(small.images("spry")).federation
    spoil_answers(simulation, kind, change)
    with pytest.raises(PeerError, match=said) as caught:
        small.run(simulation, 1)
    assert "\n" not in str(caught.value)


def test_the_server_refuses_slopes_of_who_has_not_joined() -> None:
    simulation = small.built(small.images("spry")).federation
    with pytest.raises(PeerError, match="client 0: Slopes: they came before it joined"):
        simulation.server.algorithm.answer(simulation.server.party, {0: Slopes(0, torch.zeros(1))})


def test_the_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"algorithm\.directions=0: 1 or more are allowed"):
        small.built(small.images("spry", algorithm__directions=0))
