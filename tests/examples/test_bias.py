"""Raised biases of classes that a student was trained without: the shift, the weights, the new checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from examples.hinton2015.bias import WAYS, raise_biases, raise_biases_of, shift_by_labels, shift_by_teacher
from kdtrain import KdtrainError, UsageError, flow
from kdtrain.models.registry import build_model
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel, load_model, snapshot
from tests.cli.conftest import Call, Fitted

Array = npt.NDArray[np.float64]

HEADLESS = """
from kdtrain import flow

def make(image_shape, classes):
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(784, classes), flow.nn.Softmax(dim=1))
"""


def draw(seed: int, images: int, classes: int, chosen: int, scale: float) -> tuple[Array, list[int]]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(images, classes)) * scale
    return logits, sorted(random.permutation(classes)[:chosen].tolist())


def raised(logits: Array, classes: list[int], shift: float) -> Array:
    result = logits.copy()
    result[:, classes] += shift
    return result


def mean_probability(logits: Array, classes: list[int]) -> float:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((p[:, classes].sum(axis=1) / p.sum(axis=1)).mean())


SIZES = {
    **{"seed": st.integers(0, 2**32 - 1), "images": st.integers(1, 60), "classes": st.integers(2, 10)},
    "scale": st.sampled_from([0.1, 1.0, 10.0]),
}


@settings(max_examples=100)
@given(**SIZES, data=st.data())
def test_the_shifted_student_predicts_the_classes_as_often_as_the_teacher(
    seed: int, images: int, classes: int, scale: float, data: st.DataObject
) -> None:
    logits, chosen = draw(seed, images, classes, data.draw(st.integers(1, classes - 1)), scale)
    teacher, _ = draw(seed + 1, images, classes, 1, scale)
    shift = shift_by_teacher(logits, teacher, chosen)
    expected = mean_probability(teacher, chosen)
    assert mean_probability(raised(logits, chosen, shift), chosen) == pytest.approx(expected, rel=1e-6)
    rest = [i for i in range(classes) if i not in chosen]
    p = np.array([mean_probability(image[None], chosen) for image in logits])
    q = np.array([mean_probability(image[None], rest) for image in logits])
    # If every probability is 0 or 1, all shifts within a range give the same mean.
    assume((p * q).mean() > 1e-8 * min(p.mean(), q.mean()))
    back = shift_by_teacher(raised(logits, chosen, -3.5), logits, chosen)
    assert back == pytest.approx(3.5, abs=1e-6), "the subtracted shift is found again"


@pytest.mark.parametrize("odds", [-60.0, -32.0, 0.0, 32.0, 60.0])
def test_a_teacher_with_saturated_probabilities_is_matched_as_closely(odds: float) -> None:
    """A probability with odds of e^60 is 1 in float64."""
    student = np.array([[0.0, 1.5], [0.0, 1.5]])
    assert shift_by_teacher(student, np.array([[0.0, odds], [0.0, odds]]), [1]) == pytest.approx(odds - 1.5)


@settings(max_examples=100)
@given(**SIZES, data=st.data())
def test_no_other_shift_classifies_more_images_correctly(
    seed: int, images: int, classes: int, scale: float, data: st.DataObject
) -> None:
    logits, chosen = draw(seed, images, classes, data.draw(st.integers(1, classes - 1)), scale)
    labels = np.random.default_rng(seed).integers(0, classes, images)

    def correct(shift: float) -> int:
        return int((raised(logits, chosen, shift).argmax(axis=1) == labels).sum())

    margins = np.delete(logits, chosen, axis=1).max(axis=1) - logits[:, chosen].max(axis=1)
    tried = np.concatenate([margins - 1e-9, margins + 1e-9, [-1e3, 1e3]])
    assert correct(shift_by_labels(logits, labels, chosen)) == max(correct(float(shift)) for shift in tried)


def test_the_middle_of_equally_good_shifts_is_chosen() -> None:
    logits = np.array([[0.0, -1.0], [0.0, -5.0], [0.0, -9.0]])
    labels = np.array([1, 1, 0])
    assert shift_by_labels(logits, labels, [1]) == pytest.approx(7.0), "between 5 and 9"


def saved_model(card: ModelCard, arch: str) -> SavedModel:
    weights = snapshot(build_model(arch, (1, 28, 28), 10))
    return SavedModel(Path("model"), dataclasses.replace(card, arch=arch), weights)


@pytest.mark.parametrize("arch", ["student_mlp", "teacher_cnn", "resnet8"])
def test_only_the_logits_of_the_classes_move(card: ModelCard, arch: str) -> None:
    flow.manual_seed(0)
    saved = saved_model(card, arch)
    weights = saved.weights.copy()
    changed = dataclasses.replace(saved, weights=raise_biases(saved, [3, 7], 2.5))
    images = flow.tensor(np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32))
    before = saved.build()(images).numpy().copy()
    after = changed.build()(images).numpy().copy()
    moved = np.zeros(10)
    moved[[3, 7]] = 2.5
    np.testing.assert_allclose(after - before, np.tile(moved, (4, 1)), atol=1e-5)
    assert all(np.array_equal(weights[name], saved.weights[name]) for name in weights)
    differing = [name for name in weights if not np.array_equal(weights[name], changed.weights[name])]
    assert len(differing) == 1


def test_network_without_such_a_last_layer_is_refused(card: ModelCard, tmp_path: Path) -> None:
    (tmp_path / "headless.py").write_text(HEADLESS)
    saved = saved_model(card, f"{tmp_path}/headless.py:make")
    with pytest.raises(KdtrainError, match="does not end with a linear layer that has a bias for each class"):
        raise_biases(saved, [3], 1.0)


@pytest.fixture(scope="module")
def omitted(tmp_path_factory: pytest.TempPathFactory, fitted: Fitted, spawn: Call) -> Path:
    """A student that has learned of the class 3 from soft labels only; returns its run's directory."""
    folder = tmp_path_factory.mktemp("omitted")
    words = ("--teacher-checkpoint", fitted.model("teacher"), "--omit-class", "3", "--temperature", "8")
    spawn("fit", "--mode", "student_kd", *fitted.flags, *words, cwd=folder)
    return folder / "logs/student_kd/version_0"


@pytest.mark.parametrize("by", WAYS)
def test_biases_are_raised_in_a_new_checkpoint(omitted: Path, by: str) -> None:
    best = omitted / "checkpoints/best.safetensors"
    content = best.read_bytes()
    result = raise_biases_of(omitted, by)
    assert (result.classes, result.path) == (("3",), omitted / f"checkpoints/bias_{by}.safetensors")
    assert result.after.images == 300
    if by == "labels":
        assert result.after.errors <= result.before.errors
    changed, original = load_model(result.path), load_model(best)
    moved = changed.weights["fc3.bias"].astype(np.float64) - original.weights["fc3.bias"].astype(np.float64)
    np.testing.assert_allclose(moved, [0, 0, 0, result.shift], atol=1e-5)
    assert changed.card.metrics["bias_shift"] == result.shift
    assert changed.card.accuracy == result.after.accuracy
    assert best.read_bytes() == content


def test_a_run_with_all_classes_is_refused(fitted: Fitted) -> None:
    with pytest.raises(UsageError, match="not one of a student trained with --omit-class"):
        raise_biases_of(fitted.run("student_kd"))
