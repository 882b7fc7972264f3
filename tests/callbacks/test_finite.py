"""A loss that is infinite or NaN ends the fit before it can damage a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdtrain import (
    Batch,
    Callback,
    Loader,
    Objective,
    Output,
    Run,
    Status,
    Trainer,
    build_model,
    flow,
    load_model,
)
from kdtrain.callbacks import Checkpoint, StopOnNonFinite
from kdtrain.engine.events import BatchEnd
from kdtrain.errors import CallbackError, KdtrainError
from kdtrain.store.card import ModelCard
from tests.conftest import ADAM, Fit
from tests.engine.fits import Notes


class Bomb(Callback):
    """Adds a term whose loss is 0 except at one step."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value
        self.steps = 0

    def configure(self, objective: Objective) -> Objective:
        return objective.add("bomb", self.loss)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        self.steps += 1
        return output.logits.sum() * (self.value if self.steps == self.step else 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_step_and_the_terms_are_named_and_the_checkpoint_is_kept(
    fit: Fit, validation: Loader, card: ModelCard, tmp_path: Path, value: float
) -> None:
    notes = Notes()
    message = r"not finite at step 6 \(epoch 2\): task = [\d.]+, bomb = (nan|-?inf), total"
    with pytest.raises(CallbackError, match=message) as caught:
        fit(Bomb(6, value), Checkpoint(card), StopOnNonFinite(), notes, epochs=3)
    assert caught.value.exit_code == 1
    assert notes.ends[0].status is Status.FAILED
    kept = load_model(tmp_path / "checkpoints" / "best.safetensors").build("cpu")
    assert Trainer(kept, ADAM).evaluate(validation)["accuracy"] > 0.3


@pytest.mark.parametrize(
    ("first", "message"), [(True, "not finite at step 1 "), (False, "outputs are not finite")]
)
def test_an_epoch_cut_short_by_another_callback_is_looked_at_too(
    fit: Fit, card: ModelCard, tmp_path: Path, first: bool, message: str
) -> None:
    class Stopper(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            run.stop("enough")

    callbacks = [Bomb(1, float("nan")), StopOnNonFinite(), Checkpoint(card)]
    with pytest.raises(KdtrainError, match=message):
        fit(*([Stopper(), *callbacks] if first else [*callbacks, Stopper()]))
    assert not (tmp_path / "checkpoints" / "best.safetensors").exists()


@pytest.mark.parametrize("arch", ["teacher_cnn", "resnet8"])
def test_weights_that_are_not_finite_do_not_reach_a_checkpoint(
    arch: str, train: Loader, validation: Loader, card: ModelCard, tmp_path: Path
) -> None:
    """The ReLU after a convolution may make a number of NaN, so that the loss looks as if all were well."""

    class Damage(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            run.model.conv1.weight.data.fill_(float("nan"))

    trainer = Trainer(
        build_model(arch, (1, 28, 28), 10), ADAM, [Damage(), StopOnNonFinite(), Checkpoint(card)]
    )
    with pytest.raises(KdtrainError, match=r"not finite"):
        trainer.fit(train, validation, epochs=1, directory=tmp_path)
    assert not (tmp_path / "checkpoints" / "best.safetensors").exists()


def test_in_a_long_epoch_the_bad_step_is_found_within_eight(
    student: flow.nn.Module, train: Loader, validation: Loader, tmp_path: Path
) -> None:
    many, bomb = train.sequential(batch_size=4), Bomb(11, float("inf"))
    assert len(many) > 32
    trainer = Trainer(student, ADAM, [bomb, StopOnNonFinite()])
    with pytest.raises(CallbackError, match="not finite at step 11 "):
        trainer.fit(many, validation, epochs=1, directory=tmp_path)
    assert bomb.steps == 16
