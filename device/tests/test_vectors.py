"""The client in NumPy makes of the protocol's vectors what the reference does, to the bit."""

import json
import socket
from itertools import chain
from typing import Any

import numpy as np
import pytest
from vectors import array, equal, message, same, vectors

from halfback_device import frames
from halfback_device.batches import Feed, Split
from halfback_device.codecs import make_receiver, make_sender
from halfback_device.codecs.protocol import Samples
from halfback_device.codecs.temporal import TemporalReceiver, TemporalSender
from halfback_device.directions import direction, gaussian_table, philox
from halfback_device.errors import PeerError
from halfback_device.forms import Bounds, VectorForm
from halfback_device.link import End
from halfback_device.masking import primitives
from halfback_device.masking.rules import SumRules
from halfback_device.masking.talk import masked_talk
from halfback_device.messages import Array, Masking
from halfback_device.replay import Replica, RowForm
from halfback_device.seeds import Directions, name_number, seed_for, seeds_under
from halfback_device.stream import read_frame, write_frame
from halfback_device.update import Falls, Schedule, UpdateRule, schedule
from halfback_device.wire import Most, pack, unpack

REPLAY, WIRE, CODECS, TEMPORAL = vectors("replay"), vectors("wire"), vectors("codecs"), vectors("temporal")
SUMS = vectors("sums")


def test_seeds_and_names() -> None:
    known = vectors("seeds")
    for case in known["seeds"]:
        assert f"{seed_for(*case['path']):016x}" == case["seed"]
    for case in known["names"]:
        assert f"{name_number(case['name']):016x}" == case["number"]


def test_the_generator_and_the_table() -> None:
    known = vectors("directions")
    for case in known["philox"]:
        seed = case["key"][0] | case["key"][1] << 32
        words = philox(np.array(case["counter"], dtype=np.uint32).reshape(4, 1), [seed])
        assert words.reshape(-1).tolist() == case["words"]
    assert same(gaussian_table(), known["gaussian_table"])
    assert same(gaussian_table()[known["gaussian_table"]["places"]], known["gaussian_table"]["values"])


@pytest.mark.parametrize("case", vectors("directions")["directions"], ids=lambda c: f"{c['law']}-{c['shape']}")
def test_directions(case: Any) -> None:
    made = direction(int(case["seed"], 16), case["name"], tuple(case["shape"]), case["law"])
    assert made.shape == tuple(case["shape"])
    assert same(made, case)
    assert same(made.reshape(-1)[:15], case["first"])
    assert same(made.reshape(-1)[-3:], case["last"])


def schedule_of(case: Any) -> Schedule:
    falls = Falls(case.get("milestones", ()), case.get("gamma", 0.1))
    return schedule(case["shape"], warmup=case["warmup"], total=case["total"], falls=falls)


def test_schedules() -> None:
    for case in REPLAY["schedules"]:
        factor = schedule_of(case)
        assert [factor(step).hex() for step in range(12)] == case["factors"]


def replica_of(case: Any) -> Replica:
    start = {
        name: direction(seed_for("start"), name, tuple(shape), "gaussian") for name, shape in case["shapes"].items()
    }
    shape = case["schedule"]
    return Replica(
        start,
        UpdateRule(**case["rule"]),
        Directions(seeds_under(*case["seed_path"]), case["law"]),
        schedule=schedule_of(shape),
        form=RowForm(case["groups"], case["exact"]),
    )


def held(replica: Replica) -> dict[str, Any]:
    return {"theta": replica.parameters} | {f"moment.{name}": by for name, by in replica.moments.items()}


@pytest.mark.parametrize("name", REPLAY["cases"])
@pytest.mark.parametrize("at_once", [5, 1, 2])
def test_replay(name: str, at_once: int) -> None:
    case = REPLAY["cases"][name]
    replica, rows, steps = replica_of(case), array(case["rows"]), case["steps"]
    for first in range(0, len(rows), at_once):
        replica.replay(first, rows[first : first + at_once], steps[first : first + at_once])
    assert held(replica).keys() == case["result"].keys()
    for what, by_name in held(replica).items():
        for parameter, values in by_name.items():
            assert same(values, case["result"][what][parameter]), (what, parameter)


@pytest.mark.parametrize("case", WIRE["messages"], ids=lambda case: case["name"])
def test_messages(case: Any) -> None:
    data = bytes.fromhex(case["hex"])
    assert pack(message(case)) == data
    assert equal(unpack(data), message(case))


