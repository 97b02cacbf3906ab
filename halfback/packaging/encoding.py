"""How rows become what a packaged model takes, said so that a device without Transformers can do it alike.

`task_section` is the `task` of a package's manifest. For texts the package has the tokenizer's own file beside it
(`tokenizer_json`), and the section says how it is used; `halfback_device.tokens` describes the entries, and does it.
"""

from typing import Any

from torch import nn

from halfback.assembly.whole import preparation
from halfback.config import RunConfig
from halfback.data.encode import EncodedTask
from halfback.data.images import RGB_MEAN, RGB_STD
from halfback.data.prompts import generation_template
from halfback.errors import UserError
from halfback.models.families import family_of
from halfback.models.processor import Processor


def task_section(config: RunConfig, task: EncodedTask, whole: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """What a device must know of the task: its objective, its classes in order, and how rows become inputs.

    Args:
        config: of the run.
        task: the rows that it was built with.
        whole: the model before it is cut.
        tokenizer: None for images.

    Returns:
        Plain values, for JSON.

    Raises:
        UserError: rows are made in a way that a device can't.
    """
    section = {"objective": task.objective, "label_names": list(task.label_names)}
    if tokenizer is not None:
        return section | {"inputs": "texts", "texts": _texts(config, task, whole, tokenizer)}
    return section | {"inputs": "images", "images": _images(config, task)}


def tokenizer_json(tokenizer: Any) -> str:
    """The content of a tokenizer's own file.

    Raises:
        UserError: it is none of the kind that a device can read.
    """
    own = getattr(tokenizer, "backend_tokenizer", None)
    if own is None:
        raise UserError(
            f"{type(tokenizer).__name__} is written in Python: a device can use tokenizers with a file alone"
        )
    text: str = own.to_str()
    return text


def _texts(config: RunConfig, task: EncodedTask, whole: Any, tokenizer: Any) -> dict[str, Any]:
    options, template = config.task, config.task.template
    tokenizer_json(tokenizer)
    if task.objective == "generation":
        template = generation_template(template, has_pairs=task.has_pairs)
    longest = getattr(whole.config, "max_position_embeddings", None)
    if longest is not None and family_of(whole).positions_behind_padding:
        longest -= whole.config.pad_token_id + 1
    return {
        "max_length": options.max_length,
        "longest": longest,
        "template": template,
        "pair": task.has_pairs,
        "types": "token_type_ids" in tokenizer.model_input_names,
        "continued": options.verbaliser is not None,
        "side": tokenizer.truncation_side,
        "end": tokenizer.eos_token_id,
        "split_special": bool(tokenizer.split_special_tokens),
        "tokens": whole.get_input_embeddings().num_embeddings,
    }


def _images(config: RunConfig, task: EncodedTask) -> dict[str, Any]:
    """Of images in three channels, how a device makes them from pictures; of others, their shape."""
    _, channels, height, width = task.train.batch([0]).inputs["pixel_values"].shape
    form = {"channels": channels, "size": [height, width]}
    if channels != 3:
        return form
    processor = preparation(config.model, config.task).process
    if not isinstance(processor, Processor):
        return form | {"resample": 2, "scale": None, "mean": list(RGB_MEAN), "std": list(RGB_STD)}
    own = processor.own
    sides = {key: side for key, side in dict(own.size or {}).items() if side is not None}
    is_plain = own.do_resize and sides == {"height": height, "width": width}
    if not is_plain or getattr(own, "do_center_crop", False) or getattr(own, "do_pad", False):
        raise UserError(f"{type(own).__name__} does more than to resize images: a device can't; set task.image_size")
    return form | {
        "resample": int(own.resample),
        "scale": own.rescale_factor if own.do_rescale else 1.0,
        "mean": list(own.image_mean) if own.do_normalize else [0.0] * 3,
        "std": list(own.image_std) if own.do_normalize else [1.0] * 3,
    }
