"""docs/tutorial.md, followed word for word, on fewer pictures and for fewer epochs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CallKdtrain, Finished
from tests.runs import count_points, metrics
from tests.tools import ROOT

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    shlex.split(line.replace("--seeds 5", "--seeds 2"))
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
FEWER = {"range(400)": "range(30)", "epochs = 30": "epochs = 2", "teacher_epochs = 12": "teacher_epochs = 1"}


def cheaper(text: str) -> str:
    for many, few in FEWER.items():
        text = text.replace(many, few)
    return text


def test_every_block_and_command_is_followed_here() -> None:
    assert list(FILES) == ["make_shapes.py", "shapes.toml", "fading.py"]
    assert all(PAGE.count(many) == 1 for many in FEWER)
    assert [" ".join(words[:2]) for words in COMMANDS] == [
        ".venv/bin/python make_shapes.py",
        *["scripts/kdtrain fit"] * 3,
        "scripts/kdtrain infer",
        "scripts/kdtrain eval",
        "scripts/kdtrain fit",
        ".venv/bin/tensorboard --logdir",
        "scripts/kdtrain fit",
    ]


@pytest.fixture
def done(tmp_path: Path, call_kdtrain: CallKdtrain) -> list[Finished]:
    """Every command of the page, one after another, but for TensorBoard, which has tests of its own."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(cheaper(content))
    subprocess.run([sys.executable, "make_shapes.py"], cwd=tmp_path, check=True, timeout=60)
    finished = []
    for program, *words in COMMANDS:
        if program == "scripts/kdtrain":
            finished.append(call_kdtrain(*words, cwd=tmp_path))
            assert finished[-1].returncode == 0, finished[-1].stderr
    return finished


def test_the_tutorial_ends_where_it_says(done: list[Finished], tmp_path: Path) -> None:
    teacher, student, comparison, infer, evaluation, watched, own = done
    assert len(list((tmp_path / "shapes").glob("*/*.png"))) == 5 * 30
    for finished in (teacher, student, watched):
        assert finished.stdout.startswith("test accuracy")
    assert "The teacher is logs/models/teacher.safetensors." in student.stderr
    for number, finished in enumerate((comparison, own)):
        assert "student_kd" in finished.stdout
        results = json.loads((tmp_path / f"logs/compare/version_{number}/compare.json").read_text())
        assert {row["model"] for row in results["results"]} == {"teacher", "student_kd", "student"}
    assert [Path(line.split()[-1]).is_file() for line in infer.stdout.splitlines() if "picture:" in line]
    assert "star" in evaluation.stdout
    tags = {tag for tag, _ in count_points(tmp_path / "logs/student_kd/version_1")}
    assert {"confusion/matrix", "calibration/reliability", "calibration/ece"} <= tags
    _, row = metrics(tmp_path / "logs/compare/version_1/seed_0/student_kd")
    half = 0.5 ** (1 / 5)  # the weight of the soft labels falls by this from epoch to epoch
    low, high = (0.1 * row["loss/task"] + 0.9 * part * row["loss/kd"] for part in (half**2, half))
    assert low < row["loss/total"] < high, "the teacher steps back"
    alone = metrics(tmp_path / "logs/compare/version_1/seed_0/student")[0]
    assert "loss/kd" not in alone
