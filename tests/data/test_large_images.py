"""Images of many pixels are processed a few at a time; results do not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.runtime import flow, slices
from kdtrain.runtime.slices import in_slices


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
        monkeypatch.setattr(slices, "_AT_ONCE", most)
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
