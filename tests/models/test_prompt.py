"""A soft prompt below the cut: it is attended to, costs the text neither its positions nor its length, and stays."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIGS, classifier, vit
from torch import Tensor

from halfback.errors import UserError
from halfback.models.adapters import Lora, export, set_trainable, trainable
from halfback.models.cut import CutModel, cut, recut

NAMES = [name for name in CONFIGS if name != "vit"]
Inputs = Callable[[str], dict[str, Tensor]]


def _prompted(name: str, at: int = 2, seed: int = 0) -> CutModel:
    model = cut(classifier(name), at)
    set_trainable(model, bottom="prompt", top="none", lora=Lora(), seed=seed, prompt_tokens=3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_masked_prompt_is_none(name: str, inputs_of: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the text has the positions that the model itself gives it, and its mask stands where it did."""
    inputs, model = inputs_of(name), _prompted(name)
    plain = cut(classifier(name), 2).bottom(inputs)
    prompt = model.bottom.prompt
    assert prompt is not None
    seen = model.bottom(inputs)
    assert seen.shape == plain.shape
    mask = inputs["attention_mask"]
    assert (seen - plain)[mask].abs().max() > 1e-3  # the blocks attend to it
    arguments = prompt.arguments

    def masked(*given: object) -> dict[str, object]:
        taken = arguments(*given)  # type: ignore[arg-type]
        left = (mask.long().cumsum(-1) == 0).sum(-1)
        for row, first in enumerate(left):
            taken["attention_mask"][row, first : first + len(prompt)] = 0
        return taken

    monkeypatch.setattr(prompt, "arguments", masked)
    # Attention sums over three terms more, which are zeros: rounding alone.
    torch.testing.assert_close(model.bottom(inputs)[mask], plain[mask], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_the_padding(name: str, inputs_of: Inputs) -> None:
    inputs, model = inputs_of(name), _prompted(name)
    together = model.logits(inputs)
    mask = inputs["attention_mask"]
    for row in range(len(mask)):
        alone = {key: tensor[row : row + 1, mask[row]] for key, tensor in inputs.items()}
        torch.testing.assert_close(model.logits(alone), together[row : row + 1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_what_comes_out_is_the_text_in_its_places(name: str, inputs_of: Inputs) -> None:
    inputs, bottom = inputs_of(name), _prompted(name).bottom
    backbone = bottom.body.get_submodule(bottom.family.backbone)
    assert bottom.prompt is not None
    ids, mask = inputs["input_ids"], inputs["attention_mask"].long()
    given = bottom.prompt.arguments(bottom.family, backbone, {"input_ids": ids, "attention_mask": mask})
    embedded = backbone.get_input_embeddings()(ids)  # type: ignore[operator]
    assert torch.equal(bottom.prompt.without(given["inputs_embeds"], mask), embedded)
    assert given["inputs_embeds"].shape[1] == ids.shape[1] + 3


@torch.no_grad()
def test_where_it_starts_and_what_is_trained() -> None:
    model, other = _prompted("bert"), _prompted("bert", seed=1)
    theta = trainable(model.bottom)
    assert list(theta) == ["prompt.weight"]
    table = model.whole.get_submodule("bert").get_input_embeddings().weight  # type: ignore[operator]
    start = theta["prompt.weight"]
    assert start.shape == (3, table.shape[1])
    assert start.dtype == torch.float32
    assert all((table == row).all(dim=1).any() for row in start)
    assert not torch.equal(start, trainable(other.bottom)["prompt.weight"])
    assert torch.equal(start, trainable(_prompted("bert").bottom)["prompt.weight"])
    with pytest.raises(UserError, match="all devices need the same one"):
        recut(model, 1)


def test_images_have_no_prompt() -> None:
    model = cut(vit(), 2)
    with pytest.raises(UserError, match=r"bottom trains 'prompt', .* nothing to adapt; allowed are lora, "):
        set_trainable(model, bottom="prompt", top="none", lora=Lora(), seed=0)


def test_no_plain_model_can_hold_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("out") / "model"
    with pytest.raises(UserError, match="the prompt ends at the cut"):
        export(_prompted("llama"), folder)
    assert not folder.exists()
