"""The comparison of teacher, distilled student and plain student, paired over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kdtrain.errors import KdtrainError
from kdtrain.metrics.evaluation import Evaluation, Fidelity
from kdtrain.metrics.statistics import (
    Interval,
    McNemar,
    distinguishable,
    mcnemar,
    paired_proportions_interval,
    seeds_needed,
    t_interval,
)
from kdtrain.report.conditions import Conditions
from kdtrain.store.record import CONTROLS, MODELS, Model

Outcome = Literal["helped", "hurt", "undecided"]

PAIRS: tuple[tuple[Model, Model], ...] = (
    ("student_kd", "student"),
    ("student_ls", "student"),
    ("student_kd", "student_ls"),
    ("student_hard", "student"),
    ("student_kd", "student_hard"),
)
"""Pairs of model and baseline, used where both were trained; the first pair measures distillation."""


@dataclass(frozen=True)
class EpochPoint:
    """Figures of one epoch on the held-out set: accuracy as a fraction 0..1, cross-entropy in nats."""

    epoch: int
    accuracy: float
    cross_entropy: float


@dataclass(frozen=True)
class EnsembleMember:
    """One of several teachers whose mean probabilities teach.

    Attributes:
        name: its run directory relative to the comparison's, or its file.
        arch: its architecture; of an ONNX file or a table, the file's name.
        weight: its share of the mean, 0 to 1.
        test: figures on the test set.
        parameters: number of trainable values; 0 if unknown.
    """

    name: str
    arch: str
    weight: float
    test: Evaluation
    parameters: int


@dataclass(frozen=True, eq=False, repr=False)
class ModelResult:
    """One trained model: figures on the test set, cost and training history.

    Attributes:
        model: its name in the comparison.
        seed: the seed that it was trained with.
        test: figures on the test set.
        fidelity: fidelity to the teacher of its seed on the test set; None for a teacher.
        parameters: number of trainable values.
        multiply_adds: multiply-adds of its linear layers and convolutions for one image.
        seconds: training time: all epochs, their evaluations included.
        history: one point per epoch on the held-out set; empty for a model that existed already.
        tested_epoch: the epoch whose weights were tested; the best of the history by default.
        arch: its architecture.
        directory: its run directory, relative to the comparison's; None for a model that existed already.
        members: the teachers, if this is a teacher made of several.
    """

    model: Model
    seed: int
    test: Evaluation
    fidelity: Fidelity | None
    parameters: int
    multiply_adds: int
    seconds: float
    history: tuple[EpochPoint, ...]
    tested_epoch: int | None = None
    arch: str = ""
    directory: str | None = None
    members: tuple[EnsembleMember, ...] = ()

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were tested; None for a model that existed already."""
        if self.tested_epoch is not None or not self.history:
            return self.tested_epoch
        return max((point.accuracy, point.epoch) for point in self.history)[1]

    @property
    def held_out_accuracy(self) -> float:
        """Accuracy of the best epoch on the held-out images, 0..1; NaN for a model that existed already."""
        accuracies = {point.epoch: point.accuracy for point in self.history}
        return accuracies.get(self.best_epoch or 0, np.nan)

    def __repr__(self) -> str:
        return f"<ModelResult {self.model}, seed {self.seed}: {self.test}>"


