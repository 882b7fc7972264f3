"""Loaders: each image once an epoch, orders by seed and epoch, memory that is not written again.

Images of many pixels are processed a few at a time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.errors import DataError
from kdtrain.runtime import flow, limits
from kdtrain.runtime.limits import in_slices
from kdtrain.runtime.ranks import Ranks
from tests.conftest import LoaderFactory


def _loader(images: int, batch_size: int, seed: int | None = 0) -> Loader:
    inputs = np.arange(images, dtype=np.float32).reshape(-1, 1, 1, 1)
    return Loader(inputs, np.arange(images) % 3, batch_size, num_classes=3, seed=seed)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 32), st.integers(0, 5), st.integers(1, 5))
def test_epoch_holds_every_image_once_with_its_label(images: int, size: int, seed: int, epoch: int) -> None:
    loader = _loader(images, size, seed)
    batches = list(loader.epoch(epoch))
    indices = np.concatenate([batch.indices.numpy() for batch in batches])
    assert sorted(indices) == list(range(images))
    assert len(batches) == len(loader)
    for batch in batches:
        np.testing.assert_array_equal(batch.inputs.numpy().ravel(), batch.indices.numpy())
        np.testing.assert_array_equal(batch.targets.numpy(), batch.indices.numpy() % 3)


def test_the_order_follows_seed_and_epoch() -> None:
    def order(seed: int | None, epoch: int) -> list[int]:
        return [int(i) for batch in _loader(100, 32, seed).epoch(epoch) for i in batch.indices.numpy()]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4
    assert order(None, 3) == list(range(100))


def test_a_lone_last_image_joins_the_batch_before_it() -> None:
    assert [len(batch) for batch in _loader(9, 4).epoch(1)] == [4, 5]
    assert [len(batch) for batch in _loader(10, 4).epoch(1)] == [4, 4, 2]
    assert [len(batch) for batch in _loader(1, 4).epoch(1)] == [1]
    assert [len(batch) for batch in _loader(3, 1).epoch(1)] == [1, 1, 1]


def test_batches_share_no_memory_and_the_data_are_read_only() -> None:
    """OneFlow may still read a batch when the next one is made."""
    loader = _loader(64, 16)
    batches = [batch.inputs.numpy() for batch in loader.epoch(1)]
    for index, first in enumerate(batches):
        assert not np.shares_memory(first, loader.inputs)
        assert not any(np.shares_memory(first, other) for other in batches[index + 1 :])
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(loader.inputs)[0] = 1.0


def test_queued_operations_see_the_batch_that_they_were_given(make_loader: LoaderFactory) -> None:
    """Many products are queued without waiting, then each one is waited for."""
    loader = make_loader(4096, batch_size=64)
    weight = flow.ones(784, 512)
    queued = [(flow.flatten(batch.inputs, 1) @ weight).sum() for batch in loader.epoch(1)]
    waited = [(flow.flatten(batch.inputs, 1) @ weight).sum().item() for batch in loader.epoch(1)]
    assert [total.item() for total in queued] == waited
    assert len(set(waited)) == len(waited)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (4, [0, 1, -1, 2], r"label -1 of image 2 is not one of 0\.\.2"),
        (4, [0, 1, 3, 2], r"label 3 of image 2 is not one of 0\.\.2"),
        (4, [0, 0, 0], "4 images and 3 labels"),
        (0, [], "at least one"),
    ],
)
def test_wrong_labels_and_lengths_are_found_before_oneflow_sees_them(
    images: int, labels: list[int], words: str
) -> None:
    inputs, targets = np.zeros((images, 1, 2, 2), np.float32), np.array(labels, np.int64)
    with pytest.raises(DataError, match=words):
        Loader(inputs, targets, 2, num_classes=3)


def test_the_fingerprint_follows_the_pixels_and_not_the_order_of_batches() -> None:
    first, same, other = _loader(8, 4, 0), _loader(8, 2, 1), _loader(9, 4, 0)
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_no_rank_is_left_without_an_image() -> None:
    """A convolution of an empty batch ends the process."""
    inputs, targets = np.zeros((3, 1, 1, 1), np.float32), np.zeros(3, np.int64)
    ranks = Ranks()
    for batch_size, processes in ((8, 4), (2, 3)):
        ranks.size = processes
        expected = f"3 images in batches of {batch_size} cannot be shared by {processes} processes"
        with pytest.raises(DataError, match=expected):
            Loader(inputs, targets, batch_size, num_classes=3, ranks=ranks)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5))
def test_ranks_share_every_batch(images: int, size: int, ranks: int) -> None:
    if min(images, size) < ranks:
        return
    inputs, targets = np.zeros((images, 1, 1, 1), np.float32), np.zeros(images, np.int64)
    shares = []
    for rank in range(ranks):
        group = Ranks()
        group.rank, group.size = rank, ranks
        loader = Loader(inputs, targets, size, num_classes=1, seed=0, ranks=group)
        shares.append([batch.indices.numpy() for batch in loader.epoch(1)])
    assert {len(batches) for batches in shares} == {len(loader)}
    for batch in zip(*shares, strict=True):
        assert min(map(len, batch)) >= 1
        assert max(map(len, batch)) - min(map(len, batch)) <= 1
    assert sorted(np.concatenate([i for batches in shares for i in batches])) == list(range(images))


@given(shape=st.lists(st.integers(0, 2000), min_size=1, max_size=4).map(tuple))
def test_slices_cover_everything_once_and_are_small(shape: tuple[int, ...]) -> None:
    items = np.arange(shape[0])
    parts = [items[few] for few in in_slices(shape)]
    assert np.array_equal(np.concatenate([items[:0], *parts]), items)
    assert all(len(part) == 1 or len(part) * math.prod(shape[1:]) <= 1 << 22 for part in parts)


def test_how_many_at_a_time_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (50, 3, 4, 5), np.uint8), np.arange(50) % 2)

    def figures() -> tuple[object, ...]:
        dataset = Dataset("noise", split, split, ("a", "b"))
        normalization = dataset.normalization
        loader = Loader(split.normalized(normalization), split.labels, 8, num_classes=2)
        return dataset.fingerprint, normalization, loader.fingerprint

    whole = figures()
    for most in (1, 150):
        monkeypatch.setattr(limits, "VALUES_AT_ONCE", most)
        assert figures() == whole


@pytest.mark.parametrize(("side", "most"), [(28, 250), (224, 27)])
def test_evaluation_takes_fewer_large_images_at_a_time(side: int, most: int) -> None:
    sizes = []

    class Mean(flow.nn.Module):
        def forward(self, x: flow.Tensor) -> flow.Tensor:
            sizes.append(len(x))
            return x.mean(dim=(2, 3))

    images = np.zeros((30 if side > 28 else 300, 3, side, side), np.float32)
    images += np.arange(len(images), dtype=np.float32).reshape(-1, 1, 1, 1)
    loader = Loader(images, np.zeros(len(images), np.int64), 64, num_classes=3)
    logits = predict_logits(Mean(), loader)
    np.testing.assert_allclose(logits[:, 0], np.arange(len(images)), rtol=1e-5)
    assert max(sizes) == most
    assert sum(sizes) == len(images)
