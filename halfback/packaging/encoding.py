"""How rows become what a packaged model takes, said so that a device without Transformers can do it alike.

`task_section` is the `task` of a package's manifest. For texts the package has the tokenizer's own file beside it
(`tokenizer_json`), and the section says how it is used; `halfback_device.tokens` describes the entries, and does it.
"""

from typing import Any

from halfback.assembly.whole import Loaded
from halfback.config import RunConfig
from halfback.data.images import RGB_MEAN, RGB_STD
from halfback.data.prompts import generation_template
from halfback.errors import UserError
from halfback.models.families import family_of
from halfback.models.processor import Processor


def task_section(loaded: Loaded, config: RunConfig) -> dict[str, Any]:
    """What a device must know of the task: its objective, its classes in order, and how rows become inputs.

    Args:
        loaded: the model before it is cut, with its tokenizer or preprocessor, and the rows that it was built with.
        config: of the run.

    Returns:
        Plain values, for JSON.

    Raises:
        UserError: rows are made in a way that a device can't.
    """
    raw = loaded.raw
    section = {"objective": raw.objective, "label_names": list(raw.label_names)}
    if raw.train.images is None:
        return section | {"inputs": "texts", "texts": _texts(loaded, config)}
    return section | {"inputs": "images", "images": _images(loaded)}


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


def _texts(loaded: Loaded, config: RunConfig) -> dict[str, Any]:
    tokenizer, options = loaded.tokenizer, config.task
    whole: Any = loaded.whole
    tokenizer_json(tokenizer)
    pair = loaded.raw.train.pairs is not None
    template, model = options.template, getattr(whole, "config", None)
    if loaded.raw.objective == "generation":
        template = generation_template(template, has_pairs=pair)
    longest = getattr(model, "max_position_embeddings", None)
    if longest is not None and family_of(whole).positions_behind_padding:
        longest -= model.pad_token_id + 1
    return {
        "max_length": options.max_length,
        "longest": longest,
        "template": template,
        "pair": pair,
        "types": "token_type_ids" in tokenizer.model_input_names,
        "continued": options.verbaliser is not None,
        "side": tokenizer.truncation_side,
        "end": tokenizer.eos_token_id,
        "split_special": bool(tokenizer.split_special_tokens),
        "tokens": whole.get_input_embeddings().num_embeddings,
    }


def _images(loaded: Loaded) -> dict[str, Any]:
    """Of images in three channels, how a device makes them from pictures; of others, their shape."""
    images, processor = loaded.raw.train.images, loaded.how.process
    assert images is not None
    _, channels, height, width = images.shape
    form = {"channels": channels, "size": [height, width]}
    if channels != 3:
        return form
    if not isinstance(processor, Processor):
        return form | {"resample": 2, "scale": None, "mean": list(RGB_MEAN), "std": list(RGB_STD)}
    own = processor.own
    size = dict(own.size or {})
    wanted = {"height": height, "width": width}
    is_plain = {key: side for key, side in size.items() if side is not None} == wanted
    if not (own.do_resize and is_plain) or getattr(own, "do_center_crop", False) or getattr(own, "do_pad", False):
        raise UserError(f"{type(own).__name__} does more than to resize images: a device can't; set task.image_size")
    return form | {
        "resample": int(own.resample),
        "scale": own.rescale_factor if own.do_rescale else 1.0,
        "mean": list(own.image_mean) if own.do_normalize else [0.0] * 3,
        "std": list(own.image_std) if own.do_normalize else [1.0] * 3,
    }
