"""A package in the device's runtime against the reference: activations, slopes, exact gradients, the head."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from packed import Packed, arrays, cut_model, inputs_of, moved, off, packed, whole
from tiny_models import CONFIGS, language_model
from torch import Tensor

from halfback.data.batches import Batch
from halfback.models import packing
from halfback.models.adapters import Lora, set_trainable
from halfback.models.cut import cut
from halfback.models.objectives import loss_of, scored, terms
from halfback.models.quantising import quantise, quantised
from halfback.parties.client_feedback import head_gradient
from halfback.parties.holdings import Head
from halfback.wire.messages import MiddleActivations
from halfback_device import layout
from halfback_device.errors import PackageError
from halfback_device.package import dequantised
from halfback_device.runtime import Head as DeviceHead

# Float32 sums of up to some hundred products in another order: a few units of 1e-7 of the largest value.
ALLOWED = 3e-6
WITHOUT_BIAS = ("llama", "llama-tied", "mistral", "qwen3", "gemma3_text")
ALL = [(name, trained) for name in CONFIGS for trained in ("lora", "lora_b", "ia3", "norm", "full")]
ALL += [(name, "bias") for name in CONFIGS if name not in WITHOUT_BIAS]
ALL += [(name, trained) for name in ("resnet8", "resnet18-32") for trained in ("lora", "norm", "full")]
CHOSEN = [("qwen3", "full"), ("gpt2", "bias"), ("resnet8", "full"), ("vit", "norm")]
"""Rotary positions and windows; kinds that differ in a number; convolutions that stride; a model of images."""


def _assert_alike(own: Packed, inputs: dict[str, Tensor]) -> None:
    """Activations, and exact gradients of all blocks."""
    found, noted = own.device.noting(arrays(inputs), own.theta.__getitem__, own.parts.exact_blocks)
    wanted = own.parts.bottom(inputs)
    assert off([found], [wanted]) < ALLOWED
    cotangent = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    slopes = own.device.exact(noted, cotangent.numpy(), own.theta.__getitem__)
    assert sorted(slopes) == sorted(own.parts.exact)
    assert not noted.entered
    exact = [own.parts.theta[name] for name in own.parts.exact]
    gradients = torch.autograd.grad((wanted * cotangent).sum(), exact)
    assert off([slopes[name] for name in own.parts.exact], list(gradients)) < ALLOWED


@pytest.mark.parametrize("lengths", [(7, 10, 11), (1,), (3, 3), (1, 1, 1, 30), (20, 11, 2, 19, 13)])
def test_texts_of_many_lengths(bert: Packed, lengths: tuple[int, ...]) -> None:
    _assert_alike(bert, inputs_of("bert", lengths))


def test_several_rows(bert: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, of which one is not full."""
    for module in (packing, layout):
        monkeypatch.setattr(module, "_shared_out", lambda *_: ((0, 2), (1,)))
    _assert_alike(bert, inputs_of("bert"))


def test_token_types(bert: Packed) -> None:
    _assert_alike(bert, inputs_of("bert") | {"token_type_ids": torch.arange(28) % 2})


