"""The file ``compare.json``: every figure of a comparison. docs/compare-json.md explains each key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kdtrain.metrics.statistics import CONFIDENCE
from kdtrain.report.comparison import Comparison, Difference, EnsembleMember, ModelResult, ModelSummary
from kdtrain.report.conditions import conditions_to_json
from kdtrain.report.verdict import (
    contradicts_verdict,
    disagreement,
    evidence,
    gap_sentence,
    headline,
    verdict,
)

VERSION = 1
FILES = {
    "config": "config.toml",
    "picture": "compare.png",
    "report": "report.html",
    "test_logits": "test_logits.safetensors",
}
"""Names of the comparison's other files, by content."""


def logits_key(model: str, seed: int) -> str:
    """Returns the key of a model's logits in the file ``test_logits``."""
    return f"{model}/{seed}"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Returns plain values for ``compare.json``, in full precision, with units in the key names."""
    return {
        "version": VERSION,
        "verdict": verdict(comparison),
        "headline": headline(comparison),
        "evidence": evidence(comparison),
        "gap": gap_sentence(comparison),
        "outcome": comparison.distillation.outcome,
        "confidence": CONFIDENCE,
        "recipe": comparison.recipe,
        "conditions": conditions_to_json(comparison.conditions),
        "test_images": comparison.test_images,
        "teachers": [_teacher(member) for member in comparison.teachers],
        "far_apart": comparison.far_apart,
        "disagreement": disagreement(comparison),
        "disagreement_changes_verdict": contradicts_verdict(comparison),
        "gap_closed_fraction": comparison.gap_closed,
        "differences": [_difference(difference) for difference in comparison.differences],
        "models": {model: _summary(summary) for model, summary in comparison.summaries.items()},
        "results": [_result(result) for result in comparison.results],
        "files": FILES,
    }


def _teacher(member: EnsembleMember) -> dict[str, Any]:
    return {
        "name": member.name,
        "arch": member.arch,
        "share_fraction": member.weight,
        "parameters": member.parameters,
        "test_accuracy_fraction": member.test.accuracy,
        "test_errors": member.test.errors,
        "test_cross_entropy_nats": member.test.cross_entropy,
        "test_calibration_error_fraction": member.test.calibration_error,
    }


def _summary(summary: ModelSummary) -> dict[str, Any]:
    return {
        "arch": summary.arch,
        "parameters": summary.parameters,
        "multiply_adds": summary.multiply_adds,
        "test_accuracy_percent": asdict(summary.accuracy),
        "test_errors": asdict(summary.errors),
        "test_cross_entropy_nats": asdict(summary.cross_entropy),
        "test_calibration_error_percent": asdict(summary.calibration_error),
        "test_agreement_percent": summary.agreement and asdict(summary.agreement),
        "test_kl_from_teacher_nats": summary.divergence and asdict(summary.divergence),
        "seconds": asdict(summary.seconds),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    one_seed = difference.one_seed
    return {
        "model": difference.model,
        "baseline": difference.baseline,
        "outcome": difference.outcome,
        "gain_percentage_points": asdict(difference.gain),
        "gains": [{"seed": seed, "percentage_points": points} for seed, points in difference.gains.items()],
        "errors_removed": difference.errors_removed,
        "errors_removed_percent": difference.errors_removed_percent,
        "seeds_needed": difference.seeds_needed,
        "one_seed": one_seed
        and {
            "only_model_right": one_seed.mcnemar.only_first,
            "only_baseline_right": one_seed.mcnemar.only_second,
            "mcnemar_p": one_seed.mcnemar.p_value,
            "low_percentage_points": one_seed.low,
            "high_percentage_points": one_seed.high,
        },
    }


def _result(result: ModelResult) -> dict[str, Any]:
    keys = ("epoch", "accuracy_fraction", "cross_entropy_nats")
    history = [(int(p.epoch), float(p.accuracy), float(p.cross_entropy)) for p in result.history]
    return {
        "model": result.model,
        "seed": result.seed,
        "directory": result.directory,
        "test_logits": logits_key(result.model, result.seed),
        "test_accuracy_fraction": result.test.accuracy,
        "test_errors": result.test.errors,
        "test_cross_entropy_nats": result.test.cross_entropy,
        "test_calibration_error_fraction": result.test.calibration_error,
        "test_agreement_fraction": result.fidelity and result.fidelity.agreement,
        "test_kl_from_teacher_nats": result.fidelity and result.fidelity.divergence,
        "seconds": float(result.seconds),
        "best_epoch": result.best_epoch,
        "held_out_history": [dict(zip(keys, point, strict=True)) for point in history],
    }
