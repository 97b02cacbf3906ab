"""Forward passes in float32 over weights of half precision, which stay as they are.

A difference quotient divides the rounding of two passes by μ. In bfloat16 or float16 that leaves a tenth to a third of
a slope wrong, whatever μ is (docs/results.md, "Slope error"). So a probe is the float32 function at the weights that
the model has: each operation gets a float32 copy of those of its arguments that are of half precision. The copy of a
weight is gone when the operation is over, so one layer's is alive at a time.

It is done where operations are dispatched, not at modules: so it holds for buffers, for a weight that another module
than its own uses, and for whatever a model calls. The bits are those of a copy of the model in float32.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

HALF = (torch.bfloat16, torch.float16)

_aten = torch.ops.aten
# They copy values, maybe few of many: what they return is made float32, not what they take.
_COPIES = (_aten.embedding.default, _aten.index_select.default, _aten.index.Tensor, _aten._to_copy.default)


def has_half(module: nn.Module) -> bool:
    """Whether weights of the module are of half precision, so that its passes round to it."""
    return any(parameter.dtype in HALF for parameter in module.parameters())


def summed_in(parameter: Tensor) -> torch.dtype:
    """The dtype in which a probe forms θ+μu of this θ: float32 at least."""
    return torch.promote_types(parameter.dtype, torch.float32)


def in_float32(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same forward pass, without a graph, with every operation in float32 that would be in half precision.

    The result is float32, and no tensor changes: operations in place on one of half precision work on a copy of it.
    """

    @torch.no_grad()
    def wide() -> Tensor:
        outer, modes = _open.modes, (_Float32(), _Alike())
        with modes[0], modes[1]:
            _open.modes = modes
            try:
                return run()
            finally:
                _open.modes = outer

    return wide


def paused() -> AbstractContextManager[None]:
    """Operations in this context are what they are outside of `in_float32`: directions take many, none in half."""
    return _pause() if _open.modes else nullcontext()


@contextmanager
def _pause() -> Iterator[None]:
    modes, _open.modes = _open.modes, ()
    for mode in reversed(modes):
        mode.__exit__(None, None, None)
    try:
        yield
    finally:
        for mode in modes:
            mode.__enter__()
        _open.modes = modes


def is_wide() -> bool:
    """Whether operations are in float32 here and now, where they would be in half precision."""
    return bool(_open.modes)


class _Open(threading.local):
    modes: "tuple[_Float32, _Alike] | tuple[()]" = ()  # those of the innermost `in_float32` of this thread


_open = _Open()


class _Alike(TorchFunctionMode):
    """Float32 for what is of half precision beside float32: a convolution, say, refuses a mixture at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtypes = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if torch.float32 in dtypes and not dtypes.isdisjoint(HALF):
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


class _Float32(TorchDispatchMode):
    """Float32 for the arguments of every operation, and for what it makes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.is_view:
            return func(*args, **kwargs)
        if kwargs.get("dtype") in HALF:
            kwargs["dtype"] = torch.float32
        if func in _COPIES:
            return _widened(func(*args, **kwargs))
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor
