"""User code: a function or class from a file or a module, and errors that name what is wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdtrain.callbacks.plugins import load_plugin
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.models.registry import build_model
from kdtrain.runtime.user_code import load_callable

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from kdtrain import Callback, flow

@dataclass
class Watch(Callback):
    every: int
    rate: float = 0.5

@dataclass
class Settings:
    width: int = 3
    classes: tuple[str, ...] = ("cat", "dog")

def make_network(image_shape, num_classes):
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(Settings().width ** 2, num_classes))

def make_data():
    images = np.zeros((4, 3, 3), np.uint8)
    labels = [0, 1, 0, 1]
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels,
            "classes": Settings().classes}
"""


@pytest.mark.parametrize(
    ("name", "load", "expected"),
    [
        ("Watch,every=3", lambda spec: vars(load_plugin(spec)), {"every": 3, "rate": 0.5}),
        ("make_network", lambda spec: build_model(spec, (1, 3, 3), 2)[1].out_features, 2),
        ("make_data", lambda spec: load_dataset(spec).classes, ("cat", "dog")),
    ],
    ids=["plugin", "network", "data"],
)
def test_a_file_may_define_dataclasses_with_postponed_annotations(
    tmp_path: Path, name: str, load: Callable[[str], object], expected: object
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    assert load(f"{file}:{name}") == expected


FILE = """
class Box:
    size = 3

def make():
    return Box()

number = 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(spec: str) -> object:
    return load_callable(spec, "box", "maker", f"--box {spec}")()


def test_a_function_of_a_file_or_of_a_module_is_returned(folder: Path) -> None:
    assert getattr(load("mine.py:make"), "size", None) == 3
    assert getattr(load(f"{folder}/mine.py:Box"), "size", None) == 3
    assert load("collections:OrderedDict") == {}


@pytest.mark.parametrize(
    ("spec", "kind", "expected"),
    [
        ("mine.py:mak", UsageError, "maker 'mak' (did you mean 'make'?); there are: Box, make."),
        ("mine.py:number", UsageError, "maker 'number'"),
        ("other.py:make", UsageError, "other.py (looked for at /"),
        ("broken.py:make", KdtrainError, "broken.py, line 2, cannot be imported: ZeroDivisionError"),
        ("no_such_module:make", KdtrainError, "no_such_module cannot be imported: ModuleNotFoundError"),
    ],
)
def test_code_that_cannot_be_loaded_is_named(
    folder: Path, spec: str, kind: type[KdtrainError], expected: str
) -> None:
    with pytest.raises(kind) as caught:
        load(spec)
    assert expected in str(caught.value)
