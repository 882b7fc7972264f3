"""Fixtures that many tests share: real MNIST in small portions, small files of it, and finished runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from kdtrain.cli import main
from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.data.loader import Loader
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import FitEnd
from kdtrain.engine.trainer import Trainer
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from tests import warm
from tests.browser import CHROMEDRIVER, CHROMIUM, Browser
from tests.cli.conftest import LOGDIR, MODES, Call, Finished, Fitted
from tests.tools import ROOT, write_digits, write_tiles

ADAM = partial(flow.optim.Adam, lr=1e-3)

settings.register_profile("kdtrain", deadline=None)  # a test that is slow on a busy machine has not failed
settings.load_profile("kdtrain")

LONGEST = (
    *("faults/test_faults.py", "cluster/test_nproc.py", "test_setup.py", "docs/test_pages.py"),
    *("plugins/test_methods_in_fits.py", "faults/test_machines.py", "cli/test_interrupt.py"),
    *("docs/test_api_page.py", "experiment/test_api.py", "cli/test_compare.py", "cli/test_resume.py"),
)
"""Files with few tests that take long."""

LoaderFactory = Callable[..., Loader]
Fit = Callable[..., FitEnd]
RunKdtrain = Callable[..., Finished]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files, so that no process is left alone with one of them at the end."""
    first = {ROOT / "tests" / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    warm.close()


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_dataset("mnist")


@pytest.fixture(scope="session")
def make_loader(mnist: Dataset) -> LoaderFactory:
    """A function that makes a loader over the training images from ``start`` to ``start + count``."""

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
def spawn() -> Call:
    """Runs the command line in a process of its own, forked from the warm parent."""

    def run(*words: object, cwd: Path, timeout: float = 240, **variables: str) -> Finished:
        command = [sys.executable, "-m", "kdtrain", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        return warm.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)

    return Call(run)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", mnist)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "tiles", mnist)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Fitted:
    flags = ("--data-dir", tiles, "--val-size", "300", "--epochs=3", "--batch-size=64", "--recipe=none")
    fitted = Fitted(tmp_path_factory.mktemp("fitted"), flags)
    for mode in MODES:
        words = ("fit", "--mode", mode, "--logdir", LOGDIR, *flags)
        fitted.processes[mode] = spawn(*words, cwd=fitted.folder)
    return fitted


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Call]:
    """Runs the command line in this process, which saves the import of OneFlow."""

    def start(*words: object, cwd: Path) -> Finished:
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        arguments = [str(word) for word in words]
        code = main(arguments)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    handler = signal.getsignal(signal.SIGTERM)
    yield Call(start, tmp_path)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def call_kdtrain(call: Call) -> Callable[..., Finished]:
    return call.any_code


@pytest.fixture(scope="session")
def run_kdtrain(spawn: Call) -> Callable[..., Finished]:
    return spawn.any_code


@pytest.fixture(scope="session")
def window() -> Iterator[Browser]:
    """A browser's window; the test is skipped where there is no browser."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    with Browser() as window:
        yield window
