"""A user's image, in a file or in memory, is brought to the form of the training images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdtrain.data.datasets import load_dataset
from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.data.images.model_input import model_input, shows_ink
from kdtrain.errors import DataError

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


def transparent(ink: Floats, brightness: float = 0) -> Image.Image:
    """Ink on no paper."""
    colours = np.full((*ink.shape, 4), brightness, float)
    colours[..., 3] = 255 * ink
    return as_image(colours)


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
    "white on transparent": lambda ink: transparent(ink, 255),
    "grey on transparent, in a palette": lambda ink: transparent(np.rint(ink), 200).quantize(),
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


@settings(max_examples=100)
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


@settings(max_examples=50)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_brightness_values_give_an_image_or_a_data_error(values: NDArray[np.float32]) -> None:
    with contextlib.suppress(DataError):
        assert to_mnist(Image.fromarray(values)).max() == 255


@pytest.fixture
def photo(digits: Bytes) -> Image.Image:
    """A dark digit on coloured paper."""
    return as_image(paint(enlarge(digits[0])))


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("dataset", "shape", "ink"),
    [
        *(("mnist", (1, 28, 28), True), ("digits", (1, 20, 24), True), ("cifar10", (3, 32, 32), False)),
        *(("folder:pets", (1, 16, 16), False), ("folder:pets", (3, 16, 20), False)),
    ],
)
def test_bytes_give_what_the_file_gives(
    tmp_path: Path, photo: Image.Image, dataset: str, shape: tuple[int, int, int], ink: bool
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo))
    pixels = model_input(tmp_path / "a.png", dataset, shape)
    assert pixels.dtype == np.uint8
    assert pixels.shape == shape
    assert np.array_equal(pixels, model_input(encoded(photo), dataset, shape))
    assert shows_ink(dataset, shape) == ink
    if ink:
        assert np.array_equal(pixels[0], to_mnist(photo, shape[1:]))
    else:
        assert pixels[:, 0, 0].min() > 150, "the paper is as bright as it was"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "blank.png").write_bytes(encoded(Image.new("L", (50, 50), 200)))
    (tmp_path / "text.png").write_bytes(b"seven")
    for name, complaint in (("blank.png", "no digit found"), ("text.png", "PNG, JPEG")):
        for source in (tmp_path / name, (tmp_path / name).read_bytes()):
            with pytest.raises(DataError, match=complaint) as caught:
                model_input(source, "mnist", (1, 28, 28))
            assert str(caught.value).startswith(str(tmp_path / name)) == isinstance(source, Path)
            assert (str(tmp_path) in str(caught.value)) == isinstance(source, Path)
