"""The comparison of teacher, distilled student and plain student, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from kdtrain.errors import KdtrainError
from kdtrain.metrics.names import Interval
from kdtrain.metrics.statistics import (
    distinguishable,
    mcnemar,
    paired_proportions_interval,
    seeds_needed,
    t_interval,
)
from kdtrain.report.verdict import (
    contradicts_verdict,
    disagreement,
    evidence,
    gap_sentence,
    headline,
    verdict,
)
from kdtrain.store.record import (
    CONTROLS,
    MODELS,
    Comparison,
    Difference,
    Model,
    ModelResult,
    ModelSummary,
    OneSeedTest,
    SeedGain,
)

PAIRS: tuple[tuple[Model, Model], ...] = (
    ("student_kd", "student"),
    ("student_ls", "student"),
    ("student_kd", "student_ls"),
    ("student_hard", "student"),
    ("student_kd", "student_hard"),
)
"""Pairs of model and baseline, used where both were trained; the first pair measures distillation."""

Correct = Mapping[tuple[Model, int], npt.NDArray[np.bool_]]
"""(images,) bool, whether each test image was recognised, by model and seed."""


def compare(results: Sequence[ModelResult], correct: Correct, **facts: Any) -> Comparison:
    """Returns the comparison of the models; students are paired by their seeds.

    Args:
        results: results of teacher, student_kd and student, and optionally of student_ls and student_hard.
        correct: the test images that each recognised, for the test of a single seed.
        facts: further values of the record, such as ``recipe``.

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
        _difference(_pairs(by_model[model], by_model[baseline]), images, correct)
        for model, baseline in PAIRS
        if model in by_model and baseline in by_model
    )
    gap = summaries["student"].errors.mean - summaries["teacher"].errors.mean
    comparison = Comparison(
        mode="compare",
        models=tuple(results),
        summaries=summaries,
        test_images=images,
        differences=differences,
        outcome=differences[0].outcome,
        gap_closed=differences[0].errors_removed / gap if gap > 0 else None,
        **facts,
    )
    return _with_sentences(comparison)


def _with_sentences(comparison: Comparison) -> Comparison:
    """Returns a comparison with what its figures say."""
    shown = (verdict(comparison), evidence(comparison), gap_sentence(comparison))
    warning = [] if comparison.far_apart is None else [comparison.far_apart]
    return replace(
        comparison,
        verdict=shown[0],
        headline=headline(comparison),
        evidence=shown[1],
        gap=shown[2],
        disagreement=disagreement(comparison),
        disagreement_changes_verdict=contradicts_verdict(comparison),
        sentences=(*shown, *comparison.conditions.sentences, *warning),
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


def _difference(
    pairs: Sequence[tuple[ModelResult, ModelResult]], images: int, correct: Correct
) -> Difference:
    # Computed from error counts, not accuracies: rounding would make equal gains differ.
    removed = {model.seed: baseline.errors - model.errors for model, baseline in pairs}
    gains = {seed: 100 * errors / images for seed, errors in removed.items()}
    gain = t_interval(list(gains.values()))
    mean_removed = t_interval(list(removed.values())).mean
    errors = t_interval([baseline.errors for _, baseline in pairs]).mean
    decided = distinguishable(gain)
    return Difference(
        model=pairs[0][0].model,
        baseline=pairs[0][1].model,
        gain=gain,
        seed_gains=tuple(SeedGain(seed, points) for seed, points in gains.items()),
        errors_removed=mean_removed,
        errors_removed_percent=100 * mean_removed / errors if errors else None,
        outcome="undecided" if not decided else "helped" if gain.mean > 0 else "hurt",
        seeds_needed=None if decided or not gain.sd else seeds_needed(gain.mean, gain.sd),
        one_seed=_one_seed(*pairs[0], correct) if len(pairs) == 1 else None,
    )


def _one_seed(model: ModelResult, baseline: ModelResult, correct: Correct) -> OneSeedTest:
    test = mcnemar(correct[model.model, model.seed], correct[baseline.model, baseline.seed])
    low, high = paired_proportions_interval(test.only_first, test.only_second, model.images)
    return OneSeedTest(test.only_first, test.only_second, test.p_value, 100 * low, 100 * high)


def _test_images(results: Sequence[ModelResult]) -> int:
    """Returns the number of test images, which all results must share.

    Raises:
        KdtrainError: the numbers differ, or a cross-entropy is not finite.
    """
    images = results[0].images
    for result in results:
        name = f"{result.model}, seed {result.seed}"
        if result.images != images:
            raise KdtrainError(f"{name} was tested on {result.images} images, others on {images}.")
        losses = [result.cross_entropy, *(point.cross_entropy for point in result.history)]
        if not all(map(math.isfinite, losses)):
            raise KdtrainError(f"{name} has a cross-entropy that is not finite: its training diverged.")
    return images


def _summary(results: Sequence[ModelResult]) -> ModelSummary:
    def of_known(name: str, factor: float = 100) -> Interval | None:
        values = [getattr(result, name) for result in results]
        known = [factor * value for value in values if value is not None]
        return t_interval(known) if known else None

    return ModelSummary(
        accuracy=t_interval([100 * result.accuracy for result in results]),
        cross_entropy=t_interval([result.cross_entropy for result in results]),
        errors=t_interval([result.errors for result in results]),
        calibration_error=t_interval([100 * result.calibration_error for result in results]),
        balanced_accuracy=of_known("balanced_accuracy"),
        macro_f1=of_known("macro_f1"),
        agreement=of_known("agreement"),
        divergence=of_known("divergence", 1),
        seconds=t_interval([result.seconds for result in results]),
        parameters=results[0].parameters,
        multiply_adds=results[0].multiply_adds,
        arch=results[0].arch,
    )
