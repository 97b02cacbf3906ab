"""How a model wants its images: its own preprocessor, which is used, and written where the model is."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from halfback.errors import UserError, first_line, of_extra
from halfback.models import loading
from halfback.models.packages import packaged_models
from halfback.models.quiet import quiet
from halfback.models.resnet import is_resnet_name

FILE = "preprocessor_config.json"
_MOST = 4096  # of a side: what is larger fills the memory before anyone could say so


class Processor:
    """A model's own preprocessor, by Pillow and NumPy whatever else is installed, so that its bits are one."""

    def __init__(self, name: str, own: Any, size: int | None) -> None:
        """`size`: of both sides, in the place of the preprocessor's own; UserError where it can't have that."""
        self._name = name
        self.own = own
        if size is not None and size > _MOST:
            raise UserError(f"task.image_size={size}: up to {_MOST} is allowed with the preprocessor of model {name!r}")
        for kind in ("size", "crop_size", "pad_size"):
            sides = dict(getattr(own, kind, None) or {})
            if any(isinstance(side, int | float) and side > _MOST for side in sides.values()):
                raise UserError(f"{FILE} of model {name!r} can't be used: {kind} is {sides}, up to {_MOST} is allowed")
        self.shape = self._shape((48, 64))
        if len(self.shape) != 3 or self.shape[0] != 3:
            raise UserError(f"{FILE} of model {name!r} can't be used: it makes {self.shape} of an image, not (3, H, W)")
        if size is not None and self.shape != (3, size, size):
            own.size, own.do_center_crop = {"height": size, "width": size}, False
            with contextlib.suppress(UserError):
                self.shape = self._shape((48, 64))
            if self.shape != (3, size, size):
                raise UserError(
                    f"task.image_size={size}: the preprocessor of model {name!r} makes no such images; leave it out"
                )
        if self._shape((64, 48)) != self.shape:
            raise UserError(
                f"the preprocessor of model {name!r} leaves images as wide or as high as they are; set task.image_size"
            )

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """The values (3, H, W) float32 of an RGB picture."""
        try:
            with np.errstate(all="ignore"):  # what comes of it is looked at below
                made = self.own(images=picture, return_tensors="np", input_data_format="channels_last")
            values = made["pixel_values"][0]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(f"{FILE} of model {self._name!r} can't be used: {first_line(error)}") from error
        values = np.asarray(values, dtype=np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{FILE} of model {self._name!r} can't be used: it makes values that are not finite")
        return values

    def _shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return self(Image.new("RGB", size)).shape


def own_processor(name: str, size: int | None) -> Processor | None:
    """The preprocessor in a model's folder or on the hub, None where it has none.

    name: of the model, as for `load_model`. size: as in `Processor`.
    Raises UserError for one that can't be used.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / FILE).is_file():
        return None
    own = _from_pretrained(name, "AutoImageProcessor", backend="pil")
    return None if own is None else Processor(name, own, size)


def own_size(name: str) -> int | None:
    """Of both sides of the images that a model takes; None where it takes any, or says nothing."""
    if loading.resnet_source(name) is not None:
        return None
    try:
        config = _from_pretrained(name, "AutoConfig")
    except UserError:  # of another kind than this: whoever loads the model says what is wrong with it
        return None
    size = getattr(config, "image_size", None)
    return size if isinstance(size, int) else None


def _from_pretrained(name: str, kind_name: str, **options: Any) -> Any:
    """What a folder or the hub has of this kind; None where it is not there, which whoever loads the model will say."""
    here = Path(name).is_dir()
    if not here and (Path(name).suffix or is_resnet_name(name) or name in packaged_models()):
        return None
    with of_extra("transformers"):
        import transformers

    kind = getattr(transformers, kind_name)
    options["trust_remote_code"] = False  # else the user is asked whether the folder's code shall run
    with quiet():
        try:
            return kind.from_pretrained(name, local_files_only=True, **options)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            if here:
                raise UserError(f"{FILE} of model {name!r} can't be used: {first_line(error)}") from error
        if name.startswith((".", "/", "~")) or not loading.hub_reachable():
            return None
        try:
            return kind.from_pretrained(name, **options)
        except (OSError, ValueError):
            return None


def plain_processor(shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> Any:
    """What says how images of this shape (3, H, W) were made for a model that had no preprocessor of its own."""
    with of_extra("transformers"):
        import transformers

    return transformers.ViTImageProcessorPil(
        size={"height": shape[1], "width": shape[2]},
        image_mean=list(mean),
        image_std=list(std),
        resample=int(Image.Resampling.BILINEAR),
    )
