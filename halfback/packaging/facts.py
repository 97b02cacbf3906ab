"""What a package's manifest says of the model and of the task, as a device needs it."""

from typing import Any, cast

from halfback.assembly import Built
from halfback.assembly.whole import preparation
from halfback.data.images import RGB_MEAN, RGB_STD
from halfback.errors import UserError
from halfback.models.processor import Processor
from halfback.models.running import Bottom


def model_facts(bottom: Bottom, longest: int) -> dict[str, Any]:
    """The family, the cut, and how texts of up to `longest` tokens are laid out."""
    family, config = bottom.family, cast(Any, bottom.body).config
    texts = family.kind != "image"
    return {
        "family": family.name,
        "kind": family.kind,
        "cut": len(bottom.blocks),
        "width": config.hidden_size if texts else None,
        "longest": longest,
        "positions_behind": config.pad_token_id if texts and family.positions_behind_padding else None,
    }


def longest(built: Built) -> int:
    """The most tokens of a row: what the recipe cuts rows to, or what the model has positions for."""
    config = cast(Any, built.model.whole).config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and built.model.family.positions_behind_padding:
        positions -= config.pad_token_id + 1
    return min(built.config.task.max_length, positions or built.config.task.max_length)


def task_facts(built: Built) -> dict[str, Any]:
    """The objective, the classes, and how a device makes rows of its own."""
    task, tokenizer = built.task, built.tokenizer
    facts: dict[str, Any] = {"objective": task.objective, "label_names": list(task.label_names)}
    if tokenizer is None:
        return facts | {"inputs": "images", "images": _images(built)}
    return facts | {"inputs": "texts", "texts": _texts(built, tokenizer)}


def _images(built: Built) -> dict[str, Any]:
    """The form of the values, and for images in colour how they come from pixels.

    `resample` is Pillow's number of a filter; `scale` a factor of the pixels, None for a division by 255.

    Raises:
        UserError: the model's own preprocessor does more than that.
    """
    _, channels, height, width = built.task.train.batch([0]).inputs["pixel_values"].shape
    facts: dict[str, Any] = {"channels": channels, "size": [height, width]}
    if channels != 3:
        return facts
    process = preparation(built.config.model, built.config.task).process
    if process is None:
        return facts | {"resample": 2, "scale": None, "mean": list(RGB_MEAN), "std": list(RGB_STD)}  # bilinear
    own: Any = cast(Processor, process).own
    size = dict(getattr(own, "size", None) or {})
    does = [key for key, value in vars(own).items() if key.startswith("do_") and value]
    if sorted({*does, "do_convert_rgb"}) != ["do_convert_rgb", "do_normalize", "do_rescale", "do_resize"] or (
        size.get("height"),
        size.get("width"),
    ) != (height, width):
        raise UserError("the model's preprocessor does more than to resize, scale and normalise, or less")
    return facts | {
        "resample": int(own.resample),
        "scale": float(own.rescale_factor),
        "mean": list(own.image_mean),
        "std": list(own.image_std),
    }


def _texts(built: Built, tokenizer: Any) -> dict[str, Any]:
    options = built.config.task
    pair = options.pair is not None
    template = options.template
    if built.task.objective == "generation" and template is None:
        template = "{text} {pair} =>" if pair else "{text} =>"
    positions = longest(built)
    return {
        "max_length": options.max_length,
        "longest": positions,
        "template": template,
        "pair": pair,
        "types": "token_type_ids" in tokenizer.model_input_names,
        "continued": options.verbaliser is not None,
        "side": tokenizer.truncation_side,
        "end": tokenizer.eos_token_id if built.task.objective == "generation" else None,
        "split_special": bool(getattr(tokenizer, "split_special_tokens", False)),
        "tokens": cast(Any, built.model.whole).get_input_embeddings().num_embeddings,
    }
