"""The byte layout of a message (docs/protocol.md), written and read without trusting the other side.

Every length, dtype, shape and count is checked against what is left of the buffer before anything is allocated.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from halfback.errors import PeerError
from halfback.wire.fields import FIELDS
from halfback.wire.messages import CODES, Encoded, Message, Part, Role, kinds_of, name_of, of_parts, parts_of

Direction = Literal["up", "down"]

MAGIC = b"HB"
VERSION = 2
MAX_BYTES = 1 << 31
MAX_DIMENSIONS = 8
MAX_TENSORS = 1 << 16  # in one field: an empty tensor takes six bytes here and hundreds in memory

_NONE, _INTEGER, _TENSOR, _TENSORS, _ENCODED = range(5)
_HEADER = struct.Struct("<2sBB")
_DTYPES = (
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
_CODE_OF = {dtype: code for code, dtype in enumerate(_DTYPES)}


class Most(NamedTuple):
    """The most that a field may hold: bytes of values in so many tensors.

    With a `shape`, its one tensor has no more dimensions than this and is in none of them longer.
    """

    bytes: int
    tensors: int = 1
    shape: tuple[int, ...] | None = None


def most_bytes(most: Mapping[Role, Most]) -> int:
    """Of the longest message whose fields hold no more than this, by role; a role that is not there holds nothing."""
    return max(
        _HEADER.size
        + sum(_most_of_field(most.get(role, Most(0, 0))) for kind in kinds for role, _types in FIELDS[kind].values())
        for kinds in CODES
    )


def _most_of_field(most: Most) -> int:
    return max(9, 5 + most.tensors * (2 + 4 * MAX_DIMENSIONS) + most.bytes)  # an integer, or tensors


@dataclass(frozen=True)
class Packed:
    """A serialised message and how its bytes split by role (`framing` is everything that describes the rest)."""

    data: bytes
    bytes_by_role: dict[str, int]


def pack(message: Message) -> Packed:
    """Serialises a message; the result's length is what the ledger counts."""
    parts: list[bytes | memoryview] = [_HEADER.pack(MAGIC, VERSION, CODES.index(kinds_of(message)))]
    for part in parts_of(message):
        for name in FIELDS[type(part)]:
            _pack_field(parts, getattr(part, name))
    return split(message, b"".join(parts))


def split(message: Message, data: bytes) -> Packed:
    """The bytes `data` that `message` was packed to, or unpacked from, with their roles."""
    by_role: dict[str, int] = {}
    for part in parts_of(message):
        for name, (role, _types) in FIELDS[type(part)].items():
            by_role[role] = by_role.get(role, 0) + _payload(getattr(part, name))
    framing = len(data) - sum(by_role.values())
    return Packed(data, {role: count for role, count in by_role.items() if count} | {"framing": framing})


def _payload(value: Any) -> int:
    """Bytes of a field beside what describes it."""
    if value is None:
        return 0
    if isinstance(value, int):
        return 8
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_payload(tensor) for tensor in (value.parts if isinstance(value, Encoded) else value))


def _pack_field(parts: list[bytes | memoryview], value: Any) -> None:
    if value is None:
        parts.append(bytes([_NONE]))
    elif isinstance(value, int):
        parts.append(struct.pack("<Bq", _INTEGER, value))
    elif isinstance(value, Tensor):
        parts.append(bytes([_TENSOR]))
        _pack_tensor(parts, value)
    else:
        code, tensors = (_ENCODED, value.parts) if isinstance(value, Encoded) else (_TENSORS, value)
        parts.append(struct.pack("<BI", code, len(tensors)))
        for tensor in tensors:
            _pack_tensor(parts, tensor)


