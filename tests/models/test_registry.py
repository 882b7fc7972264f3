"""Networks are built by name or by a user's factory, with weights from the seed; wrong names are refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.models.registry import (
    ARCHITECTURES,
    SMALLEST_SIDES,
    build_model,
    check_architecture,
    count_multiply_adds,
    count_parameters,
)
from kdtrain.nn.layers import Conv2d, Dropout
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


@pytest.mark.parametrize("arch", ["resnet8", "student_cnn", "flowvision:shufflenet_v2_x0_5"])
def test_every_parameter_learns_and_running_means_follow_the_images(arch: str) -> None:
    flow.manual_seed(0)
    model = build_model(arch, (1, 28, 28), 3)
    before = snapshot(model)
    logits = model(flow.randn(8, 1, 28, 28) + 2)
    flow.nn.functional.cross_entropy(logits, flow.tensor(np.arange(8) % 3)).backward()
    gradients = [parameter.grad.numpy() for parameter in model.parameters()]
    assert all(np.isfinite(array).all() and array.any() for array in gradients)
    after = snapshot(model)
    assert all(np.isfinite(array).all() for array in after.values())
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "running" in name or "tracked" in name}


def test_unknown_architecture_is_refused_with_those_that_there_are() -> None:
    check_architecture(FitConfig().architecture_for("teacher"))
    check_architecture(FitConfig().architecture_for("student"))
    expected = "'student_mpl'.*'student_mlp'.*" + ", ".join(ARCHITECTURES)
    for refuse in (check_architecture, lambda arch: build_model(arch, (1, 28, 28), 10)):
        with pytest.raises(UsageError, match=expected):
            refuse("student_mpl")


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 28, 5), (1, 5, 28), (1, 1, 1)])
def test_images_too_small_for_convolutions_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=rf"teacher_cnn .*{shape[1]}x{shape[2]}.*--teacher-arch"):
        build_model("teacher_cnn", shape, 10)
    for arch in ARCHITECTURES.keys() - SMALLEST_SIDES.keys():
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
        ("resnet8", 9 * (28**2 * (16 + 2 * 16**2) + 14**2 * (16 + 32) * 32 + 7**2 * (32 + 64) * 64) + 640),
    ],
)
def test_multiply_adds_are_those_of_linear_layers_and_convolutions(arch: str, expected: int) -> None:
    assert count_multiply_adds(build_model(arch, (1, 28, 28), 10), (1, 28, 28)) == expected


def test_multiply_adds_count_strides_groups_and_repeated_layers() -> None:
    conv, linear = flow.nn.Conv2d(4, 8, (3, 1), stride=2, groups=2), flow.nn.Linear(3, 3)
    model = flow.nn.Sequential(conv, flow.nn.Flatten(2), flow.nn.Linear(9, 3), linear, linear)
    assert count_multiply_adds(model, (4, 7, 5)) == 8 * 3 * 3 * (2 * 3) + 8 * 3 * 9 + 2 * 8 * 3 * 3


# Users' factories

FACTORIES = """
from kdtrain import UsageError, flow

class Net(flow.nn.Module):
    def __init__(self, image_shape, num_classes, wide=False):
        super().__init__()
        channels, height, width = image_shape
        self.conv = flow.nn.Conv2d(channels, 4, 3, padding=1)
        self.relu = flow.nn.ReLU(inplace=True)
        self.dropout = flow.nn.Dropout(0.5)
        self.fc = flow.nn.Linear(4 * height * width, num_classes + wide)

    def forward(self, x):
        return self.fc(self.dropout(flow.flatten(self.relu(self.conv(x)), 1)))

def make(image_shape, num_classes):
    return Net(image_shape, num_classes)

def too_wide(image_shape, num_classes):
    return Net(image_shape, num_classes, wide=True)

def several(image_shape, num_classes):
    net = Net(image_shape, num_classes)
    net.forward = lambda x: (x, x)
    return net

def breaks(image_shape, num_classes):
    return flow.nn.Linear(7, num_classes)

def frozen(image_shape, num_classes):
    return Net(image_shape, num_classes).eval()

def nothing(image_shape, num_classes): ...
def text(image_shape, num_classes): return "a network"
def no_arguments(): ...
def raises(image_shape, num_classes): raise ValueError("no\\n  good.")
def exits(image_shape, num_classes): raise SystemExit(3)
def explains(image_shape, num_classes): raise UsageError("only for colour images.")
number = 3
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_net.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return Path("my_net.py")


