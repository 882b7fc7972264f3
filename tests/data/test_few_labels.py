"""``--labels``: some training images keep their labels, drawn class by class; the others lose them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdtrain.data.dataset import Dataset, Split, Unlabelled, class_by_class, hold_out
from kdtrain.data.unlabelled import without_most_labels
from kdtrain.errors import UsageError
from kdtrain.experiment.loaders import read_data, training_loader, validation_images
from kdtrain.experiment.settings.config import FitConfig

CLASSES = 4


def numbered(labels: NDArray[np.int64]) -> Split:
    """Returns images whose pixels are their own number."""
    numbers = np.arange(len(labels))
    pixels = np.stack([numbers // 256, numbers % 256], axis=1).astype(np.uint8)
    return Split(pixels[:, None, None, :], labels)


def numbers_of(images: NDArray[np.uint8]) -> list[int]:
    pixels = images.reshape(-1, 2).astype(int)
    return list(pixels[:, 0] * 256 + pixels[:, 1])


def dataset_of(labels: NDArray[np.int64]) -> Dataset:
    split = numbered(labels)
    return Dataset("numbers", split, split.take(np.arange(4)), tuple("abcd"))


LABELS = st.lists(st.integers(0, CLASSES - 1), min_size=40, max_size=300).map(
    lambda labels: np.array([*range(CLASSES), *labels], np.int64)
)


@given(LABELS, st.integers(0, 2**32))
def test_classes_take_turns_until_one_is_used_up(labels: NDArray[np.int64], seed: int) -> None:
    order = class_by_class(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    for number in range(1, len(labels) + 1):
        counts = np.bincount(labels[order[:number]], minlength=CLASSES)
        wanted = np.minimum(np.bincount(labels, minlength=CLASSES), counts.max())
        assert (counts >= wanted - 1).all(), "no class with images left is behind by more than one"


@given(LABELS, st.integers(2 * CLASSES, 30), st.integers(0, 2**32))
def test_every_image_is_either_labelled_or_not(labels: NDArray[np.int64], number: int, seed: int) -> None:
    dataset = dataset_of(labels)
    few = without_most_labels(dataset, str(number), seed)
    assert len(few.train) == number
    assert few.transfer is not None
    kept, others = numbers_of(few.train.images), numbers_of(few.transfer[:])
    assert sorted(kept + others) == list(range(len(labels)))
    assert few.without_labels == len(others)
    assert (few.train.labels == labels[kept]).all()
    again = without_most_labels(dataset, str(number), seed)
    assert numbers_of(again.train.images) == kept
    assert few.test is dataset.test


def test_another_seed_draws_other_images() -> None:
    dataset = dataset_of(np.arange(200) % CLASSES)
    first, second = (numbers_of(without_most_labels(dataset, "20", seed).train.images) for seed in (0, 1))
    assert first != second


def test_a_percentage_counts_all_training_images() -> None:
    assert len(without_most_labels(dataset_of(np.arange(200) % CLASSES), "12.5%", 0).train) == 25


def test_a_limit_counts_images_with_and_without_labels() -> None:
    few = without_most_labels(dataset_of(np.arange(200) % CLASSES), "20", 0, limit=50)
    assert (len(few.train), few.without_labels) == (20, 30)
    assert without_most_labels(dataset_of(np.arange(200) % CLASSES), "20", 0, limit=20).transfer is None


@pytest.mark.parametrize(
    ("labels", "limit", "text"),
    [
        ("200", None, "--labels 200: numbers has 200 training images, and all have labels"),
        ("1000", None, "give a smaller number"),
        ("7", None, "each of the 4 classes needs two images with labels"),
        ("1%", None, r"--labels 1% \(2 images\): .* give 8 or more"),
        ("100", 50, "--labels 100 are more than --limit-train 50 leaves"),
    ],
)
def test_a_number_that_does_not_fit_is_explained(labels: str, limit: int | None, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        without_most_labels(dataset_of(np.arange(200) % CLASSES), labels, 0, limit)


@given(LABELS, st.integers(0, 2**32))
def test_a_class_with_two_images_is_held_out_and_trained_on(labels: NDArray[np.int64], seed: int) -> None:
    split = numbered(np.concatenate([labels, np.arange(CLASSES)]))
    training, held_out = hold_out(split, CLASSES, seed, by_class=True)
    assert sorted([*training, *held_out]) == list(range(len(split)))
    for part in (training, held_out):
        assert set(split.labels[part]) == set(range(CLASSES))


def test_images_without_labels_of_several_sources_are_read_as_one() -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 1, 2, 2)
    later = (pixels + 100).astype(np.uint8)
    more = Unlabelled("more", later)
    rows = np.array([7, 1, 4], np.int64)
    both = Unlabelled("some", pixels, rows, more)
    joined = np.concatenate([pixels[rows], later])
    assert both.shape == (13, 1, 2, 2)
    np.testing.assert_array_equal(both[:], joined)
    np.testing.assert_array_equal(both[2:5], joined[2:5])
    np.testing.assert_array_equal(both[np.array([12, 0, 3, 3])], joined[[12, 0, 3, 3]])
    assert both.fingerprint == Unlabelled("all", joined).fingerprint


def test_teacher_and_students_of_all_seeds_have_the_same_labels(mnist: Dataset) -> None:
    """A fifth of the labelled images is held out, at most 1,000; ``data_seed`` decides, not the seed."""
    for labels, held_out in (("100", 20), ("20", 10), ("6000", 1000)):
        config = FitConfig(labels=labels, data_seed=3)
        dataset = read_data(config)
        validation = [validation_images(dataset, config, seed) for seed in (0, 1)]
        assert {name for name, _ in validation} == {"train"}
        assert (validation[0][1] == validation[1][1]).all()
        assert len(validation[0][1]) == held_out
        classes = np.bincount(dataset.train.labels[validation[0][1]])
        assert classes.max() - classes.min() <= 1
        loaders = [
            training_loader(dataset, config, network, seed, "cpu")
            for network, seed in (("teacher", 0), ("student", 0), ("student", 1))
        ]
        assert [loader.num_images for loader in loaders] == [int(labels) - held_out] * 3
        assert (loaders[0].targets == loaders[2].targets).all()


def test_only_a_student_with_a_teacher_gets_images_without_labels(tmp_path: Path) -> None:
    config = FitConfig(labels="100", mode="student")
    dataset = read_data(config)
    assert training_loader(dataset, config, "student", 0, "cpu").transfer is None
    assert training_loader(dataset, FitConfig(labels="100"), "teacher", 0, "cpu").transfer is None
    distilled = training_loader(dataset, FitConfig(labels="100"), "student", 0, "cpu")
    assert distilled.transfer is not None
    assert distilled.transfer.images == 59_900
