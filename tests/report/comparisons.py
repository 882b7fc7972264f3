"""Results of comparisons with given numbers of test errors."""

from __future__ import annotations

import numpy as np

from kdtrain import Fidelity
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.comparison import EpochPoint, ModelResult
from kdtrain.store.record import MODELS, Model

IMAGES = 10_000


def evaluation(errors: int, images: int = IMAGES) -> Evaluation:
    """Returns the figures of a network that mistakes the first images."""
    rate = errors / images
    return Evaluation(
        images=images,
        errors=errors,
        accuracy=1 - rate,
        cross_entropy=3 * rate,
        calibration_error=0.3 * rate,
        per_class_accuracy=(1 - rate,),
        confusion=np.array([[images]]),
        correct=np.arange(images) >= errors,
    )


def result(model: Model, seed: int, errors: int, epochs: int = 20, images: int = IMAGES) -> ModelResult:
    """Returns a model whose accuracy rises from 94 % to the final one, as on MNIST."""
    random = np.random.default_rng([seed, MODELS.index(model)])
    final = errors / images
    history = []
    for epoch in range(1, epochs + 1):
        rate = final + (0.06 - final) * np.exp(1 - epoch) + random.uniform(0, 0.0004)
        history.append(EpochPoint(epoch, 1 - float(rate), 3 * float(rate)))
    parameters, seconds = 1_199_882 if model == "teacher" else 109_386, 40.0 + seed
    return ModelResult(
        model,
        seed,
        test=evaluation(errors, images),
        fidelity=None if model == "teacher" else Fidelity(1 - final, 2 * final),
        parameters=parameters,
        multiply_adds=10 * parameters,
        seconds=seconds,
        history=tuple(history),
    )


def three(teacher: list[int], distilled: list[int], plain: list[int], epochs: int = 20) -> list[ModelResult]:
    """Results with these test errors, by seed; the teacher trains for 3 epochs at most."""
    results = [result("teacher", seed, errors, min(3, epochs)) for seed, errors in enumerate(teacher)]
    results += [result("student_kd", seed, errors, epochs) for seed, errors in enumerate(distilled)]
    return results + [result("student", seed, errors, epochs) for seed, errors in enumerate(plain)]


HELPED = three([98, 101, 95, 99, 100], [152, 149, 158, 150, 155], [171, 166, 172, 170, 176])
