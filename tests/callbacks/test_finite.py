"""A loss that is no number ends the fit before it can spoil a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from kdtrain.callback import Callback
from kdtrain.callbacks import Checkpoint, StopOnNonFinite
from kdtrain.data.loader import Batch, Loader
from kdtrain.errors import CallbackError
from kdtrain.events import FitEnd, Status
from kdtrain.objective import Objective, Output
from kdtrain.run import Run
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import ModelCard, load_model
from kdtrain.trainer import Trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_step_and_the_terms_are_named_and_the_checkpoint_is_kept(
    student: flow.nn.Module, train: Loader, validation: Loader, card: ModelCard, tmp_path: Path, value: float
) -> None:
    calls = 0

    def bomb(batch: Batch, output: Output) -> flow.Tensor:
        nonlocal calls
        calls += 1
        return output.logits.sum() * (value if calls == 6 else 0.0)

    ends: list[FitEnd] = []

    class Bomb(Callback):
        def configure(self, objective: Objective) -> Objective:
            return objective.add("bomb", bomb)

        def on_fit_end(self, run: Run, event: FitEnd) -> None:
            ends.append(event)

    callbacks = [Bomb(), Checkpoint(card), StopOnNonFinite()]
    trainer = Trainer(student, partial(flow.optim.SGD, lr=0.1), callbacks)
    with pytest.raises(
        CallbackError, match=r"not finite at step 6 \(epoch 2\): task = [\d.]+, bomb = (nan|-?inf), total"
    ) as caught:
        trainer.fit(train, validation, epochs=3, directory=tmp_path)
    assert caught.value.exit_code == 1
    assert ends[0].status is Status.FAILED
    kept = load_model(tmp_path / "checkpoints" / "best.safetensors").build("cpu")
    trainer.model = kept
    assert trainer.evaluate(validation)["eval/accuracy"] > 0.3
