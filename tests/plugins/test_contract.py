"""The objective as plugins use it: recorded layers, the teacher, replaced terms, constraints."""

from __future__ import annotations

import copy
import importlib
import inspect
import warnings
from typing import Any

import numpy as np
import pytest

import kdtrain
from kdtrain import (
    BatchEnd,
    Callback,
    KdtrainError,
    NeedsTeacher,
    Objective,
    Recorder,
    Run,
    Teacher,
    UsageError,
    flow,
)
from kdtrain.engine.losses import cross_entropy
from tests.conftest import Fit
from tests.plugins.reference import Convolutional, batch_of, images_of, objective_for
from tests.tools import ROOT

SEVERAL = {"student_layers": "conv1+fc1", "teacher_layers": "conv1+fc1"}


def methods() -> dict[str, type[NeedsTeacher]]:
    """kdtrain's own methods of distillation: the plugins that change the objective and need a teacher."""
    found = {}
    for path in sorted((ROOT / "plugins").glob("*.py")):
        for cls in vars(importlib.import_module(f"plugins.{path.stem}")).values():
            own = inspect.isclass(cls) and cls.__module__ == f"plugins.{path.stem}"
            if own and issubclass(cls, NeedsTeacher) and cls.configure is not Callback.configure:
                found[path.stem] = cls
    return found


METHODS = methods()


def state_of(network: flow.nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_the_student_and_its_own_weights_and_leaves_the_teacher_alone(name: str) -> None:
    flow.manual_seed(0)
    student, teacher = Convolutional(2), Convolutional(3, hidden=8)
    parameters = inspect.signature(METHODS[name]).parameters
    layers = dict.fromkeys(("student_layer", "teacher_layer"), "conv2" if name == "attention" else "fc1")
    given = {key: value for key, value in (layers | SEVERAL).items() if key in parameters}
    plugin = METHODS[name](**given)
    plugin.configure(objective_for(student, teacher))  # commands try it out before the fit
    objective = plugin.configure(objective_for(student, teacher))
    before = state_of(student), state_of(teacher)
    own = [parameter for module in objective.modules() for parameter in module.parameters()]
    networks = {id(p) for network in (student, teacher) for p in network.parameters()}
    assert not networks & {id(parameter) for parameter in own}
    optimizer = flow.optim.SGD([*student.parameters(), *own], lr=0.01)
    batch = batch_of(images_of())
    losses = objective(batch, objective.student(batch.inputs))
    assert {(loss.dtype, tuple(loss.shape)) for loss in losses.values()} == {(flow.float32, ())}
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in own)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    optimizer.step()
    after = state_of(student), state_of(teacher)
    assert not np.array_equal(before[0]["conv1.weight"], after[0]["conv1.weight"])
    for weight, array in before[1].items():
        np.testing.assert_array_equal(array, after[1][weight])
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
    assert not teacher.training


def test_all_methods_are_found() -> None:
    assert {"dkd", "fitnet", "ctkd", "nkd", "review_kd", "srrl", "vid"} <= set(METHODS)
    assert not {"fidelity", "label_smoothing"} & set(METHODS)


def test_a_recorded_layer_is_what_the_network_computes_and_keeps_its_gradient() -> None:
    network = Convolutional(2)
    recorder = Recorder(network, "student", flow.tensor(images_of(count=1)))
    assert [recorder.record(layer) for layer in ("conv1", "fc1")] == [(2, 6, 6), (5,)]
    images = flow.tensor(images_of())
    output = recorder(images)
    np.testing.assert_array_equal(output.logits.numpy(), network(images).numpy())
    np.testing.assert_array_equal(output.features["conv1"].numpy(), network.conv1(images).numpy())
    output.features["fc1"].sum().backward()
    assert np.abs(network.conv1.weight.grad.numpy()).max() > 0
    assert network.fc2.weight.grad is None


