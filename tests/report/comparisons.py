"""Results of comparisons with given numbers of test errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdtrain.report import comparison
from kdtrain.store.record import MODELS, Comparison, EpochPoint, Model, ModelResult

IMAGES = 10_000


def compare(results: Sequence[ModelResult], **facts: Any) -> Comparison:
    """Returns the comparison of networks that mistake the first images."""
    correct = {(row.model, row.seed): np.arange(row.images) >= row.errors for row in results}
    return comparison.compare(results, correct, **facts)


def result(model: Model, seed: int, errors: int, epochs: int = 20, images: int = IMAGES) -> ModelResult:
    """Returns a model whose accuracy rises from 94 % to the final one, as on MNIST."""
    random = np.random.default_rng([seed, MODELS.index(model)])
    final = errors / images
    history = []
    for epoch in range(1, epochs + 1):
        rate = final + (0.06 - final) * np.exp(1 - epoch) + random.uniform(0, 0.0004)
        history.append(EpochPoint(epoch, 1 - float(rate), 3 * float(rate)))
    best = max(history, key=lambda point: (point.accuracy, point.epoch))
    parameters = 1_199_882 if model == "teacher" else 109_386
    return ModelResult(
        model=model,
        seed=seed,
        images=images,
        errors=errors,
        accuracy=1 - final,
        cross_entropy=3 * final,
        calibration_error=0.3 * final,
        agreement=None if model == "teacher" else 1 - final,
        divergence=None if model == "teacher" else 2 * final,
        parameters=parameters,
        multiply_adds=10 * parameters,
        seconds=40.0 + seed,
        best_epoch=best.epoch,
        held_out_accuracy=best.accuracy,
        history=tuple(history),
    )


def three(teacher: list[int], distilled: list[int], plain: list[int], epochs: int = 20) -> list[ModelResult]:
    """Results with these test errors, by seed; the teacher trains for 3 epochs at most."""
    results = [result("teacher", seed, errors, min(3, epochs)) for seed, errors in enumerate(teacher)]
    results += [result("student_kd", seed, errors, epochs) for seed, errors in enumerate(distilled)]
    return results + [result("student", seed, errors, epochs) for seed, errors in enumerate(plain)]


HELPED = three([98, 101, 95, 99, 100], [152, 149, 158, 150, 155], [171, 166, 172, 170, 176])
