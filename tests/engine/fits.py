"""Parts of small fits: a network, and a callback that keeps all that it receives."""

from __future__ import annotations

from kdtrain import BatchEnd, Callback, EpochEnd, EvalEnd, FitEnd, Run, build_model, flow


def mlp(seed: int = 0) -> flow.nn.Module:
    """Returns a small network for MNIST, with weights that are drawn from the seed."""
    flow.manual_seed(seed)
    return build_model("student_mlp", (1, 28, 28), 10)


class Notes(Callback):
    """Keeps the run and every event, and each step's losses as numbers."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.batches: list[BatchEnd] = []
        self.losses: list[dict[str, float]] = []
        self.evals: list[EvalEnd] = []
        self.epochs: list[EpochEnd] = []
        self.ends: list[FitEnd] = []

    def on_fit_start(self, run: Run) -> None:
        self.runs.append(run)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        self.batches.append(event)
        self.losses.append({name: loss.item() for name, loss in event.losses.items()})

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        self.evals.append(event)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        self.epochs.append(event)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        self.ends.append(event)
