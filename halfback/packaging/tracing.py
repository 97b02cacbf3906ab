"""From a function of tensors to a graph of ONNX, and to the graph of its gradient."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halfback.errors import UserError, first_line

OPSET = 20
Run = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]
"""From named tensors to tensors, of which none has a graph."""


@dataclass(frozen=True)
class Argument:
    """What a graph takes.

    Attributes:
        example: a tensor of this shape and dtype.
        moving: the dimensions that differ from run to run; those of one size in the examples move together.
    """

    example: Tensor
    moving: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A graph as its file has it, and the names of what it takes: of its arguments, those that it uses."""

    data: bytes
    inputs: tuple[str, ...]


class _Called(nn.Module):
    def __init__(self, run: Run, names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["run"], self.names = run, tuple(names)  # no module of it counts as this one's

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return cast(tuple[Tensor, ...], self.__dict__["run"](dict(zip(self.names, tensors, strict=True))))


def traced(run: Run, arguments: Mapping[str, Argument], what: str) -> Any:
    """The operations of a function, as a program of `torch.export`.

    Raises:
        UserError: they depend on values of the tensors, or torch.export can't follow; `what` names it.
    """
    moving = tuple(dict.fromkeys(argument.moving, torch.export.Dim.DYNAMIC) or None for argument in arguments.values())
    examples = tuple(argument.example for argument in arguments.values())
    with _quiet(), _refusing(what), torch.no_grad():
        module = run if isinstance(run, nn.Module) else _Called(run, list(arguments))
        shapes: Any = moving if isinstance(run, nn.Module) else {"tensors": moving}
        return torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)


def pulled_back(run: Run, arguments: Mapping[str, Argument], wanted: Sequence[str], what: str) -> Any:
    """The operations from arguments and λ, named "gradient", to ∂⟨λ, first of the function's tensors⟩/∂ of `wanted`.

    The example of λ is among the arguments. Raises as `traced` does.
    """

    def gradients(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        others = {name: tensor for name, tensor in given.items() if name != "gradient"}

        def alone(*moved: Tensor) -> Tensor:
            return run(others | dict(zip(wanted, moved, strict=True)))[0]

        made: Any = torch.func.vjp(alone, *(given[name] for name in wanted))
        _, pull = made
        return cast(tuple[Tensor, ...], pull(given["gradient"]))

    return differentiated(gradients, arguments, what)


def differentiated(run: Run, arguments: Mapping[str, Argument], what: str) -> Any:
    """The operations of a function that takes gradients, with `torch.func.vjp`; raises as `traced` does."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    def called(*tensors: Tensor) -> tuple[Tensor, ...]:
        with _Plain():
            return run(dict(zip(arguments, tensors, strict=True)))

    table: Any = core_aten_decompositions()
    table[torch.ops.aten.convolution_backward.default] = _convolution_backward
    with _quiet(), _refusing(what):
        examples = [argument.example for argument in arguments.values()]
        module = make_fx(called, decomposition_table=table, tracing_mode="symbolic")(*examples)
    return traced(module, arguments, what)


def free_sizes(part: nn.Module) -> list[int]:
    """Some numbers that no tensor of a part has as a size, for examples, of which equal sizes move together."""
    taken = {size for tensor in (*part.parameters(), *part.buffers()) for size in tensor.shape}
    return [size for size in range(7, 11 + len(taken)) if size not in taken]


def written(program: Any, names: Sequence[str], what: str) -> Graph:
    """A program as a graph whose inputs have the names of its arguments; those that it doesn't use are left out.

    Of equal programs the bytes are equal: nothing in them says where they were made. Raises as `model_of` does.
    """
    model = model_of(program, names, what)
    return Graph(model.SerializeToString(deterministic=True), tuple(value.name for value in model.graph.input))


def model_of(program: Any, names: Sequence[str], what: str, outputs: Sequence[str] = ()) -> Any:
    """What `written` makes the bytes of: a model of ONNX; `outputs`: names for what it gives, in their order.

    Raises:
        UserError: an operator has no counterpart in ONNX; it is named.
    """
    with _quiet(), _refusing(what):
        made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET, optimize=True)
        assert made is not None
        for value, name in zip(made.model.graph.inputs, names, strict=True):
            value.name = name
        for value, name in zip(made.model.graph.outputs, outputs, strict=False):
            value.name = name
        model = made.model_proto
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(kept)
    del graph.value_info[:]
    del model.metadata_props[:]
    del graph.metadata_props[:]
    graph.name, graph.doc_string, model.doc_string = "graph", "", ""
    for each in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del each.metadata_props[:]
        each.doc_string = ""
    return model


class _Plain(TorchFunctionMode):
    """Composite operations in such as keep a moving size moving, and whose gradients the exporter knows.

    In `torch.func` linear layers and products of stacks of matrices are flattened by code that settles every size; the
    gradient of SiLU is taken in a buffer that is filled later.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _PLAIN.get(func, func)(*args, **(kwargs or {}))


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    out = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
    return out.reshape(*hidden.shape[:-1], weight.shape[0])


def _matmul(one: Tensor, other: Tensor) -> Tensor:
    if one.ndim < 3:
        return torch.mm(one, other)
    if other.ndim == 2:
        return torch.mm(one.reshape(-1, one.shape[-1]), other).reshape(*one.shape[:-1], other.shape[-1])
    out = torch.bmm(one.reshape(-1, *one.shape[-2:]), other.reshape(-1, *other.shape[-2:]))
    return out.reshape(*one.shape[:-1], other.shape[-1])


def _silu(hidden: Tensor, inplace: bool = False) -> Tensor:
    return hidden * torch.sigmoid(hidden)


_PLAIN = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    F.silu: _silu,
}


def _convolution_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A convolution's gradients, as convolutions: by its input a transposed one; by its weights one over places.

    For two dimensions, without dilation and in one group. The weights' is dilated by the stride; what the stride left
    over at the end of the input makes it larger than the weights, and is cut off.
    """
    _, stride, padding, dilation, transposed, _, groups, mask = others
    if transposed or groups != 1 or tuple(dilation) != (1, 1) or hidden.ndim != 4:
        raise UserError("the gradient of a convolution that is transposed, dilated or in groups can't be exported")
    conv = torch.ops.aten.convolution.default
    of_hidden = of_weight = of_bias = None
    if mask[0]:
        over = [
            size - ((out - 1) * step - 2 * pad + kernel)
            for size, out, step, pad, kernel in zip(
                hidden.shape[2:], gradient.shape[2:], stride, padding, weight.shape[2:], strict=True
            )
        ]
        of_hidden = conv(gradient, weight, None, stride, padding, [1, 1], True, over, 1)
    if mask[1]:
        swapped = conv(
            hidden.transpose(0, 1), gradient.transpose(0, 1), None, [1, 1], padding, stride, False, [0, 0], 1
        )
        of_weight = swapped.transpose(0, 1)[:, :, : weight.shape[2], : weight.shape[3]]
    if mask[2]:
        of_bias = gradient.sum((0, 2, 3))
    return of_hidden, of_weight, of_bias


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Says in one line which operator can't be exported, of what is named."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except Exception as error:  # the exporter's own, PyTorch's and ONNX's have no base in common
        operator = re.search(r"aten[.:]+\w+(?:\.\w+)?", str(error))
        why = (
            f"its operator {operator[0]} can't be exported"
            if operator
            else f"it can't be exported ({first_line(error)})"
        )
        raise UserError(f"{what}: {why}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes are about versions of its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
