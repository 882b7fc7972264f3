"""Fidelity: how closely a student follows its teacher."""

from __future__ import annotations

from kdtrain import EvalEnd, EventFileObserver, NeedsTeacher, Run, measure_fidelity, predict_logits


class Fidelity(NeedsTeacher, EventFileObserver):
    """Shows in TensorBoard how far student and teacher agree on the held-out images.

    Stanton et al., "Does Knowledge Distillation Really Work?" (2021), section 3:
    ``fidelity/agreement``, the fraction of images to which both give the same class, and
    ``fidelity/kl``, the mean of KL(teacher || student) in nats.
    """

    suffix = ".fidelity"

    def on_fit_start(self, run: Run) -> None:
        """Computes the teacher's logits, (N, C) float32, and opens the event file."""
        self.teacher_logits = predict_logits(run.objective.teacher.network, run.validation)
        super().on_fit_start(run)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes agreement and divergence."""
        agreement, divergence = measure_fidelity(event.logits, self.teacher_logits)
        self.add_scalars({"fidelity/agreement": agreement, "fidelity/kl": divergence}, event.step)
