"""Objectives: the sum of weighted terms, and immutability."""

from __future__ import annotations

import numpy as np
import pytest

from kdtrain import Batch, Objective, Output, Recorder, Teacher, flow
from kdtrain.engine.objective import WeightedTerm


@pytest.fixture
def batch() -> Batch:
    return Batch(flow.zeros(4, 1, 2, 2), flow.tensor(np.array([0, 1, 2, 1])), flow.tensor(np.arange(4)))


@pytest.fixture
def output() -> Output:
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return Output(flow.tensor(values, requires_grad=True))


def _mean_logit(batch: Batch, output: Output) -> flow.Tensor:
    return output.logits.mean()


def test_the_plain_objective_is_cross_entropy_under_the_name_task(batch: Batch, output: Output) -> None:
    losses = Objective.task()(batch, output)
    logits = output.logits.numpy().astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert list(losses) == ["task", "total"]
    assert losses["task"].item() == pytest.approx(-log_p[range(4), [0, 1, 2, 1]].mean(), rel=1e-6)
    assert losses["total"].item() == losses["task"].item()


def test_blend_takes_from_the_existing_terms_what_it_gives_to_new_one(batch: Batch, output: Output) -> None:
    objective = Objective.task().blend("first", _mean_logit, 0.25).blend("second", _mean_logit, 0.5)
    weights = {name: term.weight for name, term in objective.terms.items()}
    assert weights == {"task": 0.375, "first": 0.125, "second": 0.5}
    losses = objective(batch, output)
    expected = 0.375 * losses["task"].item() + (0.125 + 0.5) * losses["first"].item()
    assert losses["total"].item() == pytest.approx(expected, rel=1e-6)


def test_weights_may_be_schedules_of_the_epochs_done(batch: Batch, output: Output) -> None:
    objective = Objective.task().blend("extra", _mean_logit, lambda epochs: min(epochs / 10, 1.0))
    for epochs in (0.0, 2.5, 20.0):
        share = min(epochs / 10, 1.0)
        losses = objective(batch, output, epochs)
        expected = (1 - share) * losses["task"].item() + share * losses["extra"].item()
        assert losses["total"].item() == pytest.approx(expected, rel=1e-6)


def test_a_term_of_weight_0_is_reported_but_sends_no_gradient(batch: Batch, output: Output) -> None:
    plain = Objective.task()(batch, output)["total"]
    plain.backward()
    expected = output.logits.grad.numpy().copy()
    output.logits.grad.zero_()

    def infinite(batch: Batch, output: Output) -> flow.Tensor:
        return output.logits.sum() * float("inf")

    losses = Objective.task().add("bad", infinite, 0.0)(batch, output)
    losses["total"].backward()
    assert not np.isfinite(losses["bad"].item())
    assert losses["total"].item() == plain.item()
    np.testing.assert_array_equal(output.logits.grad.numpy(), expected)


def test_an_objective_is_not_changed_by_deriving_another_from_it() -> None:
    base = Objective.task()
    base.blend("a", _mean_logit, 0.5)
    base.add("b", _mean_logit)
    base.replace("task", _mean_logit)
    base.evaluate_with(flow.nn.Identity())
    base.with_constraint(lambda: None)
    assert list(base.terms) == ["task"]
    assert base.terms["task"].weight == 1.0
    assert (base.eval_model, base.constraints) == (None, ())


def test_an_objective_is_frozen_and_does_not_write_into_its_teacher() -> None:
    student = Recorder(flow.nn.Identity(), "student", flow.zeros(1, 1, 2, 2))
    teacher = Teacher(flow.nn.Identity())
    before = dict(vars(teacher))
    objective = Objective.task().with_student(student).with_teacher(teacher)
    assert objective.teacher is teacher
    assert vars(teacher) == before
    with pytest.raises(AttributeError):
        objective.eval_model = flow.nn.Identity()  # type: ignore[misc]
    with pytest.raises(TypeError):
        objective.terms["task"] = WeightedTerm(_mean_logit, 1.0)  # type: ignore[index]


def test_names_are_unique_and_total_is_taken() -> None:
    with pytest.raises(ValueError, match="'task' already"):
        Objective.task().add("task", _mean_logit)
    with pytest.raises(ValueError, match="'total' already"):
        Objective.task().blend("total", _mean_logit, 0.5)
    with pytest.raises(ValueError, match=r"no term 'kd' to replace \(it has task, dkd\)"):
        Objective.task().add("dkd", _mean_logit).replace("kd", _mean_logit)


def test_an_objective_without_any_weight_is_refused(batch: Batch, output: Output) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        Objective({}).add("idle", _mean_logit, 0.0)(batch, output)
