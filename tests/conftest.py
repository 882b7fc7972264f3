"""What many tests share: real MNIST, in portions small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.data.loader import Loader
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import FitEnd
from kdtrain.engine.trainer import Trainer
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from tests.tools import ROOT

ADAM = partial(flow.optim.Adam, lr=1e-3)

settings.register_profile("kdtrain", deadline=None)  # a busy machine is no failure
settings.load_profile("kdtrain")

LoaderFactory = Callable[..., Loader]
Fit = Callable[..., FitEnd]
RunKdtrain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_dataset("mnist")


@pytest.fixture(scope="session")
def make_loader(mnist: Dataset) -> LoaderFactory:
    """Makes a loader over training images ``start`` to ``start + count``."""

    def make(count: int = 512, start: int = 0, batch_size: int = 128, seed: int | None = 0) -> Loader:
        images = mnist.train.images[start : start + count]
        labels = mnist.train.labels[start : start + count]
        return Loader(mnist.normalization.apply(images), labels, batch_size, num_classes=10, seed=seed)

    return make


@pytest.fixture
def train(make_loader: LoaderFactory) -> Loader:
    return make_loader(512)


@pytest.fixture
def validation(make_loader: LoaderFactory) -> Loader:
    return make_loader(256, start=512, seed=None)


@pytest.fixture
def student() -> flow.nn.Module:
    flow.manual_seed(0)
    return build_model("student_mlp", (1, 28, 28), 10)


@pytest.fixture
def card(mnist: Dataset) -> ModelCard:
    normalization = mnist.normalization
    shape = mnist.image_shape
    return ModelCard(
        "student", "student_mlp", "mnist", shape, mnist.classes, normalization.mean, normalization.std
    )


@pytest.fixture
def fit(student: flow.nn.Module, train: Loader, validation: Loader, tmp_path: Path) -> Fit:
    """Fits the small student with the given callbacks."""

    def fit(*callbacks: Callback, epochs: int = 1) -> FitEnd:
        trainer = Trainer(student, ADAM, callbacks)
        return trainer.fit(train, validation, epochs=epochs, directory=tmp_path)

    return fit


@pytest.fixture(scope="session")
def run_kdtrain() -> RunKdtrain:
    """Runs the command line in a process of its own, as its user would."""

    def run(
        *words: str | Path, cwd: Path, timeout: float = 240, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = [sys.executable, "-m", "kdtrain", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