def test_recording_leaves_nothing_in_the_network_even_after_an_error() -> None:
    network = Convolutional(2)
    recorder = Recorder(network, "student", flow.tensor(images_of(count=1)))
    recorder.record("conv1")
    with pytest.raises(Exception, match="30 vs 32"):
        recorder(flow.zeros(1, 1, 9, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # copying a network that has hooks warns
        copy.deepcopy(network)
    seen: list[int] = []
    network.conv1.register_forward_hook(lambda *_: seen.append(1))
    recorder(flow.tensor(images_of()))
    network(flow.tensor(images_of()))
    assert seen == [1, 1], "another hook stays"


def test_finding_shapes_out_draws_nothing_and_leaves_the_mode() -> None:
    network = flow.nn.Sequential(flow.nn.Flatten(), flow.nn.BatchNorm1d(64), flow.nn.Linear(64, 3))
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    recorder = Recorder(network.train(), "student", flow.tensor(images_of(count=1)))
    assert recorder.record("2") == (3,)
    assert network.training
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_outside_a_fit_nothing_can_be_recorded() -> None:
    with pytest.raises(KdtrainError, match=r"in configure, within a fit, only"):
        Teacher(Convolutional(2)).record("conv1")


def test_a_teacher_runs_once_a_batch_without_gradient_and_in_evaluation_mode() -> None:
    network = Convolutional(2).train()
    teacher = objective_for(Convolutional(2), network).teacher
    teacher.record("fc1")
    runs: list[bool] = []
    network.register_forward_hook(lambda module, *_: runs.append(module.training))
    first, second = batch_of(images_of(0)), batch_of(images_of(1))
    for batch in (first, first, second, first):
        features, logits = teacher.features(batch)["fc1"], teacher.logits(batch)
        assert not features.requires_grad
        np.testing.assert_array_equal(logits.numpy(), network(batch.inputs).numpy())
        runs.pop()  # of the line above
    assert runs == [False] * 3
    teacher.use_table(lambda batch: flow.zeros(len(batch), 3))
    assert not teacher.logits(first).numpy().any(), "the table has precedence"


def test_a_replaced_term_keeps_its_place_and_gets_another_name_and_weight() -> None:
    objective = Objective.task().add("kd", cross_entropy, 0.5).add("extra", cross_entropy)
    renamed = objective.replace("kd", cross_entropy, rename="method", factor=4.0)
    weights = {name: term.weight for name, term in renamed.terms.items()}
    assert weights == {"task": 1.0, "method": 2.0, "extra": 1.0}
    scheduled = objective.replace("kd", cross_entropy, factor=lambda epochs: epochs).terms["kd"].weight
    assert callable(scheduled)
    assert scheduled(3.0) == 1.5
    for taken in ("task", "total"):
        with pytest.raises(ValueError, match=f"a term '{taken}' already"):
            objective.replace("kd", cross_entropy, rename=taken)
    assert list(objective.terms) == ["task", "kd", "extra"], "the first one is as it was"


def test_the_temperature_and_the_soft_targets_are_there_for_a_term_to_use() -> None:
    objective = objective_for(Convolutional(2), Convolutional(3))
    batch = batch_of(images_of())
    output, teacher = objective.student(batch.inputs), objective.teacher
    assert objective.temperature == 4.0
    loss = kdtrain.soft_target_loss(
        output.logits, teacher.logits(batch, objective.temperature), objective.temperature
    )
    assert objective.terms["kd"].term(batch, output).item() == loss.item()
    with pytest.raises(UsageError, match="needs a teacher"):
        _ = Objective.task().temperature
    reference = (ROOT / "docs" / "plugin-reference.md").read_text()
    for text in ("objective.temperature", 'objective.terms["kd"].term(batch, output)', "soft_target_loss("):
        assert f"`{text}" in reference


def test_networks_stay_through_every_change_of_the_objective() -> None:
    objective = objective_for(Convolutional(2), Convolutional(3))
    eval_model, constraints = Convolutional(2), [list, dict]
    objective = objective.with_constraint(constraints[0])
    changed = objective.evaluate_with(eval_model).add("a", cross_entropy).blend("b", cross_entropy, 0.5)
    changed = (
        changed.replace("a", cross_entropy).with_teacher(objective.teacher).with_student(objective.student)
    )
    assert changed.student is objective.student
    assert changed.teacher is objective.teacher
    assert changed.eval_model is eval_model
    assert list(changed.with_constraint(constraints[1]).constraints) == constraints
    with pytest.raises(ValueError, match="set the network to evaluate already"):
        changed.evaluate_with(eval_model)
    with pytest.raises(UsageError, match="needs a teacher"):
        _ = Objective.task().teacher


def test_an_objective_made_anew_belongs_to_the_fit_as_well(fit: Fit, student: flow.nn.Module) -> None:
    bound: list[Any] = []

    class Anew(Callback):
        def configure(self, objective: Objective) -> Objective:
            return Objective.task()

        def on_fit_start(self, run: Run) -> None:
            bound.append((run.objective.student.network, run.evaluated, run.modules))

    fit(Anew())
    assert bound == [(student, student, (student,))]


def test_constraints_hold_after_every_step_and_add_up(fit: Fit) -> None:
    class Bounded(Callback):
        """Keeps a bias at a value, and notes it at the end of each step."""

        def __init__(self, layer: str, value: float) -> None:
            self.layer = layer
            self.value = value
            self.seen: list[float] = []

        def configure(self, objective: Objective) -> Objective:
            self.bias = dict(objective.student.network.named_parameters())[f"{self.layer}.bias"]
            return objective.with_constraint(lambda: self.bias.fill_(self.value)).add(
                self.layer, cross_entropy
            )

        def on_batch(self, run: Run, event: BatchEnd) -> None:
            self.seen.extend(self.bias.numpy().tolist())

    callbacks = [Bounded("fc1", 0.25), Bounded("fc2", -1.0)]
    fit(*callbacks)
    assert [set(callback.seen) for callback in callbacks] == [{0.25}, {-1.0}]
