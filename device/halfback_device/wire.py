"""The byte layout of a message (docs/protocol.md), written and read without trusting the other side.

Every length, dtype, shape and count is checked against what is left of the buffer before anything is allocated.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from halfback_device.errors import PeerError
from halfback_device.messages import (
    CODES,
    FIELDS,
    Array,
    Encoded,
    Message,
    Part,
    Role,
    kinds_of,
    name_of,
    of_parts,
    parts_of,
)

MAGIC = b"HB"
VERSION = 2
MAX_BYTES = 1 << 31
MAX_DIMENSIONS = 8
MAX_TENSORS = 1 << 16  # in one field: an empty tensor takes six bytes here and hundreds in memory

_NONE, _INTEGER, _TENSOR, _TENSORS, _ENCODED = range(5)
_HEADER = struct.Struct("<2sBB")
_BYTE, _COUNT, _WHOLE, _FORM = struct.Struct("<B"), struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<BB")
# The number on the wire is the place here; uint16 are the bits of bfloat16.
_DTYPES = tuple(np.dtype(f"<{code}") for code in ("f4", "f8", "f2", "u2", "i8", "i4", "i2", "i1", "u1", "?"))
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
        + sum(_most_of_field(most.get(field.role, Most(0, 0))) for kind in kinds for field in _fields(kind))
        for kinds in CODES
    )


def _fields(kind: type[Part]) -> list[Any]:
    return list(FIELDS[kind].values())


def _most_of_field(most: Most) -> int:
    return max(9, 5 + most.tensors * (2 + 4 * MAX_DIMENSIONS) + most.bytes)  # an integer, or tensors


def type_name(dtype: np.dtype[Any]) -> str:
    """What the wire calls this dtype."""
    return "bfloat16" if dtype == np.uint16 else dtype.name


def described(array: Array) -> str:
    """Dtype and shape, as they stand in an error."""
    return f"{type_name(array.dtype)} {array.shape}"


def pack(message: Message) -> bytes:
    """The bytes of a message.

    Raises:
        ValueError: an array has a dtype that the wire has no number for.
    """
    pieces: list[bytes | memoryview] = [_HEADER.pack(MAGIC, VERSION, CODES.index(kinds_of(message)))]
    for part in parts_of(message):
        for name in FIELDS[type(part)]:
            _pack_field(pieces, getattr(part, name))
    return b"".join(pieces)


def _pack_field(pieces: list[bytes | memoryview], value: Any) -> None:
    if value is None:
        pieces.append(_BYTE.pack(_NONE))
    elif isinstance(value, int):
        pieces.append(_BYTE.pack(_INTEGER) + _WHOLE.pack(value))
    elif isinstance(value, np.ndarray):
        pieces.append(_BYTE.pack(_TENSOR))
        _pack_tensor(pieces, value)
    else:
        code, tensors = (_ENCODED, value.parts) if isinstance(value, Encoded) else (_TENSORS, value)
        pieces.append(_BYTE.pack(code) + _COUNT.pack(len(tensors)))
        for tensor in tensors:
            _pack_tensor(pieces, tensor)


def _pack_tensor(pieces: list[bytes | memoryview], array: Array) -> None:
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODE_OF:
        raise ValueError(f"an array of {array.dtype} can't be sent")
    pieces.append(struct.pack(f"<BB{array.ndim}I", _CODE_OF[dtype], array.ndim, *array.shape))
    pieces.append(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)  # not copied before it is joined


def unpack(data: bytes, most: Mapping[Role, Most] | None = None) -> Message:
    """Reads a message back; its arrays are fresh.

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
            came, wanted = _called(type(values[name])), " or ".join(_called(each) for each in types)
            raise PeerError(f"{kind.__name__}.{name}", came, f"{wanted} is allowed")
    return kind(**values)


def _called(kind: type) -> str:
    return "Tensor" if kind is np.ndarray else kind.__name__


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
        (code,) = self.read(_BYTE, name)
        if code == _NONE:
            return None
        if code == _INTEGER:
            return self.read(_WHOLE, name)[0]
        if code == _TENSOR:
            return self.tensor(name, most)
        if code in (_TENSORS, _ENCODED):
            (count,) = self.read(_COUNT, name)
            if count > MAX_TENSORS:
                raise PeerError(name, f"{count} tensors announced, at most {MAX_TENSORS} are allowed")
            if count * 2 > self.left:  # a tensor takes at least two bytes
                raise PeerError(name, f"{count} tensors announced, but only {self.left} bytes are left")
            if count > most.tensors:
                raise PeerError(name, f"{count} tensors announced, at most {most.tensors} are allowed")
            tensors: list[Array] = []
            for place in range(count):
                tensors.append(self.tensor(f"{name}[{place}]", most))
                most = Most(most.bytes - tensors[-1].nbytes)
            return Encoded(tuple(tensors)) if code == _ENCODED else tuple(tensors)
        raise PeerError(name, f"field type {code}", f"0 to {_ENCODED} are allowed")

    def tensor(self, name: str, most: Most) -> Array:
        code, dimensions = self.read(_FORM, name)
        if code >= len(_DTYPES):
            raise PeerError(name, f"dtype {code}", f"0 to {len(_DTYPES) - 1} are allowed")
        if dimensions > MAX_DIMENSIONS:
            raise PeerError(name, f"{dimensions} dimensions", f"at most {MAX_DIMENSIONS} are allowed")
        shape = self.read(struct.Struct(f"<{dimensions}I"), name)
        dtype = _DTYPES[code]
        size, came = math.prod(shape) * dtype.itemsize, f"{type_name(dtype)} {shape}"
        if size > self.left:
            raise PeerError(name, f"{came} needs {size} bytes, but only {self.left} are left")
        if size > most.bytes:
            raise PeerError(name, came, f"at most {most.bytes} bytes are allowed")
        if most.shape is not None and not _within(shape, most.shape):
            raise PeerError(name, came, f"up to {most.shape} is allowed")
        if not size and math.prod(max(length, 1) for length in shape) > MAX_BYTES:  # its strides could overflow
            raise PeerError(name, f"empty shape {shape}", f"other lengths up to {MAX_BYTES} in all are allowed")
        raw = bytearray(self._data[self._at : self._at + size])
        self._at += size
        if dtype == np.bool_ and any(raw.translate(None, b"\x00\x01")):
            raise PeerError(name, "a byte other than 0 and 1 came in a bool tensor")
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
