"""Load a part of a model: what a machine doesn't hold is never read, and takes no memory.

The modules that are left out stand in their places all the same, on PyTorch's "meta" device: they have names, shapes
and dtypes, and no values. So a model of which a part was loaded is cut and adapted like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from halfback.models.families import Family


@dataclass(frozen=True)
class Held:
    """Which modules of a model a machine holds: what runs before the first block, and what is named here.

    Attributes:
        first: so many blocks, from the first on.
        last: so many blocks before the end, with all that runs behind the last block; None for nothing of that.
        read: its weights are read from the model's files; if not, they are to come from elsewhere, and begin as a new
            model's.
    """

    first: int
    last: int | None = None
    read: bool = True

    def without(self, model: Any, family: Family) -> Iterator[str]:
        """The names of the modules that are not held; one that shares a tensor with a module that is held is."""
        backbone = model.get_submodule(family.backbone)
        blocks = cast(nn.ModuleList, backbone.get_submodule(family.blocks))
        place = ".".join(name for name in (family.backbone, family.blocks) if name)
        for number in range(self.first, len(blocks) - (self.last or 0)):
            yield f"{place}.{number}"
        if self.last is None:
            after = [".".join(filter(None, (family.backbone, name))) for name in family.after]
            own, *_ = family.backbone.split(".")
            after += [name for name, _ in model.named_children() if own and name != own]
            yield from (name for name in after if _is_module(model, name))


def _is_module(model: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    return isinstance(model.get_submodule(parent)._modules.get(child), nn.Module)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts another module in the place of that name."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent)._modules[child] = module


def reading_part(kind: type[Any], family: Family, held: Held) -> type[Any]:
    """A class of Transformers' models like `kind` that reads, of a checkpoint, what is held.

    While it is loaded the other modules are out of the model, so that a checkpoint's tensors for them count as not
    expected; then `put_back` makes it one of `kind`, whole, with those modules on the meta device.
    """

    def begin(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)  # on the meta device, where Transformers makes what it loads
        tied = {name.rpartition(".")[0] for name in self.all_tied_weights_keys}
        self._aside = {name: self.get_submodule(name) for name in held.without(self, family) if name not in tied}
        for name in self._aside:
            put(self, name, nn.Identity())

    # The same name: Transformers looks up by it how the tensors of older checkpoints are called.
    return type(kind.__name__, (kind,), {"__init__": begin, "__module__": kind.__module__})


def put_back(model: Any, family: Family, held: Held) -> None:
    """Ends what `reading_part` began, in place."""
    for name, module in model._aside.items():
        put(model, name, module.eval())
    del model._aside
    model.__class__ = model.__class__.__bases__[0]
    leave_out(model, family, held)  # what shares a tensor with a held module, too: from here on the two are apart


def leave_out(model: nn.Module, family: Family, held: Held) -> None:
    """Puts the modules that are not held on the meta device, in place, and frees what they had."""
    for name in held.without(model, family):
        model.get_submodule(name).to("meta")


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Moves what has values to a device, in place; returns the model."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_meta else tensor.to(device)

    return model._apply(moved)


@torch.no_grad()
def shape_behind(middle: nn.Module, hidden: Tensor, lengths: Tensor | None) -> tuple[int, ...]:
    """The shape of what a middle makes of activations, behind the dimension of the samples, or of the texts' tokens.

    Of a middle that isn't held it follows without a computation.
    """
    if not any(parameter.is_meta for parameter in middle.parameters()):
        return tuple(middle(hidden, lengths).shape[1:])
    if lengths is not None:
        return tuple(hidden.shape[1:])  # every block of a model that is read from files gives what it takes
    shapes = {name: tensor.to("meta") for name, tensor in (*middle.named_parameters(), *middle.named_buffers())}
    return tuple(functional_call(middle, shapes, (hidden.to("meta"), None)).shape[1:])
