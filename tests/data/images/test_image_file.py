"""Image files of every common format are read upright, in grey or colour, and scaled; others are refused."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from kdtrain.data.images.image_file import read_grey
from kdtrain.data.images.resize import is_grey, read_image, to_channels
from kdtrain.errors import DataError
from tests.refusals import damaged, refusal_by

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)


def read(path: Path, height: int = 8, width: int = 10) -> NDArray[np.uint8]:
    """Returns an image as (H, W, 3)."""
    pixels = read_image(path, (height, width))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, height, width)
    return pixels.transpose(1, 2, 0)


def bar(mode: str = "L") -> Image.Image:
    """An upright black bar left of the middle, on white."""
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).rectangle((10, 5, 16, 34), fill="black")
    return image.convert(mode)


refusal = refusal_by(read_grey, DataError)
refusal_in_colour = refusal_by(read_image, DataError)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_what_is_stored_without_loss_is_read_without_loss(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(COLOURS).save(path)
    assert (read(path) == COLOURS).all()


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif"])
def test_what_is_stored_with_loss_is_read_with_little_more(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    smooth = np.add.outer(np.arange(8) * 10, np.arange(10) * 8).astype(np.uint8)
    Image.fromarray(smooth).save(path)
    assert np.abs(read(path)[..., 1].astype(int) - smooth).max() <= 12


def test_grey_palette_and_deep_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for image in (Image.fromarray(COLOURS[..., 0]), Image.fromarray(COLOURS[..., 0]).convert("P")):
        image.save(path)
        pixels = read_image(path, (8, 10))
        assert is_grey(pixels)
        assert (pixels[0] == COLOURS[..., 0]).all()
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(path)
    assert (read(path)[..., 2] == COLOURS[..., 0]).all()


def test_large_photos_are_reduced_smoothly(tmp_path: Path) -> None:
    """A fine chequerboard becomes its mean, not a pattern."""
    board = np.indices((640, 800)).sum(0) % 2 * 255
    for suffix in ("png", "jpg"):
        path = tmp_path / f"board.{suffix}"
        Image.fromarray(board.astype(np.uint8)).save(path, quality=95)
        assert np.abs(read(path).astype(int) - 127).max() <= 3


def test_grey_is_the_eyes_mean_of_the_colours() -> None:
    pixels = COLOURS.transpose(2, 0, 1)
    grey = to_channels(pixels, 1)
    assert grey.dtype == np.uint8
    assert grey.shape == (1, 8, 10)
    expected = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
    assert np.abs(grey[0] - expected).max() <= 0.5 + 1e-9
    assert to_channels(pixels, 3) is pixels
    same = np.repeat(pixels[:1], 3, 0)
    assert (to_channels(same, 1) == pixels[:1]).all()


MODES_OF = {
    **{"png": ["1", "L", "P", "LA", "RGB", "RGBA"], "tif": ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"]},
    **{"jpg": ["L", "RGB", "CMYK"], "webp": ["RGB", "RGBA"], "gif": ["L", "P"], "bmp": ["1", "RGB"]},
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
    assert (read(tmp_path / "a.png", 40, 60) == np.asarray(bar("RGB"))).all()
    Image.fromarray(COLOURS).convert("RGBA").save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == COLOURS).all()
    palette = bar("P")
    palette.save(tmp_path / "b.gif", transparency=palette.getpixel((10, 5)))
    assert np.asarray(read_grey(tmp_path / "b.gif")).min() == 255


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    bar().save(tmp_path / "a.jpg", exif=exif, quality=95)
    expected = np.rot90(np.asarray(bar(), float), -1)
    np.testing.assert_allclose(np.asarray(read_grey(tmp_path / "a.jpg"), float), expected, atol=12)
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    assert (read(tmp_path / "a.png", 10, 8) == np.rot90(COLOURS, -1)).all()


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


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *(((7_100, 7_100), "50 megapixels"), ((10_000, 5_001), "50 megapixels")),
        *(((14_000, 14_000), "50 megapixels"), ((65_536, 1), "65,535 pixels")),
        ((1, 65_536), "65,535 pixels"),
    ],
)
def test_an_enormous_image_is_refused_before_it_is_unpacked(
    tmp_path: Path, size: tuple[int, int], words: str
) -> None:
    Image.new("1", size).save(tmp_path / "a.png")
    assert words in refusal(tmp_path / "a.png")
    assert words in refusal_in_colour(tmp_path / "a.png", (8, 8))


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


@settings(max_examples=150)
@given(kind=st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"]), data=st.data())
def test_a_damaged_file_gives_an_image_or_a_data_error(kind: str, data: st.DataObject) -> None:
    stream = io.BytesIO()
    bar("RGB").save(stream, kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(damaged(stream.getvalue(), data))
        with contextlib.suppress(DataError):
            assert read_grey(path).mode == "L"
