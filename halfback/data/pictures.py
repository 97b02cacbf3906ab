"""One meaning for every mode of a picture: eight bits each of red, green and blue, on a white ground.

| mode of Pillow | what it becomes |
| --- | --- |
| `1`, `L` | grey: the same value thrice |
| `P`, `RGB`, `RGBX`, `CMYK`, `YCbCr`, `HSV`, `LAB` | its colours; the fourth value of `RGBX` is not looked at |
| `LA`, `La`, `PA`, `RGBA`, `RGBa`, and whatever names transparent colours | laid on white |
| `I;16` and its kin | of 65,535 (a TIFF of fewer bits: of as many), rounded to 255 |
| `I` of a PNG, PGM or JPEG 2000 | as `I;16`, which it is there |
| `I`, `F` of a TIFF that says its smallest and its largest value | of that range; any other is refused |

A turned picture (EXIF) is put upright, of an animation or a file of several pages the first picture is taken. What has
more than eight bits a colour has lost them in Pillow.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from halfback.errors import UserError, first_line

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_OTHERS = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_WHOLE_16 = ("PNG", "PPM", "JPEG2000")  # formats whose whole numbers have sixteen bits, where Pillow says `I`
_KEYS: dict[object, Callable[[Any], Any]] = {  # from a PNG's transparent colour as it is stored to Pillow's values
    "L;2": lambda key: 85 * key,
    "L;4": lambda key: 17 * key,
    "RGB;16B": lambda key: tuple(value >> 8 for value in key),
}
_INVERTED, _BITS, _SMALLEST, _LARGEST = 262, 258, (340, 280), (341, 281)  # tags of a TIFF


def read_picture(opened: Callable[[], Image.Image], name: str) -> Image.Image:
    """A picture as RGB; `name` is its file's, for messages.

    Raises:
        UserError: it can't be read, or nobody says what its values mean.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes below its own limit and odd metadata
            return _as_rgb(opened(), name)
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"image {name!r} can't be read: it is no image of a kind that is known") from None
    except Exception as error:  # bytes from anywhere: Pillow's readers raise whatever they stumble over
        raise UserError(f"image {name!r} can't be read: {first_line(error)}") from error


def _as_rgb(picture: Image.Image, name: str) -> Image.Image:
    parts = getattr(picture, "tile", None) if picture.format == "PNG" else None
    stored = parts[0].args if parts else None
    picture.load()
    form, tags = picture.format, dict(getattr(picture, "tag_v2", {}))
    if stored in _KEYS and "transparency" in picture.info:  # Pillow scales the values, but not this one
        picture.info["transparency"] = _KEYS[stored](picture.info["transparency"])
    key = picture.info.get("transparency")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in (*_DEEP, "I", "F"):
        grey = _scaled(picture, form, tags, name)
        if picture.mode != "F" and isinstance(key, int):  # a value that stands for nothing
            grey[np.asarray(picture) == key] = 255
        picture = Image.fromarray(grey)
    if picture.mode == "La":  # Pillow knows no shorter way
        picture = picture.convert("LA")
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if picture.mode not in _OTHERS:
        raise UserError(f"image {name!r} has mode {picture.mode}, whose meaning is not known; save it as RGB or grey")
    return picture.convert("RGB")


def _scaled(picture: Image.Image, form: str | None, tags: dict[int, Any], name: str) -> np.ndarray:
    """Grey values of more than eight bits as (H, W) uint8."""
    values = np.asarray(picture).astype(np.float64)
    if picture.mode in _DEEP or (picture.mode == "I" and form in _WHOLE_16):
        smallest, largest = 0.0, float((1 << _first(tags.get(_BITS, 16))) - 1)
    else:
        smallest, largest = (
            next((float(_first(tags[tag])) for tag in either if tag in tags), np.nan)
            for either in (_SMALLEST, _LARGEST)
        )
        if not smallest < largest:
            kind = "floats" if picture.mode == "F" else "whole numbers of 32 bits"
            raise UserError(
                f"image {name!r} has {kind}, and no range is said that they are of; save it with 8 or 16 bits"
            )
    if not np.isfinite(values).all():
        raise UserError(f"image {name!r} has a value that is not finite")
    values = (values - smallest).clip(0, largest - smallest) / (largest - smallest)
    return np.rint(255 * (1 - values if tags.get(_INVERTED) == 0 else values)).astype(np.uint8)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
