"""One process that plays everybody: who is sampled, what is counted, what stays in memory."""

import gc
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from halfback.engine.federation import Federation
from halfback.engine.link import End, tensors_of
from halfback.telemetry.meters import inference_peak_bytes
from halfback.testing import small
from halfback.wire.messages import ROLES, Activations, Join, Message, Nothing, Weights
from halfback.wire.packing import Ledger, Most
from halfback.zeroth.directions import forget_tables


def end(side: Any) -> End:
    return End(side, torch.device("cpu"), forms={}, senders={}, receivers={}, most=dict.fromkeys(ROLES, Most(64)))


def simulation(algorithm: str, **changes: Any) -> Federation:
    return small.built(small.images(algorithm, **changes)).federation


def test_a_cohort_is_a_function_of_seed_and_round() -> None:
    one, same, other = (simulation("frozen_bottom", seed=seed, clients=30, sampled_clients=7) for seed in (1, 1, 2))
    cohorts = [one.server.cohort(number) for number in range(20)]
    assert cohorts == [same.server.cohort(number) for number in reversed(range(20))][::-1]
    assert cohorts != [other.server.cohort(number) for number in range(20)]
    assert all(len(set(cohort)) == 7 and cohort == sorted(cohort) for cohort in cohorts)
    # 140 draws of 30: that a given client is never drawn has probability (23/30)^20 = 0.5 %.
    assert len({client for cohort in cohorts for client in cohort}) >= 27


def test_only_sampled_clients_are_made_and_take_part() -> None:
    few = simulation("split_lora", clients=20, sampled_clients=3)
    small.run(few, 2, steps=2)
    cohorts = [few.server.cohort(0), few.server.cohort(1)]
    taken = {client: 2 * sum(client in cohort for cohort in cohorts) for cohort in cohorts for client in cohort}
    assert {number: client.party.feed.cursor for number, client in few.clients.items()} == taken


@pytest.mark.parametrize(
    ("algorithm", "options", "passes"),
    [
        ("ho_sfl", {"directions": 3}, 1 + 3),
        ("ho_sfl", {"directions": 3, "estimator": "central"}, 1 + 2 * 3),
        ("ho_sfl", {"directions": 3, "estimator": "forward_ad"}, 1 + 3),
        ("zo_sfl", {"directions": 3}, 1 + 2 * 3),
        ("split_lora", {}, 1),
        ("split_lora", {"checkpointing": True}, 2),
        ("frozen_bottom", {}, 1),
    ],
)
def test_forward_passes_are_counted(algorithm: str, options: dict[str, Any], passes: int) -> None:
    counted = simulation(algorithm, **{f"algorithm__{name}": value for name, value in options.items()})
    small.run(counted, 2, steps=2, measure=True)
    assert counted.server.meters.forward_passes == 2 * 2 * 2 * passes  # rounds, steps, clients


def test_a_forward_only_client_needs_less_memory_than_one_that_backpropagates() -> None:
    peaks = {}
    for name in ("frozen_bottom", "ho_sfl", "split_lora"):
        measured = simulation(name)
        small.run(measured, 1, measure=True)
        peaks[name] = measured.server.meters
    assert peaks["frozen_bottom"].client_peak_bytes < peaks["ho_sfl"].client_peak_bytes
    assert peaks["ho_sfl"].client_peak_bytes < peaks["split_lora"].client_peak_bytes
    assert peaks["frozen_bottom"].client_inference_peak_bytes == peaks["split_lora"].client_inference_peak_bytes


def test_the_peak_of_inference_has_the_batch_in_it() -> None:
    measured = simulation("ho_sfl", clients=1, sampled_clients=1)
    small.run(measured, 1, measure=True)
    party = measured.client(0).party
    batch = party.feed.data.batch(0)
    held = [*batch.inputs.values(), batch.labels, batch.sample_ids]
    peak = inference_peak_bytes(party.bottom, lambda: party.bottom(batch.inputs), held)
    assert measured.server.meters.client_inference_peak_bytes == peak
    assert peak > inference_peak_bytes(party.bottom, lambda: party.bottom(batch.inputs), [])


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_a_peak_does_not_depend_on_what_the_process_did_before(law: str) -> None:
    """Tables of directions are kept between calls, and a device needs its own: each measured run counts them."""
    peaks = []
    for _ in range(2):
        measured = simulation("ho_sfl", bottom__law=law)
        small.run(measured, 1, measure=True)
        peaks.append(measured.server.meters.client_peak_bytes)
    assert peaks[0] == peaks[1]
    unwatched = simulation("ho_sfl", bottom__law=law)
    small.run(unwatched, 1)
    small.run(unwatched, 1, first=1, measure=True)
    assert unwatched.server.meters.client_peak_bytes >= peaks[0]


@pytest.mark.parametrize("algorithm", ["ho_sfl", "zo_sfl", "frozen_bottom"])
def test_memory_does_not_grow_with_the_number_of_clients(algorithm: str) -> None:
    few, many = (_bytes_kept(algorithm, clients) for clients in (24, 240))
    assert few == many


def test_memory_grows_where_clients_keep_weights_of_their_own() -> None:
    """So the count above can tell."""
    assert _bytes_kept("split_lora", 24) < _bytes_kept("split_lora", 48)


def _bytes_kept(algorithm: str, clients: int) -> int:
    """Tensor bytes that a simulation adds to the process once every client has taken a step (nothing is received)."""
    config = small.images(algorithm, clients=clients, sampled_clients=clients, task__train_rows=240, batch_size=2)
    run = small.built(config)
    forget_tables()
    before = _live_bytes()
    small.run(run.federation, 1)
    assert len(run.federation.clients) == clients
    replicas = {id(client.party.theta.replica) for client in run.federation.clients.values()}
    assert len(replicas) == (clients if algorithm == "split_lora" else 1)
    return _live_bytes() - before


def _live_bytes() -> int:
    gc.collect()
    # A tracer's stand-ins, which a package that was made in this process leaves, have no memory.
    alive = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and type(each) is not FakeTensor]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}.values())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_link_hands_over_a_copy_of_what_is_counted(direction: Any) -> None:
    ledger = Ledger()
    sender, receiver = (end(side) for side in (("client", "server") if direction == "up" else ("server", "client")))
    sent = Activations(torch.randn(2, 3, requires_grad=True), None, None, torch.arange(2).int())
    packed = sender.send(sent)
    ledger.add(direction, "Activations", packed)
    received = receiver.receive(packed.data)
    assert isinstance(received, Activations)
    assert torch.equal(received.hidden, sent.hidden)
    assert received.hidden.data_ptr() != sent.hidden.data_ptr()
    assert not received.hidden.requires_grad
    # 4 header; 1+2+8+24 hidden; 1 mask; 1 labels; 1+2+4+8 sample ids.
    assert ledger.total(direction) == 4 + 35 + 1 + 1 + 15
    assert ledger.total("down" if direction == "up" else "up") == 0


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (Nothing(), 0),
        (Join(3), 0),
        (Weights((torch.zeros(1), torch.zeros(2))), 2),
        (Activations(torch.zeros(1), None, torch.zeros(1), torch.zeros(1)), 3),
    ],
)
def test_the_tensors_of_a_message(message: Message, count: int) -> None:
    assert len(tensors_of(message)) == count
