"""The methods on features, each against its formula in float64, and their layer names."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import Conv2d, KdtrainError, Objective, Output, UsageError, flow
from plugins.attention import Attention, attention_loss
from plugins.fitnet import FitNet, make_regressor
from plugins.pkt import Pkt, pkt_loss
from plugins.rkd import Rkd, rkd_loss
from plugins.similarity import Similarity, similarity_loss
from plugins.vid import Vid
from tests.plugins.reference import (
    Array,
    Convolutional,
    assert_agrees,
    batch_of,
    huber,
    images_of,
    normal,
    objective_for,
)

FEW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
NAMES = {
    **{"attention": Attention, "fitnet": FitNet, "pkt": Pkt, "rkd": Rkd, "similarity": Similarity, "vid": Vid}
}


def pooled(features: Any, size: int) -> Any:
    """Averages a map whose side is a multiple of ``size``."""
    factor = features.shape[2] // size
    shape = (*features.shape[:2], size, factor, size, factor)
    return features.reshape(shape).mean(axis=(3, 5))


def attention_formula(teacher: Array) -> Any:
    def mapped(features: Any, size: int) -> Any:
        strength = (pooled(features, size) ** 2).mean(axis=1).reshape(len(features), -1)
        return strength / np.sqrt((strength**2).sum(axis=1, keepdims=True))

    def formula(student: Any) -> Any:
        size = min(student.shape[2], teacher.shape[2])
        return ((mapped(student, size) - mapped(teacher, size)) ** 2).mean()

    return formula


@FEW
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.sampled_from([(2, 2), (3, 3), (4, 2), (2, 4)]))
def test_attention_agrees_with_its_formula(
    seed: int, images: int, channels: int, sides: tuple[int, int]
) -> None:
    student = normal(seed, images, channels, sides[0], sides[0])
    teacher = normal(seed + 1, images, channels + 1, sides[1], sides[1])
    formula = attention_formula(teacher.astype(np.float64))
    assert_agrees(lambda x: attention_loss(x, flow.tensor(teacher)), formula, student)


def test_attention_of_a_map_of_zeros_is_finite() -> None:
    x = flow.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_loss(x, flow.tensor(normal(0, 2, 3, 4, 4)))
    loss.backward()
    assert loss.item() == pytest.approx(1 / 16, rel=1e-6)
    assert not x.grad.numpy().any()


@FEW
@given(SEEDS, st.integers(1, 5), st.integers(1, 6), st.sampled_from([1e-2, 1.0, 100.0]))
def test_similarity_agrees_with_its_formula(seed: int, images: int, width: int, scale: float) -> None:
    student, teacher = normal(seed, images, width) * np.float32(scale), normal(seed + 1, images, 2, 3)

    def table(features: Any) -> Any:
        g = features.reshape(len(features), -1) @ features.reshape(len(features), -1).T
        return g / np.sqrt((g * g).sum(axis=1, keepdims=True))

    wanted = table(teacher.astype(np.float64))
    assert_agrees(
        lambda x: similarity_loss(x, flow.tensor(teacher)) * scale,  # so that the slopes are of size 1
        lambda x: scale * ((table(x) - wanted) ** 2).sum() / len(x) ** 2,
        student,
        tolerance=2e-6,
    )


def test_similarity_of_an_image_without_features_is_finite() -> None:
    features = normal(0, 4, 3)
    features[1] = 0
    x = flow.tensor(features, requires_grad=True)
    similarity_loss(x, flow.tensor(normal(1, 4, 3))).backward()
    assert 0 < np.abs(x.grad.numpy()).max() < 1


@pytest.mark.parametrize("sides", [(5, 3), (7, 4), (28, 26), (3, 7)])
def test_attention_between_maps_of_any_sizes_averages_as_adaptive_pooling_does(
    sides: tuple[int, int],
) -> None:
    student, teacher = normal(0, 2, 3, sides[0], sides[0]), normal(1, 2, 4, sides[1], sides[1] + 1)
    x = flow.tensor(student, requires_grad=True)
    loss = attention_loss(x, flow.tensor(teacher))
    loss.backward()
    size = (min(sides), min(sides[0], sides[1] + 1))
    y = flow.tensor(student, requires_grad=True)
    maps = [
        flow.nn.functional.adaptive_avg_pool2d(z, size).double().square().mean(dim=1).flatten(1)
        for z in (y, flow.tensor(teacher))
    ]
    own, wanted = (m / m.square().sum(dim=1, keepdim=True).sqrt() for m in maps)
    expected = (own - wanted).square().mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-4, atol=1e-7)


def pkt_formula(teacher: Array) -> Any:
    """Row by row, from the definitions; sums of the logarithms of single numbers."""

    def rows(features: Any) -> Any:
        unit = features / (np.sqrt((features * features).sum(axis=1, keepdims=True)) + 1e-7)
        for x in unit:
            kernel = np.array([(1 + (x * y).sum()) / 2 for y in unit])
            yield kernel / kernel.sum()

    def formula(student: Any) -> Any:
        pairs = zip(rows(teacher), rows(student), strict=True)
        return sum((p * np.log((p + 1e-7) / (q + 1e-7))).sum() for p, q in pairs) / len(student)

    return formula


@FEW
@given(SEEDS, st.integers(1, 6), st.integers(1, 5), st.sampled_from([1e-2, 1.0, 100.0]))
def test_pkt_agrees_with_its_formula(seed: int, images: int, width: int, scale: float) -> None:
    student, teacher = normal(seed, images, width + 1) * np.float32(scale), normal(seed + 1, images, width)
    formula = pkt_formula(teacher.astype(np.float64))
    assert_agrees(
        lambda x: pkt_loss(x, flow.tensor(teacher)) * scale,  # so that the slopes are of size 1
        lambda x: formula(x) * scale,
        student,
        tolerance=3e-6,
    )


@pytest.mark.parametrize(("loss", "rel"), [(pkt_loss, 1e-4), (partial(rkd_loss, distance=9, angle=9), 1e-5)])
def test_a_map_is_taken_for_its_means_over_the_pixels(loss: Any, rel: float) -> None:
    maps = normal(0, 5, 3, 4, 4), normal(1, 5, 2, 2, 2)
    of_maps, of_means = (loss(*map(flow.tensor, pair)) for pair in (maps, [x.mean((2, 3)) for x in maps]))
    assert of_maps.item() == pytest.approx(of_means.item(), rel=rel)


def test_pkt_takes_zeros_for_no_direction() -> None:
    zeros = flow.zeros(4, 3, requires_grad=True)
    pkt_loss(zeros, flow.tensor(normal(2, 4, 3))).backward()
    assert not zeros.grad.numpy().any()


def rkd_formula(teacher: Array, distance: float, angle: float) -> Any:
    def relations(x: Any) -> tuple[Any, Any]:
        apart = x[None] - x[:, None]
        same = np.eye(len(x), dtype=bool)
        length = np.sqrt((apart * apart).sum(axis=2) + same) * ~same
        unit = apart / (length + same)[:, :, None]
        return length / length[~same].mean(), np.einsum("ijd,ikd->ijk", unit, unit)

    wanted = relations(teacher)

    def formula(x: Any) -> Any:
        parts = [huber(a - b).mean() for a, b in zip(relations(x), wanted, strict=True)]
        return distance * parts[0] + angle * parts[1]

    return formula


@FEW
@given(SEEDS, st.integers(2, 6), st.integers(1, 5), st.sampled_from([(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)]))
def test_rkd_agrees_with_its_formula(
    seed: int, images: int, width: int, weights: tuple[float, float]
) -> None:
    student, teacher = normal(seed, images, width), normal(seed + 1, images, width + 1)
    formula = rkd_formula(teacher.astype(np.float64), *weights)
    assert_agrees(lambda x: rkd_loss(x, flow.tensor(teacher), *weights), formula, student, 2e-6)


@FEW
@given(SEEDS, st.floats(0.1, 10), st.floats(-5, 5))
def test_rkd_sees_no_difference_in_scale_place_and_rotation(seed: int, scale: float, move: float) -> None:
    random = np.random.default_rng(seed)
    points = random.normal(size=(6, 4))
    rotation = np.linalg.qr(random.normal(size=(4, 4)))[0]
    student = (scale * points @ rotation + move).astype(np.float32)
    x = flow.tensor(student, requires_grad=True)
    loss = rkd_loss(x, flow.tensor(points.astype(np.float32)), 25.0, 50.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    rounding = abs(move) / scale  # of the points as float32, relative to the distances between them
    np.testing.assert_allclose(x.grad.numpy() * scale, 0, atol=1e-5 + 1e-6 * rounding)


def test_rkd_of_equal_images_and_of_one_image_is_finite() -> None:
    for student in (np.ones((4, 3), np.float32), np.ones((1, 3), np.float32)):
        x = flow.tensor(student, requires_grad=True)
        loss = rkd_loss(x, flow.tensor(normal(0, len(student), 3)), 25.0, 50.0)
        loss.backward()
        assert np.isfinite(loss.item())
        assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    ("student_layer", "teacher_layer"),
    [("fc1", "fc1"), ("conv1", "conv2"), ("conv2", "conv2"), ("fc1", "conv2"), ("conv2", "fc1")],
)
def test_fitnet_agrees_with_its_formula_and_its_regressor_with_finite_differences(
    student_layer: str, teacher_layer: str
) -> None:
    flow.manual_seed(0)
    student, teacher = Convolutional(2), Convolutional(3, hidden=4)
    objective = FitNet(student_layer, teacher_layer).configure(objective_for(student, teacher))
    batch = batch_of(images_of())
    output = objective.student(batch.inputs)
    (term,) = (term for term, _ in objective.terms.values() if isinstance(term, flow.nn.Module))
    loss = term(batch, output)
    loss.backward()
    layer = next(m for m in term.modules() if isinstance(m, (flow.nn.Linear, Conv2d)))
    features = output.features[student_layer].numpy().astype(np.float64)
    hint = objective.teacher.features(batch)[teacher_layer].numpy().astype(np.float64)

    def formula(weight: Array, bias: Array) -> float:
        if weight.ndim == 2:
            made = features.reshape(len(features), -1) @ weight.T + bias
        else:
            views: Any = np.lib.stride_tricks.sliding_window_view(
                features,
                weight.shape[2:],
                axis=(2, 3),  # type: ignore[call-overload]
            )
            made = np.einsum("nchwij,ocij->nohw", views, weight) + bias[:, None, None]
        return float(((made.reshape(hint.shape) - hint) ** 2).mean())

    weight, bias = (p.numpy().astype(np.float64) for p in (layer.weight, layer.bias))
    assert loss.item() == pytest.approx(formula(weight, bias), rel=1e-6)
    random = np.random.default_rng(0)
    for number, gradient in enumerate((layer.weight.grad.numpy(), layer.bias.grad.numpy())):
        for _ in range(10):
            parameters = [weight.copy(), bias.copy()]
            index = tuple(int(random.integers(n)) for n in gradient.shape)
            ends = []
            for step in (1e-4, -2e-4):
                parameters[number][index] += step
                ends.append(formula(*parameters))
            assert gradient[index] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-6)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.conv1.weight.grad is not None


def test_the_teacher_is_no_part_of_the_hint() -> None:
    objective = FitNet("fc1", "fc1").configure(objective_for(Convolutional(2), Convolutional(3)))
    (term,) = objective.modules()
    assert list(term.state_dict()) == ["loss.regressor.1.weight", "loss.regressor.1.bias"]


def test_a_regressor_makes_no_larger_map() -> None:
    with pytest.raises(UsageError, match="student's maps are 4 x 4, the teacher's 6 x 6"):
        make_regressor((2, 4, 4), (3, 6, 6))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_adds_a_term_and_all_terms_share_one_run_of_the_teacher(name: str) -> None:
    student, teacher = Convolutional(2), Convolutional(3)
    plugin = NAMES[name]("conv2", "conv2")
    objective = plugin.configure(objective_for(student, teacher, alpha=0.0))
    objective = Attention("conv1", "conv1").configure(objective)
    assert list(objective.terms) == ["task", "kd", f"{name}_conv2", "attention_conv1"]
    runs: list[int] = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    batch = batch_of(images_of())
    objective(batch, objective.student(batch.inputs))
    assert len(runs) == 1, "three terms share one run"
    if name not in ("fitnet", "vid"):
        same = NAMES[name]("conv2", "conv2").configure(objective_for(teacher, teacher))
        recorded = Output(teacher(batch.inputs), dict(same.teacher.features(batch)))
        assert same.terms[f"{name}_conv2"].term(batch, recorded).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_about_a_wrong_layer_name_lists_those_that_there_are(name: str) -> None:
    there = "there are: conv1, conv2, fc1, fc2, unused."
    plugin, networks = NAMES[name], (Convolutional(2), Convolutional(3))
    with pytest.raises(UsageError) as wrong:
        plugin("conv3", "conv1").configure(objective_for(*networks))
    expected = "there is no layer of the student (Convolutional) 'conv3' (did you mean 'conv"
    assert str(wrong.value).startswith(expected)
    assert str(wrong.value).endswith(there)
    with pytest.raises(UsageError, match="no layer of the teacher") as wrong:
        plugin("conv1", "").configure(objective_for(*networks))
    assert str(wrong.value).endswith(there)
    with pytest.raises(UsageError, match="student's layer 'unused' does not put out a tensor"):
        plugin("unused", "conv1").configure(objective_for(*networks))


@pytest.mark.parametrize(("layers", "who"), [(("fc1", "conv1"), "student"), (("conv1", "fc2"), "teacher")])
def test_attention_without_maps_says_what_it_needs(layers: tuple[str, str], who: str) -> None:
    message = rf"needs feature maps.*the {who}'s layer '{layers[who == 'teacher']}' puts out \d per image"
    with pytest.raises(UsageError, match=message):
        Attention(*layers).configure(objective_for(Convolutional(2), Convolutional(3)))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_takes_part_once_for_each_pair_of_layers(name: str) -> None:
    objective = objective_for(Convolutional(2), Convolutional(3))
    for pair in (("conv1", "conv1"), ("conv2", "conv2"), ("conv1", "conv2")):
        objective = NAMES[name](*pair).configure(objective)
    terms = [f"{name}_{layers}" for layers in ("conv1", "conv2", "conv1_conv2")]
    assert list(objective.terms) == ["task", "kd", *terms]
    losses = objective(batch := batch_of(images_of()), objective.student(batch.inputs))
    assert len({losses[term].item() for term in terms}) == 3, "each compares its own layers"
    with pytest.raises(ValueError, match=f"has a term '{name}_conv2' already"):
        NAMES[name]("conv2", "conv2").configure(objective)


def test_without_a_teacher_the_error_names_the_modes_that_have_one() -> None:
    student = objective_for(Convolutional(2), Convolutional(3)).student
    with pytest.raises(UsageError, match="it needs a teacher: choose --mode student_kd or compare"):
        Similarity("fc1", "fc1").configure(Objective.task().with_student(student))
    with pytest.raises(KdtrainError, match="does not belong to a fit"):
        _ = Objective.task().student
