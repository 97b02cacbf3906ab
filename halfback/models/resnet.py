"""ResNets as a flat list of blocks, so that one technique cuts them and the Transformers models alike.

Two forms: CIFAR (He et al., section 4.2: 6n+2 layers, 16/32/64 channels, parameter-free option-A shortcuts) and
ImageNet (ResNet-18 and -34 with option-B shortcuts and torchvision's parameter names). Files have the original names
(`layer1.0.conv1.weight`); `file_names` maps ours (`blocks.0.conv1.weight`) to them.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.fitting import FoundHead

CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_NAME = re.compile(r"resnet(\d+)(-32)?")


@dataclass(frozen=True)
class ResNetConfig:
    """name: resnet20, resnet18, or resnet18-32 (3×3 stem without pooling, for 32×32 images)."""

    name: str
    num_labels: int
    in_channels: int
    model_type: str = "halfback_resnet"


def is_resnet_name(name: str) -> bool:
    """Whether `name` reads as a ResNet's (`resnet20`); its depth may still be one that `ResNet` refuses."""
    return _NAME.fullmatch(name) is not None


class ResNet(nn.Module):
    """Stem, blocks, head. Raises UserError for a name that is not in `CIFAR_DEPTHS` or `IMAGENET_STAGES`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        match = _NAME.fullmatch(config.name)
        self.stages: tuple[int, ...]
        depth, small = (int(match[1]), match[2] is not None) if match else (0, False)
        if depth in IMAGENET_STAGES:
            self.stages, channels = IMAGENET_STAGES[depth], 64
        elif depth in CIFAR_DEPTHS and not small:
            self.stages, channels = ((depth - 2) // 6,) * 3, 16
        else:
            known = [f"resnet{d}" for d in CIFAR_DEPTHS]
            known += [f"resnet{d}{form}" for d in IMAGENET_STAGES for form in ("", "-32")]
            raise UserError(f"model {config.name!r} is not a ResNet known here; known are {', '.join(known)}")
        cifar = depth in CIFAR_DEPTHS
        self.stem = _Stem(config.in_channels, channels, wide=not cifar and not small)
        self.blocks = nn.ModuleList()
        width = channels
        for stage, length in enumerate(self.stages):
            for index in range(length):
                out, stride = channels << stage, 2 if stage and not index else 1
                self.blocks.append(_Block(width, out, stride, projection=not cifar))
                width = out
        self.head = _Head("linear" if cifar else "fc", width, config.num_labels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, channels, height, width) to logits (B, classes)."""
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def file_names(model: ResNet) -> dict[str, str]:
    """Our name of every parameter and buffer to its name in the original files."""
    stage_of = [(stage + 1, index) for stage, length in enumerate(model.stages) for index in range(length)]
    names = {}
    for name in model.state_dict():
        part, rest = name.split(".", 1)
        if part == "blocks":
            number, rest = rest.split(".", 1)
            stage, index = stage_of[int(number)]
            rest = f"layer{stage}.{index}.{rest}"
        names[name] = rest
    return names


def load_weights(model: ResNet, file: Any, source: str) -> FoundHead:
    """Load an open safetensors file with the original names; a head that is not there, or for another number of
    classes, stays as it is. Of modules on the meta device nothing is read.

    Raises UserError, naming `source` and the tensor, if one is missing, unknown, or of another shape.
    """
    # Files of the CIFAR form come without the counters that batch norm keeps beside its statistics.
    expected = {name: ours for ours, name in file_names(model).items()}
    state = model.state_dict()
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping, it has keys
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise UserError(f"{source}: tensor {unknown[0]!r} is not one of {model.config.name}'s")
    fitting: dict[str, str] = {}
    for name, ours in expected.items():
        if name not in found:
            if not name.endswith("num_batches_tracked") and not ours.startswith("head."):
                raise UserError(f"{source}: tensor {name!r} of {model.config.name} is missing")
            continue
        shape, wanted = tuple(found[name].get_shape()), tuple(state[ours].shape)
        if state[ours].is_floating_point() and not found[name].get_dtype().startswith(("F", "BF")):
            dtype = file.get_tensor(name).dtype
            raise UserError(f"{source}: tensor {name!r} is of {dtype}; weights are floating point numbers")
        if shape == wanted:
            fitting[ours] = name
        elif not ours.startswith("head."):
            raise UserError(f"{source}: tensor {name!r} has shape {shape}; {model.config.name} here needs {wanted}")
    head = [ours for ours in state if ours.startswith("head.")]
    whole = all(ours in fitting for ours in head)
    for ours, name in fitting.items():
        if not state[ours].is_meta and (whole or ours not in head):
            state[ours].copy_(file.get_tensor(name))
    layer_name, layer = next(model.head.named_children())
    weight = found.get(f"{layer_name}.weight")
    rows = weight.get_shape()[0] if weight is not None and weight.get_shape() else None
    return FoundHead(cast(nn.Linear, layer), rows, "whole" if whole else "new")


class _Stem(nn.Module):
    def __init__(self, in_channels: int, channels: int, *, wide: bool) -> None:
        super().__init__()
        size, stride, padding = (7, 2, 3) if wide else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, size, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.wide = wide

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(pixel_values.to(self.bn1.weight.dtype))))
        return F.max_pool2d(hidden, 3, 2, 1) if self.wide else hidden


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: projection (option B), or striding and zero channels (option A)."""

    def __init__(self, width: int, out: int, stride: int, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.added = out - width
        self.stride = stride
        self.downsample: nn.Module | None = None
        if projection and (self.added or stride != 1):
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        return F.relu(residual + self._shortcut(hidden))

    def _shortcut(self, hidden: Tensor) -> Tensor:
        if self.downsample is not None:
            return self.downsample(hidden)
        if not self.added:
            return hidden
        half = self.added // 2
        return F.pad(hidden[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


class _Head(nn.Sequential):
    def __init__(self, name: str, width: int, num_labels: int) -> None:
        # Named children, because `file_names` reads the classifier's name (`linear` or `fc`) off the module tree.
        super().__init__(OrderedDict([(name, nn.Linear(width, num_labels))]))

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
