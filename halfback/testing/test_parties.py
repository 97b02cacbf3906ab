"""Every algorithm × its parties: they agree, go on from a checkpoint, and keep neither graphs nor modes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfback.config import RunConfig
from halfback.engine import checkpoint
from halfback.engine.federation import Federation
from halfback.parties.client import Client
from halfback.parties.holdings import Round
from halfback.parties.protocol import Conversation
from halfback.testing import small
from halfback.testing.observed import ROUNDS, STEPS, Observed
from halfback.testing.table import Row
from halfback.testing.wrapped import give, wrap
from halfback.wire.messages import Activations, HandOver, Weights, parts_of
from halfback.wire.packing import unpack

World = Callable[..., RunConfig]


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(
    row: Row, world: World, observed: Observed, tmp_path: Path
) -> None:
    broken, resumed = (small.built(world(row)).federation for _ in range(2))
    half = ROUNDS // 2
    small.run(broken, half, steps=STEPS)
    checkpoint.save(tmp_path, half, *broken.state())
    found = checkpoint.load(tmp_path)
    assert found is not None
    resumed.load_state(*found[1:])
    assert small.run(resumed, half, first=half, steps=STEPS) == observed.losses[half:]
    small.assert_equal_states(observed.federation, resumed)


@pytest.mark.rows(lambda row: row.needs.agreement.name == "slopes")
def test_clients_with_replicas_of_their_own_agree(row: Row, world: World, observed: Observed) -> None:
    """The simulation lets clients share one replica; here each has its own, and half of them are away in any round."""
    shared, private = observed.federation, small.built(world(row)).federation
    _give_everyone_a_replica(private)
    for number in range(ROUNDS):
        assert small.run(private, 1, first=number, steps=STEPS) == [observed.losses[number]]
        clients = [private.client(client).party for client in private.server.cohort(number)]
        taken = len(private.server.party.agreed.rows)
        first, *others = (c.theta.parameters for c in clients if c.theta.position == taken)
        for other in others:
            assert all(torch.equal(first[name], other[name]) for name in first)
        assert row.needs.turns == "one_by_one" or len(others) + 1 == len(clients)
    away = [
        side.party
        for side in private.clients.values()
        if side.party.theta.position < len(private.server.party.agreed.rows)
    ]
    assert away, "nobody was away in the last round: the test would not show that they catch up"
    private.server.party.agreed.settle()
    for client in [side.party for side in private.clients.values()]:
        rows = private.server.party.agreed.missed(client.theta.position)
        if client.theta.replica.exact:
            client.theta.take_state(
                client.theta.position, rows, list(private.server.party.agreed.replica.exact_state().values())
            )
        else:
            client.theta.replay(
                client.theta.position, rows, private.server.party.agreed.steps_of(client.theta.position, len(rows))
            )
    small.assert_equal_states(shared, private, but=("clients",))
    agreed = private.server.agreed_bottom()
    state = dict(agreed.named_parameters())
    for client in [side.party for side in private.clients.values()]:
        mine = client.theta.replica.parameters
        assert all(torch.equal(state[name], tensor) for name, tensor in mine.items() if name in state)
        for name, tensor in private.server.party.agreed.replica.parameters.items():
            assert torch.equal(mine[name], tensor)
        for moment, by_name in private.server.party.agreed.replica.moments.items():
            assert all(
                torch.equal(tensor, client.theta.replica.moments[moment][name]) for name, tensor in by_name.items()
            )


def _give_everyone_a_replica(simulation: Federation) -> None:
    agreed = simulation.server.party.agreed.replica
    for number in range(simulation.server.sampling.clients):
        own = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in agreed.parameters.items()}
        simulation.client(number).party.theta.replica = agreed.alike(own)


def _sent(simulation: Federation, kind: type[Any]) -> list[tuple[str, tuple[Tensor, ...]]]:
    """Direction and copies of the tensors of every message of this kind, from now on."""
    sent: list[tuple[str, tuple[Tensor, ...]]] = []

    def listening(client: int, direction: str, data: bytes) -> None:
        message: Any = unpack(data)
        if isinstance(message, kind):
            sent.append((direction, message.tensors))

    simulation.tap = listening
    return sent


@pytest.mark.rows(lambda row: row.needs.agreement.averages and "server_step.name" not in row.settings)
def test_clients_start_a_round_from_the_mean_of_the_last_one(row: Row) -> None:
    simulation = small.built(small.images(row.name, **row.changes())).federation
    sent = _sent(simulation, Weights)
    small.run(simulation, 2, steps=2)
    count = simulation.server.sampling.sampled
    assert [direction for direction, _ in sent] == (["down"] * count + ["up"] * count) * 2
    ups, received = [tensors for _, tensors in sent[count : 2 * count]], [tensors for _, tensors in sent[2 * count :]]
    said = min(map(len, ups))  # a device may send the last of θ alone, and slopes for the rest
    last = list(
        zip(list(simulation.server.party.agreed.replica.parameters)[-said:], *(one[-said:] for one in ups), strict=True)
    )
    assert any(not torch.equal(a, b) for _, a, b, *_ in last)  # with other data, they moved apart
    shares = simulation.server.party.cohort.shares(simulation.server.cohort(0)) or [1 / count] * count
    assert len(set(shares)) == (
        count if simulation.server.party.cohort.rows and row.settings.get("partition.name") else 1
    )
    for place, (name, *own) in enumerate(last, -said):
        if row.server_moves is None or not name.startswith(row.server_moves):
            assert torch.equal(received[0][place], received[1][place])
            mean = sum(share * tensor.double() for share, tensor in zip(shares, own, strict=True))
            # One rounding of the sum and one of the quotient, each of half a unit in the last place.
            torch.testing.assert_close(received[0][place].double(), mean, rtol=2**-23, atol=1e-12)


@pytest.mark.rows(lambda row: row.needs.agreement.name == "relay")
def test_a_client_starts_from_what_the_last_one_handed_over(row: Row) -> None:
    simulation = small.built(small.images(row.name, **row.changes())).federation
    sent = _sent(simulation, HandOver)
    small.run(simulation, 2, steps=2)
    assert [direction for direction, _ in sent] == ["down", "up"] * 4
    for (_, handed), (_, taken) in zip(sent[1::2], sent[2::2], strict=False):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(handed, taken, strict=True))
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(sent[0][1], sent[1][1], strict=True))


class GraphError(Exception):
    """A tensor was saved for a backward pass."""


class Watched:
    """An algorithm whose clients run where saving a tensor for a backward pass is an error.

    Where they have a head, or blocks with exact gradients, it is one while the bottom runs: the graphs of these are
    made by themselves.
    """

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.in_bottom = 0
        self.answer = algorithm.answer
        self.needs = algorithm.needs
        self.uploads: list[Tensor] = []

    def client_round(self, client: Client, round: Round) -> Conversation:
        talk = self.algorithm.client_round(client, round)
        reply = None
        hooks = [
            client.bottom.register_forward_pre_hook(lambda *_: self._bottom_runs(1)),
            client.bottom.register_forward_hook(lambda *_: self._bottom_runs(-1), always_call=True),
        ]

        def save(tensor: Tensor) -> Tensor:
            if not (client.head or client.theta.exact) or self.in_bottom:
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
            self.uploads += [part.hidden for part in parts_of(message) if isinstance(part, Activations)]
            reply = yield message

    def _bottom_runs(self, change: int) -> None:
        self.in_bottom += change


@pytest.mark.rows(lambda row: not row.needs.backpropagates)
def test_a_forward_only_client_builds_no_graph(row: Row, world: World) -> None:
    simulation = small.built(world(row)).federation
    watched = Watched(simulation.server.algorithm)
    give(simulation, watched)
    small.run(simulation, 2, steps=2)
    assert watched.uploads or row.needs.holds == "whole"
    assert not any(hidden.requires_grad or hidden.grad_fn for hidden in watched.uploads)
    parameters = [p for side in simulation.clients.values() for p in side.party.theta.replica.parameters.values()]
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.rows(lambda row: row.needs.backpropagates)
def test_a_client_that_backpropagates_is_caught_by_the_same_watch(row: Row) -> None:
    simulation = small.built(small.images(row.name, **row.changes())).federation
    watched = Watched(simulation.server.algorithm)
    give(simulation, watched)
    with pytest.raises(GraphError):
        small.run(simulation, 1)


@pytest.mark.rows(lambda row: not row.brief)
def test_no_mode_leaks_out_of_a_client(row: Row) -> None:
    simulation = small.built(small.images(row.name, **row.changes())).federation
    client_round, turns = simulation.server.algorithm.client_round, 0

    def listening(client: Client, round: Round) -> Conversation:
        nonlocal turns
        talk, reply = client_round(client, round), None
        while True:
            try:
                message = talk.send(reply)
            except StopIteration:
                turns += 1
                return
            finally:
                assert torch.is_grad_enabled(), "gradients are off behind a turn of the client"
                assert not torch.is_inference_mode_enabled(), "inference mode is on behind a turn of the client"
                assert not torch.is_autocast_enabled("cpu"), "autocast is on behind a turn of the client"
            reply = yield message

    wrap(simulation, client_round=listening)
    small.run(simulation, 2, steps=2)
    assert turns == 2 * simulation.server.sampling.sampled
