"""The wire's bytes: what goes in comes out, the layout is the documented one, no input does worse than PeerError."""

import random
import struct
from dataclasses import fields
from typing import Any

import pytest
import torch
from hostile import confined, mutated
from messages_by_kind import MESSAGES

from halfback.errors import PeerError
from halfback.wire import packing
from halfback.wire.fields import FIELDS
from halfback.wire.messages import (
    CODES,
    KINDS,
    Activations,
    Both,
    Caches,
    CutGradient,
    Encoded,
    Message,
    Slopes,
    kinds_of,
    parts_of,
)
from halfback.wire.packing import MAX_TENSORS, pack, unpack

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
every_message = pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())


def values_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Encoded):
        return value.parts
    return value if isinstance(value, tuple) else (value,)


def assert_same(came: Message, sent: Message) -> None:
    assert kinds_of(came) == kinds_of(sent)
    both = zip(parts_of(came), parts_of(sent), strict=True)
    for one, other in ((getattr(a, entry.name), getattr(b, entry.name)) for a, b in both for entry in fields(b)):
        assert type(one) is type(other)
        for a, b in zip(values_of(one), values_of(other), strict=True):
            if isinstance(b, torch.Tensor):
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
            else:
                assert a == b


def test_every_kind_is_tried_here() -> None:
    assert {type(message) for message in MESSAGES.values()} <= {*KINDS, Both}
    assert {kinds_of(message) for message in MESSAGES.values()} == set(CODES)


@every_message
def test_round_trip(message: Message) -> None:
    assert_same(unpack(pack(message).data), message)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_bits(dtype: torch.dtype) -> None:
    """Including those of NaN, infinities and minus zero: judging values is the algorithm's business."""
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (6 * dtype.itemsize,), dtype=torch.uint8)
    sent = CutGradient(raw.view(dtype).reshape(2, 3))
    assert_same(unpack(pack(sent).data), sent)


@pytest.mark.parametrize("turned", [lambda t: t.T, lambda t: t[:, ::2], lambda t: t.expand(3, 4, 6)])
def test_a_tensor_that_is_not_contiguous_arrives_in_its_logical_order(turned) -> None:  # type: ignore[no-untyped-def]
    sent = CutGradient(turned(torch.arange(24.0).reshape(4, 6)))
    assert_same(unpack(pack(sent).data), sent)


def test_what_arrived_is_a_tensor_of_its_own() -> None:
    data = pack(CutGradient(torch.zeros(3))).data
    one, other = unpack(data), unpack(data)
    assert isinstance(one, CutGradient)
    assert isinstance(other, CutGradient)
    one.gradient.add_(1)
    assert torch.equal(other.gradient, torch.zeros(3))


def test_nothing_of_a_graph_travels() -> None:
    weight = torch.ones(2, requires_grad=True)
    came = unpack(pack(CutGradient(weight * 2)).data)
    assert isinstance(came, CutGradient)
    assert not came.gradient.requires_grad