@dataclass(frozen=True, repr=False)
class ModelSummary:
    """One model over its seeds.

    Attributes:
        accuracy: test accuracy, per cent.
        cross_entropy: nats per image.
        errors: number of test errors.
        calibration_error: per cent.
        agreement: agreement with the teacher, per cent of the test images; None for the teacher.
        divergence: KL(teacher || model), nats per image; None for the teacher.
        seconds: training time.
        parameters: number of trainable values.
        multiply_adds: multiply-adds of its linear layers and convolutions for one image.
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

    def __repr__(self) -> str:
        return f"<ModelSummary {self.arch}: accuracy {self.accuracy.mean:.2f} %, {self.accuracy.n} models>"


@dataclass(frozen=True)
class OneSeedTest:
    """Test of a single pair of networks: whether these two differ on such images.

    Attributes:
        mcnemar: the model first, the baseline second.
        low: lower end of the interval of their difference, percentage points.
        high: upper end of the interval, percentage points.
    """

    mcnemar: McNemar
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class Difference:
    """A model against a baseline of the same seeds.

    Attributes:
        gain: test accuracy, model minus baseline, percentage points, over the pairs.
        gains: the gain of each pair, by seed.
        errors_removed: mean number of test errors of the baseline minus those of the model.
        errors_removed_percent: the same relative to the baseline's errors; None if it makes none.
        outcome: ``undecided`` unless the interval of the gain excludes zero.
        seeds_needed: estimated number of seeds that would show this gain; None if it is decided already,
            if there is no spread to estimate from, or if it exceeds ``MOST_SEEDS``.
        one_seed: test of the pair of networks; only for a single seed.
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

    def __repr__(self) -> str:
        gain, seeds = f"{self.gain.mean:+.2f} points", f"{len(self.gains)} seed{'s' * (len(self.gains) > 1)}"
        return f"<Difference {self.model} - {self.baseline}: {gain}, {self.outcome}, {seeds}>"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The figures of a comparison.

    Attributes:
        results: one per model and seed.
        summaries: summary of each model.
        test_images: number of test images.
        differences: differences between students, student_kd against student first.
        gap_closed: errors that student_kd removes as a fraction of those that separate student from
            teacher; None if the teacher is no better than the student.
        far_apart: a warning if held-out and test accuracy of the first seed's teacher are far apart.
        recipe: name of the recipe that the settings started from; None if there was none.
        conditions: conditions of the students' training.
    """

    results: tuple[ModelResult, ...]
    summaries: Mapping[Model, ModelSummary]
    test_images: int
    differences: tuple[Difference, ...]
    gap_closed: float | None
    far_apart: str | None = None
    recipe: str | None = None
    conditions: Conditions = field(default_factory=Conditions)

    def __repr__(self) -> str:
        return f"<Comparison {', '.join(self.summaries)}: {len(self.results)} models>"

    @property
    def teachers(self) -> tuple[EnsembleMember, ...]:
        """The teachers whose mean probabilities teach; none if there is only one."""
        return next((result.members for result in self.results if result.members), ())

    @property
    def distillation(self) -> Difference:
        """student_kd against student."""
        return self.differences[0]


def compare(
    results: Sequence[ModelResult],
    far_apart: str | None = None,
    recipe: str | None = None,
    conditions: Conditions | None = None,
) -> Comparison:
    """Returns the comparison of the models; students are paired by their seeds.

    Args:
        results: results of teacher, student_kd and student, and optionally of student_ls and student_hard.
        far_apart: a warning about the teacher's accuracies, as in ``Comparison``.
        recipe: name of the recipe, if there is one.
        conditions: conditions of the students' training; the usual ones by default.

    Raises:
        KdtrainError: a model or one half of a pair is missing, a seed occurs twice, the models were
            tested on different numbers of images, or a cross-entropy is not finite.
    """
    trained = {result.model for result in results}
    models = [model for model in MODELS if model not in CONTROLS or model in trained]
    by_model = {model: _of_model(results, model) for model in models}
    images = _test_images(results)
    summaries = {model: _summary(by_model[model]) for model in models}
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
        far_apart=far_apart,
        recipe=recipe,
        conditions=conditions or Conditions(),
    )


def _of_model(results: Sequence[ModelResult], model: Model) -> list[ModelResult]:
    of_model = sorted((result for result in results if result.model == model), key=lambda result: result.seed)
    if not of_model:
        raise KdtrainError(f"nothing to compare: there is no result of {model}.")
    return of_model


def _pairs(
    models: Sequence[ModelResult], baselines: Sequence[ModelResult]
) -> list[tuple[ModelResult, ModelResult]]:
    seeds = [result.seed for result in models]
    baseline_seeds = [result.seed for result in baselines]
    if seeds != baseline_seeds or len(set(seeds)) != len(seeds):
        raise KdtrainError(
            f"the students cannot be paired: {models[0].model} has the seeds {seeds}, "
            f"{baselines[0].model} has {baseline_seeds}; each seed is needed once for both."
        )
    return list(zip(models, baselines, strict=True))


def _difference(pairs: Sequence[tuple[ModelResult, ModelResult]], images: int) -> Difference:
    # Computed from error counts, not accuracies: rounding would make equal gains differ.
    removed = {model.seed: baseline.test.errors - model.test.errors for model, baseline in pairs}
    gains = {seed: 100 * errors / images for seed, errors in removed.items()}
    gain = t_interval(list(gains.values()))
    mean_removed = t_interval(list(removed.values())).mean
    errors = t_interval([baseline.test.errors for _, baseline in pairs]).mean
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
    test = mcnemar(model.test.correct, baseline.test.correct)
    low, high = paired_proportions_interval(test.only_first, test.only_second, model.test.images)
    return OneSeedTest(test, 100 * low, 100 * high)


def _test_images(results: Sequence[ModelResult]) -> int:
    """Returns the number of test images, which all results must share.

    Raises:
        KdtrainError: the numbers differ, or a cross-entropy is not finite.
    """
    images = results[0].test.images
    for result in results:
        name = f"{result.model}, seed {result.seed}"
        if result.test.images != images:
            raise KdtrainError(f"{name} was tested on {result.test.images} images, others on {images}.")
        losses = [result.test.cross_entropy, *(point.cross_entropy for point in result.history)]
        if not np.isfinite(losses).all():
            raise KdtrainError(f"{name} has a cross-entropy that is not finite: its training diverged.")
    return images


def _summary(results: Sequence[ModelResult]) -> ModelSummary:
    fidelities = [result.fidelity for result in results if result.fidelity is not None]
    return ModelSummary(
        accuracy=t_interval([100 * result.test.accuracy for result in results]),
        cross_entropy=t_interval([result.test.cross_entropy for result in results]),
        errors=t_interval([result.test.errors for result in results]),
        calibration_error=t_interval([100 * result.test.calibration_error for result in results]),
        agreement=t_interval([100 * fidelity.agreement for fidelity in fidelities]) if fidelities else None,
        divergence=t_interval([fidelity.divergence for fidelity in fidelities]) if fidelities else None,
        seconds=t_interval([result.seconds for result in results]),
        parameters=results[0].parameters,
        multiply_adds=results[0].multiply_adds,
        arch=results[0].arch,
    )
