"""Gradients of the last blocks, row by row, against autograd through the whole part; and what they cost."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIGS, classifier, resnet, vit
from torch import Tensor, nn

from halfback.models import packing
from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.cut import CutModel, cut
from halfback.models.exact import Entry, entries, exact_gradient
from halfback.models.running import in_rows
from halfback.telemetry.meters import MemoryMeter

Inputs = Callable[[str], dict[str, Tensor]]


def _whole(name: str) -> nn.Module:
    if name.startswith("resnet"):
        return resnet(name)
    return vit() if name == "vit" else classifier(name)


def _model(name: str) -> CutModel:
    model = cut(_whole(name).double(), 2)
    trained = "full" if name.startswith("resnet") else "lora"
    set_trainable(model, bottom=trained, top=trained, lora=Lora(rank=2), seed=0)  # type: ignore[arg-type]
    model.whole.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model.bottom).values():  # LoRA's B starts at zero, and then A's gradient is zero
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def _of_last(model: CutModel, count: int | str) -> dict[str, nn.Parameter]:
    inside = {id(p) for block in list(model.bottom.blocks)[-_number(count) :] for p in block.parameters()}
    return {name: p for name, p in trainable(model.bottom).items() if id(p) in inside}


def _number(count: int | str) -> int:
    return 2 if count == "all" else int(count)


@pytest.mark.parametrize("count", [1, "all"])
@pytest.mark.parametrize("name", [*CONFIGS, "vit", "resnet8"])
def test_the_gradient_is_that_of_the_whole_part(name: str, count: int | str, inputs_of: Inputs) -> None:
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs_of(name).items()}
    _assert_exact(_model(name), inputs, count)


def _assert_exact(model: CutModel, inputs: dict[str, Tensor], count: int | str) -> None:
    with torch.no_grad(), entries(model.bottom, count) as noted:
        hidden = model.bottom(inputs)
    assert len(noted) == _number(count) * len(model.bottom.groups(inputs))
    cotangent = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = _of_last(model, count)
    found = exact_gradient(noted, cotangent, parameters, model.bottom.layouts(inputs))
    wanted = torch.autograd.grad((model.bottom(inputs) * cotangent).sum(), list(parameters.values()))
    flat = torch.cat([gradient.flatten() for gradient in wanted])
    # Sums are float32: of three rows, each rounded to 2^-24 of its size.
    torch.testing.assert_close(found.double(), flat, rtol=1e-5, atol=1e-6 * flat.abs().max().item())
    assert flat.abs().max() > 0
    assert all(parameter.grad is None for parameter in parameters.values())


@pytest.mark.parametrize(("rows", "tokens"), [(5, 5), (1, 5), (8, 8), (2, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_told_from_tokens_also_where_they_are_equally_many(name: str, rows: int, tokens: int) -> None:
    """As many tokens, or features of an attention head (8), as rows; and one row, or one token."""
    model = _model(name)
    inputs: dict[str, Tensor] = {}
    if name == "vit":  # 4 patches and the class token
        inputs["pixel_values"] = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    else:
        lengths = [tokens - row % tokens for row in range(rows - 1)] + [tokens]
        ids = torch.randint(3, 99, (sum(lengths),), generator=torch.Generator().manual_seed(2))
        inputs = {"input_ids": ids, "lengths": torch.tensor(lengths)}
    _assert_exact(model, inputs, 2)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vit"])
def test_texts_in_several_rows(name: str, texts: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, of which one is not full."""
    monkeypatch.setattr(packing, "_shared_out", lambda *_: ((0, 2), (1,)))
    _assert_exact(_model(name), texts, 2)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("name", [*CONFIGS, "vit", "resnet8"])
def test_groups_of_rows(name: str, at_once: int, inputs_of: Inputs) -> None:
    """Each with its own part of λ and its own layout; the last of two is smaller."""
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs_of(name).items()}
    model = _model(name)
    with in_rows(model.bottom, at_once):
        _assert_exact(model, inputs, 2)


def test_a_tensor_that_nobody_has_named_is_an_error() -> None:
    class Unknown(nn.Module):
        def forward(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
            return hidden if bias is None else hidden + bias

    hidden = torch.ones(2, 3)
    assert torch.equal(Entry(Unknown(), (hidden, None), {}).of(0, slice(None))[0][0], hidden[:1])
    with pytest.raises(ValueError, match="Unknown: what of 'bias' belongs to a sample is not known"):
        Entry(Unknown(), (hidden,), {"bias": torch.ones(2)}).of(0, slice(None))


def test_without_blocks_nothing_is_kept_and_nothing_is_found(inputs_of: Inputs) -> None:
    model = _model("bert")
    with torch.no_grad(), entries(model.bottom, 0) as noted:
        hidden = model.bottom(inputs_of("bert"))
    assert noted == []
    assert exact_gradient(noted, hidden, {}, [None]).shape == (0,)


def test_hooks_are_gone_behind_the_pass(inputs_of: Inputs) -> None:
    model = _model("bert")
    with torch.no_grad(), entries(model.bottom, 2) as noted:
        model.bottom(inputs_of("bert"))
    model.bottom(inputs_of("bert"))
    assert len(noted) == 2


def test_one_blocks_graph_of_one_row_is_in_memory() -> None:
    """Ten times the rows: what the backward pass makes grows by less than the activations of two blocks do."""
    model, peaks = _model("bert"), []
    parameters = _of_last(model, 2)
    for rows in (4, 40):
        ids = torch.randint(3, 99, (rows * 32,), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "lengths": torch.full((rows,), 32)}
        with torch.no_grad(), entries(model.bottom, 2) as noted:
            hidden = model.bottom(inputs)
        meter, cotangent = MemoryMeter([hidden]), torch.ones_like(hidden)
        with meter.running():
            exact_gradient(noted, cotangent, parameters, model.bottom.layouts(inputs))
        peaks.append(meter.peak_bytes - hidden.nbytes)
    grown = peaks[1] - peaks[0]
    assert grown <= 1.1 * 36 * 32 * 32 * 8, "beside ∂/∂ of what enters the last block, (N, H) float64, nothing grows"
