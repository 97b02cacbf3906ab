"""A whole model as one graph of ONNX, from tokens or images to logits, for batches of any size and texts of any length.

Texts come as any user of Transformers feeds them: filled up to one length, with a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.families import Family, family_of
from halfback.packaging.calls import plain_attention
from halfback.packaging.tracing import Argument, free_sizes, model_of, traced

_MOST_BYTES = 2_000_000_000  # that one file of ONNX may have


class _Images(nn.Module):
    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, pixel_values: Tensor) -> Tensor:
        return _logits(self.whole(pixel_values))


class _Texts(nn.Module):
    def __init__(self, whole: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.whole, self.options = whole, dict(options)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return _logits(self.whole(input_ids=input_ids, attention_mask=attention_mask, **types, **self.options))


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def write_graph(whole: nn.Module, path: Path, names: Sequence[str], image: Tensor | None) -> None:
    """Writes the graph of a whole model, in float32, with these inputs and one output, `logits`.

    Args:
        whole: adapters merged; made float32 in place.
        path: of the file.
        names: of the inputs, as Transformers has them; `pixel_values` alone for images, or any rows of one tensor.
        image: two rows or more (B, …), for the shape of one; None for texts.

    Raises:
        UserError: an operator can't be exported, or the model is too large for one file.
    """
    whole = whole.float().eval()
    if sum(tensor.nbytes for tensor in (*whole.parameters(), *whole.buffers())) > _MOST_BYTES:
        raise UserError(
            "--onnx: the model has more than two gigabytes, which one file of ONNX can't hold; use --merged"
        )
    module: nn.Module
    if image is not None:
        module, arguments = _Images(whole), {"pixel_values": Argument(image, (0,))}
    else:
        rows, length, *_ = free_sizes(whole)
        tokens = torch.ones(rows, length, dtype=torch.int64)
        # Each a tensor of its own: of two arguments that are one, the exporter takes them for one.
        arguments = {name: Argument(tokens * (name != "token_type_ids"), (0, 1)) for name in names}
        module = _Texts(whole, _options(family_of(whole)))
    with plain_attention([whole]):
        program = traced(module, arguments, "--onnx")
    model = model_of(program, list(arguments), "--onnx", ["logits"])
    for value in (*model.graph.input, *model.graph.output):
        for dim, called in zip(value.type.tensor_type.shape.dim, ("batch", "length"), strict=False):
            if not dim.HasField("dim_value"):
                dim.dim_param = called
    path.write_bytes(model.SerializeToString(deterministic=True))


def _options(family: Family) -> dict[str, Any]:
    return {"use_cache": False} if family.kind == "decoder" and family.module is None else {}


def run_of(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A graph in ONNX Runtime, on the CPU: inputs by name, of which it takes those that it uses → logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    takes = {value.name for value in session.get_inputs()}

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in inputs.items() if name in takes}
        return torch.from_numpy(session.run(["logits"], given)[0])

    return run