@pytest.mark.parametrize("case", WIRE["refused"], ids=lambda case: case["name"])
def test_what_is_no_message(case: Any) -> None:
    most = case["most"] and {
        role: Most(size, tensors, None if shape is None else tuple(shape))
        for role, (size, tensors, shape) in case["most"].items()
    }
    with pytest.raises(PeerError) as caught:
        unpack(bytes.fromhex(case["hex"]), most)
    assert caught.value.field == case["field"]


@pytest.mark.parametrize("case", CODECS["chains"], ids=lambda case: f"{case['name']}-{case['matrix']['shape'][1]}")
def test_codecs(case: Any) -> None:
    matrix = array(case["matrix"])
    samples = Samples((0,), (len(matrix),))
    parts = make_sender(case["chain"], matrix.shape[1], "codecs").encode(matrix, samples)
    assert all(map(same, parts, case["parts"]))
    assert len(parts) == len(case["parts"])
    back = make_receiver(case["chain"], matrix.shape[1], "codecs", None).decode(parts, samples)
    assert same(back, case["decoded"])
    assert same(back[0], case["decoded"]["first"])


def test_sign_with_feedback() -> None:
    sender = make_sender(["sign"], 16, "codecs")
    for step in CODECS["sign_with_feedback"]:
        parts = sender.encode(array(step["matrix"]), Samples((0,), (2,)))
        assert all(map(same, parts, step["parts"]))


def test_missed_steps_of_exact_gradients() -> None:
    case = CODECS["missed"]
    bounds = Bounds(rows=1, steps=9, slopes=0, exact=case["length"], state=12 * case["length"], weights=Most(0, 0))
    near = End({"slopes_down": case["chain"]}, {"slopes_down": VectorForm(case["length"])}, bounds)
    said: Any = near.receive(bytes.fromhex(case["hex"]))
    rows = said.second.values.reshape(len(case["rows"]), case["length"])
    assert all(map(same, rows, case["rows"]))


@pytest.mark.parametrize("name", TEMPORAL)
def test_temporal_conversations(name: str) -> None:
    case = TEMPORAL[name]
    sender = make_sender(case["chain"], 8, "codecs")
    receiver = make_receiver(case["chain"], 8, "codecs", None)
    assert isinstance(sender, TemporalSender)
    assert isinstance(receiver, TemporalReceiver)
    sender.threshold = case["threshold"]
    for step in case["steps"]:
        samples = Samples(None if step["ids"] is None else tuple(step["ids"]), tuple(step["rows"]))
        similarity, *parts = sender.encode(array(step["matrix"]), samples)
        kept = np.array([float("nan") if each is None else each for each in step["similarity"]])
        # Sums of floats in another order; a dozen float32 values each.
        np.testing.assert_allclose(similarity, kept, atol=1e-5)
        assert all(map(same, parts, step["parts"]))
        arrived = receiver.decode((kept.astype(np.float32), *(array(part) for part in step["parts"])), samples)
        assert same(arrived, step["arrived"])
        assert sender.cache.digest() == receiver.cache.digest() == step["digest"]


def plain(question: Any) -> Any:
    """A question's fields as JSON has them, without those that it does not say."""
    said = {name: value for name, value in vars(question).items() if value is not None}
    return json.loads(json.dumps({"kind": type(question).__name__.lower()} | said, default=vars))


def test_questions() -> None:
    for case in vectors("frames")["questions"]:
        assert plain(frames.read_question(case["header"])) == case["fields"]
    for header in vectors("frames")["refused_questions"]:
        with pytest.raises(PeerError, match="header"):
            frames.read_question(header)


def test_replies() -> None:
    for case in vectors("frames")["replies"]:
        told = dict(case["fields"])
        made = getattr(frames, told.pop("kind").capitalize())(**told)
        assert json.loads(frames.frame(made).header) == case["fields"]
        assert frames.frame(made).header == case["header"]


def test_a_stream() -> None:
    case = vectors("frames")["stream"]
    near, far = socket.socketpair()
    with near, far:
        write_frame(near, frames.Frame(case["header"], bytes.fromhex(case["body"])))
        assert far.recv(10_000).hex() == case["hex"]
        near.sendall(bytes.fromhex(case["hex"]))
        came = read_frame(far, frames.Longest(1000))
    assert (came.header, came.body.hex()) == (case["header"], case["body"])


def test_the_order_of_batches() -> None:
    for case in vectors("batches")["cases"]:
        count = len(case["rows"])
        split = Split(
            np.zeros(count, dtype=np.int64), np.array(case["rows"]), images=np.zeros((count, 1, 1, 1), np.float32)
        )
        feed = Feed(split, size=case["batch_size"], seed=case["seed"])
        assert [feed.batch(number).sample_ids.tolist() for number in range(8)] == case["batches"]


