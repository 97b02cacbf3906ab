"""Pictures: folders of them, and one meaning for every mode: eight bits each of red, green and blue, on a white ground.

A class is the first folder below the one that is named. Transparent colours are laid on white, grey is the same value
thrice, whole numbers of sixteen bits are rounded to eight, a turned picture (EXIF) is put upright, and of several pages
the first counts: what the reference makes of each mode (halfback/data/pictures.py), this makes of it, to the bit.
Needs Pillow, which the extra `images` brings.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from halfback_device.tables import RowError

_LITTER = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}  # of systems
_OTHER_IMAGES = {".avif", ".heic", ".heif", ".jxl"}  # errors where Pillow can't read them, not left out
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
        RowError: it can't be read, or nobody says what its values mean.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes below its own limit and odd metadata
            return _as_rgb(opened(), name)
    except RowError:
        raise
    except UnidentifiedImageError:
        raise RowError(f"image {name!r} can't be read: it is no image of a kind that is known") from None
    except Exception as error:  # bytes from anywhere: Pillow's readers raise whatever they stumble over
        raise RowError(f"image {name!r} can't be read: {str(error) or type(error).__name__}") from error


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
        raise RowError(f"image {name!r} has mode {picture.mode}, whose meaning is not known; save it as RGB or grey")
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
            raise RowError(
                f"image {name!r} has {kind}, and no range is said that they are of; save it with 8 or 16 bits"
            )
    if not np.isfinite(values).all():
        raise RowError(f"image {name!r} has a value that is not finite")
    values = (values - smallest).clip(0, largest - smallest) / (largest - smallest)
    return np.rint(255 * (1 - values if tags.get(_INVERTED) == 0 else values)).astype(np.uint8)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def image_files(path: str) -> tuple[list[Path], list[str]]:
    """The images of a folder with one subfolder for each class, in order, and the class of each.

    What is hidden is left out, and so are files beside the classes and those whose ending is not an image's.

    Raises:
        RowError: it is no folder that can be read, or there is no image in its subfolders.
    """
    folder = Path(path).expanduser()
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
        files = sorted((file for name in names for file in _images_below(folder / name)), key=str)
    except OSError as error:
        raise RowError(f"folder {path!r} can't be read: {error.strerror}: {error.filename!r}") from error
    if not files:
        raise RowError(f"folder {path!r} holds no images in subfolders; it needs one for each class")
    return files, [file.relative_to(folder).parts[0] for file in files]


def _images_below(folder: Path) -> Iterator[Path]:
    """The image files of a class, also behind links to folders; each folder once, however links go round."""
    Image.init()
    endings = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN} | _OTHER_IMAGES
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (
            Path(place) / name for name in files if not _is_hidden(name) and Path(name).suffix.lower() in endings
        )


def _is_hidden(name: str) -> bool:
    """What a system or a program leaves beside images: .ipynb_checkpoints, ._1.png and __MACOSX of macOS."""
    return name.startswith(".") or name in _LITTER


def _raise(error: OSError) -> None:
    raise error


def decoded(files: Sequence[Path], how: Mapping[str, Any]) -> np.ndarray:
    """The pictures as (n, H, W, 3) uint8, in the size that the model wants.

    `how`: what the package says of images: `size` (H, W), and `resample`, Pillow's number of a filter.

    Raises:
        RowError: one can't be read, or they don't fit into memory.
    """
    height, width = how["size"]
    try:
        pixels = np.empty((len(files), height, width, 3), dtype=np.uint8)
    except (MemoryError, ValueError):
        raise RowError(f"{len(files)} images of {height}×{width} do not fit into memory") from None
    for place, file in enumerate(files):
        picture = _read(file)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling(how["resample"]))
        pixels[place] = np.asarray(picture)
    return pixels


def _read(file: Path) -> Image.Image:
    if not file.is_file():  # a link to nothing, or a pipe, which would never end
        raise RowError(f"image {str(file)!r} can't be read: it is not there, or no file")
    return read_picture(lambda: Image.open(io.BytesIO(file.read_bytes())), str(file))
