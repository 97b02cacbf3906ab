"""What one party costs: the peak of its live tensors, its seconds, its forward passes.

Memory is counted where operations are dispatched, so the same code counts on a CPU and on CUDA: every storage that an
operation returns belongs to the party whose code is running, from then until nothing refers to it any more. What a
kernel allocates and frees inside itself (a convolution's workspace, an allocator's rounding) is not seen.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass


class Full(Exception):
    """A party owns more than its meter lets it."""


class MemoryMeter:
    """High-water mark, in bytes, of the live tensor storage that one party owns.

    Owned are: `resident`; each new storage an operation returns inside `running()`; each storage given to `receive`.
    A storage is counted once however many views share it, stays counted while the party is suspended, and drops when
    the last tensor, saved activation or view on it dies. An operation's result that shares its input's storage (a view,
    an in-place change) creates nothing. Sections of two meters must not nest: only one party runs at a time, and the
    outer meter would count the inner party's tensors too. Sections of one meter may nest.
    """

    def __init__(self, resident: Iterable[Tensor], most: int | None = None) -> None:
        """`resident`: what the party holds already (weights, buffers, optimiser state); shared storages count once.

        `most`: bytes above which the party's work ends with `Full`, at the operation that goes beyond them.
        """
        self._most = most
        self._held: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._live = 0
        self._peak = 0
        self._running = False
        self.receive(resident)

    @property
    def live_bytes(self) -> int:
        """Bytes the party owns now."""
        return self._live

    @property
    def peak_bytes(self) -> int:
        """The most bytes the party has owned at once since it was made or `reset`."""
        return self._peak

    def reset(self) -> None:
        """Forget the peak: it starts again from what is owned now."""
        self._peak = self._live

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the party's code runs, autograd's backward and recomputation included."""
        if self._running:
            yield
            return
        self._running = True
        try:
            with _Watch(new=self._own, given=self._resize):
                yield
        finally:
            self._running = False

    def receive(self, tensors: Iterable[Tensor]) -> None:
        """The link hands these to the party (a cut gradient, say): they are its own until they die."""
        for storage in _storages(list(tensors)):
            self._own(storage)

    def _own(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            self._resize(storage)
            return
        self._held[key] = (weakref.ref(storage, lambda _: self._drop(key)), size)
        self._live += size
        self._grown()

    def _resize(self, storage: torch.UntypedStorage) -> None:
        """An operation changed this storage and may have made it larger or smaller; not ours: not counted."""
        held = self._held.get(storage._cdata)
        if held is None or held[1] == storage.nbytes():
            return
        self._held[storage._cdata] = (held[0], storage.nbytes())
        self._live += storage.nbytes() - held[1]
        self._grown()

    def _grown(self) -> None:
        self._peak = max(self._peak, self._live)
        if self._most is not None and self._peak > self._most:
            raise Full

    def _drop(self, key: int) -> None:
        self._live -= self._held.pop(key)[1]


class _Watch(TorchDispatchMode):
    """Tells, of each storage behind an operation's results, whether it is `new` or was `given` to the operation."""

    def __init__(
        self, new: Callable[[torch.UntypedStorage], None], given: Callable[[torch.UntypedStorage], None]
    ) -> None:
        super().__init__()
        self.new = new
        self.given = given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Before the call: `set_` gives its argument another storage. `torch.tensor` and `torch.from_numpy` allocate out
        # of sight and show what they made only as the argument of `lift_fresh`.
        fresh = func is torch.ops.aten.lift_fresh.default
        given = set() if fresh else {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in _storages(out):
            (self.given if storage._cdata in given else self.new)(storage)
        return out


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """Every storage behind the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            yield from _storages([getattr(value, name) for name in value.__tensor_flatten__()[0]])
        elif value.layout is not torch.strided:
            yield from _storages(_parts(value))
        elif not value._is_zerotensor():  # forward-mode AD's symbolic zero: a size, and no memory
            yield value.untyped_storage()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _storages(item)
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))


def _parts(sparse: Tensor) -> list[Tensor]:
    """The dense tensors that a sparse one is made of."""
    if sparse.layout is torch.sparse_coo:
        return [sparse._indices(), sparse._values()]
    if sparse.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [sparse.crow_indices(), sparse.col_indices(), sparse.values()]
    if sparse.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [sparse.ccol_indices(), sparse.row_indices(), sparse.values()]
    return []  # oneDNN's opaque layout shows no storage


def inference_peak_bytes(module: nn.Module, run: Callable[[], object], resident: Iterable[Tensor]) -> int:
    """Peak bytes of the same party's plain inference: `run()` in evaluation mode, under `torch.no_grad`.

    `module`'s parameters and buffers are resident, and so is whatever else `resident` names (the batch, say). `run`
    makes the forward call; its result is dropped. Each submodule's training flag is put back as it was.
    """
    meter = MemoryMeter([*module.parameters(), *module.buffers(), *resident])
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), meter.running():
            run()
    finally:
        for part, flag in training.items():
            part.training = flag
    return meter.peak_bytes


class Stopwatch:
    """Seconds spent in its `running()` sections, added up; CUDA, where it is in use, is synchronised at both ends."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = _now()
        try:
            yield
        finally:
            self.seconds += _now() - start


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


@dataclass
class Meters:
    """What a run, or one client of it, cost so far.

    Seconds, on the clocks of clients, server and wire, and forward passes of clients add up; peaks, in bytes, are the
    highest seen in a measured round. `releases` are the most that any one sample had of its activations, with noise.
    """

    client: Stopwatch = field(default_factory=Stopwatch)
    server: Stopwatch = field(default_factory=Stopwatch)
    wire: Stopwatch = field(default_factory=Stopwatch)
    forward_passes: int = 0
    client_peak_bytes: int = 0
    client_inference_peak_bytes: int = 0
    server_peak_bytes: int = 0
    releases: int = 0


class ForwardCounter:
    """Counts the calls of one module's forward, from construction to `remove`.

    A call under `torch.vmap` counts once, however many directions it carries; a call repeated by activation
    checkpointing counts again, for it is computed again.
    """

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        # Before the forward, not after: checkpointing stops its last recomputation before the module returns.
        self._handle = module.register_forward_pre_hook(self._called)

    def _called(self, module: nn.Module, args: Any) -> None:
        self.count += 1

    def remove(self) -> None:
        """Stop counting; `count` stays."""
        self._handle.remove()
