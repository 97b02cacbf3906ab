"""Messages against the reference's bytes, and what is no message: an error of one kind, and no large allocation."""

import random
import tracemalloc

import numpy as np
import pytest
from reference import given_message, taken_message
from vectors import equal, vectors

from halfback.errors import PeerError as TheirPeerError
from halfback.wire.packing import Most as TheirMost
from halfback.wire.packing import most_bytes as their_most_bytes
from halfback.wire.packing import pack as their_pack
from halfback.wire.packing import unpack as their_unpack
from halfback_device.errors import PeerError
from halfback_device.messages import CODES, FIELDS, Array, Encoded, Message, Weights, of_parts
from halfback_device.wire import Most, most_bytes, pack, unpack

SENT = [bytes.fromhex(case["hex"]) for case in vectors("wire")["messages"]]
DTYPES = ("f4", "f8", "f2", "u2", "i8", "i4", "i2", "i1", "u1", "?")
MOST = {"activations": Most(200, 4), "gradient": Most(80, shape=(5, 4)), "slopes": Most(64), "weights": Most(100, 3)}


def drawn(dice: random.Random) -> Array:
    shape = tuple(dice.randint(0, 4) for _ in range(dice.randint(0, 4)))
    dtype = np.dtype(dice.choice(DTYPES))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = dice.randbytes(size) if dtype != np.bool_ else bytes(dice.choices((0, 1), k=size))
    return np.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def drawn_message(dice: random.Random) -> Message:
    """Of any kind, with fields of any of their types."""
    parts = []
    for kind in dice.choice(CODES):
        values = {}
        for name, field in FIELDS[kind].items():
            make = {
                int: lambda: dice.randint(-(1 << 63), (1 << 63) - 1),
                np.ndarray: lambda: drawn(dice),
                tuple: lambda: tuple(drawn(dice) for _ in range(dice.randint(0, 3))),
                Encoded: lambda: Encoded(tuple(drawn(dice) for _ in range(dice.randint(0, 3)))),
                type(None): lambda: None,
            }
            values[name] = make[dice.choice(field.types)]()
        parts.append(kind(**values))
    return of_parts(parts)


@pytest.mark.parametrize("seed", range(20))
def test_random_messages_have_the_references_bytes(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(20):
        said = drawn_message(dice)
        data = pack(said)
        assert their_pack(given_message(said)).data == data
        assert equal(unpack(data), said)
        assert equal(taken_message(their_unpack(data)), said)


def test_a_transposed_array_is_sent_in_its_own_order() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    (back,) = unpack(pack(Weights((values,)))).tensors  # type: ignore[union-attr]
    assert np.array_equal(back, values)


def test_a_dtype_that_the_wire_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="uint32"):
        pack(Weights((np.zeros(1, dtype=np.uint32),)))


def test_the_longest_message_is_as_long_as_the_reference_says() -> None:
    there = {role: TheirMost(*most) for role, most in MOST.items()}
    assert most_bytes(MOST) == their_most_bytes(there)  # type: ignore[arg-type]


def mutated(dice: random.Random) -> bytes:
    """A message, of which a few bytes are others, are missing, or are twice there."""
    data = bytearray(dice.choice(SENT))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(data) or 1)
        match dice.randrange(5):
            case 0:
                data[place : place + 1] = dice.randbytes(1)
            case 1:
                data[place : place + 4] = dice.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\x00\x80"))
            case 2:
                del data[place : place + dice.randint(1, 8)]
            case 3:
                data[place:place] = data[place : place + dice.randint(1, 8)]
            case 4:
                data = data[:place] + bytearray(dice.choice(SENT))[place:]
    return bytes(data)


def wrong_field(data: bytes, most: dict[str, Most] | None) -> str | None:
    """The field that the device says is wrong; None for a message."""
    try:
        unpack(data, most)  # type: ignore[arg-type]
    except PeerError as error:
        return error.field
    return None


def their_wrong_field(data: bytes, most: dict[str, Most] | None) -> str | None:
    there = None if most is None else {role: TheirMost(*each) for role, each in most.items()}
    try:
        their_unpack(data, there)  # type: ignore[arg-type]
    except TheirPeerError as error:
        return error.field
    return None


def check(data: bytes) -> None:
    """The device says of these bytes what the reference says."""
    for most in (None, MOST):
        wrong = wrong_field(data, most)
        assert wrong == their_wrong_field(data, most)
        assert wrong is not None or pack(unpack(data)) == data


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages_are_messages_or_peer_errors(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(500):
        check(mutated(dice))


@pytest.mark.slow
def test_two_hundred_thousand_mutated_messages() -> None:
    dice = random.Random(17)
    for _ in range(200_000):
        check(mutated(dice))


def test_nothing_is_allocated_for_what_is_announced() -> None:
    dice, cases = random.Random(3), [mutated(random.Random(seed)) for seed in range(2000)]
    huge = bytes.fromhex("48420204 02 00 02 ffffff7f ffffff7f") + dice.randbytes(100)
    tracemalloc.start()
    try:
        for data in (huge, *cases):
            try:
                unpack(data)
            except PeerError:
                continue
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The longest case has a kilobyte; what Python itself takes for a call and an error is a few more.
    assert peak < 100_000, peak
