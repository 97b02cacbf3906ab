"""Every algorithm × every check. A new algorithm is a row of `table.py`; nothing here names one without a reason."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from remote import run_over_sockets
from table import ROWS, Row, Work, greeting, reused, tensor
from torch import Tensor, nn

from halfback import checkpoint
from halfback.algorithms import algorithms
from halfback.algorithms.parties import Client, Round, Server
from halfback.algorithms.protocol import Conversation
from halfback.build import Built
from halfback.config import RunConfig
from halfback.engines.simulation import Simulation
from halfback.models.adapters import trainable
from halfback.wire.messages import FIELDS, Activations, Encoded, Message, Weights
from halfback.wire.packing import unpack
from halfback.zeroth.replay import Replica

World = Callable[..., RunConfig]
every_row = pytest.mark.parametrize("row", ROWS)


def rows(**traits: Any) -> list[str]:
    """The rows whose algorithm has these traits."""
    return [
        name
        for name, row in ROWS.items()
        if all(getattr(algorithms()[row.name].traits, trait) == value for trait, value in traits.items())
    ]


@pytest.fixture(params=["images", "texts"])
def world(request: pytest.FixtureRequest) -> World:
    """(row, changes) → configuration: a ResNet on digits, or a BERT with LoRA, masks and rows of unequal length."""

    def config(row: str, **changes: Any) -> RunConfig:
        given = {key.replace(".", "__"): value for key, value in ROWS[row].settings.items()} | changes
        if request.param == "images":
            return small.images(ROWS[row].name, **given)
        folders = [request.getfixturevalue(name) for name in ("tiny_bert", "sentences")]
        return small.texts(ROWS[row].name, *folders, **given)

    return config


def digits(row: str, **changes: Any) -> RunConfig:
    given = {key.replace(".", "__"): value for key, value in ROWS[row].settings.items()}
    return small.images(ROWS[row].name, **given | changes)


def test_every_registered_algorithm_has_a_row() -> None:
    ours = {name for name, kind in algorithms().items() if kind.__module__.startswith("halfback.")}
    assert {row.name for row in ROWS.values()} == ours


@every_row
def test_the_loss_falls(row: str, world: World) -> None:
    """Two clients with eight rows each and batches of eight: no luck of the draw is left in the loss."""
    learns = {key.replace(".", "__"): value for key, value in ROWS[row].learns.items()}
    run = small.built(world(row, **{"clients": 2, "task__train_rows": 16, "top__lr": 1e-2, **learns}))
    losses = small.run(run.simulation, 30)
    # The slowest row, zeroth order on both parts of the text model, falls by 1 %; a loss is rounded at 1e-5 % of it.
    assert losses[-1] < 0.995 * losses[0], losses


@every_row
def test_the_ledger_holds_the_bytes_that_were_sent_and_those_of_the_closed_form(row: str, world: World) -> None:
    """Three counts that were made apart: the ledger's, the bytes that reach the other end, and the formula.

    Where a link reuses what it remembers, the formula is that of the plain row with the size of each encoded field in
    place of its tensor's: all of it follows from the skip map, which is read off the wire.
    """
    simulation = small.built(world(row)).simulation
    arrived: list[tuple[int, str, bytes]] = []
    for client in range(len(simulation.sources)):
        for end, direction in zip(simulation.link.of(client), ("down", "up"), strict=True):
            end.receive = partial(_tapped, end.receive, arrived, client, direction)  # type: ignore[method-assign]
    expected, skipped = {"up": 0, "down": 0}, 0
    for number in range(4):
        for client in simulation.cohort(number):
            for side, count in zip(expected, ROWS[row].bytes_of_round(_work(simulation, client, steps=2)), strict=True):
                expected[side] += count
            if ROWS[row].reuses:
                for side, count in zip(expected, greeting(len(ROWS[row].reuses)), strict=True):
                    expected[side] += count
        small.run(simulation, 1, first=number, steps=2)
    sent = {side: sum(len(data) for _, direction, data in arrived if direction == side) for side in expected}
    masks: dict[int, Tensor] = {}
    for client, side, data in arrived:
        message = unpack(data)
        if getattr(message, "mask", None) is not None:
            masks[client] = message.mask  # type: ignore[union-attr]
        for name, (role, _) in FIELDS[type(message)].items():
            if isinstance(value := getattr(message, name), Encoded):
                saved, skips = _saved(ROWS[row], f"{role}_{side}", value, masks.get(client))
                expected[side] -= saved
                skipped += skips
    assert sent == expected
    assert {side: simulation.ledger.total(side) for side in ("up", "down")} == expected  # type: ignore[arg-type]
    assert (skipped > 0) is bool(ROWS[row].reuses)


def _tapped(receive: Any, arrived: list[tuple[int, str, bytes]], client: int, direction: str, data: bytes) -> Any:
    arrived.append((client, direction, data))
    return receive(data)


def _saved(row: Row, link: str, value: Encoded, mask: Tensor | None) -> tuple[int, int]:
    """How much smaller an encoded field is than its tensor, and how many samples were skipped."""
    skipped = value.parts[1]
    if mask is not None:
        plain, width, rows = (*mask.shape, 16), 16, mask.sum(dim=1)
    else:  # at the second cut, behind the last of three blocks, or at the first
        plain = (len(skipped), *((64, 4, 4) if link in ("activations_down", "gradient_up") else (16, 16, 16)))
        width, rows = plain[2] * plain[3], torch.full((len(skipped),), plain[1])
    encoded = reused(len(skipped), int(rows[~skipped].sum()), row.reuses[link](width))
    return tensor(*plain) - encoded, int(skipped.sum())


def _work(simulation: Simulation, number: int, *, steps: int) -> Work:
    client, history, server = simulation.client(number), simulation.server.history, simulation.server
    batches, second = [], []
    for place in range(client.cursor, client.cursor + steps):
        inputs = client.data.batch(place).inputs
        mask = inputs.get("attention_mask")
        hidden = (len(inputs["pixel_values"]), 16, 16, 16) if mask is None else (*mask.shape, 16)
        batches.append((hidden, None if mask is None else tuple(mask.shape)))
        if client.head is not None:  # after the second of three blocks of a ResNet-8, or after the third
            sizes = (32, 8, 8) if len(client.head.module.state_dict()) > 2 else (64, 4, 4)
            second.append(hidden if mask is not None else (hidden[0], *sizes))
    return Work(
        batches=batches,
        missed=len(history) - client.position,
        ever=bool(history),
        directions=getattr(simulation.algorithm, "directions", 0),
        bottom=[tuple(parameter.shape) for parameter in simulation.server.replica.parameters.values()],
        groups=len(server.replica.groups),
        second=second,
        head=[tuple(parameter.shape) for parameter in (server.head or {}).values()],
        above=_above(server, number),
    )


def _above(server: Server, client: int) -> list[tuple[int, ...]]:
    below = server.boundaries[client].below if server.boundaries else ()
    return [tuple(p.shape) for name, p in server.replica.parameters.items() if name not in below]


@every_row
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(row: str, world: World, tmp_path: Path) -> None:
    unbroken, broken, resumed = (small.built(world(row)).simulation for _ in range(3))
    losses = small.run(unbroken, 6, steps=2)
    small.run(broken, 3, steps=2)
    checkpoint.save(tmp_path, 3, *broken.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    resumed.load_state(*found[1:])
    assert small.run(resumed, 3, first=3, steps=2) == losses[3:]
    small.assert_equal_states(unbroken, resumed)


@every_row
def test_two_runs_of_a_seed_are_equal_and_another_seed_differs(row: str) -> None:
    one, same, other = (small.built(digits(row, seed=seed)).simulation for seed in (3, 3, 4))
    losses = small.run(one, 3)
    assert small.run(same, 3) == losses
    small.assert_equal_states(one, same)
    assert small.run(other, 3) != losses


@every_row
def test_measuring_memory_changes_no_bit(row: str) -> None:
    plain, measured = (small.built(digits(row)).simulation for _ in range(2))
    assert small.run(plain, 3) == small.run(measured, 3, measure=True)
    measured.meters.client_peak_bytes = measured.meters.client_inference_peak_bytes = 0
    measured.meters.server_peak_bytes = 0
    small.assert_equal_states(plain, measured)


@pytest.mark.parametrize("row", rows(agreement="slopes"))
def test_clients_with_replicas_of_their_own_agree(row: str, world: World) -> None:
    """The simulation lets clients share one replica; here each has its own, and half of them are away in any round."""
    shared, private = (small.built(world(row)).simulation for _ in range(2))
    _give_everyone_a_replica(private)
    for number in range(6):
        assert small.run(shared, 1, first=number, steps=2) == small.run(private, 1, first=number, steps=2)
        first, *others = (private.client(client).replica.parameters for client in private.cohort(number))
        for other in others:
            assert all(torch.equal(first[name], other[name]) for name in first)
    away = [client for client in private.clients.values() if client.position < len(private.server.history)]
    assert away, "nobody was away in the last round: the test would not show that they catch up"
    for client in private.clients.values():
        client.replay(client.position, private.server.missed(client.position))
    small.assert_equal_states(shared, private, but=("clients",))
    agreed = private.agreed_bottom()
    state = dict(agreed.named_parameters())
    for client in private.clients.values():
        assert all(torch.equal(state[name], tensor) for name, tensor in client.replica.parameters.items())
        for moment, by_name in private.server.replica.moments.items():
            mine = client.replica.moments[moment]
            assert all(torch.equal(tensor, mine[name]) for name, tensor in by_name.items())


def _give_everyone_a_replica(simulation: Simulation) -> None:
    agreed = simulation.server.replica
    for number, source in enumerate(simulation.sources):
        own = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in agreed.parameters.items()}
        replica = Replica(own, rule=agreed.rule, seed_of=agreed.seed_of, law=agreed.law, groups=agreed.groups)
        simulation.clients[number] = Client(
            number, simulation.bottom, replica, source, head=simulation.head, local=simulation.local
        )


@pytest.mark.parametrize("row", rows(agreement="weights"))
def test_clients_start_a_round_from_the_mean_of_the_last_one(row: str) -> None:
    simulation = small.built(digits(row)).simulation
    sent: list[tuple[str, Weights]] = []
    carry = simulation.link.carry

    def tapped(client: int, direction: Any, message: Message, memory: Any = None) -> Message:
        if isinstance(message, Weights):
            sent.append((direction, Weights(tuple(tensor.detach().clone() for tensor in message.tensors))))
        return carry(client, direction, message, memory)

    simulation.link.carry = tapped  # type: ignore[method-assign]
    small.run(simulation, 2, steps=2)
    assert [direction for direction, _ in sent] == ["down", "down", "up", "up"] * 2
    _, _, one, other, *received = (message.tensors for _, message in sent)
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        assert not torch.equal(a, b) or not a.requires_grad  # two clients with other data moved apart
        mean = (a.double() + b.double()) / 2
        for tensors in received[:2]:
            # One rounding of the sum and one of the quotient, each of half a unit in the last place.
            # A device may have sent the last of θ alone, and slopes for the rest.
            torch.testing.assert_close(tensors[place - len(one)].double(), mean, rtol=2**-23, atol=1e-12)


@every_row
def test_a_socket_carries_the_same_bits(row: str, world: World) -> None:
    """Clients on a model, data and parameters of their own, each in a thread at the far end of a socket."""
    local, server = (small.built(world(row)) for _ in range(2))
    losses = small.run(local.simulation, 4, steps=2)
    received = run_over_sockets(server.simulation, lambda: small.built(world(row)).simulation, rounds=4, steps=2)
    assert received.losses == losses
    assert received.up_bytes == local.simulation.ledger.total("up")
    assert received.down_bytes == local.simulation.ledger.total("down")
    for one, other in zip(local.simulation.server.history, server.simulation.server.history, strict=True):
        assert torch.equal(one, other)
    local.simulation.agreed_bottom()
    server.simulation.agreed_bottom()
    _assert_equal_models(local, server)


def _assert_equal_models(one: Built, other: Built) -> None:
    for half, same in ((one.model.bottom, other.model.bottom), (one.model.top, other.model.top)):
        theirs = dict(same.named_parameters())
        assert [n for n, p in half.named_parameters() if not torch.equal(p, theirs[n])] == []


class GraphError(Exception):
    """A tensor was saved for a backward pass."""


class Watched:
    """An algorithm whose clients run where saving a tensor for a backward pass is an error.

    Where they have a head, it is one while the bottom runs: the head's own graph begins behind it.
    """

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.in_bottom = 0
        self.answer = algorithm.answer
        self.traits = algorithm.traits
        self.uploads: list[Tensor] = []

    def client_round(self, client: Client, round: Round) -> Conversation:
        talk = self.algorithm.client_round(client, round)
        reply = None
        hooks = [
            client.bottom.register_forward_pre_hook(lambda *_: self._bottom_runs(1)),
            client.bottom.register_forward_hook(lambda *_: self._bottom_runs(-1), always_call=True),
        ]

        def save(tensor: Tensor) -> Tensor:
            if client.head is None or self.in_bottom:
                raise GraphError
            return tensor

        while True:
            with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
                try:
                    message = talk.send(reply)
                except StopIteration:
                    for hook in hooks:
                        hook.remove()
                    return
            assert torch.is_grad_enabled(), "a mode of the client leaked out of its turn"
            if isinstance(message, Activations):
                self.uploads.append(message.hidden)
            reply = yield message

    def _bottom_runs(self, change: int) -> None:
        self.in_bottom += change


@pytest.mark.parametrize("row", rows(backpropagates=False))
def test_a_forward_only_client_builds_no_graph(row: str, world: World) -> None:
    simulation = small.built(world(row)).simulation
    simulation.algorithm = watched = Watched(simulation.algorithm)
    small.run(simulation, 2)
    assert watched.uploads
    assert not any(hidden.requires_grad or hidden.grad_fn for hidden in watched.uploads)
    parameters = [p for client in simulation.clients.values() for p in client.replica.parameters.values()]
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("row", rows(backpropagates=True))
def test_a_client_that_backpropagates_is_caught_by_the_same_watch(row: str) -> None:
    simulation = small.built(digits(row)).simulation
    simulation.algorithm = Watched(simulation.algorithm)
    with pytest.raises(GraphError):
        small.run(simulation, 1)


@pytest.mark.parametrize("row", [row for row in ROWS if row not in rows(agreement="frozen")])
def test_the_bottom_moves(row: str, world: World) -> None:
    assert _moved(small.built(world(row)), rounds=2)


@pytest.mark.parametrize("row", rows(agreement="frozen"))
def test_a_frozen_bottom_never_moves(row: str, world: World) -> None:
    assert not _moved(small.built(world(row)), rounds=6)


def _moved(run: Built, *, rounds: int) -> bool:
    before = {name: tensor.clone() for name, tensor in run.model.bottom.state_dict().items()}
    small.run(run.simulation, rounds)
    after = run.simulation.agreed_bottom().state_dict()
    return any(not torch.equal(before[name], after[name]) for name in before)


@every_row
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"partition__name": "dirichlet", "partition__alpha": 0.3, "clients": 6}, id="unequal-clients"),
        pytest.param({"clients": 120, "sampled_clients": 3}, id="one-sample-each"),
        pytest.param({"clients": 1, "sampled_clients": 1}, id="one-client"),
        pytest.param({"sampled_clients": 4}, id="all-clients"),
    ],
)
def test_any_division_of_the_data(row: str, changes: dict[str, Any]) -> None:
    run = small.built(digits(row, **changes))
    simulation = run.simulation
    sizes = {len(source.data) for source in simulation.sources}  # type: ignore[attr-defined]
    losses = small.run(simulation, 3, steps=2)
    assert all(0 < loss < 20 for loss in losses)  # finite, and of the size of a cross-entropy of ten classes
    assert _sizes_are_as_named(sizes, changes)
    cohorts = {client for number in range(3) for client in simulation.cohort(number)}
    assert set(simulation.clients) == cohorts
    assert all(client.cursor in (2, 4, 6) for client in simulation.clients.values())


def _sizes_are_as_named(sizes: set[int], changes: dict[str, Any]) -> bool:
    if "partition__name" in changes:
        return len(sizes) > 2
    return sizes == {120 // changes.get("clients", 4)}


def test_checkpointing_has_the_bits_of_storing_everything(world: World) -> None:
    stored, recomputed = (
        small.built(world("split_lora", algorithm__checkpointing=enabled)).simulation for enabled in (False, True)
    )
    assert small.run(stored, 4, steps=2) == small.run(recomputed, 4, steps=2)
    small.assert_equal_states(stored, recomputed, but=("forward_passes",))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_split_lora_with_one_client_is_unsplit_training(world: World, optimizer: str) -> None:
    """Bit for bit: the same kernels run in the same order on either side of the cut, and the wire rounds nothing."""
    changes = {"clients": 1, "sampled_clients": 1, "bottom__optimizer": optimizer, "bottom__clip": None}
    split, whole = (small.built(world("split_lora", **changes)) for _ in range(2))
    losses = small.run(split.simulation, 4, steps=2)
    split.simulation.agreed_bottom()

    model, config = whole.model.whole, whole.config
    bottom, top = (list(trainable(half).values()) for half in (whole.model.bottom, whole.model.top))
    optimizers = [
        _plain_optimizer(optimizer, bottom, config.bottom.lr),
        torch.optim.AdamW(top, config.top.lr, weight_decay=0.0),
    ]
    plain: list[float] = []
    for number in range(8):
        batch = whole.simulation.sources[0].batch(number)
        output = model(**{k: v.long() if v.dtype == torch.bool else v for k, v in batch.inputs.items()})
        loss = nn.functional.cross_entropy(output if isinstance(output, Tensor) else output.logits, batch.labels)
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
        plain.append(loss.item())
    assert losses == [(plain[place] + plain[place + 1]) / 2 for place in range(0, 8, 2)]
    _assert_equal_models(split, whole)


def _plain_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=0.0)
    return torch.optim.SGD(parameters, lr, momentum=0.9 if name == "momentum" else 0.0)


def test_many_exact_slopes_point_where_backpropagation_does(tiny_bert: Path, sentences: Path) -> None:
    """d parameters, P directions: the estimate's cosine with the gradient is √(P/(P+d+1)) for Gaussian directions."""
    directions, moves = 600, []
    for name, options in (
        ("split_lora", {}),
        (
            "ho_sfl",
            {"algorithm__directions": directions, "algorithm__estimator": "forward_ad", "bottom__law": "gaussian"},
        ),
    ):
        changes = {"clients": 1, "sampled_clients": 1, "lora__rank": 1, "bottom__lr": 1.0, **options}
        simulation = small.built(small.texts(name, tiny_bert, sentences, **changes)).simulation
        before = _flat(simulation.server.replica)
        small.run(simulation, 1)
        simulation.agreed_bottom()
        moves.append(_flat(simulation.server.replica) - before)
    exact, estimated = moves
    expected = (directions / (directions + len(exact) + 1)) ** 0.5
    cosine = torch.nn.functional.cosine_similarity(exact, estimated, dim=0).item()
    # Over seeds the cosine scatters by about (1 - expected²)/√(2·d) ≈ 0.01 around it: six of these.
    assert abs(cosine - expected) < 0.06, (cosine, expected, len(exact))
    # The length along the gradient is the gradient's: unbiased, with a standard error of √(2/P) ≈ 0.06 for Gaussians.
    assert abs(torch.dot(exact, estimated).item() / torch.dot(exact, exact).item() - 1) < 4 * (2 / directions) ** 0.5


def _flat(replica: Replica) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in replica.parameters.values()])
