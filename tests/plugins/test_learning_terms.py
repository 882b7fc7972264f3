"""The methods whose terms have weights of their own, against their formulas in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from kdtrain import KdtrainError, Output, UsageError, flow
from plugins.ctkd import Ctkd
from plugins.review_kd import Fusion, ReviewKd, multiscale_distance
from plugins.srrl import JudgedFeatures, LastLayer, Srrl
from plugins.vid import Gaussian, Vid
from tests.plugins.reference import (
    Array,
    Convolutional,
    assert_agrees,
    batch_of,
    gradient_of,
    images_of,
    log_softmax,
    normal,
    objective_for,
)

Weights = Mapping[str, Any]


def weights_of(module: flow.nn.Module) -> dict[str, Array]:
    return {name: p.numpy().astype(np.float64) for name, p in module.named_parameters()}


def _with(formula: Any, weights: Weights, name: str, value: Any) -> Any:
    return formula({**weights, name: value})


def assert_weights_have_the_gradient(module: flow.nn.Module, formula: Any, tolerance: float = 1e-5) -> None:
    """Compares the gradients that a backward pass left with those of ``formula(weights)``."""
    weights = weights_of(module)
    for name, parameter in module.named_parameters():
        exact = gradient_of(partial(_with, formula, weights, name), weights[name])
        np.testing.assert_allclose(parameter.grad.numpy(), exact, rtol=tolerance, atol=tolerance)


def linear(x: Any, weight: Any) -> Any:
    """A 1x1 convolution without bias, or a linear layer."""
    weight = weight.reshape(weight.shape[:2])
    return np.einsum("bi...,oi->bo...", x, weight)


def convolution(x: Any, weight: Any) -> Any:
    """A convolution that keeps the size."""
    side = weight.shape[2] // 2
    x = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
    height, width = (n - 2 * side for n in x.shape[2:])
    return sum(
        np.einsum("bihw,oi->bohw", x[:, :, i : i + height, j : j + width], weight[:, :, i, j])
        for i in range(weight.shape[2])
        for j in range(weight.shape[3])
    )


def relu(x: Any) -> Any:
    return x * (x.real > 0)


def batch_norm(x: Any, weight: Any, bias: Any) -> Any:
    axes = (0, *range(2, x.ndim))
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    apart = x - x.mean(axis=axes, keepdims=True)
    unit = apart / np.sqrt((apart * apart).mean(axis=axes, keepdims=True) + 1e-5)
    return unit * weight.reshape(shape) + bias.reshape(shape)


def resized(x: Any, size: Sequence[int]) -> Any:
    """Averages down, one pixel after the other, and enlarges by the nearest pixel."""
    for axis, side in zip((2, 3), size, strict=True):
        old = x.shape[axis]
        if side < old:
            parts = [slice(i * old // side, -(-(i + 1) * old // side)) for i in range(side)]
            pixels = [x[(slice(None),) * axis + (part,)].mean(axis=axis, keepdims=True) for part in parts]
            x = np.concatenate(pixels, axis=axis)
        else:
            x = x.take([i * old // side for i in range(side)], axis=axis)
    return x


# CTKD


def soft_targets(student: Any, teacher: Any, temperature: Any) -> Any:
    log_t, log_s = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum() / len(student)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("epochs_done", [0, 4, 9, 30])
def test_ctkd_is_the_loss_at_its_temperature_and_reverses_the_temperatures_gradient(epochs_done: int) -> None:
    """Lambda is (1 - cos(pi min(n, 10) / 10)) / 2 in epoch n."""
    student, teacher = normal(0, 6, 4) * 3, normal(1, 6, 4) * 3
    plugin = Ctkd(lowest=1.5, span=8.0)
    objective = plugin.configure(objective_for(flow.nn.Identity(), flow.nn.Identity()))
    plugin.epochs_done = epochs_done
    (term,) = objective.modules()
    exact = student.astype(np.float64), teacher.astype(np.float64)
    at_start = 1.5 + 8.0 * sigmoid(1.0)

    assert_agrees(
        lambda x: term(batch_of(teacher), Output(x)),
        lambda x: soft_targets(x, exact[1], at_start),
        student,
        tolerance=2e-6,
    )
    slope = gradient_of(lambda th: soft_targets(*exact, 1.5 + 8.0 * sigmoid(th[0])), np.ones(1))
    factor = {0: (1 - np.cos(np.pi / 10)) / 2, 4: 0.5}.get(epochs_done, 1.0)
    np.testing.assert_allclose(term.theta.grad.numpy(), -factor * slope, rtol=1e-5)
    assert slope != 0


def test_ctkd_begins_at_the_temperature_of_the_authors_code() -> None:
    plugin = Ctkd()
    plugin.configure(objective_for(flow.nn.Identity(), flow.nn.Identity()))
    assert plugin.term.temperature(0.3).item() == pytest.approx(1 + 20 / (1 + np.exp(-1)), rel=1e-7)


# VID

SHAPES = [
    *(((2, 3, 3), (3, 3, 3)), ((2, 4, 4), (3, 2, 2)), ((2, 2, 2), (3, 4, 4)), ((4,), (3,))),
    ((2, 2, 2), (3,)),
]


def vid_formula(teacher: Array, maps: bool) -> Any:
    def formula(student: Any, weights: Weights) -> Any:
        if maps:
            size = tuple(map(min, student.shape[2:], teacher.shape[2:]))
            x, wanted = resized(student, size), resized(teacher, size)
        else:
            x, wanted = (z.reshape(*z.shape[:2], -1).mean(axis=2) for z in (student, teacher))
        for name in ("mean.0.weight", "mean.2.weight", "mean.4.weight"):
            x = linear(x if name == "mean.0.weight" else relu(x), weights[name])
        variance = (np.log(1 + np.exp(weights["rho"])) + 1e-5).reshape(1, -1, *(1 for _ in x.shape[2:]))
        return (((x - wanted) ** 2 / variance + np.log(variance)) / 2).mean()

    return formula


@pytest.mark.parametrize(("student_shape", "teacher_shape"), SHAPES)
def test_vid_agrees_with_its_formula_and_so_do_the_gradients_of_mean_and_variance(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    flow.manual_seed(0)
    student, teacher = normal(0, 4, *student_shape), normal(1, 4, *teacher_shape)
    module = Gaussian(student_shape, teacher_shape)
    formula = vid_formula(teacher.astype(np.float64), len(student_shape) == len(teacher_shape) == 3)
    exact = student.astype(np.float64)
    assert_agrees(
        lambda x: module(x, flow.tensor(teacher)), lambda x: formula(x, weights_of(module)), student
    )
    assert_weights_have_the_gradient(module, lambda weights: formula(exact, weights))


def test_vid_begins_with_the_variance_5_and_trains_it() -> None:
    objective = Vid("conv2", "conv2").configure(objective_for(Convolutional(2), Convolutional(3)))
    (term,) = objective.modules()
    np.testing.assert_allclose(term.loss.variance().numpy(), np.full(3, 5.0), rtol=1e-6)
    assert "loss.rho" in dict(term.named_parameters())


# SRRL


@pytest.mark.parametrize("student_shape", [(3, 2, 2), (5,)])
def test_srrl_agrees_with_its_formula_and_so_do_the_gradients_of_its_map(
    student_shape: tuple[int, ...],
) -> None:
    flow.manual_seed(0)
    layer = flow.nn.Linear(4, 3)
    last = LastLayer(layer, lambda x: flow.relu(x).mean(dim=(2, 3)))
    module = JudgedFeatures(student_shape, last, judge=0.7)
    student, teacher = normal(0, 6, *student_shape), normal(1, 6, 4, 2, 2)
    exact, wanted = student.astype(np.float64), relu(teacher.astype(np.float64)).mean(axis=(2, 3))
    matrix = layer.weight.numpy().astype(np.float64)

    def formula(x: Any, weights: Weights) -> Any:
        x = batch_norm(linear(x, weights["map.0.weight"]), weights["map.1.weight"], weights["map.1.bias"])
        apart = relu(x).reshape(len(x), 4, -1).mean(axis=2) - wanted
        return (apart**2).mean() + 0.7 * ((apart @ matrix.T) ** 2).mean()

    assert_agrees(
        lambda x: module(x, flow.tensor(teacher)),
        lambda x: formula(x, weights_of(module)),
        student,
        tolerance=1e-5,
    )
    assert_weights_have_the_gradient(module, lambda weights: formula(exact, weights), tolerance=2e-5)
    assert layer.weight.grad is None


class Pooled(flow.nn.Module):
    """Ends in a ReLU, a mean over the pixels, and a linear layer; another linear layer is last by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = flow.nn.Conv2d(1, 16, 3)
        self.fc = flow.nn.Linear(16, 3)
        self.other = flow.nn.Linear(16, 3)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits of 8 x 8 pixels."""
        return self.fc(flow.relu(self.conv1(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("teacher", "layer", "last"), [(Convolutional(3, hidden=8), "fc1", "fc2"), (Pooled(), "conv1", "fc")]
)
def test_srrl_finds_the_teachers_last_layer_and_what_it_gets(
    teacher: flow.nn.Module, layer: str, last: str
) -> None:
    student = Convolutional(2)
    before = {name: p.numpy().copy() for name, p in teacher.state_dict().items()}
    objective = Srrl("conv2", layer).configure(objective_for(student, teacher, alpha=0.0))
    assert list(objective.terms) == ["task", "kd", f"srrl_conv2_{layer}"]
    (term,) = objective.modules()
    batch = batch_of(images_of())
    features = objective.teacher.features(batch)[layer]
    assert term.loss.last.layer is dict(teacher.named_modules())[last]
    made = term.loss.last.logits(term.loss.last.reading(features))
    np.testing.assert_allclose(made.numpy(), teacher(batch.inputs).numpy(), atol=1e-6)
    assert not [name for name, _ in term.named_parameters() if "map." not in name]
    objective(batch, objective.student(batch.inputs))["total"].backward()
    assert np.abs(student.conv1.weight.grad.numpy()).max() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for name, p in teacher.state_dict().items():
        np.testing.assert_array_equal(p.numpy(), before[name])


def test_srrl_says_which_layer_it_needs() -> None:
    with pytest.raises(
        UsageError, match=r"'conv1' is not the one before its last linear layer \(fc2 of Conv"
    ):
        Srrl("fc1", "conv1").configure(objective_for(Convolutional(2), Convolutional(3)))
    bare = flow.nn.Sequential(flow.nn.Conv2d(1, 3, 8), flow.nn.Flatten())
    with pytest.raises(UsageError, match=r"needs a teacher that ends in a linear layer.*Sequential has none"):
        Srrl("fc1", "0").configure(objective_for(Convolutional(2), bare))


# ReviewKD


def hcl_formula(x: Any, wanted: Any) -> Any:
    """Each size's distance of the averaged maps, not the average of the distances."""
    total, weight, weights = ((x - wanted) ** 2).mean(), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(x.shape[2:]):
            weight /= 2
            weights += weight
            apart = resized(x, (side, side)) - resized(wanted, (side, side))
            total = total + weight * (apart**2).mean()
    return total / weights


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6])
def test_the_distance_on_several_sizes_agrees_with_its_formula(side: int) -> None:
    made, target = normal(0, 3, 2, side, side + 1), normal(1, 3, 2, side, side + 1)
    assert_agrees(
        lambda x: multiscale_distance(x, flow.tensor(target)),
        lambda x: hcl_formula(x, target.astype(np.float64)),
        made,
    )


