"""The parts together give the bits, and the gradients, of the uncut model."""

import logging

import pytest
import torch
import transformers
from tiny_models import CONFIGS, DECODERS, ENCODERS, assert_alike, classifier, language_model, resnet, uncut, vit
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models import packing
from halfback.models.adapters import Lora, Trained, set_trainable, trainable
from halfback.models.cut import cut, recut
from halfback.models.families import FAMILIES
from halfback.testing import check_family

Tokens = dict[str, Tensor]


def test_every_model_type_of_the_table_is_tested() -> None:
    types = {name for family in FAMILIES.values() for name in family.model_types}
    assert types == {config.model_type for config in CONFIGS.values()} | {"halfback_resnet"}


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str, texts: Tokens) -> None:
    for build in (classifier, language_model):
        check_family(build(name), texts)


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_verbaliser(name: str, texts: Tokens) -> None:
    model, words = language_model(name), (7, 90)
    halves = cut(model, 2, verbaliser=words)
    logits = halves.top(halves.bottom(texts), texts["lengths"])
    assert logits.shape == (3, 2)
    assert_alike(logits, uncut(model, texts, logits_to_keep=1)[:, -1, words])


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str, texts: Tokens) -> None:
    model = classifier(name)
    check_family(model, texts)
    if name == "bert":
        pairs = texts | {"token_type_ids": torch.arange(28).remainder(7).ge(4).long()}
        check_family(model, pairs)
        assert not torch.equal(uncut(model, pairs), uncut(model, texts))


def test_vit(images: Tensor) -> None:
    check_family(vit(), {"pixel_values": images})


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18", "resnet18-32"])
def test_resnet(name: str) -> None:
    check_family(resnet(name), {"pixel_values": torch.randn(2, 3, 32, 32)})


@torch.no_grad()
def test_activations_are_those_at_the_cut(texts: Tokens) -> None:
    parts = cut(classifier("llama"), 1, head=1)
    hidden = parts.bottom(texts)
    assert hidden.shape == parts.top(hidden, texts["lengths"]).shape == (28, 32)


@torch.no_grad()
@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_another_cut_of_a_model_that_is_trained(name: str, trained: Trained, texts: Tokens) -> None:
    """Every shallower cut gives the bits of the deepest, and its parts have the same tensors, trained and frozen."""
    for build, head in ((classifier, None), (classifier, 0), *(() if name in ENCODERS else ((language_model, None),))):
        deepest = cut(build(name), 2, head=head)
        set_trainable(deepest, bottom=trained, top="lora", lora=Lora(), seed=1)
        moved = trainable(deepest.bottom) | trainable(deepest.top)
        for parameter in moved.values():  # adapters that do nothing yet would hide that one is missing
            parameter += 0.1 * torch.randn_like(parameter)
        other = recut(deepest, 1, head=head)
        assert torch.equal(other.logits(texts), deepest.logits(texts))
        theirs = trainable(other.bottom) | trainable(other.top)
        assert theirs.keys() == moved.keys()
        assert all(theirs[name] is parameter for name, parameter in moved.items())
        assert 0 < len(trainable(other.bottom)) < len(trainable(deepest.bottom))


@torch.no_grad()
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", DECODERS)
def test_a_verbaliser_belongs_to_the_head(name: str, head: int, texts: Tokens) -> None:
    model, words = language_model(name), (7, 90)
    logits = cut(model, 1, head=head, verbaliser=words).logits(texts)
    assert_alike(logits, uncut(model, texts, logits_to_keep=1)[:, -1, words])


@torch.no_grad()
@pytest.mark.parametrize("name", ["opt", "gemma3_text", "gpt2"])
def test_bfloat16(name: str, texts: Tokens) -> None:
    model = classifier(name).bfloat16()
    halves = cut(model, 2)
    hidden = halves.bottom(texts)
    assert hidden.dtype == torch.bfloat16
    # A few roundings at 2^-8 of logits of about 1.
    torch.testing.assert_close(halves.top(hidden, texts["lengths"]), uncut(model, texts), rtol=0, atol=2e-2)


@torch.no_grad()
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_a_text_gives_the_same_alone_and_among_others(name: str, texts: Tokens) -> None:
    halves = cut(classifier(name), 1)
    together = halves.logits(texts)
    for number, ids in enumerate(texts["input_ids"].split(texts["lengths"].tolist())):
        assert_alike(
            halves.logits({"input_ids": ids, "lengths": texts["lengths"][number : number + 1]}), together[[number]]
        )


