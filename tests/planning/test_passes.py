"""What a pass takes, for every family: planned from shapes, and counted where the model really runs."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from halfback import config as configuration
from halfback.config import build_algorithm
from halfback.data.batches import Batch
from halfback.models.adapters import Lora, set_trainable
from halfback.models.cut import CutModel, cut
from halfback.planning.device import Device
from halfback.planning.memory import pass_peak
from halfback.planning.operations import Counts, sizes_of
from halfback.planning.shapes import PLAIN, Trained, adapt
from halfback.planning.tracing import Tracer, counter
from halfback.telemetry.meters import MemoryMeter

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from tiny_models import CONFIGS, classifier, resnet, vit

NAMES = [*CONFIGS, "resnet8", "resnet20"]
LORA = Lora(rank=2, alpha=4)


def whole(name: str) -> nn.Module:
    return resnet(name) if name.startswith("resnet") else vit() if name == "vit" else classifier(name)


def rows(name: str) -> Batch:
    """Three texts of other lengths, or two images."""
    if name.startswith(("resnet", "vit")):
        inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
    else:
        inputs = {"input_ids": torch.randint(3, 99, (28,)), "lengths": torch.tensor([7, 10, 11])}
    count = 2 if "pixel_values" in inputs else 3
    return Batch(inputs, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def planned(name: str, at: int, trained: str) -> Device:
    tree = {"algorithm": {"name": "ho_sfl"}, "task": {"name": "digits"}, "model": {"name": "resnet8", "cut": at}}
    config = configuration.from_tree(tree, {"bottom.train": trained, "top.train": trained})
    adapted = adapt(whole(name), Trained(trained, trained, LORA, False, None), None, Tracer())
    one = {n: t[:1] for n, t in rows(name).inputs.items()}
    if "lengths" in one:
        one = {"input_ids": torch.zeros(3, dtype=torch.int64), "lengths": torch.tensor([3])}
    return Device(config, build_algorithm(config).needs, adapted, at, None, None, one)


def real(name: str, at: int, trained: str) -> CutModel:
    model = cut(copy.deepcopy(whole(name)), at)
    set_trainable(model, bottom=trained, top=trained, lora=LORA, seed=0)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_those_that_are_counted(name: str) -> None:
    """Each product of matrices, convolution and attention, there and back, through both parts."""
    device, model, batch = planned(name, 2, "lora"), real(name, 2, "lora"), rows(name)
    with torch.no_grad(), counter() as ahead:
        hidden = model.bottom(batch.inputs)
    counts, sizes = Counts(device), sizes_of(device, batch)
    assert counts.bottom(sizes) == ahead.get_total_flops()
    with counter() as top:
        logits = model.top(hidden.requires_grad_(), batch.inputs.get("lengths"))
    loss = nn.functional.cross_entropy(logits, batch.labels)
    with counter() as back:
        loss.backward()
    assert counts.server(sizes) == (top.get_total_flops(), back.get_total_flops())


@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_pass_are_those_of_the_meter(name: str, trained: str) -> None:
    """Forward, without a graph. Some tensors of a few bytes for each token are counted a moment longer or shorter."""
    device, model, batch = planned(name, 2, trained), real(name, 2, trained), rows(name)
    meter = MemoryMeter([*model.bottom.parameters(), *model.bottom.buffers(), *batch.inputs.values()])
    held = meter.live_bytes
    with torch.no_grad(), meter.running():
        model.bottom(batch.inputs)
    assert pass_peak(device, batch, PLAIN) == pytest.approx(meter.peak_bytes - held, rel=0.02)
