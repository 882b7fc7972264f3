"""``kdtrain views`` draws what a fit's students see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdtrain
from tests.cli.conftest import Call, assert_explained


def test_a_row_is_an_image_in_the_views_of_a_fit(tiles: Path, call: Call, tmp_path: Path) -> None:
    words = ("--data-dir", str(tiles), "--augment", "shift=2,flip")
    finished = call("views", *words, "--output", "sheet.png", cwd=tmp_path)
    assert finished.stdout == "sheet.png: 8 training images in 8 views each; a row is an image.\n"
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    data = kdtrain.load_data(data_dir=tiles, augment="shift=2,flip", val_size=0)
    height = data.dataset.image_shape[1]
    times = -(-96 // height)
    step = height * times + 4
    assert sheet.shape == (8 * step + 4, 8 * step + 4, 3)
    chosen = np.linspace(0, data.train.num_images - 1, 8).astype(np.int64)
    norm = data.dataset.normalization
    for view in range(8):
        batch = data.train.batch(chosen, np.full(8, view))
        for row, image in enumerate(batch.inputs.numpy()):
            pixels = np.rint(255 * (image[0] * norm.std[0] + norm.mean[0])).clip(0, 255)
            top, left = 4 + row * step, 4 + view * step
            drawn = sheet[top : top + height * times : times, left : left + height * times : times]
            np.testing.assert_array_equal(drawn, np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 2, "--augment shift=2,flip"),
        ("--augment scale=0.5", 2, "scale=LOW..HIGH"),
        ("--augment flip --output there/is/none.png", 1, "none.png"),
        ("--augment flip --dataset folder:nowhere", 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_said(words: str, code: int, said: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    assert_explained(call.any_code("views", *words.split(), cwd=tmp_path), code, said)
