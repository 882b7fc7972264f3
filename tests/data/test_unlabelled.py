"""``--transfer-data``: folders of pictures, IDX and ``.npz`` files without labels; faults name the file."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.unlabelled import load_unlabelled
from kdtrain.errors import DataError, KdtrainError
from tests.tools import idx_bytes

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8)


def dataset_of(channels: int) -> Dataset:
    images = np.full((8, channels, 5, 4), 7, np.uint8)
    split = Split(images, np.arange(8) % 2)
    return Dataset("small", split, split, ("a", "b"))


def load(path: Path, channels: int = 1, **options: Any) -> NDArray[np.uint8]:
    return load_unlabelled(path, dataset_of(channels), path.parent / "cache", **options).images


def refusal(path: Path, channels: int = 1, **options: Any) -> str:
    with pytest.raises(KdtrainError) as caught:
        load(path, channels, **options)
    return str(caught.value)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(COLOUR):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_idx_files_plain_and_gzipped(tmp_path: Path) -> None:
    for name, pack in (("images", bytes), ("images.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(idx_bytes(GREY)))
        np.testing.assert_array_equal(load(tmp_path / name), GREY[:, None])


@pytest.mark.parametrize(("array", "channels"), [(GREY, 1), (GREY[..., None], 1), (COLOUR, 3)])
def test_npz_files_with_one_array_of_any_name(
    tmp_path: Path, array: NDArray[np.uint8], channels: int
) -> None:
    np.savez_compressed(tmp_path / "images.npz", Bilder=array)
    images = load(tmp_path / "images.npz", channels)
    np.testing.assert_array_equal(images, array.reshape(6, 5, 4, channels).transpose(0, 3, 1, 2))


def test_pictures_of_folder_in_order_of_their_names(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdtrain")
    (pictures / "notes.txt").write_text("no picture")
    (pictures / "deeper").mkdir()
    images = load(pictures, 3)
    np.testing.assert_array_equal(images, COLOUR.transpose(0, 3, 1, 2))
    assert [word in caplog.text for word in ("notes.txt", "deeper")] == [True, True]
    grey = load(pictures)
    weighted = (COLOUR @ np.array([0.299, 0.587, 0.114]))[:, None]
    assert abs(grey - weighted).max() <= 0.5001, "grey data get grey pictures"
    assert len(load(pictures, 3, most_images=3)) == 3


def test_pictures_of_other_sizes_are_scaled_only_if_that_is_asked_for(pictures: Path) -> None:
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(pictures / "large.png")
    text = refusal(pictures, 3)
    assert str(pictures / "large.png") in text
    assert "is 50x40, but images of small are 5x4" in text
    assert load(pictures, 3, image_size=5).shape == (7, 3, 5, 4)


def test_pictures_that_cannot_be_read_are_named_or_left_out(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdtrain")
    (pictures / "2.png").write_bytes(b"no picture")
    assert str(pictures / "2.png") in refusal(pictures, 3)
    kept = load(pictures, 3, skip_corrupt=True)
    np.testing.assert_array_equal(kept, np.delete(COLOUR, 2, 0).transpose(0, 3, 1, 2))
    assert str(pictures / "2.png") in caplog.text
    for file in pictures.glob("*.png"):
        file.write_bytes(b"no picture")
    assert "none of the images can be read" in refusal(pictures, 3, skip_corrupt=True)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (GREY[:, :4], "holds images of 1x4x4, but those of small are 1x5x4"),
        (COLOUR, "holds images of 3x5x4, but those of small are 1x5x4"),
        (GREY / 255, "is float64 of shape (6, 5, 4): images must be uint8"),
        (GREY[0], "is uint8 of shape (5, 4): images must be uint8 of shape (N, H, W)"),
        (GREY[:0], "is empty"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: NDArray[Any], words: str) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, images=array)
    text = refusal(path)
    assert str(path) in text
    assert words in text


def test_files_that_hold_something_else_are_refused(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "two.npz"
    np.savez(path, x_train=GREY, y_train=np.arange(6))
    assert f"{path} holds 2 arrays" in refusal(path)
    assert "holds no image file" in refusal(pictures.parent)
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "labels").write_bytes(idx_bytes(np.arange(6, dtype=np.uint8)))
    assert "is uint8 of shape (6,)" in refusal(tmp_path / "labels")
    (tmp_path / "cut").write_bytes(idx_bytes(GREY)[:-1])
    assert "is truncated" in refusal(tmp_path / "cut")
    np.savez(path, images=np.array([None]))
    assert "only plain numbers" in refusal(path)


def test_a_file_that_states_a_huge_size_costs_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 5, 4)}
    np.lib.format.write_array_header_1_0(header, description)  # type: ignore[no-untyped-call]
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\x1b[31mred.npy", header.getvalue())
    text = refusal(path)
    assert "million pixel values" in text
    assert "\x1b" not in text


def test_the_fingerprint_is_that_of_the_pixels(tmp_path: Path) -> None:
    prints = []
    for name, array in (("a", GREY), ("b", GREY), ("c", GREY[::-1])):
        np.savez(tmp_path / f"{name}.npz", images=array)
        data = load_unlabelled(tmp_path / f"{name}.npz", dataset_of(1), tmp_path)
        prints.append(data.fingerprint)
        assert (len(data), data.name) == (6, str(tmp_path / f"{name}.npz"))
    assert prints[0] == prints[1] != prints[2]


def test_logits_of_all_images_must_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdtrain.data.checks.MOST_LOGITS", 27)
    np.savez(tmp_path / "images.npz", images=GREY)
    with pytest.raises(DataError, match="14 images in 2 classes have 28 logits"):
        load(tmp_path / "images.npz")
