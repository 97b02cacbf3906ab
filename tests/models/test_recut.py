"""A client's model that is whole can be cut anywhere, in the modules of the parts that gave θ its names."""

import pytest
import torch
from tiny_models import BLOCKS, CONFIGS, DECODERS, ENCODERS, classifier, language_model, resnet, vit
from torch import Tensor, nn

from halfback.models.adapters import Lora, Trained, set_trainable, trainable
from halfback.models.cut import cut, install, recut
from halfback.models.running import LocalModel

MODELS = [*CONFIGS, "resnet8", "resnet18-32"]


def inputs_of(name: str, texts: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    if name in DECODERS:
        return texts
    return texts if name in ENCODERS else {"pixel_values": images if name == "vit" else torch.randn(2, 3, 32, 32)}


def models_of(name: str) -> list[nn.Module]:
    if name.startswith("resnet"):
        return [resnet(name)]
    if name == "vit":
        return [vit()]
    return [classifier(name), language_model(name)] if name in DECODERS else [classifier(name)]


@torch.no_grad()
@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_every_boundary_sees_the_parameters_that_are_installed(
    name: str, trained: Trained, texts: dict[str, Tensor], images: Tensor
) -> None:
    inputs = inputs_of(name, texts, images)
    for model in models_of(name):
        parts = cut(model, 1)
        set_trainable(parts, bottom=trained, top=trained, lora=Lora(), seed=0)
        local = LocalModel(parts.bottom, parts.top)
        theta = trainable(local)
        before = local(inputs)
        cuts = [recut(parts, at) for at in range(1, parts.blocks + 1)]
        boundaries = {own.at: LocalModel(own.bottom, own.top) for own in cuts}
        assert parts.blocks == BLOCKS or name == "resnet18-32"
        for own in boundaries.values():
            assert torch.equal(own(inputs), before)
            assert {id(p) for p in trainable(own).values()} == {id(p) for p in theta.values()}

        others = {n: nn.Parameter(p + 0.01 * torch.randn_like(p)) for n, p in theta.items()}
        install(local, others)
        after = local(inputs)
        assert not torch.equal(after, before)
        fewer = -1
        for own in boundaries.values():
            assert torch.equal(own(inputs), after)
            below, above = ({id(p) for p in half.parameters() if p.requires_grad} for half in (own.bottom, own.head))
            # Each parameter of θ lies on one side, and more of them below with each block.
            assert not below & above
            assert below | above == {id(p) for p in others.values()}
            assert len(below) > fewer
            fewer = len(below)
