"""The Euclidean norm of the gradient, in all and by term."""

from __future__ import annotations

from collections.abc import Iterable

from kdtrain import BatchEnd, EventFileObserver, Run, at_least, flow


class GradNorm(EventFileObserver):
    """Shows the gradient's Euclidean norm in TensorBoard: grad_norm, and grad_norm/TERM for each term.

    A norm is taken over all parameters of the network together. ``grad_norm`` is the norm of the gradient
    that the optimizer has just used. ``grad_norm/TERM`` is the norm of the term's part in the total, weight
    included. It is computed again on the same images, with the weights after the step and without dropout.

    Args:
        every: optimizer steps between two measurements.
    """

    suffix = ".grad_norm"

    def __init__(self, every: int = 50) -> None:
        self.every = at_least("every", every, 1)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Measures every few steps."""
        if event.step % self.every == 0:
            total = _norm([p.grad for p in run.model.parameters() if p.grad is not None])
            self.add_scalars({"grad_norm": total, **_norms_of_terms(run, event)}, event.step)


def _norms_of_terms(run: Run, event: BatchEnd) -> dict[str, float]:
    """Returns each weighted term's norm; where processes share a batch, over this process's part."""
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    norms = {}
    run.model.eval()  # draws no random numbers, and changes no statistics
    try:
        for name, term in run.objective.terms.items():
            factor = term.factor((event.step - 1) / len(run.train))
            if factor == 0.0:
                norms[f"grad_norm/{name}"] = 0.0
                continue
            loss = term.loss(event.batch, run.objective.student(event.batch.inputs)) * float(factor)
            for parameter in parameters:  # OneFlow refuses a parameter that the loss does not depend on
                loss = loss + parameter.sum() * 0.0
            norms[f"grad_norm/{name}"] = _norm(flow.autograd.grad(loss, parameters))
    finally:
        run.model.train()
    return norms


def _norm(gradients: Iterable[flow.Tensor]) -> float:
    """Returns the Euclidean norm of all gradients together, computed in float64."""
    squares = [(gradient.double() ** 2).sum() for gradient in gradients]
    return float(flow.stack(squares).sum().sqrt().item()) if squares else 0.0
