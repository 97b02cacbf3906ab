"""Heads that give a device a loss of its own: their logits, what they train, and that nothing else moves with them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import BLOCKS, DECODERS, ENCODERS, classifier, language_model, resnet, vit
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.auxiliary import auxiliary
from halfback.models.cut import CutModel, cut

WORDS = (7, 90, 3)
# One of every model type and kind of head: how it is built, and the verbaliser of its cut.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    **{f"{name}-classifier": (lambda name=name: classifier(name), None) for name in [*DECODERS, *ENCODERS]},
    **{f"{name}-verbaliser": (lambda name=name: language_model(name), WORDS) for name in DECODERS},
    **{f"{name}-language": (lambda name=name: language_model(name), None) for name in DECODERS},
    "vit": (vit, None),
    "resnet8": (lambda: resnet("resnet8"), None),
    "resnet18-32": (lambda: resnet("resnet18-32"), None),
}
CLASSIFYING = [name for name in MODELS if not name.endswith("-language")]


def _cut(name: str, at: int, *, head: int | None = None, **trains: Any) -> CutModel:
    build, verbaliser = MODELS[name]
    model = cut(build(), at, head=head, verbaliser=verbaliser)
    set_trainable(model, **{"bottom": "lora", "top": "lora", "lora": Lora(rank=2, alpha=4), "seed": 0} | trains)
    return model


def _auxiliary(model: CutModel, kind: Any, **choice: Any) -> Any:
    return auxiliary(model, kind, **{"num_labels": 3, "trained": "lora", "lora": Lora(rank=2), "seed": 1} | choice)


@torch.no_grad()
@pytest.mark.parametrize("trains", ["lora", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_of_all_blocks_gives_the_bits_of_the_top(name: str, trains: str, inputs_of: Any) -> None:
    model = _cut(name, 1, bottom=trains, top=trains)
    inputs = inputs_of(name)
    hidden, lengths = model.bottom(inputs), inputs.get("lengths")
    wanted = model.top(hidden, lengths)
    # Adapters start as zero.
    assert torch.equal(_auxiliary(model, model.blocks - 1, trained=trains)(hidden, lengths), wanted)
    # PyTorch may take another matrix kernel for a weight that is trained than for one that is not.
    other = _auxiliary(model, model.blocks - 1, trained="full" if trains == "lora" else "lora")
    torch.testing.assert_close(other(hidden, lengths), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.logits(inputs), wanted)


@torch.no_grad()
def test_a_copy_has_none_of_the_tops_adapters(texts: dict[str, Tensor]) -> None:
    model = _cut("llama-verbaliser", 1)
    hidden, lengths = model.bottom(texts), texts["lengths"]
    pretrained = model.top(hidden, lengths)
    for parameter in trainable(model.top).values():
        parameter.add_(0.1)
    assert not torch.equal(model.top(hidden, lengths), pretrained)
    assert torch.equal(_auxiliary(model, 2)(hidden, lengths), pretrained)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama-tied-language", "gpt2-verbaliser", "bert-classifier", "vit", "resnet8"])
def test_a_copy_of_fewer_blocks_is_the_model_without_those_between(name: str, inputs_of: Any) -> None:
    """Held against the layers called by hand, or a model from which the later blocks were deleted."""
    model = _cut(name, 2)
    inputs = inputs_of(name)
    hidden, lengths = model.bottom(inputs), inputs.get("lengths")
    build, verbaliser = MODELS[name]
    shorter = build()
    if name == "resnet8":
        wanted = shorter.head(shorter.blocks[2](shorter.blocks[1](shorter.blocks[0](shorter.stem(**inputs)))))
        assert torch.equal(_auxiliary(model, 1)(hidden, lengths), wanted)
        return
    layers = shorter.get_submodule(model.family.backbone).get_submodule(model.family.blocks)
    del layers[2:]
    shorter.config.num_hidden_layers = 2
    wanted = cut(shorter, 2, verbaliser=verbaliser).logits(inputs)
    assert torch.equal(_auxiliary(model, 0, trained="none")(hidden, lengths), wanted)


@torch.no_grad()
@pytest.mark.parametrize("at", range(1, BLOCKS + 1))
@pytest.mark.parametrize("name", CLASSIFYING)
def test_a_linear_head_fits_every_cut(name: str, at: int, inputs_of: Any) -> None:
    model = _cut(name, at, top="full")
    inputs = inputs_of(name)
    hidden = model.bottom(inputs)
    head = _auxiliary(model, "linear")
    logits = head(hidden, inputs.get("lengths"))
    assert logits.shape == (len(inputs.get("lengths", hidden)), 3)
    assert list(trainable(head)) == ["linear.weight", "linear.bias"]
    if name.startswith("resnet"):
        pooled = hidden.flatten(2).mean(dim=2)
    elif name == "vit":
        pooled = hidden.mean(dim=1)
    else:
        of_each = hidden.split(inputs["lengths"].tolist())
        pooled = torch.stack([row.mean(dim=0) if name.startswith(tuple(ENCODERS)) else row[-1] for row in of_each])
    # float32 sums in another order
    torch.testing.assert_close(logits, pooled @ head.linear.weight.T, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_linear_head_is_float32_whatever_the_model_is(texts: dict[str, Tensor]) -> None:
    model = cut(classifier("llama").bfloat16(), 1)
    set_trainable(model, bottom="lora", top="lora", lora=Lora(), seed=0)
    head = _auxiliary(model, "linear")
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    assert head(model.bottom(texts), texts["lengths"]).dtype == torch.float32
    copied = _auxiliary(model, 1)
    assert copied(model.bottom(texts), texts["lengths"]).dtype == torch.bfloat16


@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("trains", ["lora", "full"])
@pytest.mark.parametrize(
    "name",
    ["llama-tied-language", "llama-tied-verbaliser", "gpt2-classifier", "opt-language", "bert-classifier", "vit"],
)
def test_training_the_auxiliary_moves_nothing_else(name: str, trains: str, trained: str, inputs_of: Any) -> None:
    model = _cut(name, 1, bottom=trains, top=trains)
    inputs = inputs_of(name)
    lengths = inputs.get("lengths")
    with torch.no_grad():
        hidden, wanted = model.bottom(inputs), model.logits(inputs)
    before = copy.deepcopy(model.whole.state_dict())
    head = _auxiliary(model, 1, trained=trained)
    own = {id(p) for p in trainable(head).values()}
    everyone_elses = {id(p) for part in (model.bottom, model.top, model.whole) for p in part.parameters()}
    assert own
    assert not own & everyone_elses
    # ... and the other way about: what the parts train is not the auxiliary's.
    moving = {id(p) for part in (model.bottom, model.top) for p in trainable(part).values()}
    assert not {id(p) for p in head.parameters()} & moving
    optimizer = torch.optim.SGD(trainable(head).values(), lr=0.1)
    with torch.no_grad():
        first = head(hidden, lengths)
    for _ in range(2):  # an adapter's first half has no gradient in the first step
        optimizer.zero_grad()
        head(hidden, lengths).logsumexp(-1).sum().backward()
        optimizer.step()
    assert not torch.equal(head(hidden, lengths), first)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.whole.state_dict().items())
    assert torch.equal(model.logits(inputs), wanted)
    assert not any(p.grad is not None for p in model.whole.parameters())


def test_a_frozen_language_models_head_layer_is_held_once() -> None:
    model = _cut("llama-tied-language", 1)
    table = model.bottom.body.model.embed_tokens.weight  # type: ignore[union-attr]
    assert _auxiliary(model, 1).body.lm_head.weight is table
    # Where a side trains it, the auxiliary has its own.
    assert _auxiliary(model, 1, trained="full").body.lm_head.weight is not table
    model = _cut("llama-tied-language", 1, bottom="full")
    assert _auxiliary(model, 1).body.lm_head.weight is not model.bottom.body.model.embed_tokens.weight  # type: ignore[union-attr]


def test_what_is_trained() -> None:
    model = _cut("llama-classifier", 1)
    adapters = [
        f"body.model.layers.1.self_attn.{name}.lora_{part}.default.weight"
        for name in ("q_proj", "v_proj")
        for part in "AB"
    ]
    head = _auxiliary(model, 1)
    assert list(trainable(head)) == [*adapters, "body.score.weight"]
    assert list(trainable(_auxiliary(model, 0))) == ["body.score.weight"]
    full = _auxiliary(model, 1, trained="full")
    assert not any("lora" in parameter for parameter, _ in full.named_parameters())
    assert all(p.requires_grad for p in full.parameters())
    for kind in ("linear", 1):
        assert not trainable(_auxiliary(model, kind, trained="none"))
    # A target that the copied block has not is no error: the parts were asked for it.
    assert list(trainable(_auxiliary(model, 0, lora=Lora(targets=("gate_proj",))))) == ["body.score.weight"]


@pytest.mark.parametrize("kind", ["linear", 1])
def test_a_start_is_a_function_of_the_seed(kind: Any) -> None:
    model = _cut("llama-classifier", 1)
    state = torch.get_rng_state()
    first, again, other = (_auxiliary(model, kind, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["llama-classifier", "bert-classifier", "vit", "resnet8"])
def test_eval_mode(name: str) -> None:
    for kind in ("linear", 2):
        assert not any(module.training for module in _auxiliary(_cut(name, 1), kind).modules())


def test_batch_norms_statistics_are_copied(images: Tensor) -> None:
    model = _cut("resnet8", 1)
    head = _auxiliary(model, 2, trained="full")
    assert not {b.data_ptr() for b in head.buffers() if b.numel()} & {b.data_ptr() for b in model.whole.buffers()}


@torch.no_grad()
def test_in_the_u_shape_the_copy_runs_from_the_middle_to_the_head(texts: dict[str, Tensor]) -> None:
    model = _cut("llama-verbaliser", 1, head=1)
    hidden, lengths = model.bottom(texts), texts["lengths"]
    assert torch.equal(_auxiliary(model, 2)(hidden, lengths), model.logits(texts))
    assert _auxiliary(model, "linear")(hidden, lengths).shape == (3, 3)


def test_kinds_that_do_not_fit() -> None:
    llama, language = _cut("llama-classifier", 1), _cut("llama-language", 1)
    for kind in (-1, 3):
        with pytest.raises(UserError, match=f"auxiliary is {kind}; with cut 1 of 3 blocks, 0 to 2 and 'linear' are"):
            _auxiliary(llama, kind)
    with pytest.raises(UserError, match=r"with cut 1 of 3 blocks, 0 to 2 are allowed$"):
        _auxiliary(language, 3)
    with pytest.raises(UserError, match=r"auxiliary is 'linear', which gives .* 0 to 2 blocks are allowed for"):
        _auxiliary(language, "linear")
    with pytest.raises(UserError, match="auxiliary is 0 and trains 'lora', which has nothing to adapt there"):
        _auxiliary(language, 0)
    assert trainable(_auxiliary(language, 0, trained="full"))
    # The last of resnet18's four stages begins with block 6 of 0 to 7.
    network = _cut("resnet18-32", 4)
    for kind in (0, 2, 5):
        with pytest.raises(UserError, match=rf"auxiliary is {kind}; .* 3 to 4 and 'linear' are allowed, as the head"):
            _auxiliary(network, kind)
    assert trainable(_auxiliary(_cut("resnet18-32", 7, top="full"), 0))
