"""What a peer may send is bounded by the recipe before it is read; what a client reports, by what is possible."""

import json
import socket
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import confined
from test_deployment import LINEAGE, World, among, assert_same, config, machine, make_world, opening

from halfback.config import to_tree
from halfback.deploy.flare import read
from halfback.deploy.relay import Relay
from halfback.deploy.site import SiteConfig
from halfback.deploy.worker import Worker, work
from halfback.engine.link import blamed
from halfback.engine.remote.client import RemoteClient
from halfback.engine.remote.frames import (
    MOST_MEMORY,
    Done,
    Frame,
    Longest,
    Prepare,
    Ready,
    Said,
    Say,
    frame,
    read_reply,
)
from halfback.engine.remote.stream import read_frame
from halfback.engine.remote.weights import digest_of
from halfback.errors import CohortLost, PeerError
from halfback.telemetry.records import Record
from halfback.testing import small
from halfback.wire.messages import Activations, History, Join, Message, Slopes, Weights
from halfback.wire.packing import pack

_fixtures = (make_world,)  # of the other file
HUGE = (1 << 31) - 1


@pytest.mark.parametrize(("header", "body"), [(10, HUGE), (HUGE, 0), (0, 1001)])
def test_a_length_over_the_bound_is_refused_before_anything_is_read(header: int, body: int) -> None:
    """The peer announces it and says no more: who waited for the rest, or made room for it, would fail here."""
    near, far = socket.socketpair()
    with near, far, confined(64):
        near.settimeout(5)
        far.sendall(struct.pack("<II", header, body))
        tracemalloc.start()
        try:
            with pytest.raises(PeerError, match=rf"header of {header} bytes and a body of {body} came, at most .*1000"):
                read_frame(near, Longest(1000, 1000))
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


