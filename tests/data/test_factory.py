"""``package.module:factory`` and ``file.py:factory``: the function is called; its errors are named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.datasets import load_dataset
from kdtrain.errors import DataError, KdtrainError, UsageError

SOURCE = """
import numpy as np

IMAGES = np.arange(9 * 20, dtype=np.uint8).reshape(9, 5, 4)

def stripes():
    labels = [0, 1, 2] * 3
    return {"x_train": IMAGES, "y_train": labels, "x_test": IMAGES[:6], "y_test": labels[:6],
            "classes": ["a", "b", "c"]}

def plain():
    return {name: array for name, array in stripes().items() if name != "classes"}

def raises():
    raise ZeroDivisionError("two left hands")

def leaves():
    raise SystemExit(3)

def returns_a_list():
    return [1, 2, 3]

def floats():
    return stripes() | {"x_train": IMAGES / 255}

def nameless():
    return stripes() | {"classes": [1, 2, 3]}

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_data.py"
    path.write_text(SOURCE)
    return path


def test_a_function_in_a_file_is_called(file: Path) -> None:
    dataset = load_dataset(f"{file}:stripes")
    assert dataset.name == f"{file}:stripes"
    assert (dataset.classes, dataset.image_shape) == (("a", "b", "c"), (1, 5, 4))
    assert (dataset.train.images.ravel() == np.arange(180)).all()
    assert (len(dataset.train), len(dataset.test)) == (9, 6)
    assert load_dataset(f"{file}:plain").classes == ("0", "1", "2")


def test_a_function_in_a_package_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "images.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert load_dataset("their_package.images:stripes").classes == ("a", "b", "c")
    for name in ("their_package", "their_package.images"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("FILE:stripe", UsageError, "there is no function 'stripe' (did you mean 'stripes'?)"),
        ("FILE:NUMBER", UsageError, "there is no function 'NUMBER'"),
        ("FILE:raises", KdtrainError, "raises raised ZeroDivisionError: two left hands."),
        ("FILE:leaves", KdtrainError, "leaves raised SystemExit: 3."),
        ("FILE:returns_a_list", DataError, "must return a mapping with x_train, y_train, x_test, y_test"),
        ("FILE:floats", DataError, "x_train of FILE:floats is float64 of shape (9, 5, 4): images must be"),
        ("FILE:nameless", DataError, "classes of FILE:nameless must be a list of texts"),
        ("nowhere.py:f", UsageError, "there is no file nowhere.py (looked for at /"),
        ("no_such_package.images:f", UsageError, "there is no module 'no_such_package.images'"),
        ("foldr:pictures", UsageError, "there is no module 'foldr'"),
        ("..x:f", UsageError, "there is no module '..x'"),
        (":f", UsageError, "there is no module ''"),
    ],
)
def test_what_is_wrong_with_a_function_or_its_place_is_named(
    file: Path, spec: str, kind: type[KdtrainError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        load_dataset(spec.replace("FILE", str(file)))
    assert words.replace("FILE", str(file)) in str(caught.value)


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    for source, words in (("import no_such_module_", ", line 1,"), ("(", "")):
        path.write_text(source)
        with pytest.raises(KdtrainError, match=f"{path}{words} cannot be imported: "):
            load_dataset(f"{path}:f")
