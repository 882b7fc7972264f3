"""Watches how closely a student follows its teacher."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtrain import EvalEnd, EventFile, FitEnd, NeedsTeacher, Run, predict_logits

Array = npt.NDArray[np.float64]


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
        agreement, divergence = fidelity(predict_logits(run.evaluated, run.validation), self.teacher)
        if self.file is not None:
            self.file.add_scalars({"fidelity/agreement": agreement, "fidelity/kl": divergence}, event.step)
            self.file.flush()  # before a checkpoint says that this epoch is finished

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def fidelity(student: npt.ArrayLike, teacher: npt.ArrayLike) -> tuple[float, float]:
    """Returns the agreement (0 to 1) and the mean KL(teacher || student) of logits (N, classes)."""
    ours, theirs = (_log_softmax(np.asarray(logits, np.float64)) for logits in (student, teacher))
    agreement = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    return agreement, float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def _log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