def fusion_formula(x: Any, deeper: Any, size: Sequence[int], weights: Weights) -> tuple[Any, Any]:
    x = batch_norm(linear(x, weights["enter.0.weight"]), weights["enter.1.weight"], weights["enter.1.bias"])
    if deeper is not None:
        deeper = resized(deeper, x.shape[2:])
        both = linear(np.concatenate([x, deeper], axis=1), weights["attention.weight"])
        shares = sigmoid(both + weights["attention.bias"].reshape(1, 2, 1, 1))
        x = x * shares[:, :1] + deeper * shares[:, 1:]
    x = resized(x, size)
    made = convolution(x, weights["leave.0.weight"])
    return batch_norm(made, weights["leave.1.weight"], weights["leave.1.bias"]), x


def test_a_fusion_agrees_with_its_formula_and_so_do_the_gradients_of_its_weights() -> None:
    flow.manual_seed(0)
    module = Fusion(3, 2, 4, fuses=True)
    x, deeper, target = normal(0, 4, 3, 4, 4), normal(1, 4, 2, 2, 2), normal(2, 4, 4, 5, 5)
    exact = deeper.astype(np.float64), target.astype(np.float64)

    def formula(x: Any, weights: Weights) -> Any:
        made, passed = fusion_formula(x, exact[0], (5, 5), weights)
        return (made * exact[1]).mean() + passed.mean()

    def loss(x: flow.Tensor) -> flow.Tensor:
        made, passed = module(x, flow.tensor(deeper), (5, 5))
        return (made * flow.tensor(target)).mean() + passed.mean()

    assert_agrees(loss, lambda x: formula(x, weights_of(module)), x, tolerance=1e-5)
    assert_weights_have_the_gradient(module, lambda weights: formula(x.astype(np.float64), weights))


