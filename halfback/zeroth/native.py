"""The compiled kernel, `_philox.c`: the tensor operations of this room for float32 values on a CPU, with the same bits.

It serves wherever it was built. Without it, or on another device, the tensor operations do: nothing has to be chosen.
Python hands it addresses (`ctypes`), and what it works on is allocated by PyTorch, so that a memory meter sees it; of
its own it has a few kilobytes on the stack, and the numbers of at most `DIRECTIONS_AT_ONCE` directions.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

# What the kernel does with the gradient estimates of steps, in the order of its numbers. AdamW, with a second moment
# and factors of its own for each step, takes its steps in tensor operations, which cost little beside an estimate.
KINDS = ("estimate", "sgd", "sign", "momentum")
DIRECTIONS_AT_ONCE = 1024  # seeds and coefficients that a call is handed


class _Steps(ctypes.Structure):
    """The kernel's `struct steps`."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("directions", ctypes.c_int64),
        ("seeds", ctypes.POINTER(ctypes.c_uint64)),
        ("coefficients", ctypes.POINTER(ctypes.c_float)),
        ("decays", ctypes.POINTER(ctypes.c_float)),
        ("rates", ctypes.POINTER(ctypes.c_float)),
        ("momentum", ctypes.c_float),
        ("table", ctypes.c_void_p),
    )


def _load() -> ctypes.CDLL | None:
    spec = find_spec("halfback.zeroth._philox")
    if spec is None or spec.origin is None:
        return None
    try:
        kernel = ctypes.CDLL(spec.origin)
        if kernel.halfback_steps_size() != ctypes.sizeof(_Steps):
            return None
    except (OSError, AttributeError):  # built for another kind of machine, or from other source
        return None
    address, whole, bits = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
    kernel.halfback_add.argtypes = [address] * 3 + [whole, whole, bits, bits, ctypes.c_float, address]
    kernel.halfback_replay.argtypes = [ctypes.POINTER(_Steps), address, address, whole, whole, bits]
    kernel.halfback_add.restype = kernel.halfback_replay.restype = None
    return kernel


_kernel = _load()


def serves(device: torch.device) -> bool:
    """Whether the kernel is there, for tensors on this device."""
    return _kernel is not None and device.type == "cpu"


class Stretch(NamedTuple):
    """Values `start` to `start` + `width` of a parameter (64 bits of its name), at `place` in a contiguous tensor."""

    name: int
    start: int
    width: int
    place: int = 0


def move(moved: Tensor, values: Tensor | None, stretch: Stretch, seed: int, scale: float, table: Tensor | None) -> None:
    """Puts a stretch of a direction, times `scale` and added to `values`, into `moved`; both are contiguous float32.

    `table`: that of the direction's law, or none for signs.
    """
    assert _kernel is not None
    name, start, width, place = stretch
    to, first = moved.data_ptr() + 4 * place, ctypes.byref(ctypes.c_int64(start))
    _kernel.halfback_add(to, _address(values), first, 1, width, name, seed, scale, _address(table))


def rows(starts: Tensor, width: int, name: int, seed: int, table: Tensor | None) -> Tensor:
    """Rows of `width` values of a direction, each from its start on: (n,) int64 → (n, width) float32."""
    assert _kernel is not None
    made = torch.empty(len(starts), width, dtype=torch.float32, device="cpu")
    _kernel.halfback_add(made.data_ptr(), None, starts.data_ptr(), len(starts), width, name, seed, 1.0, _address(table))
    return made


@dataclass(frozen=True)
class Steps:
    """Some steps, and what is done in each with ĝ, the sum of its directions times their coefficients.

    Attributes:
        seeds: those of a step lie together, as many as it has coefficients.
        coefficients: of each step's directions.
        table: the law's, or none for signs.
        kind: `estimate` if ĝ is all that is wanted, or the optimiser that takes the step.
        decays, rates: what weight decay multiplies by in each step, and its learning rate, for an optimiser.
        momentum: for that optimiser.
    """

    seeds: Sequence[int]
    coefficients: Sequence[Sequence[float]]
    table: Tensor | None
    kind: str = "estimate"
    decays: Sequence[float] = ()
    rates: Sequence[float] = ()
    momentum: float = 0.0


def replay(steps: Steps, stretches: Sequence[Stretch], values: Tensor, moments: Sequence[Tensor]) -> None:
    """Takes the steps on stretches of flat float32 values and moments, in place; an estimate is put into the values."""
    assert _kernel is not None
    directions = len(steps.coefficients[0])
    at_once = max(1, DIRECTIONS_AT_ONCE // directions)
    for begin in range(0, len(steps.coefficients), at_once):
        chosen = slice(begin, begin + at_once)
        coefficients = list(chain.from_iterable(steps.coefficients[chosen]))
        handed = _Steps(
            KINDS.index(steps.kind),
            len(coefficients) // directions,
            directions,
            (ctypes.c_uint64 * len(coefficients))(*steps.seeds[begin * directions :][: len(coefficients)]),
            _floats(coefficients),
            _floats(steps.decays[chosen]),
            _floats(steps.rates[chosen]),
            steps.momentum,
            _address(steps.table),
        )
        for stretch in stretches:
            own, velocity = [*(t.data_ptr() + 4 * stretch.place for t in (values, *moments)), None][:2]
            _kernel.halfback_replay(handed, own, velocity, stretch.start, stretch.width, stretch.name)


def _floats(numbers: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(numbers))(*numbers)


def _address(table: Tensor | None) -> int | None:
    return None if table is None else table.data_ptr()
