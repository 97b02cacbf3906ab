"""Image tasks: CIFAR-10 and folders of images."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from halfback.data.labels import check_alike
from halfback.data.pictures import read_picture
from halfback.data.sources import Preparation, Source, data_folder, read_hub
from halfback.errors import UserError

if TYPE_CHECKING:
    import datasets

# ImageNet's, per channel of RGB in 0..1: what pretrained networks of colour images were trained with.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)
SIZE = 32  # of colour images, where neither the recipe nor the model says one
_LITTER = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}  # of systems
_OTHER_IMAGES = {".avif", ".heic", ".heif", ".jxl"}  # errors where Pillow can't read them, not left out


def cifar10() -> tuple[Source, Source]:
    """CIFAR-10 from the local data (JPEG copies), else from the hub; (3, 32, 32)."""
    folder = data_folder("cifar10")
    if folder is not None:
        return _cifar10_file(folder / "train.npz"), _cifar10_file(folder / "test.npz")
    advice = "; or give a folder with cifar10/train.npz and test.npz in HALFBACK_DATA"
    splits = read_hub("uoft-cs/cifar10", advice=advice)
    train, validation = (
        _stored_images(splits[part], f"cifar10 {part}", image="img", label="label", size=32)
        for part in ("train", "test")
    )
    return train, validation


def image_folder(path: str, *, size: int | None) -> Source:
    """A folder with one subfolder of images for each class, as (3, size, size); the model's own size where it is None.

    The class is the first folder below `path`, however deep an image lies in it; a folder without images is one too.
    What is hidden is left out (names that begin with a dot, `__MACOSX` and its kin), and so are files beside the
    classes and those whose ending is not an image's.

    Raises:
        UserError: there is no such folder, no image in its subfolders, or two of these are one class to people.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"folder {path!r} does not exist or is not a folder")
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
        if not names:
            raise UserError(f"folder {path!r} has no subfolders; it needs one for each class")
        files = sorted((file for name in names for file in _images_below(folder / name)), key=str)
    except OSError as error:
        raise UserError(f"folder {path!r} can't be read: {error.strerror}: {error.filename!r}") from error
    if not files:
        raise UserError(f"folder {path!r} holds no images in its subfolders")
    if foreign := next((name for name in names if os.fsencode(name) != name.encode(errors="replace")), None):
        raise UserError(f"folder {path!r} has a class whose name is no text: {foreign!r}")
    check_alike(names, lambda number: f"class {number + 1}", where=f"folder {path!r}")

    return Source(
        where=f"folder {path!r}",
        size=len(files),
        labels=[file.relative_to(folder).parts[0] for file in files],
        names=names,
        images=lambda rows, how: _decode(rows, partial(_opened, files), how=how, size=size),
    )


def loose_images(path: str, *, size: int | None) -> tuple[Source, list[str]]:
    """An image, or all those below a folder, without classes, and their names from there.

    What is hidden is left out, as in `image_folder`.

    Raises:
        UserError: there is no such file or folder, or no image in it.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{path!r} is no image and no folder of images: it does not exist")
    try:
        files = sorted(_images_below(place), key=str) if place.is_dir() else [place]
    except OSError as error:
        raise UserError(f"folder {path!r} can't be read: {error.strerror}: {error.filename!r}") from error
    if not files:
        raise UserError(f"folder {path!r} holds no images")
    names = [str(file.relative_to(place)) if place.is_dir() else path for file in files]
    source = Source(
        where=f"{'folder' if place.is_dir() else 'image'} {path!r}",
        size=len(files),
        labels=[],
        images=lambda rows, how: _decode(rows, partial(_opened, files), how=how, size=size),
    )
    return source, names


def _opened(files: Sequence[Path], row: int) -> Image.Image:
    if not files[row].is_file():  # a link to nothing, or a pipe, which would never end
        raise UserError(f"image {str(files[row])!r} can't be read: it is not there, or no file")
    return read_picture(lambda: Image.open(io.BytesIO(files[row].read_bytes())), str(files[row]))


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


def _cifar10_file(file: Path) -> Source:
    if not file.is_file():
        raise UserError(f"file {str(file)!r} does not exist; cifar10 in HALFBACK_DATA needs train.npz and test.npz")
    with np.load(file) as data:
        jpeg, offsets = data["jpeg"], data["offsets"]
        labels, names = data["labels"], [str(name) for name in data["classes"]]

    def read_row(row: int) -> Image.Image:
        stored = io.BytesIO(jpeg[offsets[row] : offsets[row + 1]].tobytes())
        return read_picture(lambda: Image.open(stored), f"{file}, row {row + 1}")

    return Source(
        where=f"file {str(file)!r}",
        size=len(labels),
        labels=[names[label] for label in labels],
        names=names,
        images=lambda rows, how: _decode(rows, read_row, how=how, size=32),
    )


def _stored_images(table: datasets.Dataset, where: str, *, image: str, label: str, size: int) -> Source:
    names: list[str] = table.features[label].names

    def read_row(row: int) -> Image.Image:
        return read_picture(lambda: table[row][image], f"{where}, row {row + 1}")

    return Source(
        where=where,
        size=len(table),
        labels=[names[number] for number in table[label]],
        names=names,
        images=lambda rows, how: _decode(rows, read_row, how=how, size=size),
    )


def _decode(rows: np.ndarray, read_row: Callable[[int], Image.Image], *, how: Preparation, size: int | None) -> Tensor:
    """The rows' images as (n, 3, H, W) float32, normalised.

    By the model's own preprocessor, where it has one; else stretched to `size` where they are not square.
    """
    if how.process is not None:
        return torch.from_numpy(np.stack([how.process(read_row(int(row))) for row in rows]))
    size = size or how.size or SIZE
    try:
        pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(f"{len(rows)} images of {size}×{size} do not fit into memory; set task.image_size") from error
    for place, row in enumerate(rows):
        picture = read_row(int(row))
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        pixels[place] = np.asarray(picture)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous()
    return images.div_(255).sub_(_channels(RGB_MEAN)).div_(_channels(RGB_STD))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)
