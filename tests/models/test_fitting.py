"""Weights that are not the whole model's are refused by name; only a task's head may be new."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import BLOCKS, CONFIGS, DECODERS, ENCODERS, classifier, language_model, resnet, vit
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from halfback.errors import UserError
from halfback.models.families import family_of
from halfback.models.loading import ModelRequest, load_model
from halfback.models.resnet import file_names

Weights = dict[str, Tensor]


@cache
def original(name: str) -> nn.Module:
    return vit() if name == "vit" else classifier(name)


def saved(model: nn.Module, folder: Path) -> Weights:
    """The model's folder with a tokenizer of 99 words; returns what is in its file of weights."""
    model.save_pretrained(folder)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(95))]
    own = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **special).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def loaded(folder: Path, name: str, labels: int = 3, **arguments: object) -> nn.Module:
    head = "image" if name == "vit" else "classifier"
    return load_model(
        str(folder), ModelRequest(head=head, num_labels=labels, seed=1, **{"dtype": torch.float32, **arguments})
    )[0]


def block(weights: Weights, number: int) -> list[str]:
    return [key for key in weights if any(f"{path}.{number}." in key for path in ("h", "layer", "layers"))]


def without_block(weights: Weights) -> Weights:
    return {key: tensor for key, tensor in weights.items() if key not in block(weights, BLOCKS - 1)}


def without_one(weights: Weights) -> Weights:
    gone = block(weights, 0)[-1]
    return {key: tensor for key, tensor in weights.items() if key != gone}


def with_a_block_too_many(weights: Weights) -> Weights:
    last = block(weights, BLOCKS - 1)
    return weights | {key.replace(f".{BLOCKS - 1}.", f".{BLOCKS}.", 1): weights[key].clone() for key in last}


def narrower(weights: Weights) -> Weights:
    key = max(block(weights, 1), key=lambda key: weights[key].dim())
    return weights | {key: weights[key][:-1].clone()}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + key: tensor for key, tensor in weights.items()}


def another_family(weights: Weights) -> Weights:
    return {"backbone." + key.split(".", 1)[-1]: tensor for key, tensor in weights.items()}


def not_a_number(weights: Weights) -> Weights:
    key = block(weights, 1)[0]
    return weights | {key: weights[key].clone().fill_(torch.nan)}


def with_a_stranger(weights: Weights) -> Weights:
    return weights | {"stranger.weight": torch.zeros(2)}


FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "DDP": (prefixed("module."), r"take 'module\.' off its names"),
    "compiled": (prefixed("_orig_mod."), r"take '_orig_mod\.' off its names"),
    "PEFT": (prefixed("base_model.model."), r"take 'base_model\.model\.' off its names"),
    "another family": (another_family, r"tensor '\S+' \(\d+.*\) is missing; the file has 'backbone\."),
    "a block less": (without_block, r"tensor '\S+\.2\.\S+' \(\d+.*\) is missing; complete the file"),
    "a tensor less": (without_one, r"tensor '\S+\.0\.\S+' \(\d+.*\) is missing; complete the file"),
    "a block more": (with_a_block_too_many, r"tensor '\S+\.3\.\S+' of the file has no place"),
    "a stranger": (with_a_stranger, r"tensor 'stranger\.weight' of the file has no place"),
    "narrower": (narrower, r"tensor '\S+\.1\.\S+' is \(\d+.*\) in the file, the model needs \(\d+.*\)"),
    "not a number": (not_a_number, r"tensor '\S+\.1\.\S+' has values that are not finite in float32"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_that_are_not_the_models(name: str, tmp_path: Path) -> None:
    """Each fault by itself, and the whole file before and after: what is refused is the fault."""
    weights = saved(original(name), tmp_path)
    wanted = original(name).state_dict()
    for fault, (change, message) in FAULTS.items():
        save_file(change(weights), tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=message) as caught:
            loaded(tmp_path, name)
        assert "\n" not in str(caught.value), fault
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found = loaded(tmp_path, name).state_dict()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vit"])
def test_another_vocabulary(name: str, tmp_path: Path) -> None:
    model = original(name)
    saved(model, tmp_path)
    config, embedding = json.loads((tmp_path / "config.json").read_text()), next(iter(family_of(model).before))
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(UserError, match=rf"\.{embedding}[\w.]*' is \(99, \d+\) .* \(100, \d+\)"):
        loaded(tmp_path, name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_weights_by_other_names_and_in_other_files(name: str, tmp_path: Path) -> None:
    """The base model's name absent or twice, a .bin file, shards, bfloat16, heads and buffers of other tasks."""
    model = original(name)
    weights, base = saved(model, tmp_path), f"{model.base_model_prefix}."
    wanted = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(base)}
    file = tmp_path / "model.safetensors"

    def check(dtype: torch.dtype = torch.float32) -> None:
        found = loaded(tmp_path, name, dtype=dtype).state_dict()
        assert [key for key in wanted if not torch.equal(found[key], wanted[key].to(dtype))] == []

    bare = {key.removeprefix(base): tensor for key, tensor in weights.items() if key.startswith(base)}
    surplus = {f"{other}.weight": torch.zeros(2, 2) for other in family_of(model).other if other not in ("classifier",)}
    surplus = {key: tensor for key, tensor in surplus.items() if not key.startswith(family_of(model).head)}
    buffers = {
        f"{base}embeddings.position_ids": torch.zeros(1, 4),
        f"{base}layers.0.rotary_emb.inv_freq": torch.ones(2),
    }
    for given in (bare, {base + key: tensor for key, tensor in weights.items()}, weights | surplus | buffers):
        save_file(given, file, {"format": "pt"})
        check()
    save_file({key: tensor.bfloat16() for key, tensor in weights.items()}, file, {"format": "pt"})
    check(torch.bfloat16)
    file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    check()
    (tmp_path / "pytorch_model.bin").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    check()
    shards[1].unlink()
    with pytest.raises(UserError, match="cannot be loaded: "):
        loaded(tmp_path, name)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_file_has_twice_or_in_whole_numbers(name: str, tmp_path: Path) -> None:
    """Loading would take the last one, or round; twice the same is no fault."""
    model = original(name)
    weights, base = saved(model, tmp_path), f"{model.base_model_prefix}."
    key = next(key for key in weights if key.startswith(base) and ".1." in key)
    bare = key.removeprefix(base)

    def given(changes: Weights) -> nn.Module:
        save_file(weights | changes, tmp_path / "model.safetensors", {"format": "pt"})
        return loaded(tmp_path, name)

    found = given({bare: weights[key].clone()}).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(UserError, match=f"tensors .*{bare}' and .*{bare}' are one, and differ"):
        given({bare: weights[key] + 1})
    with pytest.raises(UserError, match=f"{key}' holds whole numbers; weights are floating point"):
        given({key: weights[key].to(torch.int8)})
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(tmp_path / file for file in index.values() if file != index[key])
    save_file(load_file(other) | {key: weights[key] + 1}, other, {"format": "pt"})
    with pytest.raises(UserError, match=f"tensors '{key}' and '{key}' are one, and differ"):
        loaded(tmp_path, name)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_may_be_new(name: str, tmp_path: Path) -> None:
    """Missing, or for another number of classes: drawn from the seed alone, and all else is the file's."""
    model = original(name)
    family = family_of(model)
    weights = saved(model, tmp_path)
    headless = {key: tensor for key, tensor in weights.items() if not key.startswith((*family.head, *family.fresh))}
    assert len(headless) < len(weights)
    save_file(headless, tmp_path / "model.safetensors", {"format": "pt"})
    first, again = loaded(tmp_path, name).state_dict(), loaded(tmp_path, name).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())
    for key, tensor in model.state_dict().items():
        if key.startswith((*family.head, *family.fresh)):
            assert not torch.equal(first[key], tensor), key
        else:
            assert torch.equal(first[key], tensor), key
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    heads = [tensor for key, tensor in loaded(tmp_path, name, 5).named_parameters() if key.startswith(family.head)]
    assert len(heads[-1]) == 5


def test_a_pooler_is_new_only_where_the_head_is(tmp_path: Path) -> None:
    """A fine-tuned head without the pooler that it was trained with would read noise."""
    weights = saved(original("bert"), tmp_path)
    given = {key: tensor for key, tensor in weights.items() if "pooler" not in key}
    save_file(given, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"'bert.pooler.dense.weight' \(32, 32\) is missing"):
        loaded(tmp_path, "bert")


@pytest.mark.parametrize("name", DECODERS)
def test_a_language_models_own_head(name: str, tmp_path: Path) -> None:
    """Tied to the embeddings it may be absent; otherwise it has to be there, and no part of it may be left unused."""
    model = language_model(name)
    weights = saved(model, tmp_path)
    tied = model.config.tie_word_embeddings
    assert all(key.startswith(f"{model.base_model_prefix}.") for key in weights) == tied
    head = load_model(str(tmp_path), ModelRequest(head="causal_lm", num_labels=1, seed=1))[0]
    assert torch.equal(head.lm_head.weight, model.lm_head.weight)
    loaded(tmp_path, name)  # a classifier leaves the head unused
    save_file(weights | {"lm_head.bias": torch.ones(99)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"'lm_head\.bias' of the file has no place"):
        load_model(str(tmp_path), ModelRequest(head="causal_lm", num_labels=1, seed=1))
    embedding = next(key for key in weights if key.endswith(f"{next(iter(family_of(model).before))}.weight"))
    rest = {key: tensor for key, tensor in weights.items() if key not in (embedding, "lm_head.weight")}
    save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"(embed_\w+|wte|lm_head)\.weight' \(99, \d+\) is missing"):
        load_model(str(tmp_path), ModelRequest(head="causal_lm", num_labels=1, seed=1))
    if not tied:
        saved(original(name), tmp_path)
        with pytest.raises(
            UserError, match=r"'lm_head\.weight' \(99, 32\) is missing; the file is no language model's"
        ):
            load_model(str(tmp_path), ModelRequest(head="causal_lm", num_labels=1, seed=1))


