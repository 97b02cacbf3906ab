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

import torch
from torch import Tensor

OPTIMIZERS = ("sgd", "sign", "momentum", "adamw")  # in the order of their numbers in the kernel
DIRECTIONS_AT_ONCE = 1024  # seeds and coefficients that a call is handed


class _Steps(ctypes.Structure):
    """The kernel's `struct steps`."""

    _fields_ = (
        ("optimizer", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("directions", ctypes.c_int64),
        ("seeds", ctypes.POINTER(ctypes.c_uint64)),
        ("coefficients", ctypes.POINTER(ctypes.c_float)),
        ("factors", ctypes.POINTER(ctypes.c_float)),
        ("table", ctypes.c_void_p),
    )


def _load() -> ctypes.CDLL | None:
    spec = find_spec("halfback.zeroth._philox")
    if spec is None or spec.origin is None:
        return None
    try:
        kernel = ctypes.CDLL(spec.origin)
    except OSError:  # built for another kind of machine
        return None
    address, whole, bits = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
    kernel.halfback_add.argtypes = [address, address, whole, whole, bits, bits, ctypes.c_float, address]
    kernel.halfback_replay.argtypes = [ctypes.POINTER(_Steps), address, address, address, whole, whole, bits]
    kernel.halfback_add.restype = kernel.halfback_replay.restype = None
    return kernel


_kernel = _load()


def serves(device: torch.device) -> bool:
    """Whether the kernel is there, for tensors on this device."""
    return _kernel is not None and device.type == "cpu"


@dataclass(frozen=True)
class Stretch:
    """Values `start` to `start` + `width` of a parameter (64 bits of its name), at `place` in a contiguous tensor."""

    name: int
    start: int
    width: int
    place: int = 0


def add(values: Tensor, stretch: Stretch, seed: int, scale: float, table: Tensor | None) -> None:
    """Adds a stretch of a direction, times `scale`, to float32 `values`; `table`: its law's, or none for signs."""
    assert _kernel is not None
    begin, first = values.data_ptr() + 4 * stretch.place, ctypes.byref(ctypes.c_int64(stretch.start))
    _kernel.halfback_add(begin, first, 1, stretch.width, stretch.name, seed, scale, _address(table))


def add_rows(values: Tensor, starts: Tensor, name: int, seed: int, table: Tensor | None) -> None:
    """Adds to each row of contiguous (rows, width) float32 a direction's values from `starts` on: (rows,) int64."""
    assert _kernel is not None
    rows, width = values.shape
    _kernel.halfback_add(values.data_ptr(), starts.data_ptr(), rows, width, name, seed, 1.0, _address(table))


@dataclass(frozen=True)
class Steps:
    """Some steps of an optimiser: what each direction and each step brings.

    `seeds`: those of a step lie together, as many as it has `coefficients`. `factors`: `UpdateRule.factors` of each.
    """

    optimizer: str
    seeds: Sequence[int]
    coefficients: Sequence[Sequence[float]]
    factors: Sequence[tuple[float, ...]]
    table: Tensor | None


def replay(steps: Steps, stretches: Sequence[Stretch], values: Tensor, moments: Sequence[Tensor]) -> None:
    """Takes the steps on stretches of flat float32 `values`, with their optimiser's `moments`, in place."""
    directions = len(steps.coefficients[0])
    at_once = max(1, DIRECTIONS_AT_ONCE // directions)
    for begin in range(0, len(steps.coefficients), at_once):
        _replay(steps, slice(begin, begin + at_once), stretches, values, moments)


def _replay(
    steps: Steps, chosen: slice, stretches: Sequence[Stretch], values: Tensor, moments: Sequence[Tensor]
) -> None:
    assert _kernel is not None
    coefficients = steps.coefficients[chosen]
    directions = len(coefficients[0])
    seeds = steps.seeds[chosen.start * directions : (chosen.start + len(coefficients)) * directions]
    handed = _Steps(
        OPTIMIZERS.index(steps.optimizer),
        len(coefficients),
        directions,
        (ctypes.c_uint64 * len(seeds))(*seeds),
        _floats(coefficients),
        _floats(steps.factors[chosen]),
        _address(steps.table),
    )
    for stretch in stretches:
        moved = [tensor.data_ptr() + 4 * stretch.place for tensor in (values, *moments)]
        first, second = [*moved[1:], None, None][:2]
        _kernel.halfback_replay(handed, moved[0], first, second, stretch.start, stretch.width, stretch.name)


def _floats(rows: Sequence[Sequence[float]]) -> ctypes.Array[ctypes.c_float]:
    numbers = list(chain.from_iterable(rows))
    return (ctypes.c_float * len(numbers))(*numbers)


def _address(table: Tensor | None) -> int | None:
    return None if table is None else table.data_ptr()
