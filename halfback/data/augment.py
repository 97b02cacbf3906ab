"""What training images become, anew in each epoch: a window that moves, a mirror. Evaluation never sees it.

What a row becomes follows from the seed, its number and the epoch alone, by numpy's Philox: no state, so whoever
computes it, whenever and in whatever order, gets the same pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from halfback.errors import UserError
from halfback.registry import parsed

_WORDS = 4  # of 64 bits, that one position of Philox's counter gives


class Change(Protocol):
    """One thing that is done to images."""

    def of(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """What becomes of images (B, C, H, W), by four numbers for each, (B, 4), uniform on [0, 1)."""
        ...


@dataclass(frozen=True)
class Crop:
    """A window of the image's own size, anywhere in the image with a frame around it, as He et al. (2015, 4.2).

    Attributes:
        padding: pixels of the frame on each side. They are zeros behind the normalisation: the mean colour, where the
            model's images have one.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise UserError(f"crop: padding={self.padding}: 1 or more are allowed")

    def of(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """The windows; each of the (2 · padding + 1)² is as likely as the others."""
        height, width = images.shape[-2:]
        wide = torch.nn.functional.pad(images, (self.padding,) * 4)
        first = torch.from_numpy((drawn[:, :2] * (2 * self.padding + 1)).astype(np.int64))
        down = (first[:, :1] + torch.arange(height))[:, None, :, None]
        right = (first[:, 1:] + torch.arange(width))[:, None, None, :]
        image, channel = (torch.arange(count) for count in images.shape[:2])
        return wide[image[:, None, None, None], channel[None, :, None, None], down, right]


@dataclass(frozen=True)
class Flip:
    """The image in a mirror, left and right exchanged.

    Attributes:
        probability: how often.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise UserError(f"flip: probability={self.probability:g}: more than 0 and at most 1 is allowed")

    def of(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """The images, some of them mirrored."""
        mirrored = torch.from_numpy(drawn[:, 0] < self.probability)
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


CHANGES: dict[str, type[Crop] | type[Flip]] = {"crop": Crop, "flip": Flip}


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, one behind the other.

    Attributes:
        changes: what is done. seed: of the run.
    """

    changes: tuple[Change, ...]
    seed: int

    def of(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """What images (B, C, H, W) of these rows (B,) become in an epoch."""
        for place, change in enumerate(self.changes):
            key = np.random.SeedSequence([self.seed, epoch, place]).generate_state(2, np.uint64)
            words = [np.random.Philox(key=key, counter=[row, 0, 0, 0]).random_raw(_WORDS) for row in rows.tolist()]
            images = change.of(images, (np.stack(words) >> np.uint64(11)) * 2.0**-53)
        return images


def parse(chosen: Sequence[str | Mapping[str, Any]]) -> tuple[Change, ...]:
    """What is done to images, from names, or mappings with a `name` and options; UserError for one that is unknown."""
    return tuple(parsed(CHANGES, entry, "task.augment", "augmentation") for entry in chosen)


def padding_of(changes: Sequence[Change]) -> int:
    """The widest frame that images get."""
    return max((change.padding for change in changes if isinstance(change, Crop)), default=0)
