"""What the device's part may train with few dimensions: fixed matrices, factors, and the model's own vectors."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CONFIGS, assert_alike, classifier, language_model, resnet, uncut, vit
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.adapters import BottomTrained, Lora, export, set_trainable, trainable, without_adapters
from halfback.models.cut import CutModel, cut, recut
from halfback.models.loading import ModelRequest, load_model
from halfback.zeroth.directions import direction_of
from halfback.zeroth.slopes import perturbed

NAMES = [*CONFIGS, "resnet8", "resnet18-32"]
NO_BIASES = ("llama", "llama-tied", "mistral", "qwen3", "gemma3_text")
LACKING = {"ia3": ("resnet8", "resnet18-32"), "bias": NO_BIASES}
KINDS = ("lora_b", "ia3", "bias", "norm")
CASES = [(kind, name) for kind in KINDS for name in NAMES if name not in LACKING.get(kind, ())]
ADAPTED = [(kind, name) for kind, name in CASES if kind not in ("bias", "norm")]  # those are the model's own
Inputs = Callable[[str], dict[str, Tensor]]


def _whole(name: str) -> nn.Module:
    if name.startswith("resnet"):
        return resnet(name)
    return vit() if name == "vit" else classifier(name)


def _cut(name: str, kind: str, at: int = 2, **choice: Any) -> CutModel:
    return _train(cut(_whole(name), at), kind, **choice)


def _train(model: CutModel, kind: str, **choice: Any) -> CutModel:
    set_trainable(model, **{"bottom": kind, "top": "none", "lora": Lora(rank=2, alpha=4), "seed": 0} | choice)
    return model


def _logits(whole: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    if "input_ids" in inputs:
        return uncut(whole, inputs)
    output = whole(inputs["pixel_values"])
    return output if isinstance(output, Tensor) else output.logits


def _move(model: CutModel) -> None:
    torch.manual_seed(1)
    for parameter in trainable(model.bottom).values():
        parameter += 0.1 * torch.randn_like(parameter)


def _path(model: CutModel) -> str:
    """What the names of the blocks' parameters begin with."""
    return ".".join(part for part in ("body", model.family.backbone, model.family.blocks) if part)


def _start(model: CutModel) -> dict[str, Tensor]:
    """All that there is of adapters in the bottom, also what is fixed."""
    own = model.bottom.named_parameters()
    return {name: parameter for name, parameter in own if "lora_" in name or "ia3_" in name}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_start_is_the_uncut_models_and_moves_reach_the_whole_model(kind: str, name: str, inputs_of: Inputs) -> None:
    inputs, whole = inputs_of(name), _whole(name)
    before = _logits(whole, inputs)
    model = _train(cut(whole, 2), kind)
    assert_alike(model.logits(inputs), before)
    assert torch.equal(_logits(whole, inputs), before)
    everywhere = dict(whole.named_parameters())
    for key, parameter in trainable(model.bottom).items():
        assert everywhere[key.removeprefix("body.")] is parameter
        assert parameter.dtype == torch.float32
    assert not trainable(model.top)
    _move(model)
    moved = model.logits(inputs)
    assert not torch.allclose(moved, before, rtol=1e-4)
    assert_alike(moved, _logits(whole, inputs))
    assert torch.equal(recut(model, 1).logits(inputs), moved)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), ADAPTED)
def test_without_adapters_the_model_is_as_it_was(kind: str, name: str, inputs_of: Inputs) -> None:
    inputs, whole = inputs_of(name), _whole(name)
    before = _logits(whole, inputs)
    model = _train(cut(whole, 2), kind)
    _move(model)
    assert torch.equal(_logits(without_adapters(copy.deepcopy(whole)), inputs), before)


