"""What one call of a module takes, from shapes alone: operations, and the bytes that are alive meanwhile.

The module runs on PyTorch's fake tensors, which have a shape, a dtype and a device, and no values: so its own code says
what it allocates, on whichever path it would take on that device, and nothing is computed. The same meter counts that
counts in a run. A call takes some milliseconds, whatever the width of the model.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from halfback.models.adapters import trainable
from halfback.telemetry.meters import MemoryMeter
from halfback.zeroth.slopes import Estimator
from halfback.zeroth.substitution import substituted
from halfback.zeroth.widening import in_float32, summed_in

_aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))


# The counter of PyTorch knows the fused attention of CUDA alone, and counts nothing for that of CPUs.
OF_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counter() -> FlopCounterMode:
    """Counts operations of matrix products, convolutions and attention: two for each multiply-add."""
    return FlopCounterMode(display=False, custom_mapping=OF_ATTENTION)


@dataclass(frozen=True)
class Call:
    """A call of a module, all bytes beyond what it was called with.

    Attributes:
        operations: of the forward pass, two for each multiply-add.
        peak: the most bytes alive.
        sizes, dtype: of the result, or of the first of several.
        several: whether the result is a tuple.
        out: bytes of the result.
        saved: bytes alive behind the forward pass, the result among them; without a graph `out`.
        back_operations, back_peak: the same of the backward pass, beyond `saved` and the gradient of the result.
        gradients: bytes of the gradients that the backward pass leaves in parameters.
    """

    operations: int
    peak: int
    sizes: tuple[int, ...]
    dtype: torch.dtype
    several: bool
    out: int
    saved: int
    back_operations: int = 0
    back_peak: int = 0
    gradients: int = 0


@dataclass(frozen=True)
class How:
    """How a module is run: plainly, with moved weights, with a graph, or for the gradient of a sample alone.

    Attributes:
        estimator: of a probe; None where no weights are moved.
        graph: "none"; "inside" where the graph begins at the module's own parameters; "through" where it comes from
            before (of a probe by `forward_ad`: what enters has a tangent); "alone" where it is of this call, and gone
            with its gradients.
        wide: operations are in float32 over half-precision weights.
    """

    estimator: Estimator | None = None
    graph: str = "none"
    wide: bool = False


class Tracer:
    """Traces calls, and remembers them by the shapes of everything: blocks alike are traced once."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)  # lengths have values
        self._known: dict[Any, Call] = {}
        self._marks: dict[int, tuple[nn.Module, Any]] = {}

    def call(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], how: How, *, counts: bool = False
    ) -> Call:
        """What a call takes; `module` may be on the meta device, and values of arguments are not looked at.

        counts: its operations too, which takes a third longer; else they are 0.
        """
        key = (self._mark(module), _form(args), _form(dict(kwargs)), how, counts)
        if key not in self._known:
            # Fake tensors have no forward-mode rules. Those of the meta device have, and the attention that is written
            # out allocates the same there; of all else they would say what no CPU does.
            ad = how.estimator == "forward_ad"
            with _OnMeta() if ad else self._mode, torch.device("meta" if ad else "cpu"):
                given, named = _fake((tuple(args), dict(kwargs)))
                self._known[key] = _traced(_faked(module), given, named, how, counts=counts)
        return self._known[key]

    def _mark(self, module: nn.Module) -> Any:
        """Equal for modules that run alike."""
        if id(module) not in self._marks:  # the module is kept, so its identity stays its own
            tensors = [*module.named_parameters(), *module.named_buffers()]
            of = tuple((name, tuple(t.shape), t.dtype, t.requires_grad) for name, t in tensors)
            self._marks[id(module)] = (module, (type(module), str(module), of))
        return self._marks[id(module)][1]


class _OnMeta(TorchDispatchMode):
    """Where something is on the meta device, the rest of an operation's arguments are: places of tokens have values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors) and not all(tensor.is_meta for tensor in tensors):
            shown = lambda tensor: tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")  # noqa: E731
            args, kwargs = tree_map_only(Tensor, shown, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _form(value: Any) -> Any:
    """The shapes of whatever tensors are in a value, hashable."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _form(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_form(each) for each in value)
    return value if value is None or isinstance(value, int | float | str | bool) else type(value)