@pytest.mark.parametrize(("name", "trained"), CHOSEN)
def test_families(name: str, trained: str, tmp_path: Path) -> None:
    _assert_alike(packed(cut_model(name, trained), tmp_path / "package"), inputs_of(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trained"), [each for each in ALL if each not in CHOSEN])
def test_every_family_and_all_that_it_may_train(name: str, trained: str, tmp_path: Path) -> None:
    _assert_alike(packed(cut_model(name, trained), tmp_path / "package"), inputs_of(name))


def test_a_slope_is_the_gradient_along_its_direction(bert: Packed) -> None:
    """Central differences: their own error falls as μ², and float32's rounding of ⟨λ, z⟩ is divided by μ."""
    inputs, random = inputs_of("bert"), np.random.default_rng(0)
    theta = bert.theta
    direction = {name: random.choice([-1, 1], array.shape).astype(np.float32) for name, array in theta.items()}
    found, noted = bert.device.noting(arrays(inputs), theta.__getitem__, 2)
    cotangent = random.standard_normal(found.shape).astype(np.float32)
    slopes = bert.device.exact(noted, cotangent, theta.__getitem__)
    exact = sum(float((slopes[name].astype(np.float64) * direction[name]).sum()) for name in theta)
    ends = [
        bert.device.forward(arrays(inputs), lambda name, move=move: theta[name] + np.float32(move) * direction[name])
        for move in (1e-3, -1e-3)
    ]
    measured = float((cotangent.astype(np.float64) * (ends[0].astype(np.float64) - ends[1])).sum()) / 2e-3
    assert measured == pytest.approx(exact, rel=1e-3)


def test_theta_is_asked_for_when_its_block_is_next(bert: Packed) -> None:
    asked = list[str]()
    theta = bert.theta
    bert.device.forward(arrays(inputs_of("bert")), lambda name: asked.append(name) or theta[name])  # type: ignore[func-returns-value]
    assert asked == list(theta)


def test_layouts_are_the_references() -> None:
    random = np.random.default_rng(0)
    for width in (16, 384, 4096):
        for _ in range(50):
            lengths = random.integers(1, 200, random.integers(1, 20)).tolist()
            ours, theirs = layout.lay_out(lengths, width), packing.lay_out(torch.tensor(lengths), width)
            assert np.array_equal(ours.positions, theirs.positions.numpy())
            assert np.array_equal(ours.texts, theirs.samples.numpy())
            assert ours.spots() == theirs.spots()
            ids = random.integers(0, 9, sum(lengths))
            laid = theirs.lay(torch.from_numpy(ids))
            assert np.array_equal(ours.lay(ids), laid.numpy())
            assert np.array_equal(ours.take(ours.lay(ids)), ids)


def test_eight_bits(tmp_path: Path) -> None:
    """All parties' floats are the package's whole numbers times their scales, and what is trained is as it was."""
    model = cut_model("bert", "lora")
    before = {name: tensor.detach().clone() for name, tensor in model.bottom.state_dict().items()}
    quantise(model.bottom)
    own = packed(model, tmp_path / "package")
    stored = own.package.weights
    eight = {name for name, array in stored.items() if array.dtype == np.int8}
    # 6 linear layers in each of 2 blocks, and 3 tables of embeddings.
    assert len(eight) == 15
    assert len(quantised(model.bottom)) == 15
    for name, tensor in model.bottom.state_dict().items():
        held = stored[f"0.{name}"]
        if f"0.{name}" in eight:
            assert np.abs(held).max() == 127
            held = dequantised(held, stored[f"0.{name}.scale"])
            # Half of a step: the largest of a channel is 127 steps.
            bound = before[name].abs().amax(1, keepdim=True) / 127 * 0.5001
            assert ((tensor - before[name]).abs() <= bound).all()
        else:
            assert torch.equal(tensor, before[name])
        assert np.array_equal(held, tensor.numpy())
    _assert_alike(own, inputs_of("bert"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "opt-projected", "vit"])
def test_eight_bits_of_other_families(name: str, tmp_path: Path) -> None:
    """Matrices that are the other way round, tied embeddings, a projection of them, and a convolution."""
    model = cut_model(name, "lora")
    quantise(model.bottom)
    own = packed(model, tmp_path / "package")
    assert any(array.dtype == np.int8 for array in own.package.weights.values())
    _assert_alike(own, inputs_of(name))


HEADS = [("bert", "class", 1, "lora"), ("gpt2", "token", 0, "full"), ("resnet8", "class", 1, "full")]
OTHER_HEADS = [
    *(("roberta", "class", 0, "lora"), ("vit", "class", 1, "lora"), ("opt", "token", 1, "full")),
    *(("qwen3", "word", 1, "lora"), ("gemma3_text", "token", 1, "full"), ("mistral", "class", 1, "lora")),
]


@pytest.mark.parametrize(("name", "kind", "blocks", "trained"), HEADS)
def test_heads(name: str, kind: str, blocks: int, trained: str, tmp_path: Path) -> None:
    _assert_head(name, kind, blocks, trained, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "blocks", "trained"), OTHER_HEADS)
def test_other_heads(name: str, kind: str, blocks: int, trained: str, tmp_path: Path) -> None:
    _assert_head(name, kind, blocks, trained, tmp_path)


def _assert_head(name: str, kind: str, blocks: int, trained: str, tmp_path: Path) -> None:
    """Loss and gradients on three samples, of which one may have no token that counts."""
    model = cut(
        whole(name) if kind == "class" else language_model(name),
        1,
        head=blocks,
        verbaliser=[5, 9] if kind == "word" else None,
    )
    bottom = "full" if name.startswith("resnet") else "lora"
    set_trainable(model, bottom=bottom, top=trained, lora=Lora(rank=2), seed=0)  # type: ignore[arg-type]
    assert model.head is not None
    moved(model.head)
    inputs, labels, places = inputs_of(name), torch.tensor([0, 1, 1]), None
    lengths = inputs.get("lengths")
    with torch.no_grad():
        middle = model.top(model.bottom(inputs), lengths)  # type: ignore[arg-type]
    if kind == "token":
        labels = inputs["input_ids"].clone()
        labels[:7], labels[[7, 17, 18, 19]] = -100, -100
        places = scored(labels)
    objective = "causal_lm" if kind == "token" else "classification"
    head = Head(model.head, loss_of(objective), partial(terms, objective), tuple(middle.shape[1:]))  # type: ignore[arg-type]
    own = packed(model, tmp_path / "package", head=head, exact=False)
    device = DeviceHead(own.package)
    assert device.sizes == head.sizes
    assert device.shapes == {key: tuple(tensor.shape) for key, tensor in head.parameters.items()}
    tensors = tuple(tensor.detach().clone() for tensor in head.parameters.values())
    given = [None if each is None else each.numpy() for each in (lengths, labels, places)]
    gradient, loss, of_head = device.loss(middle.numpy(), [t.numpy() for t in tensors], *given)
    said = head_gradient(head, Batch(inputs, labels, torch.arange(3), places), MiddleActivations(middle, tensors))
    assert loss == pytest.approx(float(said.loss), rel=1e-5)
    assert off([gradient], [said.gradient]) < ALLOWED
    assert off(of_head, list(said.head)) < ALLOWED


def test_a_text_that_is_too_long(bert: Packed) -> None:
    with pytest.raises(PackageError, match="a text has 41 tokens; this package is for 40 at most"):
        bert.device.forward(arrays(inputs_of("bert", (3, 41))), bert.theta.__getitem__)


def test_a_package_without_a_head_has_none(bert: Packed) -> None:
    with pytest.raises(PackageError, match="has no head"):
        DeviceHead(bert.package)


def test_without_exact_gradients_there_are_no_graphs_of_them(tmp_path: Path) -> None:
    own = packed(cut_model("resnet8", "norm"), tmp_path / "package", exact=False)
    assert not list(own.folder.glob("*_gradient.onnx"))
    found, noted = own.device.noting(arrays(inputs_of("resnet8")), own.theta.__getitem__, 1)
    with pytest.raises(PackageError, match="no gradients of its blocks"):
        own.device.exact(noted, found, own.theta.__getitem__)


def test_the_runtime_needs_no_pytorch(bert: Packed) -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'pydantic', 'halfback', 'onnx')))\n"
        "from halfback_device.package import Package\n"
        "from halfback_device.runtime import Bottom\n"
        f"package = Package.open({str(bert.folder)!r})\n"
        "import numpy as np\n"
        "inputs = {'input_ids': np.array([5, 6, 7]), 'lengths': np.array([3])}\n"
        "print(Bottom(package).forward(inputs, package.theta().__getitem__).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": "device"})
    assert done.stdout == "(3, 32)\n", done.stderr
