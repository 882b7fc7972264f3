"""The loaders of ``load_data``: the same batches as those of ``kdtrain fit``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import UsageError, load_data
from kdtrain.data.dataset import Dataset, Split, Unlabelled
from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.loaders import count_copies, prepare, validation_images
from kdtrain.experiment.settings.config import FitConfig
from tests.tools import write_tiles


def test_data_are_those_of_a_fit_with_the_same_settings(mnist: Dataset, tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", mnist)
    data = load_data(data_dir=str(tiles), val_size=300, batch_size=50, seed=3, augment="shift=1")
    config = FitConfig(mode="student", val_size=300, batch_size=50, augment="shift=1")
    expected = prepare(load_dataset(data_dir=tiles), config, "student", 3, "cpu")
    for loader, reference in ((data.train, expected.train), (data.validation, expected.validation)):
        for batch, reference_batch in zip(loader.epoch(1), reference.epoch(1), strict=True):
            assert np.array_equal(batch.inputs.numpy(), reference_batch.inputs.numpy())
            assert np.array_equal(batch.targets.numpy(), reference_batch.targets.numpy())
    assert data.dataset.num_classes == 4
    assert data.test.fingerprint == expected.test.fingerprint


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batchsize": 64}, r"load_data: there is no setting 'batchsize' \(did you mean 'batch_size'\?\)"),
        ({"epochs": 3}, "there is no setting 'epochs'"),
        ({"batch_size": 0}, "batch_size is 0: it must be from 1 to 100,000,000"),
        ({"val_size": 60_000}, "val_size 60000: give 0 to 59999"),
        ({"dataset": "mnits"}, "did you mean 'mnist'"),
        ({"seed": "three"}, "seed is 'three': it must be a whole number"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_data(**settings)


def images_of(values: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Returns images, (N, 3, 2, 2), in the memory layout of files, that differ in their last pixel alone."""
    images = np.zeros((len(values), 2, 2, 3), np.uint8)
    images[:, 1, 1, 2] = values
    return images.transpose(0, 3, 1, 2)


VALUES = st.lists(st.integers(0, 255), min_size=1, max_size=40)


@given(st.lists(st.integers(0, 255), min_size=12, max_size=60), VALUES, VALUES, st.integers(0, 9))
def test_copies_are_the_images_that_are_equal_pixel_by_pixel(
    train: list[int], test: list[int], unlabelled: list[int], seed: int
) -> None:
    labelled = Split(images_of(train), np.zeros(len(train), np.int64))
    tested = Split(images_of(test), np.zeros(len(test), np.int64))
    rows = np.arange(len(unlabelled))[::-1]
    transfer = Unlabelled("some", images_of(unlabelled), rows.copy())
    dataset = Dataset("numbers", labelled, tested, ("a", "b"), transfer=transfer)
    config = FitConfig(mode="student_kd", val_size=5, seed=seed)
    held_out = {train[row] for row in validation_images(dataset, config, seed)[1]}
    rest = sorted(set(range(len(train))) - set(validation_images(dataset, config, seed)[1].tolist()))
    seen = {train[row] for row in rest} | set(unlabelled)
    copies = count_copies(dataset, config)
    in_training, in_held_out = (sum(value in part for value in test) for part in (seen, held_out))
    again = sum(train[row] in seen for row in validation_images(dataset, config, seed)[1])
    if copies is None:
        assert in_training == in_held_out == again == 0
    else:
        assert (copies.test_in_training, copies.test_in_held_out) == (in_training, in_held_out)
        assert (copies.held_out_in_training, copies.held_out_images) == (again, 5)


def test_mnist_has_no_copies_and_is_hashed_once(mnist: Dataset) -> None:
    assert count_copies(mnist, FitConfig()) is None
    assert mnist.train.digests is mnist.train.digests
    assert len(np.unique(np.concatenate([mnist.train.digests, mnist.test.digests]))) == 70_000
