"""The sentence about a comparison whose held-out and test figures rank the students differently."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kdtrain.metrics.statistics import t_interval
from kdtrain.report.comparison import Comparison, Model
from kdtrain.report.verdict import gain_text


def disagreement(comparison: Comparison) -> str | None:
    """Returns a sentence if another student is the best on held-out than on test images, else None.

    It also says so where the gain of distillation has the other sign. A held-out figure is the accuracy of
    the best epoch, a mean over the seeds.
    """
    held_out = _held_out(comparison)
    test = {model: comparison.summaries[model].accuracy.mean for model in held_out}
    sentences = []
    if held_out and not (_best(held_out) & _best(test)):
        there, here = min(_best(held_out)), min(_best(test))
        sentences.append(
            f"The best student on held-out images is {there} ({held_out[there]:.2f} %; on test images "
            f"{test[there]:.2f} %), the best on test images {here} ({held_out[here]:.2f} %; on test images "
            f"{test[here]:.2f} %)."
        )
    gain = comparison.distillation.gain
    if {"student_kd", "student"} <= held_out.keys():
        there_gain = held_out["student_kd"] - held_out["student"]
        if there_gain * gain.mean < 0:
            shown = gain_text(t_interval([there_gain]))
            sentences.append(
                f"The gain of distillation has another sign on held-out images: {shown} points there, "
                f"{gain_text(gain)} on test images."
            )
    return " ".join(["Held-out and test images disagree.", *sentences]) if sentences else None


def _held_out(comparison: Comparison) -> dict[Model, float]:
    """Returns the held-out accuracy of each student that was trained here, per cent."""
    accuracies = {
        model: [row.held_out_accuracy for row in comparison.results if row.model == model]
        for model in comparison.summaries
        if model != "teacher"
    }
    means = {model: 100 * math.fsum(values) / len(values) for model, values in accuracies.items()}
    return {model: mean for model, mean in means.items() if not math.isnan(mean)}


def _best(accuracies: Mapping[Model, float]) -> set[Model]:
    """Returns the models with the highest accuracy; those within a rounding error share it."""
    most = max(accuracies.values())
    return {model for model, accuracy in accuracies.items() if math.isclose(accuracy, most, rel_tol=1e-12)}