def review_of(*layers: str, **arguments: Any) -> ReviewKd:
    return ReviewKd("+".join(layers), "+".join(layers), **arguments)


def test_review_kd_compares_each_layer_fused_with_the_deeper_ones() -> None:
    flow.manual_seed(0)
    student, teacher = Convolutional(2), Convolutional(3, hidden=4)
    layers = ("conv1", "conv2", "fc1")
    objective = review_of(*layers).configure(objective_for(student, teacher, alpha=0.0))
    assert list(objective.terms) == ["task", "kd", "review_kd"]
    batch = batch_of(images_of())
    output = objective.student(batch.inputs)
    (term,) = objective.modules()
    deeper, expected = None, 0.0
    for number, layer in reversed(list(enumerate(layers))):
        x, wanted = (
            features[layer].numpy().astype(np.float64)
            for features in (output.features, objective.teacher.features(batch))
        )
        x, wanted = (z.reshape(*z.shape, 1, 1) if z.ndim == 2 else z for z in (x, wanted))
        made, deeper = fusion_formula(x, deeper, wanted.shape[2:], weights_of(term.fusions[number]))
        expected += hcl_formula(made, wanted)
    losses = objective(batch, output)
    assert losses["review_kd"].item() == pytest.approx(expected, rel=1e-5)
    losses["total"].backward()
    assert np.abs(student.conv1.weight.grad.numpy()).max() > 0
    assert all(np.abs(p.grad.numpy()).max() > 0 for p in term.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert len(dict(term.named_parameters())) == 3 * 6 + 2 * 2, "no weight of the teacher is among them"


def test_review_kd_warms_up_in_steps_of_an_epoch() -> None:
    ramp = review_of("a", "b", weight=2.0, warmup=4).ramp
    assert [ramp(epochs) for epochs in (0.0, 0.99, 1.0, 3.0, 40.0)] == [0.5, 0.5, 1.0, 2.0, 2.0]
    assert review_of("a", "b", weight=2.0, warmup=0).ramp(0.0) == 2


def test_review_kd_wants_layers_from_the_first_to_the_deepest() -> None:
    objective = objective_for(Convolutional(2), Convolutional(3))
    with pytest.raises(UsageError, match="student's layer 'conv1' has larger maps than 'conv2'"):
        review_of("conv2", "conv1").configure(objective)
    with pytest.raises(UsageError, match=r"no layer of the student .* 'conv3'"):
        review_of("conv1", "conv3").configure(objective)


# All of them


@pytest.mark.parametrize(
    ("plugin", "name"), [(Srrl("conv1", "fc1"), "srrl"), (review_of("conv1", "fc1"), "review_kd")]
)
def test_a_batch_of_one_image_cannot_be_normalised(plugin: Any, name: str) -> None:
    objective = plugin.configure(objective_for(Convolutional(2), Convolutional(3)))
    batch = batch_of(images_of(count=1))
    with pytest.raises(KdtrainError, match=f"{name} normalises a batch"):
        objective(batch, objective.student(batch.inputs))
