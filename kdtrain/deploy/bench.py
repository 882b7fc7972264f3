"""The benchmark of model files, as ``kdtrain bench`` makes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import ROUNDS, BenchmarkResult, run_benchmark
from kdtrain.deploy.predict.opening import check_fits, open_data, open_model
from kdtrain.deploy.predict.predictor import Predictor
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.runtime.limits import IMAGES_AT_ONCE, MOST_PROCESSES
from kdtrain.runtime.value_checks import IMAGES, between, check_value

_MOST_ROUNDS = 100_000


def bench(
    *models: Path | str,
    rounds: int = ROUNDS,
    batch_size: int = IMAGES_AT_ONCE,
    threads: int = 1,
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    skip_corrupt: bool = False,
) -> list[BenchmarkResult]:
    """Tests and times models side by side, as ``kdtrain bench`` does; returns a result for each.

    Args:
        models: model files, checkpoints as well as .onnx files.
        rounds: rounds of measurement.
        batch_size: images in a batch whose throughput is measured.
        threads: threads of onnxruntime; oneflow always has one.
        arch: the architecture of the models whose network the user's code makes.
        dataset: the data set; by default the one that the first model was trained on, if it is built in.
        data_dir: a folder to read in place of built-in or downloaded files.
        skip_corrupt: leave out image files that cannot be read.

    Raises:
        KdtrainError: a model or the data cannot be read, or do not fit together.
    """
    check_numbers(rounds, batch_size, threads)
    if not models:
        raise UsageError("bench: name at least one model file.")
    opened = open_all([Path(path) for path in models], arch, threads)
    folder = None if data_dir is None else Path(data_dir)
    data = open_data(opened[0], dataset, folder, skip_corrupt=skip_corrupt)
    return bench_models(opened, data, rounds, batch_size, threads)


def check_numbers(rounds: int, batch_size: int, threads: int) -> None:
    """Raises UsageError if a number of a benchmark is not allowed."""
    check_value("--rounds", rounds, between(1, _MOST_ROUNDS))
    check_value("--batch-size", batch_size, IMAGES)
    check_value("--threads", threads, between(1, MOST_PROCESSES))


def bench_models(
    models: Sequence[Predictor], data: Dataset, rounds: int, batch_size: int, threads: int
) -> list[BenchmarkResult]:
    """Returns the figures of opened models; raises CheckpointError if one does not fit the data."""
    for model in models:
        check_fits(model, data)
    size = min(batch_size, len(data.test))
    return run_benchmark(models, data.test, batch_size=size, rounds=rounds, cores=threads)


def open_all(paths: Sequence[Path], arch: str | None, threads: int) -> list[Predictor]:
    """Reads models. ``arch`` is for the checkpoints that need it, whose network a user's code makes."""
    return [_open(path, arch, threads) for path in paths]


def _open(path: Path, arch: str | None, threads: int) -> Predictor:
    try:
        return open_model(path, threads=threads)
    except CheckpointError:
        if arch is None or path.suffix == ".onnx":
            raise
        return open_model(path, arch)