def test_names_and_dimensions_are_those_of_closed_forms() -> None:
    """Of all-MiniLM-L6-v2's sizes, five blocks in the bottom."""
    hidden, inner, blocks, rank = 384, 1536, 5, 8
    block = {
        "lora": 2 * 2 * rank * hidden,
        "lora_b": 2 * rank * hidden,  # B of query and value
        "ia3": 2 * hidden + inner,  # key, value, inner activation
        "bias": 7 * hidden + inner,  # query, key, value, output, second layer, two norms; first layer
        "norm": 2 * 2 * hidden,
    }
    ends = {
        "lora_b": {f"attention.self.{name}.lora_B.default.weight" for name in ("query", "value")},
        "ia3": {f"{name}.ia3_l.default" for name in ("attention.self.key", "attention.self.value", "output.dense")},
        "norm": {f"{name}LayerNorm.{own}" for name in ("attention.output.", "output.") for own in ("weight", "bias")},
    }
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=6, num_attention_heads=12
    )
    for kind, dimensions in block.items():
        whole = transformers.AutoModelForSequenceClassification.from_config(config)
        model = _train(cut(whole, blocks), kind, lora=Lora(rank=rank))
        trained = trainable(model.bottom)
        assert sum(parameter.numel() for parameter in trained.values()) == blocks * dimensions, kind
        if kind in ends:
            path = "body.bert.encoder.layer"
            assert trained.keys() == {f"{path}.{i}.{end}" for i in range(blocks) for end in ends[kind]}


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_those_of_the_blocks(name: str) -> None:
    model = _cut(name, "norm")
    norm = re.compile(r"norm|\.ln_|\.bn|\.downsample\.1\.", re.IGNORECASE)
    wanted = [key for key, _ in model.bottom.named_parameters() if key.startswith(_path(model)) and norm.search(key)]
    assert sorted(trainable(model.bottom)) == sorted(wanted)
    assert wanted


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_BIASES])
def test_biases_are_those_of_the_blocks(name: str) -> None:
    model = _cut(name, "bias")
    own = [key for key, _ in model.bottom.named_parameters() if key.startswith(_path(model))]
    assert list(trainable(model.bottom)) == [key for key in own if key.endswith(".bias")]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_exported_model_gives_the_same_logits(kind: str, name: str, inputs_of: Inputs, tmp_path: Path) -> None:
    inputs, model = inputs_of(name), _cut(name, kind)
    _move(model)
    # Texts in padded rows, as the exported model is given them; of the parts `test_the_start_…` asks for the same.
    wanted = _logits(model.whole, inputs)
    state = {key: tensor.clone() for key, tensor in model.whole.state_dict().items()}
    export(model, tmp_path)
    assert all(torch.equal(state[key], tensor) for key, tensor in model.whole.state_dict().items())
    if name.startswith("resnet"):
        again: Any = load_model(str(tmp_path), ModelRequest(head="image", num_labels=3, seed=0))[0]
    elif name == "vit":
        again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    else:
        again, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # Merged, a weight is rounded once more, by 2^-24 of itself, and three blocks sum some tens of such; the model's own
    # parameters are not rounded.
    tolerance = 0.0 if kind in ("bias", "norm") else 1e-5 * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(_logits(again, inputs), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("kind", "name"), ADAPTED)
def test_a_block_starts_alike_wherever_the_cut_is(kind: str, name: str) -> None:
    shallow, deep = (_start(_cut(name, kind, at)) for at in (1, 2))
    assert shallow
    assert shallow.keys() < deep.keys()
    assert all(torch.equal(tensor, deep[key]) for key, tensor in shallow.items())
    other = _start(_cut(name, kind, 1, seed=1))
    same = [key for key, tensor in shallow.items() if torch.equal(tensor, other[key])]
    assert not any("lora_A" in key for key in same)


