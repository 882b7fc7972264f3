"""A teacher's logits are computed once for the same weights and the same images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain import Loader, build_model, flow, predict_logits
from kdtrain.callbacks.teacher_logits import cached_logits, weights_fingerprint
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.store.checkpoint import load_weights, snapshot
from tests.engine.fits import mlp


class Cache:
    """Asks for the logits of ``model`` over ``loader``, and counts how often they are computed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.computed = 0

    def __call__(self, model: flow.nn.Module, loader: Loader) -> npt.NDArray[np.float32]:
        def compute() -> npt.NDArray[np.float32]:
            self.computed += 1
            return predict_logits(model, loader)

        return cached_logits(self.directory, weights_fingerprint(model), loader.fingerprint, compute)

    def file(self) -> Path:
        (name,) = os.listdir(self.directory)
        return self.directory / name


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def loader_of(mnist: Dataset, normalization: Normalization, start: int = 0) -> Loader:
    split = mnist.train.take(np.arange(start, start + 300))
    return Loader(normalization.apply(split.images), split.labels, 100, num_classes=10, seed=1)


def test_logits_are_computed_once_and_then_read_bit_for_bit(
    cache: Cache, student: flow.nn.Module, train: Loader
) -> None:
    computed = cache(student, train)
    read = cache(student, train)
    assert cache.computed == 1
    assert read.dtype == computed.dtype == np.float32
    assert read.tobytes() == computed.tobytes() == predict_logits(student, train).tobytes()
    same = mlp(seed=1)
    load_weights(same, snapshot(student), "here")
    cache(same, train.sequential(7))
    assert cache.computed == 1, "another object, but the same weights and images"


def test_another_teacher_gets_logits_of_its_own(cache: Cache, student: flow.nn.Module, train: Loader) -> None:
    before = cache(student, train)
    weights = snapshot(student)
    weights["fc3.bias"][0] = np.nextafter(weights["fc3.bias"][0], np.float32(9))
    load_weights(student, weights, "here")
    after = cache(student, train)
    assert cache.computed == 2, "one bit of one weight has changed"
    assert np.array_equal(after, predict_logits(student, train))
    assert not np.array_equal(after, before)
    models = [build_model(arch, (1, 28, 28), 10) for arch in ("hinton_800", "hinton_1200")]
    assert len({weights_fingerprint(model) for model in (student, *models)}) == 3


def test_structure_counts_as_well_as_the_weights() -> None:
    class Scaled(flow.nn.Linear):
        pass

    plain, other = flow.nn.Linear(3, 3), Scaled(3, 3)
    other.load_state_dict(plain.state_dict())
    assert weights_fingerprint(plain) != weights_fingerprint(other)


def test_other_images_and_other_normalisation_are_told_apart(
    cache: Cache, student: flow.nn.Module, mnist: Dataset
) -> None:
    normalization = mnist.normalization
    loaders = [
        loader_of(mnist, normalization),
        loader_of(mnist, normalization, start=1),
        loader_of(mnist, Normalization((0.1307,), normalization.std)),
        loader_of(mnist, Normalization(normalization.mean, (0.3081,))),
    ]
    for loader in loaders:
        assert np.array_equal(cache(student, loader), predict_logits(student, loader))
    assert cache.computed == 4
    assert len(os.listdir(cache.directory)) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "text"])
def test_damaged_file_is_replaced(cache: Cache, student: flow.nn.Module, train: Loader, damage: str) -> None:
    expected = cache(student, train)
    content = bytearray(cache.file().read_bytes())
    content[-3] ^= 64
    contents = {"truncated": content[:-100], "empty": b"", "flipped": content, "text": b"not logits"}
    cache.file().write_bytes(bytes(contents[damage]))
    assert np.array_equal(cache(student, train), expected)
    assert np.array_equal(cache(student, train), expected)
    assert cache.computed == 2
