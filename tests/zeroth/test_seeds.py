"""Seeds are hashes of paths: distinct, typed, and the same for ever."""

from itertools import chain, product

import pytest

from halfback.zeroth.directions import seed_for


def test_distinct_paths_have_distinct_seeds() -> None:
    numbered = product(range(10), ("direction", "batch", "cohort"), range(2000), range(4))
    nested = chain(((i,) for i in range(5000)), ((i, j) for i in range(100) for j in range(100)))
    paths = [*numbered, *nested]
    # 255,000 draws of 64 bits meet with probability 2e-9; seeds by arithmetic meet at once.
    assert len({seed_for(*path) for path in paths}) == len(paths) == 255_000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("1", 2), (1, 2)),
        ((1, 2), (12,)),
        ((1, 2), (2, 1)),
        (("a", "b"), ("ab",)),
        (("a", ""), ("a",)),
        (("ai\x01\x00\x00\x002",), ("a", 2)),  # an element that holds the bytes of the next one
        ((-1,), (1,)),
        ((), ("",)),
        ((0,), ()),
        ((2**64,), (0,)),
    ],
)
def test_boundaries_and_types_of_elements_count(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert seed_for(*one) != seed_for(*other)


@pytest.mark.parametrize("element", [True, 1.0, None, b"1", (1,)])
def test_other_types_are_refused(element: object) -> None:
    with pytest.raises(TypeError, match="integers and strings"):
        seed_for(1, element)  # type: ignore[arg-type]


def test_golden_values() -> None:
    """Made by halfback 0.1.0; with other values no recorded history can be replayed."""
    assert seed_for() == 0x4E8F43AB9E684BC3
    assert seed_for(17, "direction", 3, 0) == 0x4DD1DC1158B91DD3
    assert seed_for("é", -(2**70)) == 0x08D375DE24BD1486


def test_seeds_fill_64_bits() -> None:
    seeds = [seed_for("bits", i) for i in range(4096)]
    for bit in range(64):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 2048) < 5 * 32  # five standard errors of 4096 fair bits
