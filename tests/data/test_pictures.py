"""What a picture of each mode means, which files of a folder are images, and of which class."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from halfback.data.images import image_folder
from halfback.data.pictures import read_picture
from halfback.data.sources import Preparation
from halfback.errors import UserError

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def read(picture: Image.Image, form: str, **options: object) -> Image.Image:
    """As it comes from a file of this format."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    stream.seek(0)
    return read_picture(lambda: Image.open(stream), f"a.{form.lower()}")


def grey(values: list[int], dtype: str) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


def pixels(picture: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()]


DEEP = [0, 20_000, 40_000, 65_535]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_of_grey_are_scaled(form: str) -> None:
    """As they came they were cut off at 255: all white but the first."""
    big = Image.fromarray(np.repeat(np.repeat(np.array([DEEP], dtype=np.uint16), 16, axis=0), 16, axis=1))
    came = np.asarray(read(big, form))[8, 8::16, 0].tolist()
    assert came == [0, 78, 156, 255]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_in_either_order(order: str) -> None:
    stream = io.BytesIO(_tiff(np.array([DEEP], dtype=order)))
    assert [pixel[0] for pixel in pixels(read_picture(lambda: Image.open(stream), "a.tif"))] == [0, 78, 156, 255]


def test_a_tiff_in_which_zero_is_white() -> None:
    stream = io.BytesIO(_tiff(np.array([DEEP], dtype="<u2"), inverted=True))
    assert [pixel[0] for pixel in pixels(read_picture(lambda: Image.open(stream), "a.tif"))] == [255, 177, 99, 0]


def test_deep_greys_of_which_the_range_is_said() -> None:
    for values, kind, tag in (([0.0, 0.5, 1.0], "<f4", 11), ([-100, 0, 100], "<i4", 9)):
        array = np.array([values], dtype=kind)
        with pytest.raises(
            UserError, match=r"image 'a.tif' has (floats|whole numbers of 32 bits), and no range is said"
        ):
            read_picture(lambda array=array: Image.open(io.BytesIO(_tiff(array))), "a.tif")  # type: ignore[misc]
        said = _tiff(array, extra=[(340, tag, values[0]), (341, tag, values[-1])])
        came = read_picture(lambda said=said: Image.open(io.BytesIO(said)), "a.tif")  # type: ignore[misc]
        assert [pixel[0] for pixel in pixels(came)] == [0, 128, 255]


def test_a_float_that_is_not_finite() -> None:
    said = _tiff(np.array([[0, np.nan]], dtype="<f4"), extra=[(340, 11, 0.0), (341, 11, 1.0)])
    with pytest.raises(UserError, match=r"image 'a.tif' has a value that is not finite"):
        read_picture(lambda: Image.open(io.BytesIO(said)), "a.tif")


def _tiff(values: np.ndarray, *, inverted: bool = False, extra: list[tuple[int, int, float]] = []) -> bytes:  # noqa: B006
    """A TIFF of one strip: Pillow writes neither byte order nor range as asked for."""
    order = ">" if values.dtype.str[0] == ">" else "<"
    height, width = values.shape
    layout = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8 * values.itemsize),
        (259, 3, 1),
        (262, 3, int(not inverted)),
    ]
    entries += [(273, 4, 0), (277, 3, 1), (278, 4, height), (279, 4, values.nbytes), (339, 3, layout), *extra]
    start = 8 + 2 + 12 * len(entries) + 4
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        code = {3: "H2x", 4: "I", 9: "i", 11: "f"}[kind]
        body += struct.pack(f"{order}HHI{code}", tag, kind, 1, start if tag == 273 else value)
    magic = b"MM\0*" if order == ">" else b"II*\0"
    return magic + struct.pack(f"{order}I", 8) + body + bytes(4) + values.tobytes()


def _half_transparent(mode: str) -> Image.Image:
    """Black, of which the second half isn't there."""
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "PA":  # which nothing can be turned into with its transparency
        picture = Image.new("PA", (2, 1))
        picture.putpalette([0] * 6)
        picture.putpixel((0, 0), (0, 255))
        return picture
    return picture.convert("LA").convert(mode) if mode == "La" else picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    picture = _half_transparent(mode)
    assert picture.mode == mode
    assert pixels(read_picture(lambda: picture, "a.png")) == [BLACK, WHITE]


