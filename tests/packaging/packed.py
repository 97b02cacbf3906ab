"""Packages of tiny models: made, opened on a device, and the reference beside it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_models import classifier, resnet, vit
from torch import Tensor, nn

from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.cut import CutModel, cut
from halfback.packaging.writing import Parts, write_parts
from halfback.parties.holdings import Head
from halfback_device.package import Package
from halfback_device.runtime import Bottom


def whole(name: str) -> nn.Module:
    if name.startswith("resnet"):
        return resnet(name)
    return vit() if name == "vit" else classifier(name)


def moved(part: nn.Module) -> None:
    """What is trained stands beside its beginning: LoRA's B starts at zero, and then A's gradient is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(part).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def cut_model(name: str, trained: str) -> CutModel:
    model = cut(whole(name), 2)
    set_trainable(model, bottom=trained, top="full", lora=Lora(rank=2), seed=0)  # type: ignore[arg-type]
    moved(model.bottom)
    return model


@dataclass(frozen=True)
class Packed:
    """A package on a device, and the parts that it was made of."""

    folder: Path
    parts: Parts
    package: Package
    device: Bottom

    @property
    def theta(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.parts.theta.items()}


def packed(model: CutModel, folder: Path, *, head: Head | None = None, exact: bool = True) -> Packed:
    theta = trainable(model.bottom)
    inside = {id(p) for block in model.bottom.blocks for p in block.parameters() if exact}
    images = model.family.kind == "image"
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(9)) if images else None
    names = [name for name, parameter in theta.items() if id(parameter) in inside]
    parts = Parts(model.bottom, head, theta, names, 0 if images else 40, image)
    folder.mkdir(parents=True)
    write_parts(parts, folder, {})
    package = Package.open(folder)
    return Packed(folder, parts, package, Bottom(package))


def inputs_of(model: str, lengths: tuple[int, ...] = (7, 10, 11)) -> dict[str, Tensor]:
    """Three texts, or as many images."""
    generator = torch.Generator().manual_seed(1)
    if model.startswith(("vit", "resnet")):
        return {"pixel_values": torch.randn(len(lengths), 3, 8, 8, generator=generator)}
    ids = torch.randint(3, 99, (sum(lengths),), generator=generator)
    return {"input_ids": ids, "lengths": torch.tensor(lengths)}


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def off(found: list[np.ndarray], wanted: list[Tensor]) -> float:
    """The largest error of all, relative to the largest value of all."""
    largest = max(float(tensor.detach().abs().max()) for tensor in wanted)
    return max(float(np.abs(a - b.detach().numpy()).max()) for a, b in zip(found, wanted, strict=True)) / largest