@pytest.mark.parametrize("name", ENCODERS)
def test_a_checkpoint_of_masked_language_modelling(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_config(CONFIGS[name])
    saved(model, tmp_path)
    base = getattr(model, name).state_dict()
    found = getattr(loaded(tmp_path, name), name).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in base.items())


def test_a_folder_with_an_adapter(tmp_path: Path) -> None:
    saved(original("bert"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter of PEFT: merge it"):
        loaded(tmp_path, "bert")


@pytest.mark.parametrize("content", [b"", b"broken", b"\x80\x02cos\nsystem\nq\x00."])
def test_a_bin_file_that_holds_no_weights(content: bytes, tmp_path: Path) -> None:
    saved(original("bert"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="cannot be loaded: ") as caught:
        loaded(tmp_path, "bert")
    assert "\n" not in str(caught.value)


def test_configurations_of_no_model(tmp_path: Path) -> None:
    """Wrong types and impossible values, quantised weights, and what is no configuration at all: one line each."""
    saved(original("bert"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changes: list[tuple[dict[str, object], str]] = [
        ({"hidden_size": "32"}, "cannot be read: Validation error for field 'hidden_size': TypeError: .*'32'"),
        ({"num_attention_heads": 0}, "cannot be loaded: "),
        ({"hidden_act": "swoosh"}, "cannot be loaded: there is no 'swoosh'"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"is quantised \(quantization_config in config.json\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised"),
    ]
    contents = [(json.dumps(config | change), message) for change, message in changes]
    contents += [(text, "config.json must hold names and values, not ") for text in ("[]", "null", '"bert"', "5")]
    for content, message in contents:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            loaded(tmp_path, "bert")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vit"])
@pytest.mark.parametrize("pad", [99, 10**6, None])
def test_a_padding_token_beyond_the_embedding(name: str, pad: int | None, tmp_path: Path) -> None:
    """Padding is masked, so it takes no weights; but RoBERTa counts the positions from its own."""
    saved(original(name), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    if name == "roberta":
        with pytest.raises(UserError, match=f"pad_token_id in config.json is {pad}; 0 to 98 are allowed"):
            loaded(tmp_path, name)
    else:
        found = loaded(tmp_path, name).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in original(name).state_dict().items())


def test_a_resnets_file(tmp_path: Path) -> None:
    """Prefixes, blocks, numbers that are none; a head that is missing or half there starts anew from the seed."""
    model = resnet("resnet8")
    names = file_names(model)
    tensors = {names[key]: tensor for key, tensor in model.state_dict().items()}
    path = tmp_path / "resnet8.safetensors"

    def state(**changes: Tensor) -> Weights:
        save_file(tensors | changes, path)
        return load_model(str(path), ModelRequest(head="image", num_labels=3, seed=1))[0].state_dict()

    assert torch.equal(state()["head.linear.weight"], tensors["linear.weight"])
    save_file({f"module.{key}": tensor for key, tensor in tensors.items()}, path)
    with pytest.raises(UserError, match=r"'module\.bn1\.bias' is not one of resnet8's"):
        load_model(str(path), ModelRequest(head="image", num_labels=3, seed=1))
    with pytest.raises(UserError, match=r"'stem\.bn1\.running_var' has values that are not finite"):
        state(**{"bn1.running_var": tensors["bn1.running_var"] * torch.inf})
    with pytest.raises(UserError, match=r"'conv1\.weight' is of torch\.int8; weights are floating point numbers"):
        state(**{"conv1.weight": tensors["conv1.weight"].to(torch.int8)})
    start = load_model("resnet8", ModelRequest(head="image", num_labels=3, seed=1))[0].state_dict()
    assert torch.equal(state(**{"linear.weight": torch.ones(())})["head.linear.weight"], start["head.linear.weight"])
    for gone in (("linear.bias",), ("linear.weight",), ("linear.bias", "linear.weight")):
        save_file({key: tensor for key, tensor in tensors.items() if key not in gone}, path)
        found = load_model(str(path), ModelRequest(head="image", num_labels=3, seed=1))[0].state_dict()
        assert torch.equal(found["head.linear.weight"], start["head.linear.weight"])
        assert torch.equal(found["head.linear.bias"], start["head.linear.bias"])
        assert torch.equal(found["stem.conv1.weight"], tensors["conv1.weight"])
