"""examples/teachers: a network of timm's is fine-tuned on pictures, and teaches. It is no part of kdtrain."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.loaders import prepare
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import find_teacher
from tests.data.test_folder import noise, save
from tests.tools import ROOT

HERE = ROOT / "examples" / "teachers"
PYTHON = ROOT / ".venv-timm" / "bin" / "python"
SPLIT = """
import json, sys
from pathlib import Path
from finetune import split
classes, *parts = split(Path(sys.argv[1]), None, 3)
print(json.dumps([classes, *([[str(path), label] for path, label in part] for part in parts)]))
"""

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="needs PyTorch and timm in .venv-timm: examples/teachers/run makes it"
)


def run(*words: object) -> str:
    finished = subprocess.run(
        [PYTHON, *map(str, words)], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def pictures_in(folder: Path, *parts: str) -> Path:
    """Writes dark and light pictures of noise, of unequal numbers, in class folders."""
    pictures = folder / "pictures"
    for part in parts:
        for name, count, light in (("dark", 40, 0), ("light", 25, 100)):
            for number in range(count):
                pixels = noise(number + 100 * len(part), height=20, width=30) // 2 + light
                save(pictures / part / name / f"{part}{number:03}.png", pixels.astype(np.uint8))
    return pictures


@pytest.mark.parametrize("parts", [("",), ("train", "val", "test")])
def test_the_split_is_that_of_kdtrain(parts: tuple[str, ...], tmp_path: Path) -> None:
    folder = pictures_in(tmp_path, *parts)
    classes, train, validation, test = json.loads(run("-c", SPLIT, folder))
    dataset = load_dataset(f"folder:{folder}", image_size=8, cache_dir=folder.parent / ".cache")
    data = prepare(dataset, FitConfig("teacher", seed=3), "teacher", 3, "cpu")
    assert classes == list(dataset.classes)
    for loader, files in ((data.train, train), (data.validation, validation), (data.test, test)):
        assert loader.originals is not None
        paths = [str(file.path) for file in loader.originals.files if file is not None]
        assert paths == [path for path, _ in files]
        assert loader.targets.tolist() == [label for _, label in files]


def test_the_file_teaches_without_any_flag(tmp_path: Path) -> None:
    """Ten seconds: PyTorch is imported, trains a small network and traces it."""
    folder = pictures_in(tmp_path, "")
    out = tmp_path / "teacher.onnx"
    words = ("--weights", "none", "--image-size", "32", "--head-epochs", "1", "--epochs", "3", "--out", out)
    printed = run("finetune.py", "test_resnet", folder, *words, "--lr", "0.003", "--seed", "3")
    [share] = re.findall(r"accuracy: ([\d.]+)% of the held-out images", printed)
    dataset = load_dataset(f"folder:{folder}", image_size=8, cache_dir=folder.parent / ".cache")
    teacher = find_teacher(
        FitConfig("student_kd", teacher_checkpoint=(out,), seed=3, allow_poor_teacher=True), dataset
    )
    assert teacher is not None
    assert teacher.members[0].seen is not None
    validation = prepare(dataset, FitConfig("teacher", seed=3), "teacher", 3, "cpu").validation
    right = (teacher.members[0].seen.argmax(axis=1) == validation.targets).mean()
    assert 100 * right == pytest.approx(float(share), abs=0.01)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no_such_network", "--weights", "none"), "timm cannot make no_such_network"),
        (("test_resnet", "--weights", "nowhere.pth"), "nowhere.pth: there is no such file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    name, *flags = words
    folder = pictures_in(tmp_path, "")
    finished = subprocess.run(
        [PYTHON, "finetune.py", name, folder, *flags], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert finished.returncode != 0
    assert said in finished.stderr
    assert "Traceback" not in finished.stderr
