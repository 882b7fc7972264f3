"""Runs and models used from another folder than the one they were made in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tomli
from PIL import Image

from kdtrain.data.datasets import load_dataset
from tests.cli.conftest import Call, assert_explained, untrained_teacher
from tests.tools import files_in

CODE = """
import numpy as np
from kdtrain import Callback, flow

def network(image_shape, num_classes):
    channels, height, width = image_shape
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(channels * height * width, num_classes))

def data():
    pixels, labels = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8), np.arange(40) % 2
    return {"x_train": pixels, "y_train": labels, "x_test": pixels, "y_test": labels}

class Watch(Callback):
    def __init__(self, every: int = 1):
        self.every = every
"""
CASES = {
    "folder, plugin": "student --dataset folder:pics --plugin my.py:Watch,every=2",
    "npz, network": "student --dataset npz:x.npz --student-arch my.py:network",
    "function, teacher": "student_kd --dataset my.py:data --teacher-checkpoint t.safetensors",
    "IDX files": "student --data-dir tiles --limit-train 100",
}


@pytest.fixture
def begun(tmp_path: Path, tiles: Path) -> Path:
    """A folder with all that relative paths of the cases lead to."""
    folder = tmp_path / "here"
    for name in ("cats", "dogs"):
        (folder / "pics" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), 20 * number).save(folder / "pics" / name / f"{number}.png")
    (folder / "tiles").symlink_to(tiles)
    (folder / "my.py").write_text(CODE)
    pixels, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2
    np.savez(folder / "x.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    untrained_teacher(folder / "t.safetensors", load_dataset(f"npz:{folder}/x.npz"), "hinton_800")
    (tmp_path / "elsewhere").mkdir()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_from_another_folder(case: str, begun: Path, call: Call) -> None:
    mode, *flags = CASES[case].split()
    quick = ("--recipe=none", "--mode", mode, "--epochs", "1", "--schedule", "constant")
    call("fit", *quick, *flags, cwd=begun)
    elsewhere = begun.parent / "elsewhere"
    run = begun / "logs" / mode / "version_0"
    call("fit", "--resume", run, "--epochs", "2", cwd=elsewhere)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (begun / "logs/models" / f"{mode}.safetensors").exists()
    assert files_in(elsewhere) == {}


def test_a_model_names_the_code_that_it_needs_by_an_absolute_path(begun: Path, call: Call) -> None:
    words = "--mode student --dataset npz:x.npz --student-arch my.py:network --epochs 1"
    call("fit", *words.split(), cwd=begun)
    model, elsewhere = begun / "logs/models/student.safetensors", begun.parent / "elsewhere"
    assert_explained(call.any_code("eval", model, cwd=elsewhere), 1, f"{begun}/my.py:network")
    data = ("--dataset", f"npz:{begun}/x.npz")
    for arch in (f"{begun}/my.py:network", "../here/my.py:network"):
        call("eval", model, *data, "--arch", arch, cwd=elsewhere)
    (elsewhere / "my.py").write_text(CODE)  # the same code in another folder serves as well
    begun.joinpath("my.py").unlink()
    call("eval", model, *data, "--arch", "my.py:network", cwd=elsewhere)
    other = call.any_code("eval", model, *data, "--arch", "my.py:other", cwd=elsewhere)
    assert_explained(other, 1, "--arch", "my.py:other")


def test_what_a_run_stores_is_absolute(begun: Path, call: Call) -> None:
    words = ("--mode", "student", "--dataset", "folder:pics", "--plugin", "my.py:Watch", "--epochs", "1")
    call("fit", *words, cwd=begun)
    stored = tomli.loads((begun / "logs/student/version_0/config.toml").read_text())
    assert stored["dataset"] == f"folder:{begun}/pics"
    assert stored["plugin"] == [f"{begun}/my.py:Watch"]
    assert stored["logdir"] == f"{begun}/logs"


@pytest.mark.parametrize(
    ("words", "path"),
    [
        *(("eval nowhere.safetensors", "nowhere.safetensors"), ("eval nowhere.onnx", "nowhere.onnx")),
        *(("fit --dataset folder:pics", "pics"), ("fit --dataset npz:x.npz", "x.npz")),
        *(("fit --dataset data.py:make", "data.py"), ("fit --data-dir d", "d")),
        *(("fit --plugin my.py:Watch", "my.py"), ("fit --student-arch net.py:make", "net.py")),
        *(("fit --recipe none --teacher-checkpoint t.st", "t.st"), ("fit --config run.toml", "run.toml")),
        *(("fit --resume run", "run"), ("serve model.onnx", "model.onnx")),
    ],
)
def test_a_path_that_is_not_found_says_where_it_was_looked_for(
    words: str, path: str, tmp_path: Path, call: Call
) -> None:
    finished = call.any_code(*words.split())
    assert_explained(finished, finished.returncode, f"{tmp_path}/{path}")
    assert finished.returncode in (1, 2)