@pytest.mark.parametrize(
    ("picture", "transparency"),
    [
        (Image.new("P", (2, 1)), b"\xff\x00"),  # by entry of the palette
        (Image.new("P", (2, 1)), 1),
        (Image.new("L", (2, 1)), 7),  # by colour
        (Image.new("RGB", (2, 1)), (7, 7, 7)),
        (Image.fromarray(np.array([[0, 7]], dtype=np.uint16)), 7),
    ],
    ids=["palette-bytes", "palette-entry", "grey", "colour", "deep-grey"],
)
def test_a_colour_that_stands_for_nothing_is_white(picture: Image.Image, transparency: object) -> None:
    if picture.mode == "P":
        picture.putpalette([0] * 6)
    picture.putpixel((1, 0), {"P": 1, "RGB": (7, 7, 7)}.get(picture.mode, 7))
    assert pixels(read(picture, "PNG", transparency=transparency)) == [BLACK, WHITE]


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        (Image.new("1", (1, 1), 1), WHITE),
        (Image.new("L", (1, 1), 77), (77, 77, 77)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("RGBX", (1, 1), (1, 2, 3, 0)), (1, 2, 3)),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (1, 1), (76, 85, 255)), (254, 0, 0)),
        (Image.new("HSV", (1, 1), (85, 255, 255)), (0, 255, 0)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_colours(picture: Image.Image, wanted: tuple[int, ...]) -> None:
    ((red, green, blue),) = pixels(read_picture(lambda: picture, "a"))
    assert max(abs(red - wanted[0]), abs(green - wanted[1]), abs(blue - wanted[2])) <= 1


def test_the_colours_of_lab_are_those_of_its_profile() -> None:
    red = Image.new("RGB", (1, 1), (200, 30, 40))
    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    ((r, g, b),) = pixels(read_picture(lambda: lab, "a"))
    assert max(abs(r - 200), abs(g - 30), abs(b - 40)) <= 3


def test_a_cmyk_photograph_of_which_the_ink_is_inverted() -> None:
    """As Adobe's programs write it: Pillow turns it round."""
    came = read(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert min(pixels(came)[0]) > 240


def test_a_turned_photograph_is_put_upright() -> None:
    half = Image.new("RGB", (16, 16))
    half.paste("white", (0, 0, 16, 8))  # the upper half
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    came = np.asarray(read(half, "JPEG", exif=exif, quality=95))
    assert came[:, 10:].mean() > 240
    assert came[:, :6].mean() < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_pictures_the_first_is_taken(form: str) -> None:
    first, second = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "black")
    assert pixels(read(first, form, save_all=True, append_images=[second]))[0] == WHITE


@pytest.mark.parametrize(
    ("bits", "kind", "data", "key", "wanted"),
    [
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (2, 0, b"\x10", b"\0\1", [0, 255]),
        (4, 0, b"\x05", b"\0\5", [0, 255]),
        (16, 2, bytes(6) + b"\x4e\x20" * 3, b"\x4e\x20" * 3, [0, 255]),
        (16, 2, bytes(6) + b"\x20\x20" * 3, b"\x4e\x20" * 3, [0, 32]),
    ],
)
def test_a_transparent_colour_of_fewer_or_more_bits(
    bits: int, kind: int, data: bytes, key: bytes, wanted: list[int]
) -> None:
    """Pillow gives the colour as it is stored, and the pixels in eight bits."""
    stream = io.BytesIO(_png(2, 1, bits, kind, b"\0" + data, _chunk(b"tRNS", key)))
    assert [pixel[0] for pixel in pixels(read_picture(lambda: Image.open(stream), "a.png"))] == wanted


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, bits: int, kind: int, rows: bytes, more: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _broken_png() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"not an image", "it is no image of a kind that is known"),
        (b"", "it is no image of a kind that is known"),
        (b"<svg></svg>", "it is no image of a kind that is known"),
        (_broken_png()[:200], "trunc|broken|Truncated"),
        (_png(60_000, 60_000, 8, 2, bytes(100)), "exceeds limit"),
    ],
    ids=["text", "empty", "svg", "truncated", "bomb"],
)
def test_a_file_that_is_none_is_named(data: bytes, said: str, tmp_path: Path) -> None:
    _paint(tmp_path, "one/0.png", "two/0.png")
    (tmp_path / "two" / "1.PNG").write_bytes(data)
    source = image_folder(str(tmp_path), size=4)
    with pytest.raises(UserError, match=rf"image '.*two/1.PNG' can't be read: .*({said})") as error:
        source.images(np.arange(source.size), Preparation())  # type: ignore[misc]
    assert str(error.value).isprintable()


