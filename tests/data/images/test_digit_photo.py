"""A photo of a digit is brought to MNIST's form; any other file or image is refused, by name."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from kdtrain.data.datasets import load_dataset
from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.data.images.image_file import read_grey
from kdtrain.errors import DataError
from tests.refusals import refusal_by

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Colour = tuple[float, float, float]


@pytest.fixture(scope="module")
def digits() -> Bytes:
    """The test images 0, 1, 2, 3, 4, 7: 7 2 1 0 4 9, (6, 28, 28)."""
    return load_dataset().test.images[[0, 1, 2, 3, 4, 7], 0]


def enlarge(digit: Bytes) -> Floats:
    """The amount of ink, 0 to 1, ten times as large."""
    large = Image.fromarray(digit).resize((280, 280), Image.Resampling.BICUBIC)
    ink: Floats = np.asarray(large) / 255
    return ink


def paint(ink: Floats, paper: Colour = (245, 240, 225), pen: Colour = (30, 40, 120)) -> Floats:
    return np.asarray(np.array(paper) * (1 - ink[..., None]) + np.array(pen) * ink[..., None])


def on_sheet(ink: Floats) -> Floats:
    """Off-centre on a sheet of 800x600."""
    return np.pad(ink, ((430, 90), (60, 260)))


def noisy(colours: Floats, amount: float = 8) -> Floats:
    return colours + np.random.default_rng(0).normal(0, amount, colours.shape)


def lit_from_a_corner(colours: Floats) -> Floats:
    y, x = (np.linspace(0, 1, length) for length in colours.shape[:2])
    return np.asarray(colours * (0.45 + 0.275 * (x + y[:, None]))[..., None])


def half_in_shadow(colours: Floats) -> Floats:
    y, x = np.indices(colours.shape[:2])
    return np.where((x + 0.4 * y > 0.6 * len(colours))[..., None], colours, 0.55 * colours)


def as_image(colours: Floats) -> Image.Image:
    return Image.fromarray(np.rint(colours).clip(0, 255).astype(np.uint8))


def compressed(colours: Floats) -> Image.Image:
    stream = io.BytesIO()
    as_image(colours).save(stream, "JPEG", quality=35)
    return Image.open(stream)


def transparent(ink: Floats) -> Image.Image:
    black = np.zeros((*ink.shape, 4))
    black[..., 3] = 255 * ink
    return as_image(black)


def beside(brightness: float, colours: Floats, *margins: tuple[int, int]) -> Floats:
    """Something else shows at the edges of the paper."""
    return np.pad(colours, (*margins, (0, 0)), constant_values=brightness)


PHOTOS: dict[str, Callable[[Floats], Image.Image]] = {
    "light on dark": lambda ink: as_image(paint(ink, (20, 30, 110), (240, 220, 60))),
    "dark on light": lambda ink: as_image(paint(ink, (255, 255, 255), (0, 0, 0))),
    "coloured": lambda ink: as_image(paint(ink)),
    "noise": lambda ink: as_image(noisy(paint(ink), 25)),
    "light from a corner": lambda ink: as_image(lit_from_a_corner(paint(ink))),
    "pencil": lambda ink: as_image(noisy(paint(ink, (200, 198, 190), (160, 158, 155)), 5)),
    "on a sheet": lambda ink: as_image(paint(on_sheet(ink))),
    "jpeg": lambda ink: compressed(paint(ink)),
    "transparent": transparent,
    "chalk, all at once": lambda ink: compressed(
        noisy(lit_from_a_corner(paint(on_sheet(ink), (40, 60, 50), (225, 230, 220))))
    ),
    "pen, all at once": lambda ink: compressed(noisy(lit_from_a_corner(paint(on_sheet(ink))))),
    "in a hard shadow": lambda ink: compressed(noisy(half_in_shadow(paint(on_sheet(ink))))),
    "edges of a scan": lambda ink: as_image(beside(10, paint(on_sheet(ink)), (0, 14), (25, 0))),
    "on a desk": lambda ink: compressed(noisy(beside(80, paint(on_sheet(ink)), (90, 140), (60, 0)))),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_photo_of_a_digit_comes_back_as_mnist_shows_it(digits: Bytes, kind: str) -> None:
    results = np.stack([to_mnist(PHOTOS[kind](enlarge(digit))) for digit in digits])
    differences = np.abs(results.astype(float) - digits).mean(axis=(1, 2))
    # In grey levels of 255. A shift by one pixel makes 16, another digit 42; the edge of a shadow
    # across a digit takes some of its stroke away.
    mean, largest = (12, 22) if kind == "in a hard shadow" else (7, 18)
    assert differences.mean() < mean
    assert differences.max() < largest


def test_an_image_of_mnist_stays_as_it_is(digits: Bytes) -> None:
    for digit in digits:
        for image in (Image.fromarray(digit), Image.fromarray(255 - digit)):
            assert np.abs(to_mnist(image).astype(float) - digit).mean() < 1


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (20, 40), (1, 1)])
def test_the_digit_fills_its_box_around_the_centre_of_mass(digits: Bytes, size: tuple[int, int]) -> None:
    for digit in digits[:4]:
        result = to_mnist(PHOTOS["dark on light"](enlarge(digit)), size)
        assert result.dtype == np.uint8
        assert result.shape == size
        assert result.max() == 255
        spans, places = [], []
        for axis in (0, 1):
            ink = np.flatnonzero(result.any(axis=1 - axis))
            spans.append((ink[-1] - ink[0] + 1) / max(1, round(size[axis] * 20 / 28)))
            profile = result.sum(axis=1 - axis, dtype=float)
            places.append(profile @ np.arange(size[axis]) / profile.sum() - size[axis] // 2)
        assert max(spans) == 1
        assert np.abs(places).max() <= 0.5


def test_a_thin_pen_is_drawn_as_thick_as_in_mnist() -> None:
    image = Image.new("L", (900, 900), 240)
    ImageDraw.Draw(image).line([(300, 200), (300, 600), (600, 600)], fill=40, width=4)
    result = to_mnist(image)
    assert result.max() == 255
    assert 1.4 < result[8:16].sum(axis=1).mean() / 255 < 2.1  # pixels across the upright stroke


@pytest.mark.parametrize("shape", [(28, 28), (300, 200), (700, 900)])
@pytest.mark.parametrize("noise", [0, 3, 20])
@pytest.mark.parametrize("light", [lambda page: page, lit_from_a_corner])
def test_paper_without_ink_is_refused(
    shape: tuple[int, int], noise: float, light: Callable[[Floats], Floats]
) -> None:
    with pytest.raises(DataError, match=r"no digit found: nothing stands out from the paper\."):
        to_mnist(as_image(noisy(light(np.full((*shape, 3), 180.0)), noise)))


MODES = ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


@settings(max_examples=100, deadline=None)
@given(
    pixels=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements=st.sampled_from([0, 1, 100, 128, 250, 255]),
        fill=st.sampled_from([0, 200, 255]),
    ),
    mode=st.sampled_from(MODES),
    enlarged=st.sampled_from([1, 1, 3, 30]),
    size=st.sampled_from([(28, 28), (1, 1), (5, 64)]),
)
def test_any_image_gives_an_image_or_a_data_error(
    pixels: Bytes, mode: str, enlarged: int, size: tuple[int, int]
) -> None:
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    elif mode != "L":
        image = image.convert(mode)
    image = image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST)
    with contextlib.suppress(DataError):
        result = to_mnist(image, size)
        assert result.dtype == np.uint8
        assert result.shape == size
        assert result.max() == 255


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_brightness_values_give_an_image_or_a_data_error(values: NDArray[np.float32]) -> None:
    with contextlib.suppress(DataError):
        assert to_mnist(Image.fromarray(values)).max() == 255


def bar(mode: str = "L") -> Image.Image:
    """An upright black bar left of the middle, on white."""
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).rectangle((10, 5, 16, 34), fill="black")
    return image.convert(mode)


refusal = refusal_by(read_grey, DataError)


MODES_OF = {
    "png": ["1", "L", "P", "LA", "RGB", "RGBA"],
    "tif": ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"],
    "jpg": ["L", "RGB", "CMYK"],
    "webp": ["RGB", "RGBA"],
    "gif": ["L", "P"],
    "bmp": ["1", "RGB"],
    "ppm": ["1", "L", "RGB"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in MODES_OF for mode in MODES_OF[kind]])
def test_every_mode_of_every_format_is_read_as_grey(tmp_path: Path, kind: str, mode: str) -> None:
    bar(mode).save(tmp_path / f"a.{kind}", quality=100)
    photo = read_grey(tmp_path / f"a.{kind}")
    assert photo.mode == "L"
    np.testing.assert_allclose(np.asarray(photo, float), np.asarray(bar(), float), atol=8)


def test_more_than_8_bits_keep_their_levels(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.int32).reshape(16, 16)
    sixteen, thirty_two, fractions = (levels * 257).astype(np.uint16), levels * 257, levels / np.float32(255)
    for name, values in (("a.png", sixteen), ("a.tif", thirty_two), ("b.tif", fractions.astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
        assert (np.asarray(read_grey(tmp_path / name)) == levels).all()


def test_what_is_transparent_is_white_paper(tmp_path: Path) -> None:
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 5, 17, 35))
    image.save(tmp_path / "a.png")
    assert read_grey(tmp_path / "a.png").tobytes() == bar().tobytes()
    palette = bar("P")
    palette.save(tmp_path / "b.gif", transparency=palette.getpixel((10, 5)))
    assert np.asarray(read_grey(tmp_path / "b.gif")).min() == 255


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    bar().save(tmp_path / "a.jpg", exif=exif, quality=95)
    expected = np.rot90(np.asarray(bar(), float), -1)
    np.testing.assert_allclose(np.asarray(read_grey(tmp_path / "a.jpg"), float), expected, atol=12)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    blank = Image.new("L", (60, 40), 255)
    for name in ("a.gif", "a.webp", "a.tif"):
        bar().save(tmp_path / name, save_all=True, append_images=[blank])
        assert np.asarray(read_grey(tmp_path / name)).min() < 20


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.png")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "it is a pipe, not a file" in refusal(tmp_path / "pipe.png")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for name, content in (("empty.png", b""), ("text.png", b"seven"), ("page.eps", page)):
        (tmp_path / name).write_bytes(content)
        assert "PNG, JPEG, " in refusal(tmp_path / name)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_truncated_image_is_refused(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    bar("RGB").filter(ImageFilter.GaussianBlur(1)).save(whole)
    half = tmp_path / f"half.{kind}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert refusal(half)


@pytest.mark.parametrize("side", [7_100, 9_800, 14_000])
def test_an_enormous_image_is_refused_before_it_is_unpacked(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert "50 megapixels" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["lossy", "lossless", "animated"])
@pytest.mark.parametrize("sides", [(5_100, 5_000), (5_000, 5_100), (16_383, 16_383)])
def test_a_large_webp_is_refused_before_its_decoder_is_started(
    tmp_path: Path, kind: str, sides: tuple[int, int]
) -> None:
    """The decoder would take gigabytes at once. The header of a small image is made to state the sides."""
    path, small = tmp_path / "a.webp", Image.new("RGB", (3, 2))
    other = bar("RGB").crop((0, 0, 3, 2))
    small.save(path, save_all=kind == "animated", append_images=[other], lossless=kind == "lossless")
    assert read_grey(path).size == (3, 2)
    content, (width, height) = bytearray(path.read_bytes()), sides
    if kind == "lossy":
        content[26:30] = struct.pack("<HH", width, height)
    elif kind == "lossless":
        content[21:25] = struct.pack("<I", width - 1 | height - 1 << 14)
    else:
        content[24:30] = (width - 1 | height - 1 << 24).to_bytes(6, "little")
    path.write_bytes(content)
    assert "25 megapixels" in refusal(path)


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_an_endless_line_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "a.png")
    assert "65,535 pixels" in refusal(tmp_path / "a.png")


def test_a_jpeg_that_is_drawn_over_and_over_is_refused(tmp_path: Path) -> None:
    """75 bytes make a decoder go over 36 million pixels once more."""
    stream = io.BytesIO()
    Image.new("L", (6_000, 6_000)).save(stream, "JPEG", progressive=True)
    whole = stream.getvalue()
    (tmp_path / "a.jpg").write_bytes(whole)
    assert read_grey(tmp_path / "a.jpg").size == (6_000, 6_000)
    last_scan = whole[whole.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(whole[:-2] + 1_000 * last_scan + whole[-2:])
    assert "scans" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "png"), ("F", "tif"), ("RGBA", "png")])
def test_the_largest_image_takes_a_third_of_a_gigabyte(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new(mode, (7_000, 7_000)).save(path, compress_level=1)
    code = (
        "import pathlib, re, sys; from kdtrain.data.images.image_file import read_grey\n"
        "read_grey(pathlib.Path(sys.argv[1]))\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"  # KB
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 400_000


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"]), data=st.data())
def test_a_mutated_file_gives_a_image_or_a_data_error(kind: str, data: st.DataObject) -> None:
    stream = io.BytesIO()
    bar("RGB").save(stream, kind)
    content = bytearray(stream.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            assert read_grey(path).mode == "L"
