"""What distillation gained: teacher, distilled student and plain student, paired over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError
from kdtrain.metrics.fidelity import Fidelity
from kdtrain.metrics.statistics import (
    Interval,
    McNemar,
    distinguishable,
    mcnemar,
    paired_proportions_interval,
    seeds_needed,
    t_interval,
)
from kdtrain.report.grid_result import Choice

Model = Literal["teacher", "student_kd", "student", "student_ls"]
Outcome = Literal["helped", "hurt", "undecided"]

MODELS: tuple[Model, ...] = ("teacher", "student_kd", "student", "student_ls")
PAIRS: tuple[tuple[Model, Model], ...] = (
    ("student_kd", "student"),
    ("student_ls", "student"),
    ("student_kd", "student_ls"),
)
"""Which models are compared with which baseline, where both are there; the first pair is the question."""


@dataclass(frozen=True)
class EpochPoint:
    """One epoch's figures on the held-out set: accuracy as a fraction 0..1, cross-entropy in nats."""

    epoch: int
    accuracy: float
    cross_entropy: float


@dataclass(frozen=True, eq=False)
class ModelResult:
    """One trained model: its figures on the test set, its cost, and how it got there.

    Attributes:
        test_accuracy: fraction 0..1.
        test_cross_entropy: nats per image.
        calibration_error: expected calibration error on the test set, fraction 0..1.
        fidelity: how far it agrees with its seed's teacher on the test set; None for a teacher.
        parameters: trainable values.
        multiply_adds: of its linear layers and convolutions, for one image.
        seconds: time to train it.
        history: one point per epoch on the held-out set; empty for a model trained elsewhere.
        correct: (test_images,) whether each test image was recognised.
        arch: its architecture.
        directory: its run directory, within the comparison's; None for a model trained elsewhere.
    """

    model: Model
    seed: int
    test_accuracy: float
    test_cross_entropy: float
    test_images: int
    test_errors: int
    calibration_error: float
    fidelity: Fidelity | None
    parameters: int
    multiply_adds: int
    seconds: float
    history: tuple[EpochPoint, ...]
    correct: npt.NDArray[np.bool_]
    arch: str = ""
    directory: str | None = None


@dataclass(frozen=True)
class ModelSummary:
    """One model over its seeds.

    Attributes:
        accuracy: per cent of the test images.
        cross_entropy: nats per image.
        errors: of the test images.
        calibration_error: per cent.
        agreement: with the teacher, per cent of the test images; None for the teacher.
        divergence: KL(teacher || model), nats per image; None for the teacher.
        seconds: to train it.
        parameters: trainable values.
        multiply_adds: of its linear layers and convolutions, for one image.
        arch: its architecture.
    """

    accuracy: Interval
    cross_entropy: Interval
    errors: Interval
    calibration_error: Interval
    agreement: Interval | None
    divergence: Interval | None
    seconds: Interval
    parameters: int
    multiply_adds: int
    arch: str


@dataclass(frozen=True)
class OneSeedTest:
    """What a single pair of networks allows to say: whether these two differ on such images.

    Attributes:
        mcnemar: the model first, the baseline second.
        low: lower end of the interval of their difference, in percentage points.
        high: its upper end.
    """

    mcnemar: McNemar
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A model against a baseline of the same seeds.

    Attributes:
        gain: percentage points of test accuracy, model minus baseline, over the pairs.
        gains: the same of each pair, by seed.
        errors_removed: mean number of test errors that the model has fewer than the baseline.
        errors_removed_percent: the same, relative to the baseline's errors; None if it makes none.
        outcome: ``undecided`` unless the interval of the gain excludes zero.
        seeds_needed: about how many seeds would show a gain like this one; None where there is nothing
            to guess from, no need to, or where it would be more than ``MOST_SEEDS``.
        one_seed: only for a single seed.
    """

    model: Model
    baseline: Model
    gain: Interval
    gains: Mapping[int, float]
    errors_removed: float
    errors_removed_percent: float | None
    outcome: Outcome
    seeds_needed: int | None
    one_seed: OneSeedTest | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` found.

    Attributes:
        results: one per model and seed.
        summaries: by model.
        test_images: that all were tested on.
        differences: student_kd against student first.
        gap_closed: errors that student_kd removes as a fraction of those that separate student from
            teacher; None if the teacher is no better than the student.
        choices: what --grid tried and chose, by model.
    """

    results: tuple[ModelResult, ...]
    summaries: Mapping[Model, ModelSummary]
    test_images: int
    differences: tuple[Difference, ...]
    gap_closed: float | None
    choices: Mapping[str, Choice] = field(default_factory=dict)

    @property
    def distillation(self) -> Difference:
        """student_kd against student."""
        return self.differences[0]


