"""The protocol's vectors, as this package's arrays and messages."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from halfback_device import messages
from halfback_device.messages import Array, Encoded, Message

FOLDER = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
_DTYPES = {"bfloat16": np.dtype(np.uint16), "bool": np.dtype(np.bool_)}


def vectors(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def array(shown: Any) -> Array:
    dtype = _DTYPES.get(shown["dtype"]) or np.dtype(shown["dtype"])
    return np.frombuffer(bytearray.fromhex(shown["hex"]), dtype=dtype).reshape(shown["shape"])


def same(made: Array, shown: Any) -> bool:
    """Whether an array has the bits, or the digest, that were recorded."""
    if "sha256" in shown:
        return made.dtype == np.float32 and sha256(made.tobytes()).hexdigest() == shown["sha256"]
    kept = array(shown)
    return made.dtype == kept.dtype and made.shape == kept.shape and made.tobytes() == kept.tobytes()


def _value(told: Any) -> Any:
    if isinstance(told, dict):
        if "encoded" in told:
            return Encoded(tuple(array(each) for each in told["encoded"]))
        return tuple(array(each) for each in told["tensors"]) if "tensors" in told else array(told)
    return told


def message(case: Any) -> Message:
    """The message of a case of `wire`."""
    kinds = [getattr(messages, kind) for kind in case["kinds"]]
    parts = [
        kind(**{name: _value(told) for name, told in own.items()})
        for kind, own in zip(kinds, case["fields"], strict=True)
    ]
    return messages.of_parts(parts)


def equal(one: Any, other: Any) -> bool:
    """Whether two values of fields, or two messages, are the same in every bit."""
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and one.tobytes() == other.tobytes()
    if isinstance(one, Encoded):
        return isinstance(other, Encoded) and equal(one.parts, other.parts)
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(equal, one, other))
    if type(one) not in (messages.Both, *messages.KINDS):
        return bool(one == other)
    return messages.kinds_of(one) == messages.kinds_of(other) and all(
        equal(getattr(a, name), getattr(b, name))
        for a, b in zip(messages.parts_of(one), messages.parts_of(other), strict=True)
        for name in messages.FIELDS[type(a)]
    )
