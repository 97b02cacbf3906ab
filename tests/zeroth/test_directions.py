"""Directions: the published generator, a layout pinned bit by bit, and the same values however they are asked for."""

import random
from collections.abc import Iterable
from hashlib import blake2b, sha256
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from halfback.zeroth.directions import (
    PACK_WIDTH,
    Law,
    Pack,
    Segment,
    _gaussian_table,
    direction_of,
    direction_rows,
    packs,
    philox,
    seed_for,
)

LAWS: tuple[Law, ...] = ("rademacher", "gaussian")
CPU = torch.device("cpu")
SEED = seed_for(17, "direction", 3, 0)

# Known answers of Random123 1.14 (tests/kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 as the paper writes it, in Python's integers."""
    a, b, c, d = counter
    k, l = key  # noqa: E741
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k, low1, high0 ^ d ^ l, low0
        k, l = (k + 0x9E3779B9) % 2**32, (l + 0xBB67AE85) % 2**32  # noqa: E741
    return a, b, c, d


def plain_words(seed: int, name: str, block: int) -> tuple[int, ...]:
    """The four words of one block: counter (block, name), key seed, each with its low word first."""
    digest = blake2b(name.encode(), digest_size=8, person=b"halfback.name").digest()
    hashed = int.from_bytes(digest, "little")
    counter = (block % 2**32, block // 2**32, hashed % 2**32, hashed // 2**32)
    return plain_philox(counter, (seed % 2**32, seed // 2**32))


def plain_sign(seed: int, name: str, index: int) -> float:
    """Value `index` of a ±1 direction: bit index mod 128 of its block, lowest first; a set bit is -1."""
    word = plain_words(seed, name, index // 128)[index % 128 // 32]
    return -1.0 if word >> (index % 32) & 1 else 1.0


def plain_level(seed: int, name: str, index: int) -> int:
    """The 16 bits behind value `index` of a Gaussian direction."""
    word = plain_words(seed, name, index // 8)[index % 8 // 2]
    return word >> (16 * (index % 2)) & 0xFFFF


def unscaled_gaussian(level: int) -> float:
    return NormalDist().inv_cdf((level + 0.5) / 65536)


def plain_value(law: Law, seed: int, name: str, index: int) -> float:
    """A value, with the Gaussian's not yet scaled to unit variance."""
    return plain_sign(seed, name, index) if law == "rademacher" else unscaled_gaussian(plain_level(seed, name, index))


def assert_values(law: Law, got: Tensor, seed: int, name: str, indices: Iterable[int]) -> None:
    wanted = torch.tensor([plain_value(law, seed, name, i) for i in indices], dtype=torch.float64)
    # The table's scale to unit variance is 1 + 1e-5; one level of it moves a value by more than that nearly everywhere.
    tolerance = 0.0 if law == "rademacher" else 3e-5
    torch.testing.assert_close(got.flatten().double(), wanted, rtol=tolerance, atol=0)


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter: str, key: str, result: str) -> None:
    assert plain_philox(words(counter), words(key)) == words(result)
    tensors = tuple(torch.tensor([word]) for word in words(counter))
    k0, k1 = words(key)
    assert tuple(int(word) for word in philox(tensors, (k0, k1))) == words(result)


def test_philox_is_the_plain_one_on_random_input() -> None:
    draw = random.Random(0)
    edges = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    rows = [[draw.choice(edges) if draw.random() < 0.2 else draw.getrandbits(32) for _ in range(6)] for _ in range(500)]
    columns = torch.tensor(rows).unbind(1)
    got = torch.stack(philox(columns[:4], (columns[4], columns[5])), dim=1)
    assert [tuple(row) for row in got.tolist()] == [plain_philox(tuple(row[:4]), tuple(row[4:])) for row in rows]


@pytest.mark.parametrize("law", LAWS)
def test_layout_of_bits(law: Law) -> None:
    for name in ("blocks.0.attn.weight", "é", ""):
        got = direction_of(SEED, name, torch.empty(1000), law=law)
        assert_values(law, got, SEED, name, range(1000))


@pytest.mark.parametrize("law", LAWS)
def test_layout_of_far_blocks(law: Law) -> None:
    """Block numbers, names and seeds use all of their words, also above 2^32."""
    start = 2**45 + 128 * 7
    for seed in (0, 2**32 - 1, 2**63 + 5, 2**64 - 1):
        pack = Pack((Segment("far", start, start + 256, 0), Segment("near", 0, 128, 256)), 384)
        alone = Pack(pack.segments[:1], 256)
        got = pack.directions([seed], law=law, device=CPU)[0]
        assert torch.equal(alone.directions([seed], law=law, device=CPU)[0], got[:256])
        assert_values(law, got[:256], seed, "far", range(start, start + 256))
        assert_values(law, got[256:], seed, "near", range(128))


def test_gaussian_table() -> None:
    table = _gaussian_table(CPU)
    assert table.shape == (65536,)
    assert table.dtype == torch.float32
    assert torch.equal(table, -table.flip(0))
    assert (table.diff() > 0).all()
    # float32 rounds each square by 6e-8 at most, up and down alike.
    assert abs(table.double().square().mean().item() - 1) < 1e-8
    wanted = torch.tensor([unscaled_gaussian(level) for level in range(65536)], dtype=torch.float64)
    scale = wanted.square().mean().rsqrt()
    assert 1 < scale < 1 + 3e-5  # what `assert_values` allows for
    assert torch.equal(table, (wanted * scale).float())


def digest(values: Tensor) -> str:
    return sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


def test_golden_vectors() -> None:
    """Hashes of little-endian float32, made by halfback 0.1.0 on an x86 CPU; other values break every old history."""
    assert digest(_gaussian_table(CPU)) == "8babbcaf96568f10"
    parameter = torch.empty(300, 1001)  # more than two packs
    assert digest(direction_of(SEED, "w", parameter)) == "6ed281b54debb19e"
    assert digest(direction_of(SEED, "w", parameter, law="gaussian")) == "8db1ab97abefb878"


def layout(sizes: list[int]) -> tuple[tuple[str, int], ...]:
    return tuple((f"p{i}", size) for i, size in enumerate(sizes))


SIZES = [1, 127, 128, 129, 7, 0, 1000, PACK_WIDTH - 1, 3, PACK_WIDTH, 5, 2 * PACK_WIDTH + 77, 300]


def assembled(sizes: list[int], seeds: list[int], law: Law) -> list[Tensor]:
    """Each parameter's (seeds, size) directions, put together from the packs."""
    whole = {name: torch.full((len(seeds), size), torch.nan) for name, size in layout(sizes)}
    for pack in packs(layout(sizes)):
        made = pack.directions(seeds, law=law, device=CPU)
        assert made.shape == (len(seeds), pack.width)
        for name, start, stop, place in ((s.name, s.start, s.stop, s.place) for s in pack.segments):
            assert whole[name][:, start:stop].isnan().all()  # no value is made twice
            whole[name][:, start:stop] = made[:, place : place + stop - start]
    return list(whole.values())


def test_packs_are_aligned_and_bounded() -> None:
    made = packs(layout(SIZES))
    assert len(made) > 4
    for pack in made:
        assert pack.width <= PACK_WIDTH
        end = 0
        for segment in pack.segments:
            assert segment.start < segment.stop
            assert segment.start % 128 == segment.place % 128 == 0
            assert segment.place >= end
            end = segment.place + segment.stop - segment.start
        assert end <= pack.width


@pytest.mark.parametrize("law", LAWS)
def test_same_alone_and_in_packs(law: Law) -> None:
    for sizes in (SIZES, SIZES[::-1]):
        for (name, size), values in zip(layout(sizes), assembled(sizes, [SEED], law), strict=True):
            assert torch.equal(values[0], direction_of(SEED, name, torch.empty(size), law=law))


@pytest.mark.parametrize("law", LAWS)
def test_same_in_a_batch_of_seeds(law: Law) -> None:
    seeds = [SEED, 0, 2**64 - 1, SEED, 2**32]
    for (name, size), values in zip(layout(SIZES), assembled(SIZES, seeds, law), strict=True):
        for seed, row in zip(seeds, values, strict=True):
            assert torch.equal(row, direction_of(seed, name, torch.empty(size), law=law))


@pytest.mark.parametrize("law", LAWS)
def test_scales_are_products_of_float32(law: Law) -> None:
    seeds, scales = [SEED, 1, 2], [0.1, -3e-7, 0.0]
    sizes = [100, 2 * PACK_WIDTH + 77]  # small packs scale the values, large ones the table
    for pack in packs(layout(sizes)):
        plain = pack.directions(seeds, law=law, device=CPU)
        scaled = pack.directions(seeds, law=law, device=CPU, scales=scales)
        assert torch.equal(scaled, plain * torch.tensor(scales, dtype=torch.float32).unsqueeze(1))
        for i in range(3):
            assert torch.equal(pack.directions([seeds[i]], law=law, device=CPU)[0] * scales[i], scaled[i])


@pytest.mark.parametrize("law", LAWS)
def test_a_longer_parameter_begins_alike(law: Law) -> None:
    """A value depends on its index alone, not on the size of the parameter or where a chunk ends."""
    longest = direction_of(SEED, "w", torch.empty(PACK_WIDTH + 1000), law=law)
    for size in (1, 127, 129, 4096, PACK_WIDTH, PACK_WIDTH + 1):
        assert torch.equal(direction_of(SEED, "w", torch.empty(size), law=law), longest[:size])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("law", LAWS)
def test_same_for_any_number_of_threads(law: Law) -> None:
    parameter = torch.empty(PACK_WIDTH + 333)
    assert torch.get_num_threads() == 2
    both = direction_of(SEED, "w", parameter, law=law)
    torch.set_num_threads(1)
    assert torch.equal(direction_of(SEED, "w", parameter, law=law), both)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("width", [1, 3, 8, 12, 100, 128, 129, 256, 1000])
def test_rows(law: Law, width: int) -> None:
    whole = direction_of(SEED, "table", torch.empty(60, width), law=law)
    rows = torch.tensor([0, 59, 7, 8, 7, 31])
    assert torch.equal(direction_rows(SEED, "table", rows, width, law=law), whole[rows])
    assert torch.equal(direction_rows(SEED, "table", rows.int(), width, law=law), whole[rows])
    assert direction_rows(SEED, "table", rows[:0], width, law=law).shape == (0, width)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("width", [100, 128])
def test_far_rows(law: Law, width: int) -> None:
    row = 2**40 + 3
    got = direction_rows(SEED, "table", torch.tensor([row]), width, law=law)
    assert_values(law, got, SEED, "table", range(row * width, (row + 1) * width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_of_the_model(dtype: torch.dtype) -> None:
    like, signs = torch.empty(3, 5, 7, dtype=dtype), direction_of(SEED, "w", torch.empty(3, 5, 7))
    got = direction_of(SEED, "w", like)
    assert got.dtype == dtype
    assert got.shape == (3, 5, 7)
    assert torch.equal(got.float(), signs)  # ±1 is exact in each
    normal = direction_of(SEED, "w", torch.empty(3, 5, 7), law="gaussian")
    assert torch.equal(direction_of(SEED, "w", like, law="gaussian"), normal.to(dtype))


def test_an_empty_and_a_scalar_parameter() -> None:
    assert direction_of(SEED, "w", torch.empty(0, 3)).shape == (0, 3)
    assert direction_of(SEED, "w", torch.empty(())).item() == plain_sign(SEED, "w", 0)


COUNT = 1 << 16


def test_signs_are_balanced() -> None:
    values = direction_of(SEED, "w", torch.empty(COUNT))
    assert set(values.unique().tolist()) == {-1.0, 1.0}
    assert abs(values.mean().item()) < 5 * COUNT**-0.5  # five standard errors of a fair coin
    by_place = values.view(-1, 128).mean(dim=0)  # each bit of a block on its own
    assert by_place.abs().max() < 5 * (COUNT / 128) ** -0.5


@pytest.mark.parametrize("law", LAWS)
def test_names_seeds_and_indices_are_uncorrelated(law: Law) -> None:
    like = torch.empty(COUNT)
    # Near seeds and names, and a seed that differs in its high word alone.
    drawn = [direction_of(seed, name, like, law=law) for seed in (5, 6, 5 + 2**32) for name in ("w.0", "w.1", "w")]
    first = drawn[0]
    drawn += [first.roll(shift) for shift in (1, 2, 8, 31, 32, 127, 128, 129, 4096)]
    correlations = torch.corrcoef(torch.stack(drawn))
    correlations.fill_diagonal_(0)
    assert correlations.abs().max() < 5 * COUNT**-0.5  # five standard errors; 153 pairs


def test_gaussian_moments() -> None:
    values = direction_of(SEED, "w", torch.empty(COUNT), law="gaussian").double()
    # Five standard errors of the moments of a standard normal law: variances 1, 2, 15 and 96 over the count.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(values.pow(power).mean().item() - moment) < 5 * (variance / COUNT) ** 0.5
    # A table of quantiles ends at 4.3, which a normal law passes once in 60,000 draws; no value is further out.
    assert 3.8 < values.abs().max() < 4.4
    below = [(values < edge).double().mean().item() for edge in (-2.0, -1.0, 0.0, 0.5, 1.5)]
    for edge, share in zip((-2.0, -1.0, 0.0, 0.5, 1.5), below, strict=True):
        assert abs(share - NormalDist().cdf(edge)) < 5 * 0.5 * COUNT**-0.5
