"""A part that is loaded alone has the bits of the whole model's, and what isn't held is neither read nor there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fitting import saved
from tiny_models import BLOCKS, CONFIGS, DECODERS, classifier, language_model, resnet, vit
from torch import Tensor, nn
from transformers import core_model_loading

from halfback.errors import UserError
from halfback.models.adapters import Lora, set_trainable, trainable
from halfback.models.auxiliary import auxiliary
from halfback.models.cut import CutModel, cut
from halfback.models.loading import HeadKind, ModelRequest, load_model
from halfback.models.part import Held, place
from halfback.models.resnet import file_names

Inputs = Callable[[str], dict[str, Tensor]]
Auxiliary = Literal["linear"] | int


class World:
    """A folder with a tiny model, and how it is loaded: whole, or a part of it."""

    def __init__(self, name: str, folder: Path, *, language: bool = False, labels: int = 3) -> None:
        self.folder = folder
        self.labels = labels
        self.head: HeadKind = "classifier"
        if name.startswith("resnet"):
            model = resnet(name)
            names = file_names(model)
            save_file(
                {names[key]: tensor for key, tensor in model.state_dict().items()}, folder / f"{name}.safetensors"
            )
            self.name, self.head = str(folder / f"{name}.safetensors"), "image"
            return
        self.name = str(folder)
        if name == "vit":
            self.head = "image"
        elif language:
            self.head = "causal_lm"
        saved(vit() if name == "vit" else language_model(name) if language else classifier(name), folder)

    def load(self, held: Held | None, **arguments: Any) -> nn.Module:
        return load_model(
            self.name, ModelRequest(head=self.head, num_labels=self.labels, seed=1, **arguments), held=held
        )[0]


def trained(model: nn.Module, at: int, head: int | None = None, **arguments: Any) -> CutModel:
    halves = cut(model, at, head=head)
    set_trainable(halves, bottom="lora", top="lora", lora=Lora(rank=2, **arguments), seed=5)
    return halves


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """All tensors of a module, with those that no file has, by name, dtype, and bit; and what is trained of them."""
    pairs = [(dict(m.state_dict()) | dict(m.named_buffers()), list(trainable(m))) for m in (one, other)]
    (mine, my_trained), (theirs, their_trained) = pairs
    assert list(mine) == list(theirs)
    assert [name for name, tensor in mine.items() if tensor.is_meta or not torch.equal(tensor, theirs[name])] == []
    assert my_trained == their_trained


def unheld(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


@pytest.mark.parametrize("name", [*CONFIGS, "resnet8", "resnet18-32"])
@torch.no_grad()
def test_a_bottom_alone(name: str, tmp_path: Path, inputs_of: Inputs) -> None:
    world, inputs = World(name, tmp_path), inputs_of(name)
    for at in (1, 2):
        whole, own = (trained(world.load(held), at) for held in (None, Held(at)))
        assert_same(own.bottom, whole.bottom)
        assert torch.equal(own.bottom(inputs), whole.bottom(inputs))
        held = dict(own.bottom.named_parameters())
        assert [name for name in unheld(own.whole) if name in held] == []
        assert {*unheld(own.top)} == {name for name, _ in own.top.named_parameters()}


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "opt-projected"])
@torch.no_grad()
def test_a_bottom_of_a_language_model(name: str, tmp_path: Path, inputs_of: Inputs) -> None:
    """Its head layer may be the embeddings, which the bottom has."""
    world, inputs = World(name, tmp_path, language=True), inputs_of(name)
    whole, own = (trained(world.load(held), 2) for held in (None, Held(2)))
    assert_same(own.bottom, whole.bottom)
    assert torch.equal(own.bottom(inputs), whole.bottom(inputs))
    assert own.top.get_submodule("body.lm_head").weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "bert", "vit", "resnet8"])
def test_a_bottom_in_another_dtype(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    world = World(name, tmp_path)
    whole, own = (trained(world.load(held, dtype=dtype), 1) for held in (None, Held(1)))
    assert_same(own.bottom, whole.bottom)


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("name", [*CONFIGS, "resnet8"])
@torch.no_grad()
def test_a_bottom_and_a_head(name: str, blocks: int, tmp_path: Path, inputs_of: Inputs) -> None:
    """The U-shape, with a head that the file has not: it is drawn from the seed, as the whole model's."""
    world, inputs = World(name, tmp_path, labels=5), inputs_of(name)
    whole, own = (trained(world.load(held), 1, blocks) for held in (None, Held(1, blocks)))
    assert_same(own.bottom, whole.bottom)
    assert_same(own.head, whole.head)
    assert [tensor.is_meta for tensor in own.top.parameters()] != []
    assert all(tensor.is_meta for tensor in own.top.parameters())
    hidden, lengths = whole.top(whole.bottom(inputs), inputs.get("lengths")), inputs.get("lengths")
    assert torch.equal(own.head(hidden, lengths), whole.head(hidden, lengths))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "opt", "gpt2"])
def test_a_tied_head_layer_is_held_once(name: str, tmp_path: Path) -> None:
    own = cut(World(name, tmp_path, language=True).load(Held(1, 0)), 1, head=0)
    embeddings, layer = own.bottom.body.get_input_embeddings().weight, own.head.get_submodule("body.lm_head").weight
    assert (embeddings is layer) is (name != "llama")
    set_trainable(own, bottom="lora", top="lora", lora=Lora(), seed=0)
    assert (own.bottom.body.get_input_embeddings().weight is own.head.get_submodule("body.lm_head").weight) is (
        name != "llama"
    )