def test_a_worker_reads_no_body_before_its_model_is_here(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far, confined(64):
        far.settimeout(5)
        near.sendall(struct.pack("<II", 2, HUGE))
        with pytest.raises(PeerError, match=rf"a body of {HUGE} came, at most \d+ and 0 are allowed"):
            work(far, Worker(SiteConfig(), tmp_path))


def test_a_worker_takes_the_weights_to_begin_with_and_what_a_round_brings(tmp_path: Path) -> None:
    side = machine().client(0)
    held = {name: tensor + 1 for name, tensor in side.held().items()}
    body, digits = pack(Weights(tuple(held.values()))).data, tuple(str(digit) for digit in range(10))
    tree = to_tree(config())
    order = Prepare(run="0" * 16, client=0, config=tree, label_names=digits, weights=digest_of(held))
    worker = Worker(SiteConfig(), tmp_path)
    first = read_reply(worker.reply(frame(order)).header)
    assert isinstance(first, Ready)
    assert (first.fits, first.takes) == (False, worker.takes)
    assert len(body) <= worker.takes < len(body) + 64 * len(held)
    second = read_reply(worker.reply(frame(order, body)).header)
    assert isinstance(second, Ready)
    assert (second.fits, second.takes) == (True, worker.takes)
    assert worker.takes >= side.near.most_bytes


def test_a_relay_hands_no_longer_question_on_than_its_worker_takes(tmp_path: Path) -> None:
    relay = Relay(SiteConfig(), tmp_path, worker="this")  # it never says that it is ready
    try:
        with pytest.raises(PeerError, match="a body of 1 came, at most"):
            relay.exchange(Frame("{}", b"x"), 5)
    finally:
        relay.close()


def test_what_flare_brings_is_refused_before_it_is_copied() -> None:
    body = bytes(1 << 28)
    with confined(64), pytest.raises(PeerError, match=f"a body of {1 << 28} came"):
        read("{}", body, Longest(1 << 20))
    for wrong in (None, 3, [b"x"], bytearray(b"x"), "x", torch.zeros(4, dtype=torch.uint8)):
        with pytest.raises(PeerError, match="text and bytes are allowed"):
            read("{}", wrong, Longest(1 << 30))


UP: dict[str, Callable[[Any], Message]] = {
    # As many bytes as an honest batch may have, or fewer: it is the rows that cost the server its memory.
    "rows": lambda m: replace(m, hidden=m.hidden[:1].repeat(9, 1, 1, 1), labels=None),
    "rows-of-nothing": lambda m: replace(m, hidden=torch.zeros(1 << 20, 0)),
    "labels": lambda m: replace(m, labels=torch.zeros(9).int()),
    "wide-labels": lambda m: replace(m, labels=torch.zeros(8, 9).int()),
    "ids": lambda m: replace(m, sample_ids=torch.arange(9).int()),
    "slopes": lambda m: Slopes(0, torch.zeros(6 * 3 + 1)),
    "weights": lambda m: Weights((torch.zeros(1),)),  # of a method whose clients send none
    "tensors": lambda m: Weights((torch.zeros(0),) * 1000),
}


@pytest.mark.parametrize("what", UP)
def test_a_server_reads_no_more_than_the_recipe_has(what: str) -> None:
    simulation = machine(steps=6)
    batch = simulation.client(0).party.feed.data.batch(0)
    with torch.no_grad():
        hidden = simulation.server.bottom(batch.inputs)
    honest = Activations(hidden, None, batch.labels.int(), batch.sample_ids.int())
    simulation.server.hear(0, pack(honest).data)
    with pytest.raises(PeerError, match=r"^client 0: .* (came|announced), (at most|up to) .* allowed"):
        simulation.server.hear(0, pack(UP[what](honest)).data)


def test_a_device_reads_no_more_than_the_recipe_has() -> None:
    side = machine(steps=6).client(0)  # with 3 directions
    side.near.receive(pack(History(0, torch.zeros(6, 3))).data)
    for message in (History(0, torch.zeros(7, 3)), Weights((torch.zeros(1),)), Slopes(0, torch.zeros(99))):
        with pytest.raises(PeerError, match=r"server: .* allowed"), blamed("server"):
            side.near.receive(pack(message).data)


def test_a_codec_has_the_bound_of_what_it_makes() -> None:
    simulation = machine(codecs__activations_up=["temporal", "int8"], batch_size=4)
    far = simulation.server.end(0)
    rows = 4 * 16  # an image's channels, of 16 · 16 values and a scale each
    most = simulation.server.links.bounds.receiving("up", far._forms, far.receivers)
    assert most["activations"] == (rows * 260 + 4 * 5, 4, None)


def test_who_says_the_same_again_and_again_is_stopped(make_world: Callable[..., World]) -> None:
    """Each time the server would answer, for ever, and the other clients would wait."""
    world = make_world(min_cohort=1, clients=1, sampled_clients=1)

    def again(number: int, question: Frame, reply: Frame) -> Frame:
        if "exchange" not in question.header:
            return reply
        at = json.loads(question.header)["exchange"] + 1
        return frame(Said(lineage=json.loads(question.header)["lineage"], round=0, exchange=at), pack(Join(0)).data)

    world.carrier.change = again
    with pytest.raises(CohortLost, match="client 0: Join: 2 came in a round of 1 steps, at most 1 are allowed"):
        world.run(1)
    assert world.happened("expelled") == [0]


LIES: dict[str, Any] = {
    "client_seconds": 1.7e308,
    "wire_seconds": 1e5,
    "forward_passes": (1 << 62) - 1,
    "peak_bytes": MOST_MEMORY + 1,
    "inference_peak_bytes": (1 << 62) - 1,
    "cursor": 2,
    "losses": [0.5, 0.5],
}


@pytest.mark.parametrize("field", LIES)
def test_a_report_that_cannot_be_expels_its_client_and_enters_no_sum(
    field: str, make_world: Callable[..., World]
) -> None:
    world = make_world(min_cohort=1)

    def lie(number: int, question: Frame, reply: Frame) -> Frame:
        tree = json.loads(reply.header)
        wrong = number == 0 and tree["kind"] == "done"
        return Frame(json.dumps(tree | {field: LIES[field]})) if wrong else reply

    world.carrier.change = lie
    world.run(2)
    assert world.happened("expelled") == [0]
    (why,) = [event["why"] for event in world.events if event["event"] == "expelled"]
    assert f"{field}: " in why
    meters = world.server.server.meters
    assert meters.client.seconds + meters.wire.seconds < 60
    assert meters.forward_passes < 100
    assert meters.client_peak_bytes < 1 << 30
    expected, cohorts = machine(), [[0, 1, 2], [1, 2]]
    small.run(among(expected, lambda number: cohorts[number]), 2)
    assert_same(world.server, expected)


@pytest.mark.parametrize("loss", [1.7e308, -1e39])
def test_a_loss_beyond_float32_is_none(loss: float) -> None:
    """The sum of a cohort's would not be finite, and stop the run for all."""
    counts = dict.fromkeys(("round", "cursor", "forward_passes", "peak_bytes", "inference_peak_bytes"), 0)
    said = Done(lineage=LINEAGE, client_seconds=0.0, wire_seconds=0.0, losses=(3.4e38,), **counts)
    with pytest.raises(PeerError, match="losses"):
        read_reply(json.dumps(json.loads(frame(said).header) | {"losses": [loss]}))
    mean = machine().server.take_losses(said.losses * 10_000)
    line = Record(1, 1, mean, None, None, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, {}).to_json()
    assert Record.from_json(line).train_loss == pytest.approx(3.4e38)


def test_a_report_is_of_its_own_round(tmp_path: Path) -> None:
    """What an abandoned round has cost belongs to no round that counts."""
    own, server = machine().client(0), machine().server
    client, lineage = RemoteClient(own, tmp_path), "b" * 16
    client.reply(opening(0), b"")
    own.meters.forward_passes += 1000
    own.meters.client.seconds += 1000
    server.party.round = small.Round(0, 1, 0)
    reply = client.reply(opening(0, lineage=lineage), b"")
    while isinstance(said := read_reply(reply.header), Said):
        answer = server.answers({0: server.hear(0, reply.body)})[0]
        reply = client.reply(Say(lineage=lineage, round=0, exchange=said.exchange), server.say(0, answer))
    assert isinstance(said, Done)
    assert said.forward_passes < 10
    assert said.client_seconds < 100
