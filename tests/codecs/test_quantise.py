"""Fewer bits a value, against closed forms and against torch's own casts."""

import pytest
import torch
from matrices import FLOATS, chain, random, size, there_and_back

from halfback.codecs import Cast, Int4, Int8
from halfback.codecs.quantise import Sign
from halfback.errors import PeerError, UserError

QUANTISERS = {"int8": (Int8(), 127), "int4": (Int4(), 7)}
each_quantiser = pytest.mark.parametrize(("codec", "largest"), QUANTISERS.values(), ids=QUANTISERS)


@each_quantiser
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 2, 7, 64, 129])
def test_an_error_is_at_most_half_a_scale_and_there_is_one(
    codec: Int8 | Int4, largest: int, dtype: torch.dtype, width: int
) -> None:
    matrix = random(50, width, dtype=dtype)
    parts, back = there_and_back(codec, matrix)
    assert back.dtype == dtype
    assert back.shape == matrix.shape
    scale = matrix.double().abs().amax(dim=1, keepdim=True) / largest
    # The product is rounded to the dtype: at most half a unit in the last place of the largest value.
    rounding = scale * largest * (torch.finfo(dtype).eps / 2 if dtype != torch.float64 else 2**-23)
    error = (back.double() - matrix.double()).abs()
    assert bool((error <= scale / 2 * (1 + 1e-5) + rounding).all())
    if width > 2:
        assert error.max() > 0
    torch.testing.assert_close(parts[1].double(), scale, rtol=2**-22, atol=0)  # two float32 roundings


@each_quantiser
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_that_every_quantiser_keeps(codec: Int8 | Int4, largest: int, dtype: torch.dtype) -> None:
    """Zeros stay zeros, and a row of one value, of either sign, has that value at the end of the scale."""
    matrix = torch.tensor([[0.0] * 5, [2.5] * 5, [-0.75] * 5, [3.0, -3.0, 0.0, 3.0, -3.0]], dtype=dtype)
    _, back = there_and_back(codec, matrix)
    torch.testing.assert_close(back, matrix, rtol=2**-22 if dtype == torch.float32 else 2**-7, atol=0)
    assert not back[0].any()


@each_quantiser
def test_a_row_does_not_feel_its_neighbours(codec: Int8 | Int4, largest: int) -> None:
    matrix = random(6, 9)
    _, together = there_and_back(codec, matrix)
    alone = torch.cat([there_and_back(codec, row.unsqueeze(0))[1] for row in matrix])
    assert torch.equal(together, alone)


@each_quantiser
@pytest.mark.parametrize("width", [1, 8, 9])
def test_a_matrix_without_rows(codec: Int8 | Int4, largest: int, width: int) -> None:
    """As when temporal reuse skips a whole batch."""
    parts, back = there_and_back(codec, torch.zeros(0, width))
    assert back.shape == (0, width)
    assert size(parts) == 0


def test_every_value_of_int4_comes_back() -> None:
    matrix = torch.arange(-7.0, 8.0).unsqueeze(0)
    assert torch.equal(there_and_back(Int4(), matrix)[1], matrix)
    assert torch.equal(there_and_back(Int4(), matrix.flip(1))[1], matrix.flip(1))


@each_quantiser
def test_large_and_tiny_floats(codec: Int8 | Int4, largest: int) -> None:
    """No infinity, no NaN; what is below the smallest scale is lost."""
    _, back = there_and_back(codec, torch.tensor([[3e38, -3e38, 1.0], [1e-45, 0.0, -1e-45]]))
    torch.testing.assert_close(back, torch.tensor([[3e38, -3e38, 0.0], [0.0] * 3]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 2, 7, 64, 129, 256])
def test_signs_are_those_of_the_values_and_their_size_is_the_mean(dtype: torch.dtype, width: int) -> None:
    """The layout written out: value i is bit i mod 8 of byte i // 8; zero, of either sign, is not negative."""
    matrix = random(9, width, dtype=dtype)
    matrix[0], matrix[1] = 0.0, -0.0
    (payload, sizes), back = there_and_back(Sign(), matrix)
    mean = matrix.double().abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(sizes.double(), mean, rtol=2**-24, atol=0)  # one rounding to float32
    for row, values in zip(payload.tolist(), matrix.tolist(), strict=True):
        wanted = [
            sum((value < 0) << place for place, value in enumerate(values[i : i + 8])) for i in range(0, width, 8)
        ]
        assert row == wanted
    assert torch.equal(back, torch.where(matrix < 0, -sizes, sizes).to(dtype))


