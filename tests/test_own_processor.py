"""A model's own preprocessor makes its images, in training, evaluation and for who loads the export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from command import halfback, refusal
from PIL import Image

from halfback import config as configuration
from halfback.assembly import Built, build
from halfback.errors import UserError
from halfback.models.processor import own_processor, own_size

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
VIT: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", **HALF}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for place, name in enumerate(("dark", "light")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(4 * place + number).integers(0, 128, (20, 26, 3)) + 127 * place
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    settings = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **settings))
    model.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def with_processor(model: Path, settings: dict[str, Any]) -> Path:
    (model / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def made(model: Path | str, data: Path, **task: Any) -> Built:
    tree = {"name": "images", "train": str(data), "validation": str(data), **task}
    config = {"algorithm": {"name": "frozen_bottom"}, "model": {"name": str(model), "cut": 1}, "device": "cpu"}
    return build(configuration.from_tree({**config, "task": tree, "clients": 2, "sampled_clients": 1}, {}))


def pixels(built: Built) -> torch.Tensor:
    return built.task.train.batch(range(8)).inputs["pixel_values"]


def by_hand(data: Path, size: int, resample: Image.Resampling, mean: Any = 0.5, std: Any = 0.5) -> torch.Tensor:
    files = sorted(data.glob("*/*.png"))
    rows = [np.asarray(Image.open(file).resize((size, size), resample), dtype=np.float64) for file in files]
    return torch.from_numpy((np.stack(rows) / 255 - mean) / std).permute(0, 3, 1, 2).float()


def test_mean_deviation_size_and_resampling_are_the_models(vit: Path, photographs: Path) -> None:
    bicubic, bilinear = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
    for resample in (bicubic, bilinear):
        with_processor(vit, VIT | {"size": {"height": 8, "width": 8}, "resample": int(resample)})
        assert torch.allclose(pixels(made(vit, photographs)), by_hand(photographs, 8, resample), atol=1e-5)
    (vit / "preprocessor_config.json").unlink()
    plain = by_hand(photographs, 8, bilinear, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(pixels(made(vit, photographs)), plain, atol=1e-5)  # the size is the model's all the same
    assert torch.equal(pixels(made("resnet8", photographs, image_size=8)), pixels(made(vit, photographs)))
    assert pixels(made("resnet8", photographs)).shape[-1] == 32


@pytest.mark.parametrize(
    "settings",
    [
        VIT | {"size": 8},
        VIT | {"size": 8, "image_processor_type": "ViTImageProcessorFast"},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 8, **HALF},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 12}, "crop_size": 8, **HALF},
        {"image_processor_type": "CLIPImageProcessor", "size": 12, "crop_size": {"height": 8, "width": 8}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 8}},
        VIT | {"size": 8, "do_normalize": False},
        VIT | {"size": 8, "do_rescale": False},
        VIT | {"size": 8, "rescale_factor": 0.1, "do_resize": True},
    ],
    ids=str,
)
def test_whatever_a_preprocessor_says_is_done(settings: dict[str, Any], vit: Path, photographs: Path) -> None:
    with_processor(vit, settings)
    theirs = transformers.AutoImageProcessor.from_pretrained(vit, backend="pil")
    files = [Image.open(file) for file in sorted(photographs.glob("*/*.png"))]
    wanted = theirs(images=files, return_tensors="pt")["pixel_values"].float()
    assert wanted.shape == (8, 3, 8, 8)
    assert torch.equal(pixels(made(vit, photographs)), wanted)


def test_a_preprocessor_that_cannot_be_used(vit: Path, photographs: Path, tmp_path: Path) -> None:
    def said(settings: Any, *more: str) -> str:
        (vit / "preprocessor_config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
        task = ("task.name=images", f"task.train={photographs}", "clients=2", "sampled_clients=1", *more)
        start = ("train", f"model.name={vit}", "model.cut=1", "algorithm.name=frozen_bottom", "--out", tmp_path / "run")
        return refusal(halfback(*start, *task))

    assert "preprocessor_config.json of model" in said("{")
    assert "preprocessor_config.json of model" in said("[]")
    assert "preprocessor_config.json of model" in said({"image_processor_type": "Nonsense"})
    assert "preprocessor_config.json of model" in said(VIT | {"size": 8, "image_mean": [0.5] * 2})
    for value in ("NaN", "1e999"):
        assert "values that are not finite" in said(
            json.dumps(VIT | {"size": 8, "rescale_factor": None}).replace("null", value)
        )
    assert "values that are not finite" in said(VIT | {"size": 8, "image_std": [0.0] * 3})
    assert "size is {'height': 1000000, 'width': 1000000}, up to 4096" in said(VIT | {"size": 1_000_000})
    assert "crop_size is " in said({"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 10**9})
    assert "task.image_size=1000000: up to 4096" in said(VIT | {"size": 8}, "task.image_size=1000000")
    assert "of an image, not (3, H, W)" in said({"image_processor_type": "VideoMAEImageProcessor"})
    assert "leaves images as wide or as high as they are" in said(VIT | {"do_resize": False})
    assert "takes 8×8" in said(VIT | {"size": 8}, "task.image_size=16")


def test_no_code_of_a_models_folder_runs_whatever_the_user_types(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers asks at a terminal, and yes is soon said."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = tmp_path / "ran"
    (vit / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    for kind, file in (("AutoImageProcessor", "preprocessor_config.json"), ("AutoConfig", "config.json")):
        tree = {"image_processor_type": "Mine", "model_type": "mine", "auto_map": {kind: "mine.Mine"}}
        (vit / file).write_text(json.dumps(tree))
        if kind == "AutoConfig":
            own_size(str(vit))
        else:
            with pytest.raises(UserError, match="can't be used"):
                own_processor(str(vit), 8)
        assert not ran.exists()


def test_a_recipes_size_stands_in_the_place_of_the_preprocessors(vit: Path) -> None:
    with_processor(vit, {"image_processor_type": "BitImageProcessor", "size": 12, "crop_size": 8, **HALF})
    for size, shape in ((None, (3, 8, 8)), (8, (3, 8, 8)), (16, (3, 16, 16))):
        processor = own_processor(str(vit), size)
        assert processor is not None
        assert processor(Image.new("RGB", (30, 20))).shape == shape


@pytest.mark.parametrize("own", [True, False], ids=["own", "plain"])
@pytest.mark.parametrize("kind", ["vit", "resnet8"])
def test_an_export_says_how_its_images_were_made(
    kind: str, own: bool, vit: Path, photographs: Path, tmp_path: Path
) -> None:
    """A model of ours has none of its own before its first export."""
    name: Path | str = vit if kind == "vit" else kind
    if own and kind == "vit":
        with_processor(vit, VIT | {"size": 8, "resample": 3})
    elif own:
        name = tmp_path / "first"
        _export("resnet8", photographs, tmp_path / "before", name)
    model = tmp_path / "model"
    _export(name, photographs, tmp_path / "run", model)
    seen = pixels(made(name, photographs, image_size=8))
    theirs = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    files = [Image.open(file) for file in sorted(photographs.glob("*/*.png"))]
    assert torch.allclose(theirs(images=files, return_tensors="pt")["pixel_values"], seen, atol=1e-5)
    assert torch.allclose(pixels(made(model, photographs)), seen, atol=1e-5)


def _export(name: Path | str, data: Path, out: Path, model: Path) -> None:
    task = ("task.name=images", f"task.train={data}", f"task.validation={data}", "task.image_size=8")
    run = ("algorithm.name=frozen_bottom", "clients=2", "sampled_clients=1", "steps=1", "batch_size=2", "device=cpu")
    said = halfback("train", f"model.name={name}", "model.cut=1", *task, *run, "--out", out)
    assert said.status == 0, said.err
    assert halfback("export", out, "--out", model).status == 0
