"""A loss that is no number ends the fit before it can spoil a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from kdtrain.callbacks import Checkpoint, StopOnNonFinite
from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, FitEnd, Status
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import Trainer
from kdtrain.errors import CallbackError, KdtrainError
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model


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


@pytest.mark.parametrize(
    ("first", "message"), [(True, "not finite at step 1 "), (False, "outputs are not finite")]
)
def test_an_epoch_cut_short_by_another_callback_is_looked_at_too(
    student: flow.nn.Module,
    train: Loader,
    validation: Loader,
    card: ModelCard,
    tmp_path: Path,
    first: bool,
    message: str,
) -> None:
    class Bomb(Callback):
        def configure(self, objective: Objective) -> Objective:
            return objective.add("bomb", lambda batch, output: output.logits.sum() * float("nan"))

        def on_batch(self, run: Run, event: BatchEnd) -> None:
            run.stop("enough")

    others = [StopOnNonFinite(), Checkpoint(card)]
    callbacks = [Bomb(), *others] if first else [*others, Bomb()]
    trainer = Trainer(student, partial(flow.optim.SGD, lr=0.1), callbacks)
    with pytest.raises(KdtrainError, match=message):
        trainer.fit(train, validation, epochs=1, directory=tmp_path)
    assert not (tmp_path / "checkpoints" / "best.safetensors").exists()


def test_in_a_long_epoch_the_bad_step_is_found_within_eight(
    student: flow.nn.Module, train: Loader, validation: Loader, tmp_path: Path
) -> None:
    steps = 0

    class Bomb(Callback):
        def configure(self, objective: Objective) -> Objective:
            return objective.add("bomb", bomb)

    def bomb(batch: Batch, output: Output) -> flow.Tensor:
        nonlocal steps
        steps += 1
        return output.logits.sum() * (float("inf") if steps == 11 else 0.0)

    many = train.sequential(batch_size=4)
    assert len(many) > 32
    trainer = Trainer(student, partial(flow.optim.SGD, lr=0.1), [Bomb(), StopOnNonFinite()])
    with pytest.raises(CallbackError, match="not finite at step 11 "):
        trainer.fit(many, validation, epochs=1, directory=tmp_path)
    assert steps == 16
