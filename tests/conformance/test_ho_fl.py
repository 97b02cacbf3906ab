"""HO-FL: each device has a boundary of its own, and the server rebuilds what happened below it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.engine.federation import Federation
from halfback.errors import Diverged, PeerError, UserError
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation
from halfback.planning.traffic import JOIN, NOTHING, slopes, weights
from halfback.testing import small
from halfback.testing.remote import run_over_sockets
from halfback.testing.wrapped import saying, wrap
from halfback.wire.messages import Message, Slopes, Weights
from halfback.zeroth.directions import direction_of, seed_for

World = Callable[..., RunConfig]
UNEQUAL = [3, 0, 2, 1]
"""Of four clients; a model of the tests has three blocks."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"bottom__lr": 1e-2},
    "momentum": {"bottom__lr": 1e-3, "bottom__weight_decay": 0.1},
    "adamw": {"bottom__lr": 1e-3, "bottom__clip": 1.0, "bottom__schedule": "cosine", "bottom__warmup": 2},
    "normalized": {"bottom__optimizer": "sgd", "bottom__lr": 1e-3, "bottom__normalize": True},
}


@pytest.fixture(params=["images", "texts"])
def world(request: pytest.FixtureRequest) -> World:
    """Changes → HO-FL on a ResNet with everything trained, or on a BERT with LoRA."""

    def config(algorithm: str = "ho_fl", **changes: Any) -> RunConfig:
        if request.param == "images":
            return small.images(algorithm, **changes)
        folders = [request.getfixturevalue(name) for name in ("tiny_bert", "sentences")]
        return small.texts(algorithm, *folders, **changes)

    return config