def compare(results: Sequence[ModelResult], choices: Mapping[str, Choice] | None = None) -> Comparison:
    """Returns the comparison of the models; students are paired by their seeds.

    Args:
        results: of teacher, student_kd and student, and perhaps of student_ls.
        choices: what was tried and chosen beforehand, by model.

    Raises:
        KdtrainError: a model or one half of a pair is missing, a seed is there twice, the models were
            tested on different numbers of images, or a figure is inconsistent or not finite.
    """
    there = [model for model in MODELS if model != "student_ls" or any(r.model == model for r in results)]
    by_model = {model: _of_model(results, model) for model in there}
    images = _test_images(results)
    summaries = {model: _summary(by_model[model]) for model in there}
    differences = tuple(
        _difference(_pairs(by_model[model], by_model[baseline]), images)
        for model, baseline in PAIRS
        if model in by_model and baseline in by_model
    )
    gap = summaries["student"].errors.mean - summaries["teacher"].errors.mean
    return Comparison(
        results=tuple(results),
        summaries=summaries,
        test_images=images,
        differences=differences,
        gap_closed=differences[0].errors_removed / gap if gap > 0 else None,
        choices=choices or {},
    )


def _of_model(results: Sequence[ModelResult], model: Model) -> list[ModelResult]:
    found = sorted((result for result in results if result.model == model), key=lambda result: result.seed)
    if not found:
        raise KdtrainError(f"nothing to compare: there is no result of {model}.")
    return found


def _pairs(
    models: Sequence[ModelResult], baselines: Sequence[ModelResult]
) -> list[tuple[ModelResult, ModelResult]]:
    seeds, others = [result.seed for result in models], [result.seed for result in baselines]
    if seeds != others or len(set(seeds)) != len(seeds):
        raise KdtrainError(
            f"the students cannot be paired: {models[0].model} has the seeds {seeds}, "
            f"{baselines[0].model} has {others}; each seed is needed once for both."
        )
    return list(zip(models, baselines, strict=True))


def _difference(pairs: Sequence[tuple[ModelResult, ModelResult]], images: int) -> Difference:
    # From error counts, not accuracies: equal gains are then equal numbers, with no rounding between.
    removed = {model.seed: baseline.test_errors - model.test_errors for model, baseline in pairs}
    gains = {seed: 100 * errors / images for seed, errors in removed.items()}
    gain = t_interval(list(gains.values()))
    mean_removed = t_interval(list(removed.values())).mean
    errors = t_interval([baseline.test_errors for _, baseline in pairs]).mean
    decided = distinguishable(gain)
    return Difference(
        model=pairs[0][0].model,
        baseline=pairs[0][1].model,
        gain=gain,
        gains=gains,
        errors_removed=mean_removed,
        errors_removed_percent=100 * mean_removed / errors if errors else None,
        outcome="undecided" if not decided else "helped" if gain.mean > 0 else "hurt",
        seeds_needed=None if decided or not gain.sd else seeds_needed(gain.mean, gain.sd),
        one_seed=_one_seed(*pairs[0]) if len(pairs) == 1 else None,
    )


def _one_seed(model: ModelResult, baseline: ModelResult) -> OneSeedTest:
    test = mcnemar(model.correct, baseline.correct)
    low, high = paired_proportions_interval(test.only_first, test.only_second, model.test_images)
    return OneSeedTest(test, 100 * low, 100 * high)


def _test_images(results: Sequence[ModelResult]) -> int:
    """The number of test images that all results share, once each is known to be consistent."""
    images = results[0].test_images
    for result in results:
        name = f"{result.model}, seed {result.seed}"
        if result.test_images != images:
            raise KdtrainError(f"{name} was tested on {result.test_images} images, others on {images}.")
        losses = [result.test_cross_entropy, *(point.cross_entropy for point in result.history)]
        if not np.isfinite(losses).all():
            raise KdtrainError(f"{name} has a cross-entropy that is not finite: its training diverged.")
        wrong = [(1 - result.test_accuracy) * images]
        wrong.append(float((~result.correct).sum()))
        if not np.allclose(wrong, result.test_errors, rtol=0, atol=0.5):
            raise KdtrainError(f"{name}: accuracy {result.test_accuracy} is not {result.test_errors} errors.")
    return images


def _summary(results: Sequence[ModelResult]) -> ModelSummary:
    followed = [result.fidelity for result in results if result.fidelity is not None]
    return ModelSummary(
        accuracy=t_interval([100 * result.test_accuracy for result in results]),
        cross_entropy=t_interval([result.test_cross_entropy for result in results]),
        errors=t_interval([result.test_errors for result in results]),
        calibration_error=t_interval([100 * result.calibration_error for result in results]),
        agreement=t_interval([100 * one.agreement for one in followed]) if followed else None,
        divergence=t_interval([one.divergence for one in followed]) if followed else None,
        seconds=t_interval([result.seconds for result in results]),
        parameters=results[0].parameters,
        multiply_adds=results[0].multiply_adds,
        arch=results[0].arch,
    )