def test_a_fixed_matrix_is_float32_and_drawn_as_for_lora() -> None:
    for build in (lambda: classifier("llama").bfloat16(), lambda: classifier("gpt2")):
        drawn, fixed = (_start(_train(cut(build(), 2), kind)) for kind in ("lora", "lora_b"))
        assert {tensor.dtype for tensor in fixed.values()} == {torch.float32}
        assert all(torch.equal(tensor, fixed[key]) for key, tensor in drawn.items())
        assert {key for key, tensor in fixed.items() if not tensor.requires_grad} == {k for k in fixed if "_A." in k}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_bfloat16_model_the_start_is_the_models_too(kind: str, texts: dict[str, Tensor]) -> None:
    whole = classifier("opt").bfloat16()
    before = uncut(whole, texts)
    model = _train(cut(whole, 2), kind)
    # A few roundings at 2^-8 of logits below 1.
    torch.testing.assert_close(model.logits(texts), before, rtol=0, atol=2e-2)
    wanted = torch.bfloat16 if kind in ("bias", "norm") else torch.float32
    assert {parameter.dtype for parameter in trainable(model.bottom).values()} == {wanted}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_probes_reach_every_parameter(kind: str, name: str, inputs_of: Inputs) -> None:
    inputs, model = inputs_of(name), _cut(name, kind)
    _move(model)
    own = trainable(model.bottom)
    before = {key: parameter.clone() for key, parameter in own.items()}
    base = model.bottom(inputs)
    for key, parameter in own.items():
        with perturbed(model.bottom, {key: parameter}, 3, 0.5):
            probed = model.bottom(inputs)
        parameter.add_(0.5 * direction_of(3, key, parameter))
        assert torch.equal(probed, model.bottom(inputs)), key
        parameter.copy_(before[key])
        # A key's bias adds the same to all scores of a query, which a softmax drops, unless positions turn the keys.
        assert not torch.equal(probed, base) or key.endswith(("key.bias", "k_proj.bias")), key
    assert all(torch.equal(parameter, before[key]) for key, parameter in own.items())
    assert torch.equal(model.bottom(inputs), base)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tied_across_the_cut_stays_tied_and_still(kind: str, texts: dict[str, Tensor]) -> None:
    whole: Any = language_model("gpt2")
    model = _train(cut(whole, 1), kind)
    assert whole.get_input_embeddings().weight is whole.lm_head.weight
    frozen = {key for key, parameter in whole.named_parameters() if not parameter.requires_grad}
    assert "transformer.wte.weight" in frozen
    model.logits(texts).sum().backward()
    assert whole.lm_head.weight.grad is None


def test_a_tied_table_with_a_fixed_matrix_is_untied(texts: dict[str, Tensor], tmp_path: Path) -> None:
    whole: Any = language_model("llama-tied")
    model = _train(cut(whole, 1), "lora_b", lora=Lora(rank=2, targets=("embed_tokens",)))
    assert list(trainable(model.bottom)) == ["body.model.embed_tokens.lora_embedding_A.default"]
    with torch.no_grad():
        _move(model)
        wanted = model.logits(texts)
        export(model, tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(uncut(loaded, texts), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "allowed"),
    [
        ("ia3", "resnet8", "lora, lora_b, bias, norm, full, none"),
        ("bias", "llama", "lora, lora_b, ia3, norm, full, none"),
        ("bias", "gemma3_text", "lora, lora_b, ia3, norm, full, none"),
    ],
)
def test_what_a_family_has_not(kind: BottomTrained, name: str, allowed: str) -> None:
    with pytest.raises(UserError, match=f"^bottom trains '{kind}', but .*nothing to adapt; allowed are {allowed}$"):
        _cut(name, kind)


def test_wrong_choices() -> None:
    with pytest.raises(UserError, match="top trains 'ia3'; allowed are lora, full, none"):
        _cut("bert", "lora", top="ia3")
    with pytest.raises(UserError, match="'qproj' matches nothing in the bottom"):
        _cut("bert", "lora_b", lora=Lora(targets=("qproj",)))
    with pytest.raises(ValueError, match="called before"):
        _train(_cut("bert", "ia3"), "lora")
