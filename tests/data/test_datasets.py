"""Data sets are complete, checked and normalised; an error names the file, flag or value at fault."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from kdtrain.data import datasets
from kdtrain.data.dataset import Dataset, Split, hold_out
from kdtrain.data.datasets import FILES, IdxDataset, load_dataset, verify_embedded
from kdtrain.errors import DataError, UsageError
from tests.refusals import refusal_by
from tests.tools import ROOT, idx_bytes

Arrays = dict[str, NDArray[np.uint8]]


def four_arrays(height: int = 5, width: int = 4, classes: int = 3, train: int = 9, test: int = 6) -> Arrays:
    """A small data set in which every class occurs, under the names of FILES."""
    random = np.random.default_rng(0)
    contents = []
    for count in (train, test):
        contents.append(random.integers(0, 256, (count, height, width), dtype=np.uint8))
        contents.append((np.arange(count) % classes).astype(np.uint8))
    return dict(zip(FILES, contents, strict=True))


def write(folder: Path, arrays: Mapping[str, NDArray[np.uint8]], zipped: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(
            gzip.compress(content) if zipped else content
        )
    return folder


def load_arrays(folder: Path, arrays: Mapping[str, NDArray[np.uint8]]) -> None:
    load_dataset(data_dir=write(folder, arrays))


refusal = refusal_by(load_arrays, DataError)


def make_dataset(images: NDArray[np.uint8]) -> Dataset:
    split = Split(images, np.arange(len(images), dtype=np.int64) % 2)
    return Dataset("made", split, split, ("0", "1"))


def test_the_embedded_mnist_is_the_published_one(mnist: Dataset) -> None:
    assert (mnist.name, mnist.num_classes, mnist.image_shape) == ("mnist", 10, (1, 28, 28))
    assert mnist.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    for split in (mnist.train, mnist.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.images.shape == (len(split), 1, 28, 28)
    # How often each digit occurs, and the first labels, as published.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train.labels).tolist() == counts
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    # What others compute for the 60,000 training images, to float32's precision.
    assert mnist.normalization.mean == pytest.approx((0.13066048,), abs=5e-9)
    assert mnist.normalization.std == pytest.approx((0.30810780,), abs=5e-9)


def test_an_embedded_file_that_differs_is_refused_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify_embedded() == [(file, True) for file in FILES]
    source = Path(datasets.__file__).parent / "mnist"
    damaged = write(tmp_path, {FILES[3]: np.zeros(10_000, np.uint8)}, zipped=True)
    (tmp_path / f"{FILES[1]}.gz").write_bytes((source / f"{FILES[1]}.gz").read_bytes()[:-1])
    (tmp_path / f"{FILES[2]}.gz").symlink_to(source / f"{FILES[2]}.gz")
    (tmp_path / "mnist").symlink_to(damaged)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert [good for _, good in verify_embedded()] == [False, False, True, False]
    for number, fault in ((0, "does not exist"), (1, "is damaged "), (3, "has the wrong checksum")):
        name = f"{FILES[number]}.gz"
        with pytest.raises(DataError, match=rf"{name} {fault}.* Install kdtrain again\."):
            load_dataset()
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(source / name)


@pytest.mark.parametrize(("height", "width", "classes"), [(1, 1, 2), (64, 64, 256), (5, 4, 3)])
@pytest.mark.parametrize("zipped", [False, True])
def test_data_dir_reads_any_size_and_class_count(
    tmp_path: Path, height: int, width: int, classes: int, zipped: bool
) -> None:
    arrays = four_arrays(height, width, classes, train=300, test=7)
    dataset = load_dataset(data_dir=write(tmp_path / "mine", arrays, zipped))
    assert dataset.name == "mine"
    assert dataset.image_shape == (1, height, width)
    assert dataset.classes == tuple(str(label) for label in range(classes))
    for split, images, labels in ((dataset.train, *FILES[:2]), (dataset.test, *FILES[2:])):
        assert (split.images[:, 0] == arrays[images]).all()
        assert (split.labels == arrays[labels]).all()
        assert split.labels.dtype == np.int64


def test_data_dir_mixes_plain_and_zipped_and_overrides_the_name(tmp_path: Path) -> None:
    arrays = four_arrays()
    write(tmp_path, {name: arrays[name] for name in FILES[:2]})
    write(tmp_path, {name: arrays[name] for name in FILES[2:]}, zipped=True)
    assert len(load_dataset("fashion_mnist", data_dir=tmp_path).train) == 9


def test_data_dir_recognises_known_data_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = four_arrays(classes=2)
    sha256s = tuple(hashlib.sha256(idx_bytes(arrays[name])).hexdigest() for name in FILES)
    monkeypatch.setitem(datasets.DATASETS, "known", IdxDataset(("cat", "dog"), sha256s))
    dataset = load_dataset(data_dir=write(tmp_path / "mine", arrays))
    assert (dataset.name, dataset.classes) == ("known", ("cat", "dog"))
    arrays[FILES[0]][3, 2, 1] ^= 1
    dataset = load_dataset(data_dir=write(tmp_path / "mine", arrays))
    assert (dataset.name, dataset.classes) == ("mine", ("0", "1"))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    arrays = four_arrays()
    text = refusal(tmp_path, {FILES[0]: arrays[FILES[0]], FILES[3]: arrays[FILES[3]]})
    assert f"--data-dir {tmp_path} lacks {FILES[1]}, {FILES[2]} (plain or with .gz)" in text
    for nowhere in (tmp_path / "absent", tmp_path / FILES[0]):
        with pytest.raises(DataError, match=f"--data-dir {nowhere} cannot be read"):
            load_dataset(data_dir=nowhere)
    (tmp_path / FILES[2]).write_bytes(b"GIF89a")
    assert f"{tmp_path / FILES[2]} is not an IDX file" in refusal(tmp_path, {FILES[1]: arrays[FILES[1]]})


IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = FILES


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (IMAGES, np.zeros((9, 20), np.uint8), f"{IMAGES} has 2 dimensions; images have 3"),
        (TEST_IMAGES, np.zeros((6, 1, 5, 4), np.uint8), f"{TEST_IMAGES} has 4 dimensions; images have 3"),
        (LABELS, np.zeros((9, 1), np.uint8), f"{LABELS} has 2 dimensions; labels have 1"),
        (LABELS, np.zeros(8, np.uint8), f"holds 9 images, but DIR/{LABELS} 8 labels"),
        (TEST_LABELS, np.zeros(7, np.uint8), f"holds 6 images, but DIR/{TEST_LABELS} 7 labels"),
        (IMAGES, np.zeros((9, 257, 4), np.uint8), f"{IMAGES} holds images of 257x4; kdtrain takes 1x1 to"),
        (IMAGES, np.zeros((9, 4, 257), np.uint8), "of 4x257"),
        (IMAGES, np.zeros((9, 0, 4), np.uint8), "of 0x4"),
        (TEST_IMAGES, np.zeros((6, 4, 5), np.uint8), f"5x4 in DIR/{IMAGES}, 4x5 in DIR/{TEST_IMAGES}"),
    ],
)
def test_each_inconsistency_is_named(tmp_path: Path, name: str, array: NDArray[np.uint8], words: str) -> None:
    assert words.replace("DIR", str(tmp_path)) in refusal(tmp_path, four_arrays() | {name: array})


@pytest.mark.parametrize(("images", "labels"), [(IMAGES, LABELS), (TEST_IMAGES, TEST_LABELS)])
def test_an_empty_split_is_named(tmp_path: Path, images: str, labels: str) -> None:
    empty = {images: np.zeros((0, 5, 4), np.uint8), labels: np.zeros(0, np.uint8)}
    assert f"{images} is empty" in refusal(tmp_path, four_arrays() | empty)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (str(ROOT), f"--dataset folder:{ROOT}"),
        ("stripes.npz", "--dataset npz:stripes.npz"),
        ("folder:", "--dataset folder:"),
        ("npz:", "--dataset npz:"),
        ("data.py:", "--dataset data.py:"),
        ("mnist:factory", "there is no module 'mnist'"),
        ("mnits", "'mnits' (did you mean 'mnist'?); there are: mnist, fashion_mnist, cifar10, "),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_the_remedy(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        load_dataset(name)


images_of_any_kind = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5))


@given(images_of_any_kind)
@example(np.full((4, 1, 3, 3), 77, np.uint8))
@example(np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2).transpose(0, 1, 3, 2))
def test_normalization_agrees_with_numpy_in_float64(images: NDArray[np.uint8]) -> None:
    normalization = make_dataset(images).normalization
    pixels = images / np.float64(255)
    mean, std = pixels.mean(axis=(0, 2, 3)), pixels.std(axis=(0, 2, 3))
    std[images.max(axis=(0, 2, 3)) == images.min(axis=(0, 2, 3))] = 1.0
    assert normalization.mean == pytest.approx(mean, rel=1e-12)
    assert normalization.std == pytest.approx(std, rel=1e-9)
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    before = images.copy()
    result = normalization.apply(images)
    assert result.dtype == np.float32
    assert result.shape == images.shape
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, images)
    assert (images == before).all()
    assert (np.abs(result - expected) * std[:, None, None]).max() < 3e-7  # float32


def test_the_fingerprint_changes_with_every_part_of_the_data() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)
    labels = np.array([0, 1])
    split = Split(images, labels)
    variants = [
        Split(images ^ np.uint8(1), labels),
        Split(images.reshape(2, 1, 4, 3), labels),
        Split(images, labels[::-1]),
    ]
    pairs = [(split, split), *((other, split) for other in variants), *((split, other) for other in variants)]
    fingerprints = [Dataset("made", *pair, classes=("a", "b")).fingerprint for pair in pairs]
    assert len(set(fingerprints)) == 7
    assert fingerprints[0] == Dataset("other", split, Split(images.copy(), labels), ("c", "d")).fingerprint
    assert all(len(bytes.fromhex(fingerprint)) == 32 for fingerprint in fingerprints)


def test_take_gives_the_images_asked_for_in_that_order() -> None:
    split = make_dataset(np.arange(20, dtype=np.uint8).reshape(5, 1, 2, 2)).train
    taken = split.take(np.array([3, 0, 3]))
    assert len(taken) == 3
    assert taken.images[:, 0, 0, 0].tolist() == [12, 0, 12]
    assert taken.labels.tolist() == [1, 0, 1]
    assert not np.shares_memory(taken.images, split.images)


@given(count=st.integers(1, 50), data=st.data(), seed=st.integers(0, 2**64))
def test_hold_out_parts_the_training_split(count: int, data: st.DataObject, seed: int) -> None:
    train = make_dataset(np.zeros((count, 1, 1, 1), np.uint8)).train
    size = data.draw(st.integers(0, count - 1))
    kept, held = hold_out(train, size, seed)
    assert (len(kept), len(held)) == (count - size, size)
    assert sorted([*kept, *held]) == list(range(count))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    again = hold_out(train, size, seed)
    assert (again[0] == kept).all()
    assert (again[1] == held).all()


def test_hold_out_draws_by_seed_alone() -> None:
    train = make_dataset(np.zeros((1000, 1, 1, 1), np.uint8)).train
    np.random.seed(0)
    first = hold_out(train, 100, seed=0)[1]
    np.random.seed(1)
    assert (hold_out(train, 100, seed=0)[1] == first).all()
    assert (hold_out(train, 100, seed=1)[1] != first).any()
    assert not np.array_equal(first, np.sort(np.random.default_rng(0).permutation(1000)[:100]))
    assert 350 < first.mean() < 650  # from everywhere, not from one end


@pytest.mark.parametrize("size", [-1, 8, 9])
def test_a_hold_out_that_leaves_nothing_is_a_usage_error(size: int) -> None:
    train = make_dataset(np.zeros((8, 1, 1, 1), np.uint8)).train
    with pytest.raises(UsageError, match=rf"--val-size {size}: give 0 to 7"):
        hold_out(train, size, seed=0)