# Written by hand from docs/protocol.md, so that a change of layout can't pass unseen.
GOLDEN = {
    "nothing": "48420200",
    "join": "48420201 01 0000000000010000",
    "history-empty": "48420202 01 0000000000000000 02 00 02 00000000 02000000",
    "slopes": "48420205 01 ffffffffffffffff 02 00 01 02000000 0000003f 000000c0",
    "activations-bf16": "48420203 02 03 03 01000000 02000000 04000000"
    "80bf 60bf 40bf 20bf 00bf c0be 80be 00be 00 02 05 01 01000000 03000000 02 05 01 01000000 02000000",
    "weights-none": "48420207 03 00000000",
    "gradient-encoded": "48420204 04 00000000",
    "activations-encoded": "48420203 04 02000000 07 02 05000000 04000000 ff000000 00000000 00000000 00000000 01010101"
    "00 02 05000000 01000000 000080bf 000060bf 000040bf 000020bf 000000bf"
    "02 05 01 02000000 02000000 03000000 02 05 01 02000000 00000000 01000000 02 05 01 02000000 09000000 04000000",
    "slopes-and-activations": "4842020d 01 0700000000000000 02 00 01 02000000 0000003f 000000c0"
    "02 03 02 02000000 04000000 80bf 60bf 40bf 20bf 00bf c0be 80be 00be 02 05 01 01000000 02000000"
    "02 05 01 01000000 03000000 02 05 01 01000000 02000000",
    "slopes-and-gradient": "4842020e 01 0700000000000000 02 00 01 02000000 0000003f 000000c0"
    "02 00 02 02000000 02000000 000080bf 000060bf 000040bf 000020bf",
    "slopes-and-exact": "48420212 01 0700000000000000 02 00 01 02000000 0000003f 000000c0"
    "02 00 01 03000000 000080bf 000060bf 000040bf",
    "slopes-and-exact-encoded": "48420212 01 0700000000000000 02 00 01 00000000"
    "04 02000000 08 02 02000000 01000000 ff00 00 02 02000000 01000000 000080bf 000060bf",
    "history-and-exact": "48420213 01 0700000000000000 02 00 02 02000000 01000000 00000000 00000000"
    "02 00 01 02000000 000080bf 000060bf",
    "history-and-exact-encoded": "48420213 01 0700000000000000 02 00 02 02000000 00000000"
    "04 02000000 08 02 02000000 01000000 ff00 00 02 02000000 01000000 000080bf 000060bf",
    "caches": "4842020a 02 04 01 02000000 0000000000000010 fdffffffffffffff 02 00 01 02000000 0000003f 000080bf",
    "caches-up": "4842020a 02 04 01 01000000 0700000000000000 00",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_layout_is_the_documented_one(name: str) -> None:
    assert pack(MESSAGES[name]).data == bytes.fromhex(GOLDEN[name].replace(" ", ""))


@every_message
def test_bytes_by_role_add_up_to_the_message(message: Message) -> None:
    packed = pack(message)
    assert sum(packed.bytes_by_role.values()) == len(packed.data)
    sizes: dict[str, int] = {}
    fields_of = [(part, name, role) for part in parts_of(message) for name, (role, _) in FIELDS[type(part)].items()]
    for part, name, role in fields_of:
        value = getattr(part, name)
        size = 8 if isinstance(value, int) else 0
        for tensor in values_of(value):
            size += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
        sizes[role] = sizes.get(role, 0) + size
    assert {role: packed.bytes_by_role.get(role, 0) for role in sizes} == sizes
    assert packed.bytes_by_role["framing"] == len(packed.data) - sum(sizes.values())


@every_message
def test_every_truncation_is_refused(message: Message) -> None:
    data = pack(message).data
    for length in range(len(data)):
        with pytest.raises(PeerError):
            unpack(data[:length])


@every_message
def test_bytes_after_the_last_field_are_refused(message: Message) -> None:
    with pytest.raises(PeerError, match="1 bytes follow the last field"):
        unpack(pack(message).data + b"\0")


def _header(kind: type[Message]) -> bytes:
    return b"HB\x02" + bytes([CODES.index((kind,))])


def _tensor(dtype: int, *shape: int, dimensions: int | None = None) -> bytes:
    return struct.pack(f"<BBB{len(shape)}I", 2, dtype, len(shape) if dimensions is None else dimensions, *shape)


GRADIENT, ACTIVATIONS = _header(CutGradient), _header(Activations)
HOSTILE = {
    "empty": (b"", "header: 0 bytes are left, 4 are needed"),
    "magic": (b"XX\x02\x00", "header: b'XX' version 2 came, b'HB' version 2 is allowed"),
    "version": (b"HB\x01\x00", "version 1 came"),
    "kind": (b"HB\x02\x63", f"message kind 99 came, 0 to {len(CODES) - 1} are allowed"),
    "field-type": (GRADIENT + b"\x09", "CutGradient.gradient: field type 9 came"),
    "wrong-type": (GRADIENT + b"\x01" + bytes(8), "CutGradient.gradient: int came, Tensor or Encoded is allowed"),
    "none-where-needed": (GRADIENT + b"\x00", "CutGradient.gradient: NoneType came, Tensor or Encoded is allowed"),
    "tuple-for-tensor": (
        GRADIENT + b"\x03" + bytes(4),
        "CutGradient.gradient: tuple came, Tensor or Encoded is allowed",
    ),
    "tensor-for-integer": (_header(Slopes) + 2 * _tensor(0, 0), "Slopes.step: Tensor came, int is allowed"),
    "dtype": (GRADIENT + _tensor(10, 1) + bytes(4), "CutGradient.gradient: dtype 10 came"),
    "dimensions": (GRADIENT + _tensor(0, *[1] * 9) + bytes(4), "9 dimensions came, at most 8 are allowed"),
    "shape-cut-off": (GRADIENT + _tensor(0, 1, dimensions=8), "CutGradient.gradient: 4 bytes are left, 32 are needed"),
    "a-gigabyte-announced": (GRADIENT + _tensor(0, 1 << 28), "needs 1073741824 bytes, but only 0 are left"),
    "product-beyond-64-bits": (GRADIENT + _tensor(0, *[0xFFFFFFFF] * 8), "but only 0 are left"),
    # The product is 2^64, which a 64-bit count would take for an empty tensor.
    "product-that-wraps-to-zero": (GRADIENT + _tensor(8, 1 << 31, 1 << 31, 4), "but only 0 are left"),
    "huge-but-empty": (GRADIENT + _tensor(0, *[0xFFFFFFFF] * 7, 0), "CutGradient.gradient: empty shape"),
    "one-byte-short": (GRADIENT + _tensor(0, 2) + bytes(7), "needs 8 bytes, but only 7 are left"),
    "bool-of-two": (ACTIVATIONS + _tensor(0, 0) + _tensor(9, 1) + b"\x02", "a byte other than 0 and 1"),
    "encoded-lengths": (
        ACTIVATIONS + _tensor(0, 0) + b"\x04" + bytes(4) + b"\0\0",
        "Activations.lengths: Encoded came, Tensor or",
    ),
    "encoded-weights": (b"HB\x02\x07\x04" + bytes(4), "Weights.tensors: Encoded came, tuple is allowed"),
    "encoded-digests": (
        _header(Caches) + b"\x04" + bytes(4) + b"\0",
        "Caches.digests: Encoded came, Tensor is allowed",
    ),
    "many-encoded": (GRADIENT + b"\x04" + struct.pack("<I", 0xFFFFFFFF), "4294967295 tensors announced, at most 65536"),
    "many-tensors": (b"HB\x02\x07\x03" + struct.pack("<I", 0xFFFFFFFF), "4294967295 tensors announced, at most 65536"),
    "tensors-without-bytes": (b"HB\x02\x07\x03" + struct.pack("<I", MAX_TENSORS), "but only 0 bytes are left"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_refused_by_name(name: str) -> None:
    data, says = HOSTILE[name]
    with pytest.raises(PeerError) as refused:
        unpack(data)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_refusal_reserves_no_memory() -> None:
    """A process that may take 64 MB more reads announcements of up to 2^258 bytes: believing one is a MemoryError."""
    with confined(64):
        with pytest.raises(MemoryError):
            bytearray(1 << 28)
        for data, _ in HOSTILE.values():
            with pytest.raises(PeerError):
                unpack(data)


def test_a_message_above_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack(CutGradient(torch.zeros(100))).data
    monkeypatch.setattr(packing, "MAX_BYTES", 64)
    with pytest.raises(PeerError, match=f"message: {len(data)} bytes came, at most 64 are allowed"):
        unpack(data)


def _fuzz(rounds: int, seed: int) -> tuple[int, int]:
    """(refused, accepted); anything but a message or PeerError is raised, a MemoryError too."""
    dice = random.Random(seed)
    seeds = [pack(message).data for message in MESSAGES.values()]
    refused = accepted = 0
    for _ in range(rounds):
        data = dice.randbytes(dice.randint(0, 80)) if dice.random() < 0.1 else mutated(dice.choice(seeds), dice, seeds)
        try:
            message = unpack(data)
        except PeerError:
            refused += 1
        else:
            assert pack(message).data == data, "an accepted message has another encoding"
            accepted += 1
    return refused, accepted


@pytest.mark.parametrize("rounds", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_fuzz(rounds: int) -> None:
    with confined(64):
        refused, accepted = _fuzz(rounds, seed=rounds)
    # Both must really occur: changed values are a legal message, changed structure is not.
    assert refused > rounds // 2
    assert accepted > rounds // 20
