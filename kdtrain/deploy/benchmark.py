"""The benchmark of model files: size, accuracy on the test set, latency and throughput, and their table.

Networks are timed in alternating rounds, so that a disturbance affects all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Split
from kdtrain.deploy.predict.opening import check_fits, open_data, open_model
from kdtrain.deploy.predict.predictor import Clock, Images, Predictor
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.table import Column, Table
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.limits import IMAGES_AT_ONCE, MOST_PROCESSES
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.runtime.value_checks import IMAGES, between, check_value

ROUNDS = 20
"""The default of ``--rounds``."""

_MOST_ROUNDS = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class BenchmarkResult:
    """The figures of one model.

    Attributes:
        model: the model.
        test: its figures on the test images.
        timing: its latency and throughput.
    """

    model: Predictor
    test: Evaluation
    timing: Timing

    def __repr__(self) -> str:
        model, timing = self.model, self.timing
        return (
            f"<BenchmarkResult {model.path} ({model.runtime}): {self.test.accuracy:.2%}, "
            f"{timing.latency(50):.3g} ms per image, {timing.throughput:,.0f} images/s>"
        )

    @property
    def size(self) -> int:
        """Bytes on disk; of a OneFlow directory, the sum over its files."""
        path = self.model.path
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())


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


def run_benchmark(
    models: Sequence[Predictor], test: Split, *, batch_size: int, rounds: int, cores: int = 1
) -> list[BenchmarkResult]:
    """Tests and times models on a data set's test images.

    Args:
        models: the models, all for images and classes of this data set.
        test: the test images and labels.
        batch_size: images in a batch whose throughput is measured.
        rounds: rounds of measurement.
        cores: cores that the measurement may use.

    Returns:
        A result for each model, in their order.
    """
    tests = [Evaluation.from_logits(model.logits(test.images), test.labels) for model in models]
    timings = measure([partial(_clock, model) for model in models], test.images[:batch_size], rounds, cores)
    return [
        BenchmarkResult(model, evaluation, timing)
        for model, evaluation, timing in zip(models, tests, timings, strict=True)
    ]


def _clock(model: Predictor) -> Clock:
    return model.reloaded().seconds


def benchmark_table(results: Sequence[BenchmarkResult]) -> Table:
    """Returns a row per model."""
    batch = results[0].timing.batch_size
    table = Table(
        Column("model", words=True),
        Column("runtime", words=True, drop=3),
        Column("parameters", drop=4),
        Column("KB", drop=5),
        Column("right\n%"),
        Column("p50\nms", note="p50, p95: latency of one image, from pixels to logits."),
        Column("±", drop=1, note="±: relative median absolute deviation of the rounds."),
        Column("p95\nms", drop=2),
        Column(f"images/s\n({batch})", drop=6, note=f"images/s: in batches of {batch} images."),
        Column("±", drop=1),
    )
    for result in results:
        model, timing = result.model, result.timing
        table.row(
            model.path.name,
            model.runtime,
            f"{model.parameters:,}",
            f"{result.size / 1000:,.0f}",
            f"{100 * result.test.accuracy:.2f}",
            _three_digits(timing.latency(50)),
            f"{timing.latency_spread:.0%}",
            _three_digits(timing.latency(95)),
            f"{timing.throughput:,.0f}",
            f"{timing.throughput_spread:.0%}",
        )
    return table


def benchmark_json(result: BenchmarkResult) -> dict[str, Any]:
    """Returns plain values for ``json.dumps``, in full precision, with units in the key names."""
    model, timing = result.model, result.timing
    return {
        "model": str(model.path),
        "arch": model.card.arch,
        "runtime": model.runtime,
        "parameters": model.parameters,
        "size_bytes": result.size,
        "accuracy_fraction": result.test.accuracy,
        "errors": result.test.errors,
        "images": result.test.images,
        "latency_p50_ms": timing.latency(50),
        "latency_p95_ms": timing.latency(95),
        "latency_spread_fraction": timing.latency_spread,
        "batch_size": timing.batch_size,
        "throughput_images_per_second": timing.throughput,
        "throughput_spread_fraction": timing.throughput_spread,
        "rounds": len(timing.images_per_second),
    }


def _three_digits(value: float) -> str:
    """Returns three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


_SINGLE = 20  # images of a round that are computed one by one
_WARM_UP = 3  # first rounds, whose times are dropped


@dataclass(frozen=True, eq=False, repr=False)
class Timing:
    """The times of one network.

    Attributes:
        milliseconds: (rounds, images) float64, for each image that was computed alone.
        images_per_second: (rounds,) float64, of each round's batch.
        batch_size: images in that batch.
    """

    milliseconds: npt.NDArray[np.float64]
    images_per_second: npt.NDArray[np.float64]
    batch_size: int

    def __repr__(self) -> str:
        return f"<Timing {self.latency(50):.3g} ms per image, {self.throughput:,.0f} images/s>"

    def latency(self, percent: float) -> float:
        """Returns a percentile over all images of all rounds, in milliseconds."""
        return float(np.percentile(self.milliseconds, percent))

    @property
    def latency_spread(self) -> float:
        """Relative median absolute deviation of the rounds' median latencies."""
        return _relative_mad(np.median(self.milliseconds, axis=1))

    @property
    def throughput(self) -> float:
        """Median over the rounds, in images per second."""
        return float(np.median(self.images_per_second))

    @property
    def throughput_spread(self) -> float:
        """Relative median absolute deviation of the rounds' throughputs."""
        return _relative_mad(self.images_per_second)


def _relative_mad(values: npt.NDArray[np.float64]) -> float:
    """Returns the median absolute deviation from the median, divided by the median."""
    median = np.median(values)
    return float(np.median(np.abs(values - median)) / median)


def measure(
    makers: Sequence[Callable[[], Clock]], images: Images, rounds: int, cores: int = 1
) -> list[Timing]:
    """Times networks in a forked process; each round times every network once.

    In a forked process oneflow is fastest (``kdtrain/runtime/processes.py``). Processes that the makers
    start are pinned to the same cores.

    Args:
        makers: each makes a network's clock; called in the forked process.
        images: (N, C, H, W) uint8. Each round computes the first 20 one by one, then all as one batch.
        rounds: number of rounds, besides three that warm up.
        cores: cores that the process may use, for networks with several threads.

    Returns:
        A timing for each maker, in their order.
    """
    return run_jobs([Job("the measurement", partial(_measure, makers, images, rounds), cores)])[0]


def _measure(makers: Sequence[Callable[[], Clock]], images: Images, rounds: int) -> list[Timing]:
    clocks = [make() for make in makers]
    single: list[list[list[float]]] = [[] for _ in clocks]
    batches: list[list[float]] = [[] for _ in clocks]
    for _ in progress_bar("measuring", _WARM_UP + rounds, "round", range(_WARM_UP + rounds)):
        for number, clock in enumerate(clocks):
            single[number].append([1000 * seconds for seconds in clock(images[:_SINGLE], 1)])
            batches[number].append(len(images) / sum(clock(images, len(images))))
    return [
        Timing(np.array(milliseconds[_WARM_UP:]), np.array(throughputs[_WARM_UP:]), batch_size=len(images))
        for milliseconds, throughputs in zip(single, batches, strict=True)
    ]
