"""Networks are built by name, with weights from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from kdtrain.errors import UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.models.registry import (
    ARCHITECTURES,
    build_model,
    check_architecture,
    count_multiply_adds,
    count_parameters,
)
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import snapshot


def test_initial_weights_follow_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        flow.manual_seed(seed)
        drawn.append(snapshot(build_model("student_mlp", (1, 28, 28), 10)))
    for name in drawn[0]:
        assert np.array_equal(drawn[0][name], drawn[1][name])
        assert not np.array_equal(drawn[0][name], drawn[2][name])


def test_unknown_architecture_is_refused_with_those_that_there_are() -> None:
    expected = "'student_mpl'.*'student_mlp'.*" + ", ".join(ARCHITECTURES)
    with pytest.raises(UsageError, match=expected):
        check_architecture("student_mpl")
    with pytest.raises(UsageError, match=expected):
        build_model("student_mpl", (1, 28, 28), 10)


def test_default_architectures_are_there() -> None:
    check_architecture(FitConfig().architecture_for("teacher"))
    check_architecture(FitConfig().architecture_for("student"))


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 28, 5), (1, 5, 28), (1, 1, 1)])
def test_images_too_small_for_convolutions_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=rf"teacher_cnn .*{shape[1]}x{shape[2]}.*--teacher-arch"):
        build_model("teacher_cnn", shape, 10)
    for arch in ARCHITECTURES.keys() - {"teacher_cnn"}:
        assert tuple(build_model(arch, shape, 3)(flow.ones(2, *shape)).shape) == (2, 3)


def test_frozen_parameters_are_not_counted() -> None:
    model = flow.nn.Linear(3, 4)
    assert count_parameters(model) == 16
    model.bias.requires_grad = False
    assert count_parameters(model) == 12


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("student_mlp", 784 * 128 + 128 * 64 + 64 * 10),
        ("teacher_cnn", 26 * 26 * 32 * 9 + 24 * 24 * 64 * 32 * 9 + 9216 * 128 + 128 * 10),
        (
            "resnet8",
            28 * 28 * 9 * (16 + 2 * 16 * 16)
            + 14 * 14 * 9 * (16 * 32 + 32 * 32)
            + 7 * 7 * 9 * (32 * 64 + 64 * 64)
            + 64 * 10,
        ),
    ],
)
def test_multiply_adds_are_those_of_linear_layers_and_convolutions(arch: str, expected: int) -> None:
    assert count_multiply_adds(build_model(arch, (1, 28, 28), 10), (1, 28, 28)) == expected


def test_multiply_adds_count_strides_groups_and_repeated_layers() -> None:
    conv, linear = flow.nn.Conv2d(4, 8, (3, 1), stride=2, groups=2), flow.nn.Linear(3, 3)
    model = flow.nn.Sequential(conv, flow.nn.Flatten(2), flow.nn.Linear(9, 3), linear, linear)
    assert count_multiply_adds(model, (4, 7, 5)) == 8 * 3 * 3 * (2 * 3) + 8 * 3 * 9 + 2 * 8 * 3 * 3
