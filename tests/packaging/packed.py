"""Packages of tiny models: made, opened on a device, and the reference beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import classifier, resnet, vit
from torch import Tensor, nn

from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.cut import CutModel, cut
from halfback.packaging.writing import Parts, write_parts
from halfback_device.package import Package
from halfback_device.runtime import Bottom as DeviceBottom


def whole(name: str) -> nn.Module:
    if name.startswith("resnet"):
        return resnet(name)
    return vit() if name == "vit" else classifier(name)


def cut_model(name: str, trained: str, at: int = 2) -> CutModel:
    """A tiny model cut after `at` blocks, whose trained parameters stand beside their beginning."""
    model = cut(whole(name), at)
    set_trainable(model, bottom=trained, top="full", lora=Lora(rank=2), seed=0)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # LoRA's B starts at zero, and then A's gradient is zero
        for parameter in trainable(model.bottom).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@dataclass(frozen=True)
class Packed:
    """A package on a device, and the part that it was made of."""

    folder: Path
    parts: Parts
    package: Package
    device: DeviceBottom

    @property
    def theta(self) -> dict[str, np.ndarray]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.parts.theta.items()}


def packed(model: CutModel, folder: Path, *, exact: int = 2, also: dict[str, Any] | None = None) -> Packed:
    theta = trainable(model.bottom)
    blocks = model.bottom.blocks
    inside = {id(p) for block in blocks[len(blocks) - exact :] for p in block.parameters()}
    images = model.family.kind == "image"
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(9)) if images else None
    names = [name for name, parameter in theta.items() if id(parameter) in inside]
    parts = Parts(model.bottom, None, theta, names, 0 if images else 40, image)
    folder.mkdir(parents=True, exist_ok=True)
    write_parts(parts, folder, also or {})
    package = Package.open(folder)
    return Packed(folder, parts, package, DeviceBottom(package))


def arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def off(found: np.ndarray, wanted: Tensor) -> float:
    """The largest error, relative to the largest value."""
    largest = max(float(wanted.detach().abs().max()), 1e-30)
    return float((torch.from_numpy(np.ascontiguousarray(found)) - wanted.detach()).abs().max()) / largest
