"""What each half trains, and what is written when it has trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import CONFIGS, assert_alike, classifier, language_model, resnet, uncut, vit
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.adapters import Lora, export, set_trainable, trainable
from halfback.models.cut import CutModel, cut
from halfback.models.loading import ModelRequest, load_model

Tokens = dict[str, Tensor]
_Q, _V = "body.model.layers.0.self_attn.q_proj", "body.model.layers.0.self_attn.v_proj"


def _train(model: CutModel, **choice: Any) -> CutModel:
    set_trainable(model, **{"bottom": "lora", "top": "lora", "lora": Lora(rank=2, alpha=4), "seed": 0} | choice)
    return model


def _logits(model: CutModel, inputs: Tokens) -> Tensor:
    return model.top(model.bottom(inputs), inputs.get("lengths"))


def _move(model: CutModel) -> None:
    """As if trained: every trained parameter has moved."""
    for half in (model.bottom, model.top):
        for parameter in trainable(half).values():
            parameter.data += 0.1 * torch.randn_like(parameter)


def test_lora_on_both_halves(texts: Tokens) -> None:
    whole = classifier("llama")
    before = uncut(whole, texts)
    model = _train(cut(whole, 1))
    names = [f"{module}.lora_{part}.default.weight" for module in (_Q, _V) for part in "AB"]
    assert list(trainable(model.bottom)) == names
    top = list(trainable(model.top))
    assert len(top) == 2 * 4 + 1
    assert top[0] == "body.model.layers.1.self_attn.q_proj.lora_A.default.weight"
    assert top[-1] == "body.score.weight"
    assert_alike(_logits(model, texts), before)  # B starts at zero
    _move(model)
    assert not torch.equal(_logits(model, texts), before)
    assert_alike(_logits(model, texts), uncut(whole, texts))


@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("head", [0, 1])
def test_middle_and_head_train_what_an_undivided_top_does(trained: str, head: int, texts: Tokens) -> None:
    for build in (classifier, language_model):
        plain = _train(cut(build("llama-tied"), 1), bottom=trained, top=trained)
        parts = _train(cut(build("llama-tied"), 1, head=head), bottom=trained, top=trained)
        assert parts.head is not None
        divided = trainable(parts.top) | trainable(parts.head)
        assert divided.keys() == trainable(plain.top).keys()
        assert all(torch.equal(divided[name], p) for name, p in trainable(plain.top).items())
        tied = {id(p) for p in parts.bottom.parameters()} & {id(p) for p in parts.head.parameters()}
        assert len(tied) == (trained == "lora" and build is language_model)  # what is trained on one side is untied
        for parameter in divided.values():
            parameter.data += 0.1 * torch.randn_like(parameter)
        assert_alike(parts.logits(texts), uncut(parts.whole, texts))


def test_targets_in_blocks_are_no_error_for_a_head_without_blocks() -> None:
    model = _train(cut(language_model("llama"), 1, head=0), lora=Lora(rank=2, targets=("o_proj",)))
    assert model.head is not None
    assert not trainable(model.head)
    assert len(trainable(model.top)) == 2 * 2


@pytest.mark.parametrize(
    ("bottom", "top", "counts"), [("lora", "none", (4, 0)), ("none", "lora", (0, 9)), ("none", "none", (0, 0))]
)
def test_lora_on_one_half(bottom: str, top: str, counts: tuple[int, int]) -> None:
    model = _train(cut(classifier("llama"), 1), bottom=bottom, top=top)
    assert (len(trainable(model.bottom)), len(trainable(model.top))) == counts


def test_full() -> None:
    model = _train(cut(classifier("bert"), 1), bottom="full", top="full")
    assert len(trainable(model.bottom)) + len(trainable(model.top)) == len(list(model.whole.parameters()))


@pytest.mark.parametrize("name", ["opt", "gpt2", "gemma3_text", "bert", "roberta"])
def test_default_targets_of_every_family(name: str) -> None:
    model = _train(cut(classifier(name), 1))
    assert all("lora_" in parameter for parameter in trainable(model.bottom))
    assert any("lora_" in parameter for parameter in trainable(model.top))
    assert any("score" in parameter or "classifier" in parameter for parameter in trainable(model.top))


def test_default_targets_of_images(images: Tensor) -> None:
    for whole in (vit(), resnet("resnet8")):
        model = _train(cut(whole, 1))
        assert trainable(model.bottom)
        _move(model)
        logits = whole(images)
        wanted = logits if isinstance(logits, Tensor) else logits.logits
        assert torch.equal(_logits(model, {"pixel_values": images}), wanted)


def test_adapters_of_a_block_start_alike_wherever_the_cut_is() -> None:
    starts = []
    for at in (1, 2):
        halves = _train(cut(classifier("llama"), at))
        starts.append(trainable(halves.bottom) | trainable(halves.top))
    assert starts[0].keys() == starts[1].keys()
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    other = _train(cut(classifier("llama"), 1), seed=1)
    assert not torch.equal(
        trainable(other.bottom)[f"{_Q}.lora_A.default.weight"], starts[0][f"{_Q}.lora_A.default.weight"]
    )


def test_adapters_are_float32_on_a_bfloat16_model(texts: Tokens) -> None:
    model = _train(cut(classifier("llama").bfloat16(), 1))
    assert {p.dtype for p in trainable(model.bottom).values()} == {torch.float32}
    assert _logits(model, texts).dtype == torch.bfloat16


def test_set_trainable_leaves_the_global_generator_alone() -> None:
    model = cut(classifier("llama"), 1)
    before = torch.get_rng_state()
    _train(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("bottom", "top"), [("full", "none"), ("none", "full"), ("full", "full")])
@pytest.mark.parametrize("name", ["opt", "gpt2", "llama-tied", "gemma3_text"])
def test_tied_parameters_are_untied(name: str, bottom: str, top: str, texts: Tokens, tmp_path: Path) -> None:
    whole: Any = language_model(name)
    embeddings, head = whole.get_input_embeddings(), whole.lm_head
    assert embeddings.weight is head.weight
    before = uncut(whole, texts)
    model = _train(cut(whole, 1), bottom=bottom, top=top)
    assert embeddings.weight is not head.weight
    assert not whole.config.tie_word_embeddings
    assert torch.equal(uncut(whole, texts), before)
    _move(model)
    assert_alike(_logits(model, texts), uncut(whole, texts))
    export(model, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(uncut(loaded, texts), uncut(whole, texts), rtol=0, atol=1e-5)


def test_tied_parameters_stay_shared_under_lora() -> None:
    whole: Any = language_model("llama-tied")
    _train(cut(whole, 1))
    assert whole.get_input_embeddings().weight is whole.lm_head.weight


def test_lora_on_a_tied_head(texts: Tokens, tmp_path: Path) -> None:
    whole = language_model("llama-tied")
    model = _train(cut(whole, 1), bottom="none", lora=Lora(rank=2, targets=("lm_head",)))
    assert len(trainable(model.top)) == 2
    _move(model)
    assert_alike(_logits(model, texts), uncut(whole, texts))
    export(model, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(uncut(loaded, texts), uncut(whole, texts), rtol=0, atol=1e-5)


def test_targets_can_be_paths() -> None:
    model = _train(cut(classifier("llama"), 2), top="none", lora=Lora(targets=("layers.1.mlp.up_proj",)))
    assert {name.rsplit(".lora", 1)[0] for name in trainable(model.bottom)} == {"body.model.layers.1.mlp.up_proj"}


def test_wrong_choices() -> None:
    with pytest.raises(UserError, match=r"'qproj' matches nothing in the bottom; modules there are .*q_proj"):
        _train(cut(classifier("llama"), 1), lora=Lora(targets=("qproj",)))
    with pytest.raises(UserError, match="top trains 'lora', but with cut 3 of 3 it has nothing to adapt"):
        _train(cut(language_model("llama"), 3))
    with pytest.raises(UserError, match="bottom trains 'some'; allowed are lora, lora_b, ia3, bias, norm, full, none"):
        _train(cut(classifier("llama"), 1), bottom="some")
    for rank in (0, 4097, 1 << 62):
        with pytest.raises(UserError, match=f"LoRA rank is {rank}; 1 to 4096"):
            _train(cut(classifier("llama"), 1), lora=Lora(rank=rank))
    with pytest.raises(ValueError, match="called before"):
        _train(_train(cut(classifier("llama"), 1)))


def test_with_no_blocks_the_top_trains_its_head() -> None:
    assert list(trainable(_train(cut(classifier("llama"), 3)).top)) == ["body.score.weight"]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vit"])
def test_export(name: str, texts: Tokens, tmp_path: Path) -> None:
    model = _train(cut(classifier(name), 1))
    _move(model)
    wanted = uncut(model.whole, texts)
    state = {key: tensor.clone() for key, tensor in model.whole.state_dict().items()}
    export(model, tmp_path)
    after = model.whole.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in state.items())
    loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(uncut(loaded, texts), wanted, rtol=0, atol=1e-5)


def test_export_vit(images: Tensor, tmp_path: Path) -> None:
    model = _train(cut(vit(), 1))
    _move(model)
    export(model, tmp_path)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).logits, _logits(model, {"pixel_values": images}), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_export_resnet(name: str, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    model = _train(cut(resnet(name), 2))
    _move(model)
    export(model, tmp_path)
    classifier_name = "linear" if name == "resnet8" else "fc"
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"conv1.weight", "layer2.0.bn2.running_var", f"{classifier_name}.bias"} <= names
    assert not any("lora" in tensor or "block" in tensor for tensor in names)
    loaded, _ = load_model(str(tmp_path), ModelRequest(head="image", num_labels=3, seed=0))
    torch.testing.assert_close(loaded(images), _logits(model, {"pixel_values": images}), rtol=0, atol=1e-4)


def test_export_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(_train(cut(classifier("bert"), 1)), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_gradients_reach_what_is_trained_alone(texts: Tokens) -> None:
    model = _train(cut(classifier("llama"), 1))
    _logits(model, texts).sum().backward()
    moved = {name for name, parameter in model.whole.named_parameters() if parameter.grad is not None}
    halves = trainable(model.bottom) | trainable(model.top)
    assert moved == {name.removeprefix("body.") for name in halves}
    assert isinstance(model.whole, nn.Module)