def theta(simulation: Federation) -> list[Tensor]:
    return list(simulation.server.party.agreed.replica.parameters.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_server_has_every_clients_parameters_to_the_bit(world: World, optimizer: str) -> None:
    """The agreed θ is the mean of what the devices hold, though they sent no weight of what lies below."""
    settings = {"steps": 12, "bottom__optimizer": optimizer} | OPTIMIZERS[optimizer]
    simulation = small.built(world(algorithm__boundaries=UNEQUAL, algorithm__directions=3, **settings)).federation
    for number in range(4):
        before = [tensor.detach().clone() for tensor in theta(simulation)]
        small.run(simulation, 1, first=number, steps=3)
        held = [
            list(simulation.clients[client].party.theta.replica.parameters.values())
            for client in simulation.server.cohort(number)
        ]
        agreed = theta(simulation)
        for place, tensor in enumerate(agreed):
            assert torch.equal(tensor, torch.stack([own[place] for own in held]).mean(dim=0))
        assert any(not torch.equal(old, new) for old, new in zip(before, agreed, strict=True))


def test_with_nothing_below_it_is_fedavg(world: World) -> None:
    hybrid, plain = (
        small.built(world(name, **options)).federation
        for name, options in (("ho_fl", {"algorithm__boundaries": [0]}), ("fedavg", {}))
    )
    assert small.run(hybrid, 4, steps=2) == small.run(plain, 4, steps=2)
    assert all(torch.equal(one, other) for one, other in zip(theta(hybrid), theta(plain), strict=True))


def test_moments_start_anew_in_each_participation(world: World) -> None:
    """As FedAvg on devices that forget theirs."""
    settings = {"bottom__optimizer": "adamw", "bottom__lr": 1e-3, "clients": 1, "sampled_clients": 1}
    hybrid, plain = (
        small.built(world(name, **settings, **options)).federation
        for name, options in (("ho_fl", {"algorithm__boundaries": [0]}), ("fedavg", {}))
    )
    for number in range(3):
        assert small.run(hybrid, 1, first=number, steps=2) == small.run(plain, 1, first=number, steps=2)
        descent = plain.client(0).party.descent
        assert descent is not None
        assert descent.optimizer.state
        descent.optimizer.state.clear()
        assert not hybrid.client(0).party.descent.optimizer.state  # type: ignore[union-attr]


@pytest.mark.parametrize("boundary", [1, 2, 3])
def test_a_step_is_the_gradients_above_and_its_exact_slopes_below(world: World, boundary: int) -> None:
    """Against backpropagation through the uncut model: forward-mode slopes are ⟨∂ℓ/∂θ, u⟩ up to float32 sums."""
    settings = {"clients": 1, "sampled_clients": 1, "bottom__lr": 0.5}
    options = {"algorithm__boundaries": [boundary], "algorithm__estimator": "forward_ad", "algorithm__directions": 2}
    stepped, whole = (small.built(world(**settings, **options)) for _ in range(2))
    small.run(stepped.federation, 1)

    batch = whole.federation.client(0).party.feed.data.batch(0)
    names = list(whole.federation.server.party.agreed.replica.parameters)
    parameters = theta(whole.federation)
    loss = nn.functional.cross_entropy(whole.model.logits(batch.inputs), batch.labels)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    below = whole.federation.server.party.cohort.boundaries[0].below
    expected = {name: gradient.double() for name, gradient in gradients.items()}
    moves = {name: torch.zeros_like(expected[name]) for name in below}
    for p in range(2):
        seed = seed_for(seed_for(whole.config.seed, "direction", "bottom", 0, p), "client", 0)
        u = {n: direction_of(seed, n, dict(zip(names, parameters, strict=True))[n]).double() for n in below}
        slope = sum((expected[name] * u[name]).sum() for name in below)
        for name in below:
            moves[name] += slope * u[name] / 2
    for name, old, new in zip(names, parameters, theta(stepped.federation), strict=True):
        move = (old.double() - new.double()).detach() / 0.5
        # θ of size 1 is rounded at 6e-8, twice that in the move; gradients and slopes at 1e-6 to 1e-5 of their size.
        torch.testing.assert_close(move, (expected | moves)[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("boundary", [0, 1, 2, 3])
def test_no_graph_reaches_below_the_boundary(world: World, boundary: int) -> None:
    simulation = small.built(world(algorithm__boundaries=[boundary], clients=1, sampled_clients=1)).federation
    client = simulation.client(0).party
    assert client.local is not None
    bottom, running, saved = client.local.model.bottom, 0, 0

    def runs(change: int) -> None:
        nonlocal running
        running += change

    def save(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += running
        return tensor

    bottom.register_forward_pre_hook(lambda *_: runs(1))
    bottom.register_forward_hook(lambda *_: runs(-1))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        small.run(simulation, 1)
    assert (saved > 0) is (boundary == 0)


def test_a_higher_boundary_needs_less_memory_and_fewer_weights_up(tiny_bert: Path, sentences: Path) -> None:
    peaks, sent = [], []
    for boundary in range(4):
        config = small.texts("ho_fl", tiny_bert, sentences, algorithm__boundaries=[boundary], batch_size=32)
        simulation = small.built(config).federation
        small.run(simulation, 1, measure=True)
        peaks.append(simulation.server.meters.client_peak_bytes)
        sent.append(simulation.server.ledger.total("up"))
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 4
    # Slopes come instead of the first block's weights, with a message of their own.
    assert sent[1:] == sorted(sent[1:], reverse=True)
    assert len(set(sent)) == 4


def test_the_ledger_holds_the_closed_form(world: World) -> None:
    """Down all of θ; up P slopes a step, none where all is backpropagated, and the weights above the boundary."""
    run = small.built(world(algorithm__boundaries=UNEQUAL, algorithm__directions=3, algorithm__beta=0))
    simulation, expected = run.federation, {"up": 0, "down": 0}
    shapes = {name: tuple(p.shape) for name, p in simulation.server.party.agreed.replica.parameters.items()}
    for number in range(6):
        for client in simulation.server.cohort(number):
            below = simulation.server.party.cohort.boundaries[client].below
            above = [shape for name, shape in shapes.items() if name not in below]
            assert bool(below) is (UNEQUAL[client] > 0)
            expected["up"] += JOIN + slopes(2 * 3 if below else 0) + weights(above)
            expected["down"] += weights(list(shapes.values())) + 2 * NOTHING
        small.run(simulation, 1, first=number, steps=2)
    assert {client for n in range(6) for client in simulation.server.cohort(n)} == {0, 1, 2, 3}
    assert {side: simulation.server.ledger.total(side) for side in ("up", "down")} == expected  # type: ignore[arg-type]


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(world: World, tmp_path: Path) -> None:
    config = world(algorithm__boundaries=UNEQUAL, bottom__optimizer="adamw", bottom__schedule="linear")
    unbroken, broken, resumed = (small.built(config).federation for _ in range(3))
    losses = small.run(unbroken, 6, steps=2)
    small.run(broken, 3, steps=2)
    checkpoint.save(tmp_path, 3, *broken.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    resumed.load_state(*found[1:])
    assert small.run(resumed, 3, first=3, steps=2) == losses[3:]
    small.assert_equal_states(unbroken, resumed)


def test_a_socket_carries_the_same_bits(world: World, tmp_path: Path) -> None:
    config = world(algorithm__boundaries=UNEQUAL, bottom__optimizer="adamw")
    local, server = (small.built(config).federation for _ in range(2))
    losses = small.run(local, 4, steps=2)
    received = run_over_sockets(server, partial(small.alone, config), rounds=4, steps=2, folder=tmp_path)
    assert received == losses
    assert server.server.ledger.bytes_by_kind == local.server.ledger.bytes_by_kind
    assert all(torch.equal(one, other) for one, other in zip(theta(local), theta(server), strict=True))


Spoil = Callable[[Any], Message]
SAID: dict[str, tuple[type[Message], Spoil, type[Exception], str]] = {
    "slopes-of-one-step": (
        Slopes,
        lambda m: Slopes(m.step, m.values[:2]),
        PeerError,
        r"client 3: Slopes.values: torch.float32 \(2,\) came, torch.float32 \(4,\) is allowed",
    ),
    "no-slopes": (
        Slopes,
        lambda m: Slopes(m.step, m.values[:0]),
        PeerError,
        r"client 3: Slopes.values: .* \(0,\) came",
    ),
    "slopes-float64": (Slopes, lambda m: Slopes(m.step, m.values.double()), PeerError, "client 3: .*torch.float64"),
    "slopes-of-another-round": (
        Slopes,
        lambda m: Slopes(m.step + 2, m.values),
        PeerError,
        "client 3: Slopes.step: 2 came, 0 is allowed",
    ),
    "slopes-nan": (Slopes, lambda m: Slopes(m.step, m.values * torch.nan), Diverged, "client 3 are not finite"),
    "all-weights": (
        Weights,
        lambda m: Weights((*m.tensors, *m.tensors)),
        PeerError,
        r"client 3: message: \d+ bytes came, at most \d+ are allowed",  # as many values as nothing of the recipe has
    ),
    "weights-of-another-boundary": (
        Weights,
        lambda m: Weights(m.tensors[1:]),
        PeerError,
        r"client 3: Weights.tensors: \d+ came, \d+ are allowed",
    ),
    "weights-of-another-shape": (
        Weights,
        lambda m: Weights((m.tensors[0][:1], *m.tensors[1:])),
        PeerError,
        r"client 3: Weights.tensors, head\.body\.",
    ),
    "weights-nan": (
        Weights,
        lambda m: Weights((m.tensors[0] * torch.nan, *m.tensors[1:])),
        Diverged,
        "Weights.tensors, .* of client 3 is not finite",
    ),
}


@pytest.mark.parametrize("what", SAID)
def test_a_server_refuses_and_moves_nothing(what: str) -> None:
    kind, change, error, said = SAID[what]
    config = small.images("ho_fl", sampled_clients=4, algorithm__boundaries=[0, 1, 2, 2])
    simulation = small.built(config).federation
    before = [tensor.detach().clone() for tensor in theta(simulation)]
    _spoil(simulation, kind, change)
    with pytest.raises(error, match=said) as caught:
        small.run(simulation, 1, steps=2)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(old, new) for old, new in zip(before, theta(simulation), strict=True))


def _spoil(simulation: Federation, kind: type[Message], change: Spoil) -> None:
    """What client 3 says of this kind arrives otherwise."""
    client_round = simulation.server.algorithm.client_round

    def spoiled(client: Client, round: Round) -> Conversation:
        talk = client_round(client, round)
        return talk if client.id != 3 else saying(talk, lambda m: change(m) if isinstance(m, kind) else m)

    wrap(simulation, client_round=spoiled)


def test_weights_before_the_slopes_are_refused() -> None:
    simulation = small.built(small.images("ho_fl")).federation
    small.run(simulation, 1)
    names = [
        n
        for n in simulation.server.party.agreed.replica.parameters
        if n not in simulation.server.party.cohort.boundaries[3].below
    ]
    said = Weights(tuple(simulation.server.party.agreed.replica.parameters[name].detach() for name in names))
    with pytest.raises(PeerError, match="client 3: Weights: they came before the slopes of the round"):
        simulation.server.algorithm.answer(simulation.server.party, {3: said})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "above-the-model": (
        {"algorithm__boundaries": [1, 4]},
        r"algorithm.boundaries=\[1, 4\]: ResNet has 3 blocks, so 0 to 3 are allowed",
    ),
    "below-the-model": ({"algorithm__boundaries": [-1]}, r"algorithm.boundaries=\[-1\]: .* 0 to 3 are allowed"),
    "no-list": ({"algorithm__boundaries": 2}, "algorithm.boundaries=2: .*tuple"),
    "none-at-all": ({"algorithm__boundaries": []}, r"algorithm.boundaries=\[\]: one entry or more is allowed, or null"),
    "beta": ({"algorithm__beta": 1.5}, "algorithm.beta=1.5: 0 to 1 is allowed"),
    "radius": ({"algorithm__radius": 1e-12}, "algorithm.radius=1e-12 is too small for float32"),
    "directions": ({"algorithm__directions": 0}, "algorithm.directions=0: 1 or more are allowed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_mean_nothing(what: str) -> None:
    changes, said = REFUSED[what]
    with pytest.raises(UserError, match=said) as caught:
        small.built(small.images("ho_fl", **changes))
    assert "\n" not in str(caught.value)