def _fake(value: Any) -> Any:
    """The same with new tensors for those in it, one for each; inside the mode."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    return tree_map_only(Tensor, fake, value)


def _faked(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no values; inside the mode."""
    made: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        like = torch.empty(tensor.shape, dtype=tensor.dtype)
        made[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
    for (
        part
    ) in module.modules():  # what is no parameter and no buffer keeps its values: lengths, by which rows are laid
        made |= {id(value): value for value in vars(part).values() if isinstance(value, Tensor)}
    return copy.deepcopy(module, made)


def _traced(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], how: How, *, counts: bool) -> Call:
    if how.estimator is None and how.graph in ("through", "alone"):
        args[0].requires_grad_()
    given: list[Tensor] = []
    tree_map_only(Tensor, given.append, (args, kwargs))
    tangent = torch.empty_like(args[0]) if how.estimator == "forward_ad" and args else torch.empty(0)
    given.append(tangent)
    meter = MemoryMeter([*module.parameters(), *module.buffers(), *given])
    before = meter.live_bytes

    several = False

    def run() -> Any:
        nonlocal several
        hidden = args[0] if args else None
        if how.estimator == "forward_ad" and how.graph == "through":
            hidden = forward_ad.make_dual(hidden, tangent)
        out = module(*((hidden, *args[1:]) if args else ()), **kwargs)
        several = not isinstance(out, Tensor)
        return out[0] if several else out

    with (
        _counting(counts) as forward,
        meter.running(),
        torch.set_grad_enabled(how.graph != "none" and how.estimator is None),
        _moved(module, how),
    ):
        out = (in_float32(run) if how.wide else run)()
    peak, saved = meter.peak_bytes - before, meter.live_bytes - before
    call = Call(forward(), peak, tuple(out.shape), out.dtype, several, out.nbytes, saved)
    if how.graph == "none" or how.estimator is not None or not out.requires_grad:
        return call
    gradient = torch.empty_like(out)
    meter.receive([gradient])
    meter.reset()
    held = meter.live_bytes
    with _counting(counts) as backward, meter.running():
        own = list(trainable(module).values())
        wanted = own if how.graph == "inside" else [args[0], *own]
        found = torch.autograd.grad(out, wanted, gradient, materialize_grads=True)
    left = sum(tensor.nbytes for tensor in found[len(wanted) - len(own) :])
    return replace(call, back_operations=backward(), back_peak=meter.peak_bytes - held, gradients=left)


@contextmanager
def _counting(counts: bool) -> Iterator[Callable[[], int]]:
    """Gives what says, at the end, how many operations there were; 0 where they aren't counted."""
    if not counts:
        yield lambda: 0
        return
    with counter() as found:
        yield found.get_total_flops


@contextmanager
def _moved(module: nn.Module, how: How) -> Iterator[None]:
    """While this context is open the trained parameters are replaced as a probe replaces them."""
    if how.estimator is None:
        yield
        return
    parameters = trainable(module)

    def scratch(_name: str, parameter: Tensor, rows: Tensor | None) -> Any:
        shape = parameter.shape if rows is None else (len(rows), *parameter.shape[1:])
        made = torch.empty(shape, dtype=summed_in(parameter))
        if how.estimator == "forward_ad":
            return forward_ad.make_dual(made, torch.empty_like(made))
        return made

    if how.estimator != "forward_ad":
        with substituted(module, parameters, scratch, "plan"):
            yield
        return
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), substituted(module, parameters, scratch, "plan"):
        yield


def how_probed(estimator: Estimator, *, wide: bool, first: bool) -> How:
    """How a block is run by a probe.

    wide: weights are of half precision. first: nothing that is moved stands before the block.
    """
    dual = estimator == "forward_ad" and not first
    return How(estimator, "through" if dual else "none", wide=wide)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of some tensors, each once."""
    return sum(math.prod(t.shape) * t.element_size() for t in {id(t): t for t in tensors}.values())