@torch.no_grad()
@pytest.mark.parametrize("rows", [((0, 2), (1,)), ((2,), (0,), (1,))])
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_how_texts_are_laid_out_changes_nothing(
    name: str, rows: tuple[tuple[int, ...], ...], texts: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations, logits and those of each token: in one row, in two that are not full, and in one for each text."""
    for build in (classifier,) if name in ENCODERS else (classifier, language_model):
        parts = cut(build(name), 1, head=1)
        hidden, logits = parts.bottom(texts), parts.logits(texts)
        with monkeypatch.context() as patched:
            patched.setattr(packing, "_shared_out", lambda *_: rows)
            assert_alike(parts.bottom(texts), hidden)
            assert_alike(parts.logits(texts), logits)


@torch.no_grad()
@pytest.mark.parametrize("head", [None, 0])
@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_some_tokens_are_among_those_of_all(name: str, head: int | None, texts: Tokens) -> None:
    parts, wanted = cut(language_model(name), 1, head=head), torch.tensor([2, 3, 11, 27])
    assert_alike(parts.logits(texts, wanted), parts.logits(texts)[wanted])
    assert parts.logits(texts, wanted[:0]).shape == (0, 99)


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama-tied", "gemma3_text", "bert"])
def test_gradient_through_the_cut(name: str, texts: Tokens) -> None:
    model = classifier(name)
    halves = cut(model, 2)
    model.requires_grad_(True)
    wanted = torch.autograd.grad(uncut(model, texts).square().sum(), list(model.parameters()), allow_unused=True)
    hidden = halves.bottom(texts)
    received = hidden.detach().requires_grad_()
    halves.top(received, texts["lengths"]).square().sum().backward()
    hidden.backward(received.grad)
    for (parameter_name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        if gradient is None:
            assert parameter.grad is None, parameter_name
        else:
            # Sums of another length, where padding is left away; keys' biases have no gradient but rounding.
            allowed = 1e-5 * gradient.abs().max().item() + 1e-7
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=allowed, msg=parameter_name)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_halves_share_out_the_parameters_under_their_own_names(name: str) -> None:
    model = classifier(name)
    halves = cut(model, 2)
    of_bottom = {name.removeprefix("body."): p for name, p in halves.bottom.named_parameters()}
    of_top = {name.removeprefix("body."): p for name, p in halves.top.named_parameters()}
    whole = dict(model.named_parameters())
    assert not set(of_bottom) & set(of_top)
    assert set(of_bottom) | set(of_top) == set(whole)
    assert all(whole[name] is parameter for name, parameter in (of_bottom | of_top).items())
    assert not any(p.requires_grad for p in whole.values())
    assert not any(module.training for half in (halves.bottom, halves.top) for module in half.modules())


def test_bytes_of_the_published_resnet18_cut() -> None:
    # 10 classes, ImageNet stem, cut in the middle: figures published for such a split, batch norm's counters included.
    halves = cut(resnet("resnet18", num_labels=10), 4)
    assert [_bytes(half) for half in (halves.bottom, halves.top)] == [2_740_048, 42_025_080]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def test_halves_run_functionally(texts: Tokens) -> None:
    # Algorithms replace parameters for one call; the live ones must not be read or changed.
    halves = cut(classifier("llama"), 1)
    other = {name: parameter + 1 for name, parameter in halves.bottom.named_parameters()}
    before = halves.bottom(texts)
    assert not torch.equal(torch.func.functional_call(halves.bottom, other, (texts,)), before)
    assert torch.equal(halves.bottom(texts), before)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_parts_share_out_the_parameters_under_their_own_names(name: str) -> None:
    model = classifier(name)
    parts = cut(model, 1, head=1)
    assert parts.head is not None
    named = [
        {name.removeprefix("body."): p for name, p in part.named_parameters()}
        for part in (parts.bottom, parts.top, parts.head)
    ]
    whole = dict(model.named_parameters())
    assert sum(len(of_part) for of_part in named) == len(whole)
    assert all(whole[name] is parameter for of_part in named for name, parameter in of_part.items())
    assert not any(module.training for part in (parts.top, parts.head) for module in part.modules())


@pytest.mark.parametrize(("at", "head", "allowed"), [(1, 2, "0 to 1 are"), (2, 1, "0 to 0 are"), (1, -1, "0 to 1 are")])
def test_a_head_that_leaves_no_middle(at: int, head: int, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"head is {head}; .* 3 blocks and the cut is {at}, so {allowed} allowed"):
        cut(classifier("llama"), at, head=head)
    with pytest.raises(UserError, match="the cut is 3, so no head can be split off"):
        cut(classifier("llama"), 3, head=0)


@pytest.mark.parametrize("at", [-1, 0, 4])
def test_cut_out_of_range(at: int) -> None:
    with pytest.raises(UserError, match=rf"cut is {at}; .* 3 blocks, so 1 to 3"):
        cut(classifier("llama"), at)


def test_unknown_family() -> None:
    with pytest.raises(UserError, match=r"'Linear' is not supported; supported are bert, gemma3_text"):
        cut(nn.Linear(2, 2), 1)
    with pytest.raises(UserError, match=r"BertModel has no blocks at bert\.encoder\.layer"):
        cut(transformers.BertModel(CONFIGS["bert"]), 1)


def test_wrong_verbaliser() -> None:
    with pytest.raises(UserError, match="no lm_head"):
        cut(classifier("llama"), 1, verbaliser=[1, 2])
    with pytest.raises(UserError, match="from 0 to 98"):
        cut(language_model("llama"), 1, verbaliser=[1, 99])


@torch.no_grad()
def test_no_padding_token_and_no_warning(texts: Tokens, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier("opt")
    wanted = uncut(model, texts)
    model.config.pad_token_id = None
    root = logging.getLogger("transformers")
    root.addHandler(caplog.handler)
    try:
        halves = cut(model, 1)
        assert_alike(halves.top(halves.bottom(texts), texts["lengths"]), wanted)
    finally:
        root.removeHandler(caplog.handler)
    assert not caplog.records
    assert model.config.pad_token_id is None


@torch.no_grad()
@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_the_first_part_of_the_first_block_runs_once_a_pass(name: str, texts: Tokens) -> None:
    """Forward passes are counted there (`engine/federation.py`)."""
    bottom, calls = cut(classifier(name), 2).bottom, []
    next(bottom.blocks[0].children()).register_forward_pre_hook(lambda *_: calls.append(1))
    bottom(texts)
    assert len(calls) == 1
