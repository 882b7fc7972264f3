"""A user's image, in a file or in memory, is brought to the form of the training images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain.data.dataset import Dataset
from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.data.images.model_input import model_input, shows_ink
from kdtrain.errors import DataError


@pytest.fixture
def photo(mnist: Dataset) -> Image.Image:
    """A dark digit on coloured paper."""
    ink = Image.fromarray(mnist.test.images[0, 0]).resize((200, 240), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", ink.size, "navy"), Image.new("RGB", ink.size, "wheat"), ink)


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("dataset", "shape", "ink"),
    [
        ("mnist", (1, 28, 28), True),
        ("digits", (1, 20, 24), True),
        ("cifar10", (3, 32, 32), False),
        ("folder:pets", (1, 16, 16), False),
        ("folder:pets", (3, 16, 20), False),
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
        with pytest.raises(DataError, match=complaint) as caught:
            model_input(tmp_path / name, "mnist", (1, 28, 28))
        assert str(caught.value).startswith(str(tmp_path / name))
        with pytest.raises(DataError, match=complaint) as caught:
            model_input((tmp_path / name).read_bytes(), "mnist", (1, 28, 28))
        assert str(tmp_path) not in str(caught.value)
