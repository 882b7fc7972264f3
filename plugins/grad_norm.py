"""Watches the size of the gradient."""

from __future__ import annotations

from collections.abc import Iterable

from kdtrain import BatchEnd, Callback, EvalEnd, EventFile, FitEnd, Run, UsageError, flow


class GradNorm(Callback):
    """Shows the gradient's Euclidean norm in TensorBoard: grad_norm, and grad_norm/TERM for each term.

    The norms are over all of the network's parameters together. ``grad_norm`` is that of the gradient
    which the optimizer has just used. A term's is of its part in the total, weight included; it is
    worked out anew on the same images, with the weights after the step and without dropout.

    Args:
        every: optimizer steps between two measurements.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise UsageError(f"every={every}: it must be at least 1.")
        self.every = every
        self.file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens an event file beside the run's own."""
        self.file = EventFile(run.directory, suffix=".grad_norm", up_to=run.step)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Measures now and then."""
        if self.file is not None and event.step % self.every == 0:
            norms = {"grad_norm": _norm([p.grad for p in run.model.parameters() if p.grad is not None])}
            self.file.add_scalars({**norms, **_norms_of_terms(run, event)}, event.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Brings the file up to date on disk, before a checkpoint says that this epoch is finished."""
        if self.file is not None:
            self.file.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def _norms_of_terms(run: Run, event: BatchEnd) -> dict[str, float]:
    """Returns each weighted term's norm; where processes share a batch, over this one's part of it."""
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    norms = {}
    run.model.eval()  # so that nothing is drawn, and no statistics are changed
    try:
        for name, term in run.objective.terms.items():
            weight = term.weight
            factor = weight((event.step - 1) / len(run.train)) if callable(weight) else weight
            if factor == 0.0:
                norms[f"grad_norm/{name}"] = 0.0
                continue
            loss = term.loss(event.batch, run.objective.student(event.batch.inputs)) * float(factor)
            for parameter in parameters:  # oneflow refuses one that the loss has nothing to do with
                loss = loss + parameter.sum() * 0.0
            norms[f"grad_norm/{name}"] = _norm(flow.autograd.grad(loss, parameters))
    finally:
        run.model.train()
    return norms


def _norm(gradients: Iterable[flow.Tensor]) -> float:
    squares = [(gradient.double() ** 2).sum() for gradient in gradients]
    return float(flow.stack(squares).sum().sqrt().item()) if squares else 0.0
