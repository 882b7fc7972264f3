"""The benchmark of models: accuracy on the test set, latency and throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kdtrain.data.dataset import Split
from kdtrain.deploy.latency import Clock, Timing, measure
from kdtrain.deploy.predict.predictor import Predictor
from kdtrain.metrics.evaluation import Evaluation

ROUNDS = 20
"""The default of ``--rounds``."""


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
