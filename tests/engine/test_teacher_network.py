"""A teacher gets images in its own form; several teachers are averaged; a table has no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import UsageError, build_model, flow
from kdtrain.data.dataset import Normalization
from kdtrain.data.images.resize import InputConversion, InputForm
from kdtrain.engine.teacher_network import Ensemble, GivenLogits, TeacherNetwork, mean_logits

GREY = Normalization((0.2,), (0.4,))


def pixels(seed: int, *shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_only_the_chosen_classes_of_a_teacher_answer_and_are_renormalised() -> None:
    network = build_model("student_mlp", (1, 28, 28), 10).eval()
    images = flow.tensor(GREY.apply(pixels(3, 4, 1, 28, 28)))
    logits = network(images).numpy()
    chosen = TeacherNetwork(network, classes=[7, 2, 5])(images).numpy()
    assert np.array_equal(chosen, logits[:, [7, 2, 5]])


def test_what_changes_the_answers_changes_the_text_that_names_them_in_the_cache() -> None:
    network = build_model("student_mlp", (1, 28, 28), 10)
    own, other = InputForm((1, 28, 28), GREY), InputForm((1, 28, 28), Normalization((0.3,), (0.4,)))
    texts = {
        repr(teacher)
        for teacher in (
            network,
            TeacherNetwork(network, InputConversion(own, other)),
            TeacherNetwork(network, InputConversion(other, own)),
            TeacherNetwork(network, classes=[1, 0]),
            TeacherNetwork(network, classes=[0, 1]),
            Ensemble([network, network], [1, 1]),
            Ensemble([network, network], [1, 2]),
        )
    }
    assert len(texts) == 7


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.1, 30),
    st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
)
def test_the_softened_probabilities_of_an_ensemble_are_the_mean_of_its_members(
    seed: int, temperature: float, weights: list[float]
) -> None:
    random = np.random.default_rng(seed)
    logits = [random.normal(0, 5, (3, 4)).astype(np.float32) for _ in weights]
    shares = np.array(weights) / sum(weights)

    def softmax(z: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        powers = np.exp((z.astype(np.float64) - z.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    expected = sum(share * softmax(z) for share, z in zip(shares, logits, strict=True))
    mean = mean_logits(logits, tuple(shares), temperature)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(softmax(mean), expected, atol=1e-5)


def test_an_ensemble_of_certain_members_is_finite() -> None:
    certain = np.array([[1e4, -1e4, 0.0]], np.float32)
    mean = mean_logits([certain, -certain], (0.5, 0.5))
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(mean[0, :2], np.log(0.5), atol=1e-5)


def test_an_ensemble_s_own_output_is_the_logarithm_of_the_mean_probabilities() -> None:
    members = [build_model("student_mlp", (1, 28, 28), 10).eval() for _ in range(2)]
    images = flow.tensor(GREY.apply(pixels(4, 5, 1, 28, 28)))
    logits = [member(images).numpy().copy() for member in members]
    output = Ensemble(members, [1.0, 3.0]).eval()(images).numpy()
    assert np.array_equal(output, mean_logits(logits, (0.25, 0.75)))
    np.testing.assert_allclose(np.exp(output).sum(axis=1), 1, atol=1e-5)


def test_a_table_answers_about_its_own_images_only() -> None:
    table = np.zeros((4, 3), np.float32)
    given_logits = GivenLogits(Path("table.npz"), [table], "digest")
    assert given_logits.of_split("train") is table
    with pytest.raises(UsageError, match=r"table\.npz has no array 'test'"):
        given_logits.of_split("test")
    with pytest.raises(UsageError, match="training images only"):
        given_logits(flow.zeros(1, 1, 28, 28))