def signed(numbers: Array) -> Array:
    return numbers.view(f"i{numbers.itemsize}")


def test_values_as_whole_numbers() -> None:
    for case in SUMS["fixed_point"]:
        rules = SumRules(2, case["bits"], case["range"], case["clients"], False)
        assert rules.scale.hex() == case["scale"]
        made = rules.encode(array(case["values"]), "values", float.fromhex(case["share"]))
        assert same(signed(made), case["numbers"])


def test_means_of_whole_numbers() -> None:
    """Which a device never takes; docs/protocol.md says how a server does."""
    for case in SUMS["means"]:
        total = array(case["total"]).astype(np.float64)
        mean = total / (float.fromhex(case["count"]) * float.fromhex(case["scale"]))
        assert same(mean.astype(np.float32), case["mean"])


def test_keys_seals_and_streams() -> None:
    pair = SUMS["pair"]
    own, peer = (primitives.private_key(bytes.fromhex(secret)) for secret in pair["secrets"])
    public = [key.public_key().public_bytes_raw() for key in (own, peer)]
    assert [each.hex() for each in public] == pair["public"]
    for mine, other in ((own, public[1]), (peer, public[0])):
        assert primitives.agreed(mine, other, bytes.fromhex(pair["info"])).hex() == pair["shared"]
    case = SUMS["commitment"]
    assert primitives.commitment(bytes.fromhex(case["secret"])).hex() == case["commitment"]
    case = SUMS["derived"]
    assert primitives.derived(bytes.fromhex(case["secret"]), bytes.fromhex(case["info"])).hex() == case["key"]
    case = SUMS["sealed"]
    key, text, sealed = (bytes.fromhex(case[name]) for name in ("key", "text", "sealed"))
    assert primitives.seal(key, text) == sealed
    assert primitives.unseal(key, sealed) == text
    for case in SUMS["streams"]:
        numbers = array(case["numbers"])
        made = primitives.stream(bytes.fromhex(case["key"]), len(numbers), 8 * numbers.itemsize)
        assert same(signed(made), case["numbers"])


def product(one: int, other: int) -> int:
    """In GF(2^128), as docs/protocol.md says it."""
    found = 0
    for bit in range(128):
        found ^= (one << bit) * (other >> bit & 1)
    for bit in range(254, 127, -1):
        found ^= ((1 << 128 | 0x87) << bit - 128) * (found >> bit & 1)
    return found


def test_shares_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    case = SUMS["shares"]
    secret, powers = bytes.fromhex(case["secret"]), [bytes.fromhex(each) for each in case["coefficients"]]
    given = iter(powers)
    monkeypatch.setattr("Crypto.Protocol.SecretSharing.rng", lambda size: next(given))
    made = primitives.split(secret, len(powers) + 1, len(case["shares"]))
    assert [share.hex() for share in made] == case["shares"]
    for number, share in enumerate(made, 1):  # and by the formula
        found = 0
        for each in (*powers, secret):
            found = product(found, number) ^ int.from_bytes(each, "big")
        assert found.to_bytes(16, "big") == share


@pytest.mark.parametrize("name", SUMS["conversations"])
def test_conversations_of_a_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SUMS["conversations"][name]
    rules = case["rules"]
    own, powers = iter(case["secrets"]), chain.from_iterable(case["coefficients"])
    monkeypatch.setattr("halfback_device.masking.talk.new_secret", lambda: bytes.fromhex(next(own)))
    monkeypatch.setattr("Crypto.Protocol.SecretSharing.rng", lambda size: bytes.fromhex(next(powers)))
    known = SumRules(rules["threshold"], rules["bits"], rules["range"], rules["clients"], rules["by_rows"])
    talk = masked_talk(case["client"], case["rows"], unpack(bytes.fromhex(case["message"])), known)
    told: Any = None
    said = []
    for answer in [*case["told"], None]:
        try:
            said.append(talk.send(told))
        except StopIteration as end:
            said.append(end.value)
        told = None if answer is None else unpack(bytes.fromhex(answer))
    assert [in_any_order(message) for message in said] == [
        in_any_order(unpack(bytes.fromhex(kept))) for kept in case["said"]
    ]


def in_any_order(said: Any) -> Any:
    """The rows of a `Masking`, which may stand in any order; another message as its bytes."""
    if not isinstance(said, Masking):
        return pack(said)
    return said.phase, {client: row.tobytes() for client, row in zip(said.clients.tolist(), said.values, strict=True)}
