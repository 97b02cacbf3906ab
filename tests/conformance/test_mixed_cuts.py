"""A cut for each client: shared coordinates stay equal, the server holds the union, and slopes stay unbiased."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halfback.assembly import Built
from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.engine.federation import Federation
from halfback.errors import PeerError, UserError
from halfback.models.adapters import trainable
from halfback.parties.client_exchange import upload
from halfback.planning.traffic import HEADER, INTEGER, JOIN, activations, slopes, tensor
from halfback.telemetry.meters import MemoryMeter
from halfback.testing import small
from halfback.testing.observed import ROUNDS, STEPS, observe
from halfback.testing.remote import run_over_sockets

World = Callable[..., RunConfig]
_ADAMW = {"bottom__optimizer": "adamw", "bottom__lr": 1e-3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ho_sfl": ("ho_sfl", {"algorithm__directions": 3, **_ADAMW}),
    "ho_sfl-u": ("ho_sfl", {"model__head": 0, "bottom__clip": 0.1}),
    "ho_sfl-codecs": (
        "ho_sfl",
        {
            "batch_size": 30,
            "codecs__activations_up": ["temporal", {"name": "topk", "ratio": 0.5}],
            "codecs__gradient_down": [{"name": "temporal", "where": "disk"}, "int8"],
        },
    ),
    "ho_sfl_pipelined": ("ho_sfl_pipelined", {"algorithm__directions": 3, **_ADAMW}),
    "zo_sfl": ("zo_sfl", {"top__optimizer": "momentum", "top__lr": 1e-3, **_ADAMW}),
    "frozen_bottom": ("frozen_bottom", {}),
}
TEXTS = ("ho_sfl-u", "zo_sfl")  # masks and rows of unequal length go the same way in the others


def cases(*variants: str) -> pytest.MarkDecorator:
    """Each on images, and on texts some; what is asked of one of them is asked in one process, which shares its run."""
    on = [("images", name) for name in variants] + [("texts", name) for name in variants if name in TEXTS]
    marked = [pytest.param(w, v, id=f"{w}-{v}", marks=pytest.mark.xdist_group(f"mixed-{w}-{v}")) for w, v in on]
    return pytest.mark.parametrize(("world", "variant"), marked, indirect=["world"])


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """(variant, changes) → configuration: a ResNet, whose activations change their shape with the cut, or a BERT."""

    def config(variant: str, **changes: Any) -> RunConfig:
        name, settings = VARIANTS[variant]
        given = {"model__cut": [1, 2], **settings, **changes}
        if request.param == "images":
            return small.images(name, **given)
        return small.texts(name, *(request.getfixturevalue(each) for each in ("tiny_bert", "sentences")), **given)

    return config


@cases("ho_sfl", "ho_sfl-u", "zo_sfl")
def test_one_cut_given_as_a_list_is_the_plain_run(variant: str, world: World) -> None:
    plain, listed = (small.built(world(variant, model__cut=cut)).federation for cut in (2, [2, 2]))
    assert small.run(plain, 2, steps=2) == small.run(listed, 2, steps=2)
    small.assert_equal_states(plain, listed)


@cases("ho_sfl", "ho_sfl-u", "ho_sfl_pipelined", "zo_sfl")
def test_devices_that_hold_their_own_blocks_alone_agree(variant: str, world: World) -> None:
    """Each has a replica of what it holds and no more, and half of them are away in any round."""
    observed, private = observe(world(variant)), small.built(world(variant)).federation
    shared = observed.federation
    _give_everyone_its_own(private)
    assert small.run(private, ROUNDS, steps=STEPS) == observed.losses
    for one, other in zip(shared.server.party.agreed.rows, private.server.party.agreed.rows, strict=True):
        assert torch.equal(one, other)
    shared.server.agreed_bottom()
    private.server.agreed_bottom()
    agreed = shared.server.party.agreed.replica
    for client in (side.party for side in private.clients.values()):
        client.theta.replay(client.theta.position, private.server.party.agreed.missed(client.theta.position))
        for name, parameter in client.theta.replica.parameters.items():
            assert torch.equal(parameter, agreed.parameters[name])
            assert all(
                torch.equal(client.theta.replica.moments[m][name], agreed.moments[m][name]) for m in agreed.moments
            )
    held = [len(side.party.theta.replica.parameters) for side in private.clients.values()]
    assert held[0] == held[2] < held[1] == held[3] == len(agreed.parameters)
    small.assert_equal_states(shared, private, but=("clients",))


def _give_everyone_its_own(simulation: Federation) -> None:
    agreed = simulation.server.party.agreed.replica
    for number in range(simulation.server.sampling.clients):
        party = simulation.client(number).party
        own = {n: torch.nn.Parameter(p.detach().clone()) for n, p in trainable(party.bottom).items()}
        party.theta.replica = agreed.alike(own)


@cases(*VARIANTS)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(variant: str, world: World, tmp_path: Path) -> None:
    observed = observe(world(variant))
    broken, resumed = (small.built(world(variant)).federation for _ in range(2))
    small.run(broken, 2, steps=STEPS)
    checkpoint.save(tmp_path, 2, *broken.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    resumed.load_state(*found[1:])
    assert small.run(resumed, 2, first=2, steps=STEPS) == observed.losses[2:]
    small.assert_equal_states(observed.federation, resumed)


@cases(*VARIANTS)
def test_a_socket_carries_the_same_bits(variant: str, world: World, tmp_path: Path) -> None:
    observed, server = observe(world(variant)), small.built(world(variant))
    local, machine = observed.built, partial(small.alone, world(variant))
    losses = run_over_sockets(server.federation, machine, rounds=ROUNDS, steps=STEPS, folder=tmp_path)
    assert losses == observed.losses
    assert server.federation.server.ledger.bytes_by_kind == local.federation.server.ledger.bytes_by_kind
    for run in (local, server):
        run.federation.server.agreed_bottom()
    theirs = server.model.whole.state_dict()
    assert [
        name for name, value in local.model.whole.state_dict().items() if not torch.equal(value, theirs[name])
    ] == []


def test_the_bytes_are_those_of_the_closed_form() -> None:
    """A client pays for its own cut's activations; the agreed slopes of both groups go to everyone."""
    directions, steps = 3, 2
    simulation = small.built(small.images("ho_sfl", model__cut=[1, 2], algorithm__directions=directions)).federation
    up = down = taken = 0
    for number in range(3):
        for client in simulation.server.cohort(number):
            party = simulation.client(client).party
            up += JOIN
            down += HEADER + INTEGER + tensor(taken - party.theta.position, 2 * directions if taken else 0)
            for place in range(party.feed.cursor, party.feed.cursor + steps):
                rows = len(party.feed.data.batch(place).labels)
                hidden = (rows, 16, 16, 16) if client % 2 == 0 else (rows, 32, 8, 8)
                up += activations(hidden, None) + slopes(directions)
                down += HEADER + tensor(*hidden) + slopes(2 * directions)
        small.run(simulation, 1, first=number, steps=steps)
        taken += steps
    assert (simulation.server.ledger.total("up"), simulation.server.ledger.total("down")) == (up, down)