@pytest.mark.parametrize("kind", ["linear", 0, 1])
@pytest.mark.parametrize("name", [*CONFIGS, "resnet8"])
@torch.no_grad()
def test_a_bottom_and_an_auxiliary_head(name: str, kind: Auxiliary, tmp_path: Path, inputs_of: Inputs) -> None:
    world, inputs = World(name, tmp_path, labels=5), inputs_of(name)
    if name == "resnet8" and kind != "linear":
        kind = 2  # its head layer needs the channels of the last stage
    held = Held(1) if kind == "linear" else Held(1 + kind, 0)
    heads = []
    for part in (None, held):
        halves = trained(world.load(part), 1)
        head = auxiliary(halves, kind, num_labels=5, trained="lora", lora=Lora(rank=2), seed=4)
        heads.append((halves.bottom, head))
    (whole, head), (own, other) = heads
    assert_same(own, whole)
    assert_same(other, head)
    lengths = inputs.get("lengths")
    assert torch.equal(other(own(inputs), lengths), head(whole(inputs), lengths))


@pytest.mark.parametrize("name", ["resnet8", "resnet18-32"])
def test_a_part_of_a_new_model(name: str) -> None:
    """All is drawn from the seed, and what isn't held is dropped."""
    whole, own = (
        load_model(name, ModelRequest(head="image", num_labels=4, seed=3), held=held)[0] for held in (None, Held(1, 0))
    )
    halves = [trained(model, 1, 0) for model in (whole, own)]
    assert_same(halves[1].bottom, halves[0].bottom)
    assert_same(halves[1].head, halves[0].head)
    assert unheld(own) == [key for key, _ in own.named_parameters() if key.startswith("blocks.") and key[7] != "0"]


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "resnet8"])
def test_where_the_weights_come_from_elsewhere(name: str, tmp_path: Path) -> None:
    """The files of the weights are not even there; tensors that no file has are as ever."""
    world = World(name, tmp_path)
    whole = cut(world.load(None), 1)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(b"") if name == "resnet8" else weights.unlink()
    own = cut(world.load(Held(1, read=False)), 1)
    shapes = [{key: (t.shape, t.dtype) for key, t in half.bottom.state_dict().items()} for half in (whole, own)]
    assert shapes[0] == shapes[1]
    own.bottom.load_state_dict(whole.bottom.state_dict())
    assert_same(own.bottom, whole.bottom)
    with pytest.raises(UserError, match="cannot be"):
        world.load(Held(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_files_of_other_forms(name: str, tmp_path: Path) -> None:
    """Without the base model's name, a .bin file, and shards, of which those of the top alone may be gone."""
    world = World(name, tmp_path)
    wanted, model = cut(world.load(None), 1).bottom, world.load(None)
    file, base = tmp_path / "model.safetensors", f"{model.base_model_prefix}."
    weights = load_file(file)
    bare = {key.removeprefix(base): tensor for key, tensor in weights.items() if key.startswith(base)}
    save_file(bare, file, {"format": "pt"})
    assert_same(cut(world.load(Held(1)), 1).bottom, wanted)
    file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_same(cut(world.load(Held(1)), 1).bottom, wanted)
    (tmp_path / "pytorch_model.bin").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert_same(cut(world.load(Held(1)), 1).bottom, wanted)


def test_what_is_wrong_with_a_part(tmp_path: Path) -> None:
    """Of a file whose tensors don't fit, or are not finite, those of the part count, and strangers."""
    world = World("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    below, above = (f"bert.encoder.layer.{number}.output.dense.weight" for number in (0, BLOCKS - 1))
    faults: list[tuple[dict[str, Tensor | None], str | None]] = [
        ({below: None}, "layer.0.output.dense.weight' .* is missing"),
        ({below: weights[below][:-1].clone()}, r"layer.0.output.dense.weight' is \(31, 40\) in the file"),
        (
            {below: weights[below].clone().fill_(torch.nan)},
            "layer.0.output.dense.weight' has values that are not finite",
        ),
        ({below: weights[below].to(torch.int8)}, "holds whole numbers"),
        ({"stranger.weight": torch.zeros(2)}, "'stranger.weight' of the file has no place"),
        ({f"bert.encoder.layer.{BLOCKS}.output.dense.weight": torch.zeros(2)}, "of the file has no place"),
        ({above: weights[above].clone().fill_(torch.nan)}, None),
    ]
    for changes, message in faults:
        given = {key: tensor for key, tensor in (weights | changes).items() if tensor is not None}
        save_file(given, file, {"format": "pt"})
        if message is None:
            world.load(Held(1))
        else:
            with pytest.raises(UserError, match=message):
                world.load(Held(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_of_the_top_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, read = World(name, tmp_path), []
    plain = core_model_loading._materialize_copy

    def noting(tensor: Any, *arguments: Any) -> Tensor:
        read.append(plain(tensor, *arguments))
        return read[-1]

    monkeypatch.setattr(core_model_loading, "_materialize_copy", noting)
    bottom = cut(world.load(Held(1)), 1).bottom
    assert sorted(tensor.numel() for tensor in read) == sorted(
        tensor.numel() for tensor in bottom.state_dict().values()
    )


@torch.no_grad()
def test_a_part_is_placed_on_a_device(tmp_path: Path, inputs_of: Inputs) -> None:
    """What has no values stays where it is."""
    model = place(World("bert", tmp_path).load(Held(1)), torch.device("cpu"))
    assert cut(model, 1).bottom(inputs_of("bert")).isfinite().all()
    assert len(unheld(model)) == 36