@pytest.mark.parametrize("what", ["link", "ring", "pipe", "photograph"])
def test_what_is_no_file_or_of_no_known_kind_is_named_at_once(what: str, tmp_path: Path) -> None:
    """A pipe hung, the photographs of a telephone were left out without a word."""
    _paint(tmp_path, "one/0.png", "two/0.png")
    path = tmp_path / "two" / ("1.HEIC" if what == "photograph" else "1.png")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "photograph":
        path.write_bytes(b"\0\0\0\x18ftypheic")
    else:
        path.symlink_to(path if what == "ring" else tmp_path / "nowhere.png")
    source = image_folder(str(tmp_path), size=4)
    with pytest.raises(UserError, match=rf"image '.*two/{path.name}' can't be read: it is (not there|no image)"):
        source.images(np.arange(source.size), Preparation())  # type: ignore[misc]


@pytest.mark.parametrize("names", [("Cat", "cat"), ("\u00e9t\u00e9", "e\u0301te\u0301"), ("1", "01"), ("a", "a ")])
def test_folders_that_would_be_two_classes(names: tuple[str, str], tmp_path: Path) -> None:
    _paint(tmp_path, *(f"{name}/0.png" for name in names))
    with pytest.raises(UserError, match="would be two classes; write them alike"):
        image_folder(str(tmp_path), size=4)


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    _paint(tmp_path, "one/0.png")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(UserError, match="a class whose name is no text: "):
        image_folder(str(tmp_path), size=4)


def test_images_that_no_memory_holds(tmp_path: Path) -> None:
    _paint(tmp_path, "one/0.png", "two/0.png")
    source = image_folder(str(tmp_path), size=10**7)
    with pytest.raises(UserError, match=r"do not fit into memory; set task\.image_size"):
        source.images(np.arange(source.size), Preparation())  # type: ignore[misc]


def _paint(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, "PNG")


LEFT_BEHIND = (
    *("stray.png", "metadata.csv", "one/._0.png", "__MACOSX/one/._0.png", "__MACOSX/0.png", "two/__MACOSX/1.png"),
    *("one/.ipynb_checkpoints/0-checkpoint.png", ".thumbnails/0.png", "two/Thumbs.db", "one/notes.txt"),
    *("@eaDir/0.png", "one/@eaDir/0.png", "#recycle/0.png", "$RECYCLE.BIN/0.png", "lost+found/0.png"),
)
LAID_OUT: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "deeper": (("one/a/0.png", "one/b/c/0.png", "two/a/0.png"), ["one", "one", "two"]),
    "partly-deeper": (("one/0.png", "one/two/0.png", "two/0.png"), ["one", "one", "two"]),
    "left-behind": (("one/0.png", "two/0.png", *LEFT_BEHIND), ["one", "two"]),
    "endings": (("one/0.JPG", "one/1.WebP", "two/2.Png", "two/3.jpeg"), ["one", "one", "two", "two"]),
    "split-names": (("test/train_0.png", "train/test_0.png"), ["test", "train"]),
}


@pytest.mark.parametrize("what", LAID_OUT)
def test_the_class_is_the_first_folder(what: str, tmp_path: Path) -> None:
    files, labels = LAID_OUT[what]
    _paint(tmp_path, *files)
    source = image_folder(str(tmp_path), size=4)
    assert (source.names, source.labels, source.size) == (sorted(set(labels)), labels, len(labels))
    assert source.images is not None
    assert source.images(np.arange(source.size), Preparation()).shape == (len(labels), 3, 4, 4)


def test_a_class_without_images_stays_one(tmp_path: Path) -> None:
    _paint(tmp_path, "one/0.png", "two/0.png", "three/notes.txt")
    assert image_folder(str(tmp_path), size=4).names == ["one", "three", "two"]


def test_links_are_followed_and_a_ring_of_them_ends(tmp_path: Path) -> None:
    _paint(tmp_path / "data", "one/0.png")
    _paint(tmp_path / "elsewhere", "1.png", "2.png")
    (tmp_path / "data" / "two").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "one" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "one" / "single.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert image_folder(str(tmp_path / "data"), size=4).labels == ["one"] * 4 + ["two"] * 2


def test_a_replaced_image_with_the_same_time_is_read_anew(tmp_path: Path) -> None:
    _paint(tmp_path, "one/0.png", "two/0.png")
    stamp = (tmp_path / "one" / "0.png").stat()
    first = image_folder(str(tmp_path), size=4).images(np.arange(1), Preparation())  # type: ignore[misc]
    Image.new("RGB", (4, 4), "white").save(tmp_path / "one" / "0.png")
    os.utime(tmp_path / "one" / "0.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = image_folder(str(tmp_path), size=4).images(np.arange(1), Preparation())  # type: ignore[misc]
    assert bool((first < second).all())
