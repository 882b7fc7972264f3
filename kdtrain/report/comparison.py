"""What distillation gained: teacher, distilled student and plain student, paired over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from kdtrain.errors import KdtrainError
from kdtrain.fidelity import Fidelity
from kdtrain.report.statistics import (
    Interval,
    McNemar,
    bounds_text,
    distinguishable,
    gain_text,
    interval_text,
    mcnemar,
    p_text,
    t_interval,
)

Model = Literal["teacher", "student_kd", "student"]
Outcome = Literal["helped", "hurt", "undecided"]

MODELS: tuple[Model, ...] = ("teacher", "student_kd", "student")


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
    """One model over its seeds: accuracy in per cent, cross-entropy in nats, errors of the test images."""

    accuracy: Interval
    cross_entropy: Interval
    errors: Interval
    seconds: Interval
    parameters: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """What ``compare`` found.

    Attributes:
        gain: percentage points of test accuracy, student_kd minus student of the same seed.
        errors_removed: mean number of test errors that student_kd has fewer than student.
        errors_removed_percent: the same, relative to the student's errors; None if it makes none.
        gap_closed: errors removed as a fraction of those that separate student from teacher; None
            if the teacher is no better than the student.
        mcnemar: student_kd (first) against student on one test set; only for a single seed.
        outcome: ``undecided`` unless the interval of the gain excludes zero.
    """

    results: tuple[ModelResult, ...]
    summaries: Mapping[Model, ModelSummary]
    test_images: int
    gain: Interval
    errors_removed: float
    errors_removed_percent: float | None
    gap_closed: float | None
    mcnemar: McNemar | None
    outcome: Outcome
    verdict: str


def compare(results: Sequence[ModelResult]) -> Comparison:
    """Returns the comparison of the three models; the two students are paired by their seeds.

    Raises:
        KdtrainError: a model or one half of a pair is missing, a seed is there twice, the models were
            tested on different numbers of images, or a figure is inconsistent or not finite.
    """
    by_model = {model: _of_model(results, model) for model in MODELS}
    pairs = _pairs(by_model["student_kd"], by_model["student"])
    images = _test_images(results)
    summaries = {model: _summary(by_model[model]) for model in MODELS}
    # From error counts, not accuracies: equal gains are then equal numbers, with no rounding between.
    differences = [plain.test_errors - distilled.test_errors for distilled, plain in pairs]
    gain = t_interval([100 * errors / images for errors in differences])
    removed = t_interval(differences).mean
    student_errors = summaries["student"].errors.mean
    gap = student_errors - summaries["teacher"].errors.mean
    test = _one_seed_test(pairs)
    outcome: Outcome = "undecided" if not distinguishable(gain) else "helped" if gain.mean > 0 else "hurt"
    return Comparison(
        results=tuple(results),
        summaries=summaries,
        test_images=images,
        gain=gain,
        errors_removed=removed,
        errors_removed_percent=100 * removed / student_errors if student_errors else None,
        gap_closed=removed / gap if gap > 0 else None,
        mcnemar=test,
        outcome=outcome,
        verdict=_verdict(outcome, gain, removed, student_errors, test),
    )


def _of_model(results: Sequence[ModelResult], model: Model) -> list[ModelResult]:
    found = sorted((result for result in results if result.model == model), key=lambda result: result.seed)
    if not found:
        raise KdtrainError(f"nothing to compare: there is no result of {model}.")
    return found


def _pairs(
    distilled: Sequence[ModelResult], plain: Sequence[ModelResult]
) -> list[tuple[ModelResult, ModelResult]]:
    seeds, others = [result.seed for result in distilled], [result.seed for result in plain]
    if seeds != others or len(set(seeds)) != len(seeds):
        raise KdtrainError(
            f"the students cannot be paired: student_kd has the seeds {seeds}, student has {others}; "
            "each seed is needed once for both."
        )
    return list(zip(distilled, plain, strict=True))


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
    return ModelSummary(
        accuracy=t_interval([100 * result.test_accuracy for result in results]),
        cross_entropy=t_interval([result.test_cross_entropy for result in results]),
        errors=t_interval([result.test_errors for result in results]),
        seconds=t_interval([result.seconds for result in results]),
        parameters=results[0].parameters,
    )


def _one_seed_test(pairs: Sequence[tuple[ModelResult, ModelResult]]) -> McNemar | None:
    distilled, plain = pairs[0]
    if len(pairs) > 1:
        return None
    return mcnemar(distilled.correct, plain.correct)


def _verdict(outcome: str, gain: Interval, removed: float, errors: float, test: McNemar | None) -> str:
    """One sentence that claims no more than the numbers support."""
    points = f"{gain_text(gain)} points"
    change = f"{_count(removed)} of {_count(errors)} errors removed"
    if removed < 0:
        change = f"{_count(-removed)} errors more than the student's {_count(errors)}"
    if gain.n == 1:
        # The test is about these two networks: another seed makes two others.
        chance = "" if test is None else f", a difference between these two networks {p_text(test)}"
        return f"One seed: {points} ({change}){chance}; more seeds (`--seeds 5`) would give an interval."
    if gain.sd == 0:
        return (
            f"Not distinguishable: {points}, {interval_text(gain)}; "
            "without any spread there is no interval to judge by."
        )
    if outcome == "undecided":
        return (
            f"Not distinguishable with {gain.n} seeds: {points} ({change} on average), "
            f"but the {interval_text(gain)} includes zero."
        )
    return f"Distillation {outcome}: {points}, {interval_text(gain)} ({change} on average)."


def _count(errors: float) -> str:
    return f"{errors:.0f}" if float(errors).is_integer() else f"{errors:.1f}"


def comparison_table(comparison: Comparison) -> Table:
    """Returns the table for a terminal of 80 columns; standard deviations stand below the means."""
    gain, percent = comparison.gain, comparison.errors_removed_percent
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    if gain.n > 1:
        table.caption = (
            f"Means over {gain.n} seeds, standard deviations below; gain with its confidence interval."
        )
    if comparison.summaries["teacher"].accuracy.n == 1 < gain.n:
        table.caption = f"{table.caption} All students had the same teacher."
    table.add_column("model", no_wrap=True)
    headers = ("test\naccuracy %", "cross-\nentropy", "parameters", "seconds")
    for header in (*headers, "gain in\npoints", "errors\nremoved"):
        table.add_column(header, justify="right", no_wrap=True)
    for model, summary in comparison.summaries.items():
        gained, removed = "", ""
        if model == "student_kd":
            gained = f"{gain_text(gain)}\n{bounds_text(gain)}"
            removed = _count(comparison.errors_removed) + ("" if percent is None else f"\n{percent:.1f} %")
        table.add_row(
            model,
            _mean_and_sd(summary.accuracy, 2),
            _mean_and_sd(summary.cross_entropy, 4),
            f"{summary.parameters:,}",
            _mean_and_sd(summary.seconds, 1 if summary.seconds.mean < 10 else 0),
            gained,
            removed,
        )
    return table


def _mean_and_sd(interval: Interval, digits: int) -> str:
    spread = "" if interval.sd is None else f"\n± {interval.sd:,.{digits}f}"
    return f"{interval.mean:,.{digits}f}{spread}"
