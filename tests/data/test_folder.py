"""``folder:DIR``: class folders of images become a data set, complete, in order, the same every time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdtrain.data import dataset as arrays
from kdtrain.data.dataset import Dataset, Normalized
from kdtrain.data.datasets import load_dataset
from kdtrain.data.images import decode_folder
from kdtrain.data.images.decode_folder import decode
from kdtrain.errors import DataError, UsageError
from kdtrain.experiment.loaders import check_sizes, count_validation, prepare
from kdtrain.experiment.settings.config import FitConfig
from tests.refusals import refusal_by

Pixels = NDArray[np.uint8]


def noise(number: int, height: int = 6, width: int = 6, grey: bool = False) -> Pixels:
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, count: int = 10, grey: bool = False, **size: int) -> Path:
    """Two class folders with ``count`` images each, whose names are not in the order of writing."""
    for number in reversed(range(count)):
        for label, name in enumerate(("cats", "dogs")):
            save(folder / name / f"{number:03}.png", noise(2 * number + label, grey=grey, **size))
    return folder


def load(folder: Path, **options: Any) -> Dataset:
    return load_dataset(f"folder:{folder}", cache_dir=folder / ".cache", **options)


refusal = refusal_by(load, DataError)
misuse = refusal_by(load, UsageError)


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "kdtrain")
    return caplog


def test_three_splits_come_in_the_order_of_names(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / split, count)
    dataset = load(tmp_path)
    assert dataset.name == f"folder:{tmp_path}"
    assert (dataset.classes, dataset.image_shape) == (("cats", "dogs"), (3, 6, 6))
    assert dataset.validation is not None
    for part, count in ((dataset.train, 6), (dataset.validation, 2), (dataset.test, 3)):
        assert part.labels.tolist() == [0] * count + [1] * count
        expected = [noise(2 * number + label) for label in (0, 1) for number in range(count)]
        assert (part.images == np.array(expected).transpose(0, 3, 1, 2)).all()


def test_a_fifth_of_each_class_is_for_testing_where_there_is_no_test_folder(tmp_path: Path) -> None:
    flat, parted = load(fill(tmp_path / "flat", 23)), load(fill(tmp_path / "parted" / "train", 23).parent)
    assert flat.fingerprint == parted.fingerprint
    assert (flat.validation, parted.validation) == (None, None)
    assert np.bincount(flat.train.labels).tolist() == [19, 19]
    assert np.bincount(flat.test.labels).tolist() == [4, 4]
    everything = np.concatenate([flat.train.images, flat.test.images])
    assert len(np.unique(everything.reshape(46, -1), axis=0)) == 46


def test_a_new_image_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    def test_images(dataset: Dataset) -> set[bytes]:
        return {image.tobytes() for image in dataset.test.images}

    before = test_images(load(fill(tmp_path, 20)))
    save(tmp_path / "cats" / "new.png", noise(100))
    after = test_images(load(tmp_path))
    assert len(before) == len(after) == 8
    assert len(before & after) >= 7


def test_the_number_of_processes_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path, 15)
    (tmp_path / "dogs" / "007.png").write_bytes(b"GIF89a")
    (tmp_path / "cats" / "003.png").write_bytes(b"")
    paths = sorted(tmp_path.glob("*/*.png"))
    alone, both = (decode(paths, (5, 5), True, tmp_path, workers) for workers in (0, 2))
    assert (alone.pixels == both.pixels).all()
    assert (alone.grey == both.grey).all()
    failures = {paths[index].name: str(error) for index, error in alone.failures.items()}
    assert failures == {paths[index].name: str(error) for index, error in both.failures.items()}
    assert failures.keys() == {"003.png", "007.png"}


def test_images_of_any_size_are_covered_and_cut_at_both_ends_alike(tmp_path: Path) -> None:
    """Thirds of red, green and blue: of a wide image the middle third is left, of a high one, too."""
    fill(tmp_path, 5)
    stripes = np.zeros((60, 20, 3), np.uint8)
    for third in range(3):
        stripes[20 * third : 20 * third + 20, :, third] = 200
    save(tmp_path / "cats" / "000.png", stripes)
    save(tmp_path / "dogs" / "000.jpg", stripes.transpose(1, 0, 2))
    dataset = load(tmp_path, image_size=8)
    assert dataset.image_shape == (3, 8, 8)
    images = np.concatenate([dataset.train.images, dataset.test.images]).astype(int)
    # JPEG blurs the borders between colours.
    green = [image for image in images if (np.abs(image[:, 2:6, 2:6].mean((1, 2)) - [0, 200, 0]) < 9).all()]
    assert len(green) == 2


def test_sizes_that_differ_or_are_too_large_are_named_with_the_remedy(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    save(tmp_path / "dogs" / "001.png", noise(0, height=6, width=7))
    for part in (f"{tmp_path / 'dogs' / '001.png'}", "6x7", "6x6", "--image-size N"):
        assert part in misuse(tmp_path)
    assert load(tmp_path, image_size=6).image_shape == (3, 6, 6)
    fill(tmp_path, 3, height=257)
    for part in ("257x6", "256", "--image-size"):
        assert part in misuse(tmp_path)
    assert "300x300" in misuse(tmp_path, image_size=300)
    assert load(tmp_path, image_size=256).image_shape == (3, 256, 256)


def test_without_colour_in_training_all_images_are_grey(tmp_path: Path) -> None:
    for name in ("train", "test"):
        fill(tmp_path / name, 4, grey=True)
    grey_in_colours = np.repeat(noise(50, grey=True)[..., np.newaxis], 3, 2)
    save(tmp_path / "train" / "dogs" / "000.png", grey_in_colours)
    save(tmp_path / "test" / "dogs" / "000.png", noise(51))
    dataset = load(tmp_path)
    assert dataset.image_shape == (1, 6, 6)
    assert (dataset.train.images[4, 0] == grey_in_colours[..., 0]).all()
    assert (dataset.train.images[0, 0] == noise(0, grey=True)).all()
    luma = noise(51) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(dataset.test.images[4, 0] - luma).max() <= 0.5 + 1e-9
    save(tmp_path / "train" / "dogs" / "000.png", noise(52))
    dataset = load(tmp_path)
    assert dataset.image_shape == (3, 6, 6)
    assert (dataset.train.images[0] == noise(0, grey=True)).all()


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    file = tmp_path / "cats" / "001.png"
    file.write_bytes(file.read_bytes()[:60])
    text = refusal(tmp_path)
    assert text.startswith(str(file))
    assert "--skip-corrupt" in text
    (tmp_path / "dogs" / "004.png").write_text("not an image")
    assert str(file) in refusal(tmp_path)
    assert "(and 1 more)" in refusal(tmp_path)
    (tmp_path / "cats" / "000.png").write_bytes(b"")
    assert "cats/000.png" in refusal(tmp_path)


def test_what_cannot_be_read_is_left_out_and_counted_by_flag(
    tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        fill(tmp_path / split, count)
    whole = load(tmp_path)
    for name in ("train/cats/000", "train/dogs/004", "val/cats/001", "test/dogs/002"):
        (tmp_path / f"{name}.png").write_bytes(b"GIF89a")
    dataset = load(tmp_path, skip_corrupt=True)
    assert "4 of 24" in notes.text
    assert "train/cats/000.png" in notes.text
    assert dataset.validation is not None
    assert whole.validation is not None
    for part, all_of_it, kept in (
        (dataset.train, whole.train, [1, 2, 3, 4, 5, 6, 7, 8]),
        (dataset.validation, whole.validation, [0, 2, 3, 4, 5]),
        (dataset.test, whole.test, [0, 1, 2, 3, 4, 5, 7]),
    ):
        assert (part.images == all_of_it.images[kept]).all()
        assert (part.labels == all_of_it.labels[kept]).all()


def test_nothing_is_left_when_all_of_a_split_is_corrupt(tmp_path: Path) -> None:
    for name in ("train", "test"):
        fill(tmp_path / name, 2)
    for file in (tmp_path / "test").glob("*/*"):
        file.write_bytes(b"")
    assert "has no test image" in refusal(tmp_path, skip_corrupt=True)
    for file in (tmp_path / "train").glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of the images"):
        load(tmp_path, skip_corrupt=True)


def test_files_that_are_no_images_are_counted_and_hidden_ones_ignored(
    tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 5)
    before = load(tmp_path).fingerprint
    assert notes.messages == []
    (tmp_path / "cats" / "notes.txt").write_text("a cat")
    (tmp_path / "cats" / ".DS_Store").write_text("")
    (tmp_path / ".git").mkdir()
    assert load(tmp_path).fingerprint == before
    (note,) = notes.messages
    assert "1 files" in note
    assert f"{tmp_path}/cats/notes.txt" in note
    (tmp_path / "cats" / "notes.txt").unlink()
    notes.clear()
    save(tmp_path / "cats" / "old" / "x.png", noise(0))
    assert load(tmp_path).fingerprint == before
    (note,) = notes.messages
    assert f"{tmp_path}/cats/old" in note, "images a folder deeper are left out, too"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ([], "has 0 class folders"),
        (["cats"], "has 1 class folders"),
        (["train/cats", "test/cats"], "train has 1 class folders"),
        (["train/cats", "train/dogs"], "cats holds no image"),
        (["val/cats", "val/dogs", "test/cats"], "has no folder train beside val and test"),
    ],
)
def test_folders_of_another_structure_are_named(tmp_path: Path, folders: list[str], words: str) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"), [(b"\xffowls", r"'\udcffowls'"), (b"ow\x1b[1mls", r"'ow\x1b[1mls'")]
)
def test_class_names_that_cannot_be_shown_are_refused(tmp_path: Path, name: bytes, shown: str) -> None:
    fill(tmp_path, 2)
    save(tmp_path / os.fsdecode(name) / "x.png", noise(0))
    assert f"the class folders in {tmp_path}: the name {shown} cannot be shown" in refusal(tmp_path)


def test_classes_that_are_only_tested_are_named(tmp_path: Path) -> None:
    for name in ("train", "test"):
        fill(tmp_path / name, 2)
    save(tmp_path / "test" / "owls" / "x.png", noise(0))
    assert "test/owls: there is no class 'owls'" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "nowhere")


def test_validation_images_that_are_there_choose(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / split, count)
    dataset = load(tmp_path)
    data = prepare(dataset, FitConfig(), "student", 0, "cpu")
    assert [loader.num_images for loader in (data.train, data.validation, data.test)] == [12, 4, 6]
    assert count_validation(dataset, FitConfig()) == 4
    with pytest.raises(UsageError, match=r"--val-size 3: .* has validation images of its own"):
        check_sizes(dataset, FitConfig(val_size=3))
    test = prepare(dataset, FitConfig(val_size=0), "student", 0, "cpu").validation
    assert test.num_images == 6


def test_a_sixth_is_held_out_where_nothing_else_is_said(tmp_path: Path, mnist: Dataset) -> None:
    dataset = load(fill(tmp_path, 20))
    data = prepare(dataset, FitConfig(), "student", 0, "cpu")
    assert (data.train.num_images, data.validation.num_images) == (27, 5)
    assert count_validation(mnist, FitConfig()) == 5000


def test_what_does_not_fit_in_memory_gives_the_same_batches_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "data", 20)
    (folder / "dogs" / "004.png").write_bytes(b"")
    config = FitConfig(batch_size=8, augment="shift=1,flip")
    small = prepare(load(folder, skip_corrupt=True), config, "student", 0, "cpu")
    monkeypatch.setattr(arrays, "MOST_PIXELS", 100)
    monkeypatch.setattr(decode_folder, "MOST_PIXELS", 100)
    large = prepare(load(folder, skip_corrupt=True), config, "student", 0, "cpu")
    assert isinstance(large.train.inputs, Normalized)
    assert not isinstance(small.train.inputs, Normalized)
    assert large.dataset.fingerprint == small.dataset.fingerprint
    for on_disk, in_memory in ((large.train, small.train), (large.validation, small.validation)):
        assert on_disk.fingerprint == in_memory.fingerprint
        for batch, expected in zip(on_disk.epoch(2), in_memory.epoch(2), strict=True):
            for name in ("inputs", "targets", "indices"):
                assert (getattr(batch, name).numpy() == getattr(expected, name).numpy()).all()
    assert os.listdir(folder / ".cache") == []


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_folder, "MOST_PIXELS", 100)
    fill(tmp_path, 3)
    (tmp_path / ".cache").write_text("in the way")
    for part in ("6 images of 6x6", "0 MiB", f"{tmp_path}/.cache", "XDG_CACHE_HOME"):
        assert part in refusal(tmp_path)


def test_a_few_images_of_each_class_are_enough_where_that_is_asked_for(tmp_path: Path) -> None:
    """Only they are read: a damaged one in between is not noticed."""
    fill(tmp_path / "train", 20)
    fill(tmp_path / "test", 3)
    (tmp_path / "train/cats/001.png").write_bytes(b"damaged")
    few = load(tmp_path, most_images=8)
    assert (len(few.train), set(few.train.labels), len(few.test)) == (8, {0, 1}, 6)
    assert "001.png" in refusal(tmp_path)
