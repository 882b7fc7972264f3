"""Users' networks are built by a factory; what is wrong with one is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.models.layers import Conv2d, Dropout
from kdtrain.models.registry import build_model, check_architecture
from kdtrain.runtime import flow

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


def test_factory_in_a_file_makes_the_network(file: Path) -> None:
    check_architecture("my_net.py:make")
    flow.manual_seed(0)
    model = build_model("my_net.py:make", (1, 5, 6), 3)
    assert tuple(model(flow.ones(2, 1, 5, 6)).shape) == (2, 3)
    assert type(model).__name__ == "Net"


def test_class_is_a_factory_too(file: Path) -> None:
    model = build_model(f"{file.resolve()}:Net", (2, 5, 6), 3)
    assert tuple(model(flow.ones(2, 2, 5, 6)).shape) == (2, 3)


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


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (
            "broken.py:make",
            "the network broken.py, line 1, cannot be imported: ZeroDivisionError: division by zero.",
        ),
        ("no_such_module_at_all:make", "cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_what_cannot_be_imported_says_why(file: Path, arch: str, reason: str) -> None:
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(KdtrainError, match=reason):
        build_model(arch, (1, 5, 6), 3)


def test_checking_a_name_runs_nothing(file: Path) -> None:
    Path("broken.py").write_text("1 / 0")
    check_architecture("broken.py:make")
    check_architecture("no_such_module_at_all:make")