def test_each_group_follows_the_mean_gradient_of_those_who_have_it(tiny_bert: Path, sentences: Path) -> None:
    """With exact slopes along Gaussian directions, against autograd through the uncut model.

    For a group of d coordinates with mean gradient g the estimate is g plus noise: what the clients' other coordinates
    add has the mean gradient h, so a coordinate's variance is (|g|² + |h|² + its own g²)/P.
    """
    directions = 200
    changes = {"clients": 2, "lora__rank": 1, "bottom__lr": 1.0, "bottom__law": "gaussian", "model__cut": [1, 2]}
    changes |= {"algorithm__directions": directions, "algorithm__estimator": "forward_ad"}
    built = small.built(small.texts("ho_sfl", tiny_bert, sentences, **changes))
    simulation = built.federation
    replica = simulation.server.party.agreed.replica
    shallow, deep = (_gradient(built, client) for client in range(2))
    first, second = replica.groups
    mean = {name: (shallow[name] + deep[name]) / 2 for name in first}
    before = {name: parameter.detach().clone() for name, parameter in replica.parameters.items()}
    small.run(simulation, 1)
    simulation.server.agreed_bottom()
    moved = {name: before[name] - parameter.detach() for name, parameter in replica.parameters.items()}
    others = {  # h: what stands beside the group in the slopes that its mean is made of
        0: _flat([deep[name] / 2 for name in second]),
        1: _flat([deep[name] for name in first]),
    }
    for place, (names, exact_by_name) in enumerate(((first, mean), (second, deep))):
        exact, estimated = (_flat([tensors[name] for name in names]) for tensors in (exact_by_name, moved))
        square, noise = torch.dot(exact, exact).item(), torch.dot(others[place], others[place]).item()
        error = ((2 + noise / square) / directions) ** 0.5
        assert abs(torch.dot(exact, estimated).item() / square - 1) < 4 * error  # unbiased along the gradient
        variance = (len(exact) * (square + noise) + square) / directions
        cosine = torch.nn.functional.cosine_similarity(exact, estimated, dim=0).item()
        # Over seeds it scatters by about √(1/(2·d)) ≈ 0.05: four of these.
        assert abs(cosine - (square / (square + variance)) ** 0.5) < 4 * (2 * len(exact)) ** -0.5


def _gradient(built: Built, client: int) -> dict[str, Tensor]:
    parameters = trainable(built.model.bottom)
    batch = built.federation.client(client).party.feed.data.batch(0)
    loss = torch.nn.functional.cross_entropy(built.model.logits(batch.inputs), batch.labels.long())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@cases("ho_sfl", "zo_sfl")
