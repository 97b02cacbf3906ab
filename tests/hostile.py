"""What a hostile peer may send: bytes and messages that are nearly right; and what its refusal may cost."""

import random
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfback.wire.fields import FIELDS
from halfback.wire.messages import Encoded, Message, of_parts, parts_of

EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x01\0\0\0")
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.bool)
NUMBERS = (-1, 0, 1, 2, 3, 99, 1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1)
VALUES = (float("nan"), float("inf"), -float("inf"), 3e38, -1.0, 0.0, 99.0, 1e-45)


def mutated(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    """The bytes with some changed, cut out, doubled, cut off, spliced with `others` or replaced by extreme lengths."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(changed) + 1)
        match dice.randrange(9):
            case 0 if at < len(changed):
                changed[at] = dice.randrange(256)
            case 1 if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
            case 2:
                del changed[at : at + dice.randint(1, 8)]
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 16)]
            case 4 | 5:
                changed[at : at + 4] = dice.choice(EXTREMES)
            case 6 if dice.random() < 0.3:
                del changed[at:]
            case 7:
                other = dice.choice(others)
                changed[at:] = other[dice.randrange(len(other) + 1) :]
            case _:
                changed[at : at + 1] = dice.randbytes(dice.randint(1, 4))
    return bytes(changed)


def altered(message: Message, dice: random.Random, others: Sequence[Message]) -> Message:
    """A message of the right layout with one or two fields that are not what they should be, or another one."""
    if dice.random() < 0.1:
        return dice.choice(others)
    for _ in range(dice.randint(1, 2)):
        parts = list(parts_of(message))
        place = dice.randrange(len(parts))
        part, fields = parts[place], FIELDS[type(parts[place])]
        if not fields:
            return dice.choice(others)
        name, (_role, types) = dice.choice(list(fields.items()))
        value = _altered(getattr(part, name), dice)
        if type(None) in types and dice.random() < 0.2:
            value = None
        if Encoded in types and dice.random() < 0.1:
            value = value.parts[0] if isinstance(value, Encoded) and value.parts else Encoded((torch.zeros(2, 2),))
        parts[place] = replace(part, **{name: value})
        message = of_parts(parts)
    return message


def _altered(value: Any, dice: random.Random) -> Any:
    if value is None:
        return torch.zeros(dice.choice(((2,), (8,), (8, 3))), dtype=dice.choice(DTYPES))
    if isinstance(value, int):
        return dice.choice(NUMBERS)
    if isinstance(value, Tensor):
        return _tensor(value, dice)
    tensors = list(value.parts if isinstance(value, Encoded) else value)
    at = dice.randrange(len(tensors) + 1)
    match dice.randrange(4):
        case 0:
            del tensors[at : at + 1]
        case 1:
            tensors[at:at] = tensors[:1]
        case 2:
            tensors.reverse()
        case _ if at < len(tensors):
            tensors[at] = _tensor(tensors[at], dice)
    return Encoded(tuple(tensors)) if isinstance(value, Encoded) else tuple(tensors)


def _tensor(tensor: Tensor, dice: random.Random) -> Tensor:
    """Another dtype, another shape, or other values, of which one may be extreme or all the same."""
    flat = tensor.reshape(-1)
    at = dice.randrange(max(tensor.ndim, 1))
    match dice.randrange(12):
        case 0:
            return tensor.to(dice.choice(DTYPES))
        case 1:
            return flat
        case 2:
            return tensor.unsqueeze(at)
        case 3 if tensor.ndim:
            return tensor.narrow(at, 0, dice.randrange(tensor.shape[at] + 1))
        case 4 if tensor.ndim:
            return torch.cat((tensor, tensor), dim=at)
        case 5 if tensor.ndim > 1:
            return tensor.transpose(0, 1)
        case 6:
            return tensor.new_zeros(*tensor.shape[:at], 0, *tensor.shape[at + 1 :])
        case 7:
            return torch.full_like(tensor, _value(tensor, dice))
        case 8 if len(flat):
            return flat[dice.randrange(len(flat))].clone()
        case _ if len(flat):
            changed = flat.clone()
            changed[dice.randrange(len(flat))] = _value(tensor, dice)
            return changed.reshape(tensor.shape)
        case _:
            return torch.zeros(1)


def _value(tensor: Tensor, dice: random.Random) -> Any:
    if tensor.dtype == torch.bool:
        return dice.random() < 0.5
    if tensor.is_floating_point():
        return torch.tensor(dice.choice(VALUES), dtype=torch.float64).to(tensor.dtype).item()  # too large: infinite
    limits = torch.iinfo(tensor.dtype)
    return dice.choice((limits.min, limits.max, 0, 1, limits.max // 2, max(-1, limits.min), max(-100, limits.min)))


@contextmanager
def confined(megabytes: int) -> Iterator[None]:
    """Whoever asks the system for so much more memory than there is now, inside, gets an error in its place."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """What is done inside fails after so many seconds instead of going on for ever."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
