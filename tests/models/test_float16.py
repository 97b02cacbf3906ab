"""In float16 what is trained with LoRA is float32, the head of a task too: AdamW's squared gradients don't vanish."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import classifier, resnet, vit
from torch import Tensor

from halfback.models.adapters import Lora, export, set_trainable, trainable
from halfback.models.cut import cut
from halfback.models.loading import ModelRequest, load_model


@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "gemma3_text", "bert", "roberta", "vit"])
def test_an_optimiser_step(name: str, head: int | None, inputs_of: Callable[[str], dict[str, Tensor]]) -> None:
    whole = vit() if name == "vit" else classifier(name)
    wanted = cut(whole, 1, head=head).logits(inputs_of(name)).detach()
    model = cut(whole.half(), 1, head=head)
    set_trainable(model, bottom="lora", top="lora", lora=Lora(rank=2), seed=0)
    parts = [part for part in (model.top, model.head) if part is not None]
    moved = [parameter for part in parts for parameter in trainable(part).values()]
    assert {parameter.dtype for parameter in moved} == {torch.float32}
    before = [parameter.detach().clone() for parameter in moved]
    optimizer = torch.optim.AdamW(moved, lr=1e-3)
    torch.testing.assert_close(model.logits(inputs_of(name)).detach(), wanted, rtol=0.05, atol=0.05, check_dtype=False)
    for _ in range(2):  # LoRA's A has a gradient from the second step on
        optimizer.zero_grad()
        logits = model.logits(inputs_of(name))
        logits.float().square().sum().mul(1e-3).backward()
        optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in moved)
    assert all(not torch.equal(*pair) for pair in zip(moved, before, strict=True))


def test_a_resnets_file_keeps_its_dtypes(images: Tensor, tmp_path: Path) -> None:
    model = cut(resnet("resnet8").half(), 1)
    set_trainable(model, bottom="full", top="lora", lora=Lora(rank=2), seed=0)
    with torch.no_grad():
        wanted = model.logits({"pixel_values": images})
    export(model, tmp_path)
    again = load_model(str(tmp_path), ModelRequest(head="image", num_labels=3, seed=0, dtype=torch.float16))[0]
    with torch.no_grad():
        torch.testing.assert_close(again(images), wanted, rtol=0.02, atol=0.02, check_dtype=False)