def test_a_group_that_nobody_has_stays_and_leaves_no_gradient(variant: str, world: World) -> None:
    settings = {"sampled_clients": 1, "bottom__optimizer": "sgd", "top__train": "full"}
    simulation = small.built(world(variant, **settings)).federation
    first, second = simulation.server.party.agreed.replica.groups
    parameters = simulation.server.party.agreed.replica.parameters
    number = next(n for n in range(20) if simulation.server.cohort(n)[0] % 2 == 0)  # a round of a shallow client
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    small.run(simulation, 1, first=number, steps=2)
    simulation.server.agreed_bottom()
    assert all(torch.equal(before[name], parameters[name]) for name in second)
    assert not all(torch.equal(before[name], parameters[name]) for name in first)
    assert all(row[len(row) // 2 :].count_nonzero() == 0 for row in simulation.server.party.agreed.rows)
    assert all(parameter.grad is None for parameter in parameters.values())


def test_the_loss_falls() -> None:
    """As for every algorithm: two clients with eight rows each, and batches of eight."""
    changes = {"clients": 2, "task__train_rows": 16, "top__lr": 1e-2, "model__cut": [1, 2], **_ADAMW}
    losses = small.run(small.built(small.images("ho_sfl", **changes)).federation, 30)
    assert losses[-1] < 0.5 * losses[0], losses


def test_a_client_is_charged_for_its_own_blocks() -> None:
    simulation = small.built(small.images("ho_sfl", model__cut=[1, 3], **_ADAMW)).federation
    alone = {cut: small.built(small.images("ho_sfl", model__cut=cut, **_ADAMW)).federation for cut in (1, 3)}
    for number, cut in enumerate((1, 3)):
        held, expected = (MemoryMeter(s.client(number).resident()).peak_bytes for s in (simulation, alone[cut]))
        assert held == expected
    assert MemoryMeter(simulation.server.resident()).peak_bytes > MemoryMeter(alone[3].server.resident()).peak_bytes


@pytest.mark.parametrize(
    ("algorithm", "changes", "said"),
    [
        pytest.param(
            "split_lora",
            {"model__cut": [1, 2]},
            r"model\.cut=\[1, 2\]: split_lora has one cut for all clients; use a number, or one of ho_sfl, ho_sfl_p",
            id="first-order",
        ),
        pytest.param("ho_sfl", {"model__cut": [0, 2]}, "cut is 0; ResNet has 3 blocks, so 1 to 3", id="zero"),
        pytest.param("ho_sfl", {"model__cut": [1, 9]}, "cut is 9; ResNet has 3 blocks, so 1 to 3", id="too-deep"),
        pytest.param(
            "ho_sfl", {"model__cut": []}, r"model\.cut=\[\]: a number of blocks, or a list of them", id="none"
        ),
        pytest.param("ho_sfl", {"model__cut": [1, "2"]}, r"model\.cut=\[1, '2'\]: a number of blocks", id="text"),
        pytest.param("ho_sfl", {"model__cut": [1, 2], "model__head": 1}, "head is 1; .* cut is 2", id="head"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(algorithm: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        small.built(small.images(algorithm, **changes))
    assert "\n" not in str(caught.value)


def test_activations_of_another_clients_cut_are_refused() -> None:
    built = small.built(small.images("ho_sfl", model__cut=[1, 2]))
    simulation, batch = built.federation, built.federation.client(0).party.feed.data.batch(0)
    message = upload(batch, built.model.bottom(batch.inputs).detach())  # of the deeper cut
    with pytest.raises(PeerError, match=r"client 0: Activations.hidden: .*\(8, 32, 8, 8\) came.*\(any, 16, 16, 16\)"):
        simulation.server.algorithm.answer(simulation.server.party, {0: message})
    simulation.server.algorithm.answer(simulation.server.party, {1: message})


def test_a_list_for_first_order_is_fine_where_all_clients_have_the_same_cut() -> None:
    run = small.built(small.images("split_lora", model__cut=[2, 1], clients=1, sampled_clients=1))
    assert run.model.at == 2
    assert not run.federation.server.party.top.above


def test_a_device_without_adapters_is_refused() -> None:
    """The first blocks of a ResNet-18 have no convolution on their shortcuts."""
    changes = {"bottom__train": "lora", "top__train": "lora", "lora__targets": ["downsample.0"], "model__cut": [1, 3]}
    changes |= {"model__name": "resnet18-32"}
    with pytest.raises(UserError, match=r"model\.cut=\[1, 3\]: with 1 of 8 blocks a device trains nothing"):
        small.built(small.images("ho_sfl", **changes))
    assert small.built(
        small.images("frozen_bottom", **changes)
    ).federation.server.party.top.above  # where it needs nothing