def _pack_tensor(parts: list[bytes | memoryview], tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    parts.append(struct.pack(f"<BB{tensor.ndim}I", _CODE_OF[tensor.dtype], tensor.ndim, *tensor.shape))
    parts.append(flat.view(torch.uint8).numpy().data)


def unpack(data: bytes, most: Mapping[Role, Most] | None = None) -> Message:
    """Reads a message back; tensors are fresh and on the CPU.

    `most`: what fields may hold, by role, as for `most_bytes`; without it, whatever these bytes do.

    Raises:
        PeerError: the bytes are no message of this version, or hold more; names the field, what came and what is
            allowed.
    """
    if len(data) > MAX_BYTES:
        raise PeerError("message", f"{len(data)} bytes", f"at most {MAX_BYTES} are allowed")
    reader = _Reader(data)
    magic, version, kind_code = reader.read(_HEADER, "header")
    if magic != MAGIC or version != VERSION:
        raise PeerError("header", f"{magic!r} version {version}", f"{MAGIC!r} version {VERSION} is allowed")
    if kind_code >= len(CODES):
        raise PeerError("header", f"message kind {kind_code}", f"0 to {len(CODES) - 1} are allowed")
    parts = [_part(reader, kind, most) for kind in CODES[kind_code]]
    if reader.left:
        name = name_of(CODES[kind_code])
        raise PeerError(name, f"{reader.left} bytes follow the last field, none are allowed")
    return of_parts(parts)


def _part(reader: "_Reader", kind: type[Part], most: Mapping[Role, Most] | None) -> Part:
    values = {}
    for name, (role, types) in FIELDS[kind].items():
        allowed = Most(MAX_BYTES, MAX_TENSORS) if most is None else most.get(role, Most(0, 0))
        values[name] = reader.field(f"{kind.__name__}.{name}", allowed)
        if not isinstance(values[name], types):
            wanted = " or ".join(each.__name__ for each in types)
            raise PeerError(f"{kind.__name__}.{name}", type(values[name]).__name__, f"{wanted} is allowed")
    return kind(**values)


def _within(shape: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) <= len(most) and all(length <= longest for length, longest in zip(shape, most, strict=False))


class _Reader:
    """A cursor over the buffer that refuses to read past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def read(self, layout: struct.Struct, name: str) -> tuple[Any, ...]:
        if layout.size > self.left:
            raise PeerError(name, f"{self.left} bytes are left, {layout.size} are needed")
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def field(self, name: str, most: Most) -> Any:
        (code,) = self.read(struct.Struct("<B"), name)
        if code == _NONE:
            return None
        if code == _INTEGER:
            return self.read(struct.Struct("<q"), name)[0]
        if code == _TENSOR:
            return self.tensor(name, most)
        if code in (_TENSORS, _ENCODED):
            (count,) = self.read(struct.Struct("<I"), name)
            if count > MAX_TENSORS:
                raise PeerError(name, f"{count} tensors announced, at most {MAX_TENSORS} are allowed")
            if count * 2 > self.left:  # a tensor takes at least two bytes
                raise PeerError(name, f"{count} tensors announced, but only {self.left} bytes are left")
            if count > most.tensors:
                raise PeerError(name, f"{count} tensors announced, at most {most.tensors} are allowed")
            tensors: list[Tensor] = []
            for place in range(count):
                tensors.append(self.tensor(f"{name}[{place}]", most))
                most = Most(most.bytes - tensors[-1].nbytes)
            return Encoded(tuple(tensors)) if code == _ENCODED else tuple(tensors)
        raise PeerError(name, f"field type {code}", f"0 to {_ENCODED} are allowed")

    def tensor(self, name: str, most: Most) -> Tensor:
        code, dimensions = self.read(struct.Struct("<BB"), name)
        if code >= len(_DTYPES):
            raise PeerError(name, f"dtype {code}", f"0 to {len(_DTYPES) - 1} are allowed")
        if dimensions > MAX_DIMENSIONS:
            raise PeerError(name, f"{dimensions} dimensions", f"at most {MAX_DIMENSIONS} are allowed")
        shape = self.read(struct.Struct(f"<{dimensions}I"), name)
        dtype = _DTYPES[code]
        size = math.prod(shape) * dtype.itemsize
        if size > self.left:
            raise PeerError(name, f"shape {shape} of {dtype} needs {size} bytes, but only {self.left} are left")
        if size > most.bytes:
            raise PeerError(name, f"{dtype} {shape}", f"at most {most.bytes} bytes are allowed")
        if most.shape is not None and not _within(shape, most.shape):
            raise PeerError(name, f"{dtype} {shape}", f"up to {most.shape} is allowed")
        if not size and math.prod(max(length, 1) for length in shape) > MAX_BYTES:  # its strides could overflow
            raise PeerError(name, f"empty shape {shape}", f"other lengths up to {MAX_BYTES} in all are allowed")
        raw = bytearray(self._data[self._at : self._at + size])
        self._at += size
        if dtype == torch.bool and any(raw.translate(None, b"\x00\x01")):
            raise PeerError(name, "a byte other than 0 and 1 came in a bool tensor")
        return torch.frombuffer(raw, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


class Ledger:
    """Adds up the lengths of serialised messages; nothing in it is priced by a formula."""

    def __init__(self) -> None:
        self.bytes_by_kind: dict[str, dict[str, dict[str, int]]] = {"up": {}, "down": {}}

    def add(self, direction: Direction, message: Message, packed: Packed) -> None:
        """Enters one message, with the bytes that it was packed to."""
        entry = self.bytes_by_kind[direction].setdefault(name_of(kinds_of(message)), {})
        for role, count in packed.bytes_by_role.items():
            entry[role] = entry.get(role, 0) + count

    def total(self, direction: Direction) -> int:
        """Bytes sent in that direction."""
        return sum(sum(roles.values()) for roles in self.bytes_by_kind[direction].values())

    def state_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        """The entries, for a checkpoint."""
        return self.bytes_by_kind

    def load_state_dict(self, state: dict[str, dict[str, dict[str, int]]]) -> None:
        """Continues from a checkpoint's entries."""
        self.bytes_by_kind = state
