"""Watches how closely a student follows its teacher."""

from __future__ import annotations

from kdtrain import EvalEnd, EventFile, FitEnd, NeedsTeacher, Run, measure_fidelity, predict_logits


class Fidelity(NeedsTeacher):
    """Shows in TensorBoard how far student and teacher agree on the held-out images.

    Stanton et al., "Does Knowledge Distillation Really Work?" (2021), section 3:
    ``fidelity/agreement``, the fraction of images to which both give the same class, and
    ``fidelity/kl``, the mean of KL(teacher || student) in nats.
    """

    def __init__(self) -> None:
        self.file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Asks the teacher, once, and opens an event file beside the run's own."""
        self.teacher = predict_logits(run.objective.teacher.network, run.validation)
        self.file = EventFile(run.directory, suffix=".fidelity", up_to=run.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Compares."""
        agreement, divergence = measure_fidelity(predict_logits(run.evaluated, run.validation), self.teacher)
        if self.file is not None:
            self.file.add_scalars({"fidelity/agreement": agreement, "fidelity/kl": divergence}, event.step)
            self.file.flush()  # before a checkpoint says that this epoch is finished

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