def test_function_or_class_in_a_file_makes_the_network(file: Path) -> None:
    for arch in ("my_net.py:make", f"{file.resolve()}:Net"):
        check_architecture(arch)
        model = build_model(arch, (2, 5, 6), 3)
        assert tuple(model(flow.ones(2, 2, 5, 6)).shape) == (2, 3)
        assert type(model).__name__ == "Net"


def test_factory_in_a_module_makes_the_network(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "my_package_of_nets"
    package.mkdir()
    os.replace(file, package / "deep.py")
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(package.parent.resolve()), *sys.path])
    model = build_model("my_package_of_nets.deep:make", (1, 5, 6), 3)
    assert tuple(model(flow.ones(2, 1, 5, 6)).shape) == (2, 3)
    for name in ("my_package_of_nets.deep", "my_package_of_nets"):
        monkeypatch.delitem(sys.modules, name)


def test_dropout_follows_the_seed_and_layers_are_replaced(file: Path) -> None:
    answers = []
    for seed in (1, 1, 2):
        flow.manual_seed(0)
        model = build_model("my_net.py:make", (1, 5, 6), 3)
        flow.manual_seed(seed)
        answers.append(model(flow.ones(2, 1, 5, 6)).numpy().copy())
    assert np.array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
    assert [type(layer) for layer in (model.conv, model.dropout)] == [Conv2d, Dropout]
    assert not model.relu.inplace


def test_mode_is_left_as_the_factory_chose_it(file: Path) -> None:
    assert build_model("my_net.py:make", (1, 5, 6), 3).training
    assert not build_model("my_net.py:frozen", (1, 5, 6), 3).training


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("my_net.py:nothing", "its factory returned None"),
        ("my_net.py:text", "its factory returned a str"),
        ("my_net.py:no_arguments", "the factory raised TypeError: no_arguments() takes 0 positional"),
        ("my_net.py:raises", "the factory raised ValueError: no good."),
        ("my_net.py:exits", "the factory raised SystemExit: 3."),
        ("my_net.py:explains", "only for colour images."),
        ("my_net.py:too_wide", "a Tensor of the shape (2, 4), not logits of the shape (2, 3)"),
        ("my_net.py:several", "returned a tuple"),
        ("my_net.py:breaks", "the network raised "),
        ("my_net.py:mak", "there is no factory 'mak' (did you mean 'make'?); there are: Net, make, "),
        ("my_net.py:number", "there is no factory 'number'"),
        ("other.py:make", "there is no file other.py (looked for at /"),
        ("my_net.py", "write file.py:factory, or package.module:factory"),
        ("my_net.py:", "write file.py:factory"),
        (":make", "write file.py:factory"),
        ("my_net.py:a.b", "write file.py:factory"),
    ],
)
def test_what_is_no_factory_is_refused(file: Path, arch: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_model(arch, (1, 5, 6), 3)
    text = str(caught.value)
    assert expected in text
    assert text.startswith("the architecture ")
    assert arch in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert not text.endswith("..")


def test_a_convolution_larger_than_its_image_is_named(file: Path) -> None:
    file.write_text(
        "from kdtrain import flow\nnn = flow.nn\n"
        "def make(image_shape, num_classes):\n"
        "    body = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Conv2d(2, 2, 3, dilation=2, padding=1))\n"
        "    return nn.Sequential(body, nn.Flatten(), nn.Linear(2, num_classes))\n"
    )
    with pytest.raises(UsageError) as caught:
        build_model("my_net.py:make", (1, 5, 4), 3)
    assert str(caught.value) == (
        "the architecture my_net.py:make, layer '0.1' (Conv2d): the network raised ValueError: this "
        "convolution spans 5x5 pixels, more than its images have, 4x3 with the padding."
    )


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (
            "broken.py:make",
            "the network broken.py, line 1, cannot be imported: ZeroDivisionError: division by",
        ),
        ("no_such_module_at_all:make", "cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_code_is_run_to_build_only_and_what_cannot_be_imported_says_why(
    file: Path, arch: str, reason: str
) -> None:
    Path("broken.py").write_text("1 / 0")
    check_architecture(arch)
    with pytest.raises(KdtrainError, match=reason):
        build_model(arch, (1, 5, 6), 3)


def test_an_unknown_name_gets_the_nearest_one_and_all_spellings() -> None:
    with pytest.raises(
        UsageError, match=r"did you mean 'flowvision:resnet18'\?.*flowvision:NAME.*FILE\.py:FACTORY"
    ):
        check_architecture("resnet18")
    with pytest.raises(UsageError, match=r"did you mean 'resnet8'\?"):
        check_architecture("resnet9")
