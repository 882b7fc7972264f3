"""A user's Python file is imported in the same way for plugins, networks and data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.plugin_loader import load_plugin
from kdtrain.models.registry import build_model

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
