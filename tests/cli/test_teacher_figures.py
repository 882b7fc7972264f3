"""The teacher's figures on held-out images in a comparison, and a test set of another kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from kdtrain.data.dataset import Dataset
from tests.cli.conftest import Call
from tests.tools import write_digits

LINEAR = """
from kdtrain import flow

def make(image_shape, num_classes):
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(784, num_classes))
"""


def test_a_comparison_states_the_teachers_figures_and_a_test_set_of_another_kind(
    tmp_path: Path, mnist: Dataset, call: Call
) -> None:
    digits = write_digits(tmp_path / "digits", mnist, 6000)
    test_images = digits / "t10k-images-idx3-ubyte"
    content = np.frombuffer(test_images.read_bytes(), np.uint8).copy()
    content[16:] = 255 - content[16:]  # black on white, unlike the training images
    test_images.write_bytes(content.tobytes())
    (tmp_path / "mine.py").write_text(LINEAR)
    sizes = ("--epochs", "2", "--teacher-epochs", "2", "--batch-size", "500")
    networks = ("--teacher-arch", "mine.py:make", "--student-arch", "mine.py:make")
    words = ("fit", "--mode", "compare", "--data-dir", digits, *sizes, *networks)
    finished = call(*words)
    stated = [line for line in finished.stderr.splitlines() if re.match("Teacher: |It is ", line)]
    assert re.fullmatch(r"Teacher: \d\d\.\d\d % of 1,000 held-out images, calibration error .*", stated[0])
    assert len(stated) == 1
    place = finished.stderr.index
    assert place("teacher      2/2") < place("Teacher: ") < place("student_kd ")
    assert "points apart" not in finished.stderr, "before the end the test set is not read"
    [warning] = [line for line in finished.stdout.splitlines() if "points apart" in line]

    directory = tmp_path / "logs/compare/version_0"
    figures = json.loads((directory / "compare.json").read_text())
    assert figures["far_apart"] == warning
    page = (directory / "report.html").read_text()
    assert "points apart" in page

    single = call("fit", "--mode", "student", "--data-dir", digits, *sizes[:2], *networks)
    assert "Held-out and test accuracy of the student are" in single.stdout
