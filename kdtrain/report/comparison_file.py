"""``compare.json``: every figure of a comparison. docs/concepts/comparison.md explains each key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kdtrain.report.comparison import Comparison, ModelResult
from kdtrain.report.statistics import CONFIDENCE

VERSION = 1
FILES = {"config": "config.toml", "picture": "compare.png", "test_logits": "test_logits.safetensors"}
"""The comparison's other files, by what they hold."""


def logits_key(model: str, seed: int) -> str:
    """Returns the name of a model's logits in the file ``test_logits``."""
    return f"{model}/{seed}"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Returns plain values for ``compare.json``, in full precision, with units in the key names."""
    return {
        "version": VERSION,
        "verdict": comparison.verdict,
        "outcome": comparison.outcome,
        "confidence": CONFIDENCE,
        "test_images": comparison.test_images,
        "gain_percentage_points": asdict(comparison.gain),
        "errors_removed": comparison.errors_removed,
        "errors_removed_percent": comparison.errors_removed_percent,
        "gap_closed_fraction": comparison.gap_closed,
        "mcnemar_student_kd_vs_student": comparison.mcnemar and asdict(comparison.mcnemar),
        "models": {
            model: {
                "test_accuracy_percent": asdict(summary.accuracy),
                "test_cross_entropy_nats": asdict(summary.cross_entropy),
                "test_errors": asdict(summary.errors),
                "seconds": asdict(summary.seconds),
                "parameters": summary.parameters,
            }
            for model, summary in comparison.summaries.items()
        },
        "results": [_result(result) for result in comparison.results],
        "files": FILES,
    }


def _result(result: ModelResult) -> dict[str, Any]:
    keys = ("epoch", "accuracy_fraction", "cross_entropy_nats")
    history = [(int(p.epoch), float(p.accuracy), float(p.cross_entropy)) for p in result.history]
    return {
        "model": result.model,
        "seed": result.seed,
        "arch": result.arch,
        "directory": result.directory,
        "test_logits": logits_key(result.model, result.seed),
        "test_accuracy_fraction": float(result.test_accuracy),
        "test_cross_entropy_nats": float(result.test_cross_entropy),
        "test_errors": int(result.test_errors),
        "test_calibration_error_fraction": float(result.calibration_error),
        "test_agreement_fraction": result.fidelity and result.fidelity.agreement,
        "test_kl_from_teacher_nats": result.fidelity and result.fidelity.divergence,
        "seconds": float(result.seconds),
        "parameters": int(result.parameters),
        "multiply_adds": int(result.multiply_adds),
        "held_out_history": [dict(zip(keys, point, strict=True)) for point in history],
    }
