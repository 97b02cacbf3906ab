"""Whether a file's weights are the model's: all of it but the head of a task must come from the file, and all of the
file but the heads of other tasks must find its place."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.families import Family

# Names that older releases of Transformers wrote among the weights, and that hold none.
_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq|attn\.(masked_)?bias|version)$")

_AT_ONCE = 1 << 20  # values that are looked at together: to look takes more memory than they have


@dataclass(frozen=True)
class Loaded:
    """What Transformers says of a load, by the model's own names.

    missing     what the file lacks, and the model has from a random start.
    unexpected  what the file holds and the model has no place for.
    mismatched  of what has another shape in the file: that shape, and the model's.
    """

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Loaded":
        """From what `from_pretrained` gives with `output_loading_info`."""
        shapes = {name: (tuple(file), tuple(model)) for name, file, model in info["mismatched_keys"]}
        unexpected = frozenset(name for name in info["unexpected_keys"] if not _BUFFERS.search(name))
        return cls(frozenset(info["missing_keys"]), unexpected, shapes)

    @property
    def new(self) -> set[str]:
        """The names of all that is from a random start."""
        return {*self.missing, *self.mismatched}


def check_fit(name: str, model: Any, family: Family, loaded: Loaded, *, new_head: bool) -> None:
    """Refuses weights that are not the whole model's.

    `new_head`: the model has a head for a task, which may be missing or of another shape; so may, without one in the
    file, be what the family has for a head beside it (BERT's pooler).

    Raises:
        UserError: anything else is missing, has another shape or is left over; the first such tensor is named.
    """
    where = f"model {name!r}: the weights don't fit its config.json:"
    state = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    heads = family.head if new_head else ()
    headless = all(key in loaded.missing for key in _under(shapes, heads))
    allowed = (*heads, *family.fresh) if headless else heads
    for key, shape in shapes.items():
        if key in loaded.mismatched and not _within(key, heads):
            found = loaded.mismatched[key][0]
            raise UserError(f"{where} tensor {key!r} is {found} in the file, the model needs {shape}")
    for key, shape in shapes.items():
        if key in loaded.missing and not _within(key, allowed):
            raise UserError(f"{where} tensor {key!r} {shape} is missing; {_advice(key, loaded.unexpected)}")
    # A language model's own head is one of those that other tasks leave unused, but not itself.
    others = family.other if new_head else tuple(other for other in family.other if not hasattr(model, other))
    base = f"{model.base_model_prefix}."
    # What isn't read has its place all the same.
    unread = {key.removeprefix(base) for key, tensor in state.items() if tensor.is_meta}
    for key in sorted(loaded.unexpected):
        if key.removeprefix(base) not in unread and not _within(key.removeprefix(base), others):
            raise UserError(
                f"{where} tensor {key!r} of the file has no place in the model; correct config.json (number of layers, "
                "model_type), or take the tensor out of the file"
            )


def check_padding(name: str, config: Any, family: Family) -> None:
    """Takes a padding token that the embedding has no row for out of the configuration: padding is masked.

    Raises:
        UserError: it is RoBERTa's, which counts positions from behind its own.
    """
    if config.pad_token_id is not None and config.pad_token_id < config.vocab_size:
        return
    if family.name == "RoBERTa":
        raise UserError(
            f"model {name!r}: pad_token_id in config.json is {config.pad_token_id}; 0 to {config.vocab_size - 1} are "
            "allowed, as positions are counted from behind it"
        )
    config.pad_token_id = None


def check_files(name: str, folder: Path, base: str) -> None:
    """Looks through a folder's .safetensors files for what loading lets pass in silence.

    base: the name before those of the base model's tensors, which a file may leave out.

    Raises:
        UserError: a tensor is there twice, and not the same, or holds whole numbers, as a quantised model's do.
    """
    files, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if not (folder / files[0]).is_file():
        files = sorted({*json.loads(index.read_text())["weight_map"].values()}) if index.is_file() else []
    found: dict[str, tuple[str, str]] = {}
    for file in files:
        with safe_open(folder / file, "pt") as tensors:
            for key in filter(lambda key: not _BUFFERS.search(key), tensors.keys()):
                if tensors.get_slice(key).get_dtype().startswith(("I", "U", "BOOL")):
                    raise UserError(f"model {name!r}: tensor {key!r} holds whole numbers; weights are floating point")
                other = found.setdefault(key.removeprefix(f"{base}."), (file, key))
                if other != (file, key):
                    with safe_open(folder / other[0], "pt") as first:
                        if not torch.equal(first.get_tensor(other[1]), tensors.get_tensor(key)):
                            raise UserError(f"model {name!r}: tensors {other[1]!r} and {key!r} are one, and differ")


def check_finite(name: str, model: nn.Module) -> None:
    """Raises:
    UserError: a weight is not a number, or infinite in the model's dtype; its tensor is named.
    """
    for key, tensor in model.state_dict().items():
        if (
            tensor.is_floating_point()
            and not tensor.is_meta
            and not all(map(_is_finite, tensor.reshape(-1).split(_AT_ONCE)))
        ):
            raise UserError(
                f"model {name!r}: tensor {key!r} has values that are not finite in {str(tensor.dtype).split('.')[1]}"
            )


def _is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())


@dataclass(frozen=True)
class FoundHead:
    """What of a task's head came from the file.

    layer  the last layer of the model's head, which has one row for each class.
    rows   how many rows it has in the file; None if it is not there.
    state  new: none of it; part: some of its tensors, or others of the head don't fit; whole: all of the head.
    """

    layer: nn.Linear
    rows: int | None
    state: Literal["new", "part", "whole"]


def found_head(model: nn.Module, family: Family, loaded: Loaded) -> FoundHead:
    """What of the head of a model with one came from the file."""
    layers = {
        f"{head}.{path}" if path else head: module
        for head in family.head
        for path, module in model.get_submodule(head).named_modules()
        if isinstance(module, nn.Linear)
    }
    name, layer = list(layers.items())[-1]
    own = {f"{name}.{key}" for key, _ in layer.named_parameters()}
    weight = f"{name}.weight"
    shape = loaded.mismatched[weight][0] if weight in loaded.mismatched else layer.weight.shape
    unfit = [key for key in (*loaded.new, *loaded.unexpected) if _within(key, family.head)]
    state: Literal["new", "part", "whole"] = "part" if unfit else "whole"
    if own <= loaded.new:
        state = "new"
    return FoundHead(layer, None if weight in loaded.missing or not shape else shape[0], state)


def redraw(model: Any, layer: nn.Linear, seed: int) -> None:
    """The layer from new, in place: with the values that a checkpoint without it would have given it."""
    for parameter in layer.parameters():
        parameter._is_hf_initialized = False  # type: ignore[attr-defined]
    torch.default_generator.manual_seed(seed)
    with torch.no_grad():
        model._init_weights(layer)


def _within(key: str, modules: Iterable[str]) -> bool:
    return any(key == module or key.startswith(f"{module}.") for module in modules)


def _under(keys: Iterable[str], modules: Collection[str]) -> Iterator[str]:
    return (key for key in keys if _within(key, modules))


def _advice(key: str, unexpected: Collection[str]) -> str:
    """What to do about a tensor that is missing, after what else is in the file."""
    for found in sorted(unexpected):
        if found.endswith(f".{key}"):
            return f"the file has {found!r}: take {found.removesuffix(key)!r} off its names"
    if key.startswith("lm_head."):
        return "the file is no language model's"
    if unexpected:
        return f"the file has {min(unexpected)!r}, which has no place: its names are another model's"
    return "complete the file, or correct config.json"
