"""The training loop: its steps, metrics and payloads, and determinism."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import Batch, Callback, EpochEnd, Loader, Output, Run, Status, Trainer, build_model, flow
from kdtrain.callbacks import Checkpoint, EarlyStopping, Progress, StopOnNonFinite
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.losses import cross_entropy
from kdtrain.engine.objective import Objective, Term, Weight
from kdtrain.errors import CallbackError, UsageError
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import snapshot
from tests.conftest import ADAM, Fit
from tests.engine.fits import Notes, mlp


@pytest.mark.parametrize("callbacks", [(), (StopOnNonFinite(),)])
def test_the_loop_is_the_textbook_one(
    callbacks: tuple[Callback, ...], fit: Fit, student: flow.nn.Module, train: Loader
) -> None:
    """The same steps by hand, with the same loss: bit for bit the same weights."""
    model = mlp()
    optimizer = ADAM(model.parameters())
    for epoch in (1, 2):
        for batch in train.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(batch, Output(model(batch.inputs))).backward()
            optimizer.step()
    end = fit(*callbacks, epochs=2)
    assert (end.status, end.epoch, end.step) == (Status.COMPLETED, 2, 8)
    for name, expected in snapshot(model).items():
        np.testing.assert_array_equal(snapshot(student)[name], expected)


def test_metrics_are_complete_and_equal_for_the_first_and_the_last_callback(fit: Fit) -> None:
    first, last = Notes(), Notes()
    fit(first, last)
    metrics = [e.metrics for e in (*first.evals, *last.evals)] + [e.metrics for e in first.epochs]
    metrics += [e.metrics for e in last.epochs]
    names = ("accuracy", "cross_entropy", "balanced_accuracy", "macro_f1")
    assert set(metrics[0]) == {*(f"val/{name}" for name in names), "loss/task", "loss/total"}
    assert metrics == [metrics[0]] * 4


class Adds(Callback):
    """Adds a term to the objective."""

    def __init__(self, name: str, term: Term, weight: Weight = 1.0) -> None:
        self.name, self.term, self.weight = name, term, weight

    def configure(self, objective: Objective) -> Objective:
        return objective.add(self.name, self.term, self.weight)


def test_evaluation_measures_the_task_whatever_the_objective(
    fit: Fit, student: flow.nn.Module, validation: Loader
) -> None:
    notes = Notes()
    fit(Adds("large", lambda batch, output: output.logits.mean() * 0.0 + 1e6), notes)
    metrics = notes.evals[0].metrics
    logits = student(flow.tensor(validation.inputs)).numpy().astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(len(log_p)), validation.targets].mean()
    assert metrics["val/cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert metrics["val/accuracy"] == (logits.argmax(axis=1) == validation.targets).mean()
    assert metrics["loss/large"] == 1e6


def test_a_network_given_to_evaluate_is_evaluated_and_else_the_model(
    student: flow.nn.Module, validation: Loader
) -> None:
    trainer, other = Trainer(student, ADAM), mlp(1)
    assert trainer.evaluate(validation, other) == Trainer(other, ADAM).evaluate(validation)
    assert trainer.evaluate(validation, other) != trainer.evaluate(validation)


def test_training_losses_are_means_over_images_and_not_over_batches(
    make_loader: Callable[..., Loader], validation: Loader, student: flow.nn.Module, tmp_path: Path
) -> None:
    notes = Notes()
    position = Adds("position", lambda batch, output: batch.indices.double().mean())
    trainer = Trainer(student, ADAM, [position, notes])
    trainer.fit(make_loader(300), validation, epochs=1, directory=tmp_path)
    assert notes.evals[0].metrics["loss/position"] == pytest.approx(np.arange(300).mean(), rel=1e-6)


def test_a_method_that_looks_like_a_hook_but_is_none_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Typo\.on_epoch_and.*did you mean 'on_epoch_end'"):

        class Typo(Callback):
            def on_epoch_and(self, run: Run, event: EpochEnd) -> None:
                """Never called."""


def test_a_class_in_place_of_an_instance_is_refused(student: flow.nn.Module) -> None:
    with pytest.raises(TypeError, match="Progress is not a Callback: pass an instance"):
        Trainer(student, ADAM, [Progress])  # type: ignore[list-item]


def test_a_monitored_metric_that_does_not_exist_is_an_error_that_lists_those_that_do(
    fit: Fit, card: ModelCard
) -> None:
    message = r"did you mean 'val/accuracy'.*: loss/task, loss/total, val/accuracy, val/bal.*, val/macro_f1\."
    for callback in (Checkpoint(card, "val/acuracy"), EarlyStopping(monitor="val/acuracy")):
        with pytest.raises(CallbackError, match=message) as caught:
            fit(callback)
        assert caught.value.exit_code == UsageError.exit_code


def test_losses_in_events_are_tensors_and_payloads_are_frozen(fit: Fit) -> None:
    notes = Notes()
    fit(notes)
    (run,), batch_end = notes.runs, notes.batches[0]
    assert all(isinstance(loss, flow.Tensor) and not loss.requires_grad for loss in batch_end.losses.values())
    for event in (batch_end, *notes.evals, *notes.epochs, *notes.ends):
        for name in inspect.signature(type(event)).parameters:  # of dataclasses and of named tuples
            with pytest.raises(AttributeError):
                setattr(event, name, None)
    with pytest.raises(TypeError):
        batch_end.losses["total"] = None  # type: ignore[index]
    with pytest.raises(TypeError):
        notes.epochs[0].metrics["val/accuracy"] = 1.0  # type: ignore[index]
    for name in ("model", "epoch", "step", "trainer"):
        with pytest.raises(AttributeError):
            setattr(run, name, None)
    assert not any(isinstance(value, Trainer) for value in vars(run).values())


def test_the_gradients_are_still_there_on_batch(fit: Fit) -> None:
    norms: list[float] = []

    class Gradients(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            norms.append(max(float(abs(p.grad.numpy()).max()) for p in run.model.parameters()))

    fit(Gradients())
    assert len(norms) == 4
    assert min(norms) > 0


def _train_hinton(
    train: Loader, validation: Loader, folder: Path, seed: int, epochs: int = 2
) -> dict[str, Any]:
    flow.manual_seed(0)
    model = build_model("hinton_1200", (1, 28, 28), 10)
    Trainer(model, ADAM, seed=seed).fit(train, validation, epochs=epochs, directory=folder)
    return snapshot(model)


def test_two_fits_with_one_seed_agree_bit_for_bit_and_with_another_do_not(
    train: Loader, validation: Loader, tmp_path: Path
) -> None:
    first = _train_hinton(train, validation, tmp_path, seed=1)
    flow.rand(1000)  # what the generator has drawn before must not matter
    second = _train_hinton(train, validation, tmp_path, seed=1)
    other = _train_hinton(train, validation, tmp_path, seed=2)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if name.endswith("weight"))


def test_dropout_differs_from_epoch_to_epoch(
    validation: Loader, tmp_path: Path, make_loader: Callable[..., Loader]
) -> None:
    masks: list[Any] = []

    class Mask(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = flow.nn.Linear(784, 10)

        def forward(self, x: flow.Tensor) -> flow.Tensor:
            if self.training:
                masks.append(flow.nn.functional.dropout(flow.ones(1000), 0.5, True).numpy().copy())
            return self.fc(flow.flatten(x, 1))

    Trainer(Mask(), ADAM).fit(make_loader(256), validation, epochs=2, directory=tmp_path)
    assert len(masks) == 4
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(masks, 2))


def test_a_term_with_parameters_has_them_trained(fit: Fit) -> None:
    class Scale(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = flow.nn.Parameter(flow.ones(1))

        def forward(self, batch: Batch, output: Output) -> flow.Tensor:
            return ((output.logits.detach() * self.factor) ** 2).mean()

    term = Scale()
    fit(Adds("scale", term))
    assert term.factor.item() != 1.0


def test_the_network_is_in_training_mode_in_steps_and_in_evaluation_mode_in_evaluation(
    fit: Fit, student: flow.nn.Module
) -> None:
    modes: list[bool] = []
    student.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    fit()
    assert modes == [True] * 4 + [False] * 2
    assert student.training


@pytest.mark.parametrize("weight", [None, 0.0, 0.5])
def test_callbacks_get_every_loss_as_a_number_without_its_graph(fit: Fit, weight: float | None) -> None:
    """Alone, in a sum, and beside a term that takes no part in it."""
    notes = Notes()
    fit(*([] if weight is None else [Adds("squares", _squares, weight)]), notes)
    assert not any(loss.requires_grad for event in notes.batches for loss in event.losses.values())
    for row in notes.losses:
        assert row["total"] == pytest.approx(row["task"] + (weight or 0.0) * row.get("squares", 0.0))
    assert len(notes.losses) == 4


def _squares(batch: Batch, output: Output) -> flow.Tensor:
    return (output.logits**2).mean()