def test_the_size_of_signs_is_summed_in_an_order_that_others_can_follow() -> None:
    """Float64 by halves, as NumPy would have it too: the same bits whatever sums the machine likes best."""
    matrix = random(200, 256)
    sums = matrix.abs().double().numpy()
    while sums.shape[1] > 1:
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    assert torch.equal(there_and_back(Sign(), matrix)[0][1], torch.from_numpy((sums / 256).astype("float32")))


@pytest.mark.parametrize("width", [1, 8, 9])
def test_signs_of_a_matrix_without_rows(width: int) -> None:
    parts, back = there_and_back(Sign(), torch.zeros(0, width))
    assert back.shape == (0, width)
    assert size(parts) == 0


def test_a_size_of_signs_that_is_none() -> None:
    both = chain(Sign(), 8)
    for scale in (torch.nan, torch.inf, -1.0):
        with pytest.raises(PeerError, match="negative or infinite"):
            both.decode((torch.zeros(1, 1, dtype=torch.uint8), torch.tensor([[scale]])), 1)


@pytest.mark.parametrize("width", [1, 2, 17, 768])
def test_bytes_are_those_of_the_closed_form(width: int) -> None:
    matrix = random(10, width)
    full = matrix.nbytes
    assert size(there_and_back(Int8(), matrix)[0]) / full == (width + 4) / (4 * width)
    assert size(there_and_back(Int4(), matrix)[0]) / full == ((width + 1) // 2 + 4) / (4 * width)
    assert size(there_and_back(Sign(), matrix)[0]) / full == ((width + 7) // 8 + 4) / (4 * width)
    assert size(there_and_back(Cast(), matrix)[0]) / full == 0.5


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_cast_is_torchs(name: str) -> None:
    matrix = random(40, 33)
    dtype = getattr(torch, name)
    parts, back = there_and_back(Cast(name), matrix)  # type: ignore[arg-type]
    assert torch.equal(parts[0], matrix.to(dtype))
    assert torch.equal(back, matrix.to(dtype).float())


def test_a_cast_has_no_infinity() -> None:
    """float16 ends at 65,504."""
    matrix = torch.tensor([[1e6, -1e38, 65504.0, 3.0]])
    assert there_and_back(Cast("float16"), matrix)[1].tolist() == [[65504.0, -65504.0, 65504.0, 3.0]]
    largest = torch.finfo(torch.float32).max  # which the nearest bfloat16 is above
    assert bool(torch.isfinite(there_and_back(Cast(), torch.tensor([[largest, -largest]]))[1]).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("to", ["bfloat16", "float16"])
def test_a_cast_that_saves_nothing_is_refused(dtype: torch.dtype, to: str) -> None:
    with pytest.raises(UserError, match=f"codec cast to {to}: the values are {str(dtype)[6:]} already"):
        Cast(to).bind(8, dtype)  # type: ignore[arg-type]


@each_quantiser
@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (torch.full((3, 1), torch.nan), "negative or infinite"),
        (torch.full((3, 1), torch.inf), "negative or infinite"),
        (torch.full((3, 1), -1e-30), "negative or infinite"),
        (torch.ones(3), r"scale: torch.float32 \(3,\) came, torch.float32 \(3, 1\) is allowed"),
        (torch.ones(2, 1), r"\(2, 1\) came"),
        (torch.ones(3, 1).double(), "torch.float64"),
    ],
)
def test_a_hostile_scale(codec: Int8 | Int4, largest: int, scale: torch.Tensor, says: str) -> None:
    both = chain(codec, 4)
    payload, _ = both.encode(torch.ones(3, 4))
    with pytest.raises(PeerError, match=says):
        both.decode((payload, scale), 3)


@each_quantiser
def test_any_payload_of_the_right_shape_is_finite(codec: Int8 | Int4, largest: int) -> None:
    """All bytes are legal, also those that no sender writes: -128, and -8 in half a byte."""
    both = chain(codec, 256 if largest == 127 else 512)
    payload = torch.arange(256).to(torch.uint8).unsqueeze(0).view(both.stages[0].dtype)
    back = both.decode((payload, torch.ones(1, 1)), 1)
    assert back.abs().max() == largest + 1
