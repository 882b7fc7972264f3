"""What README.md and docs/models.md show works as it is written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.models.registry import ARCHITECTURES
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import untrained_teacher
from tests.conftest import RunKdtrain
from tests.tools import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_python_in_the_readme_distils_a_student(mnist: Dataset, tmp_path: Path) -> None:
    (block,) = blocks(README, "python")
    (tmp_path / "logs/models").mkdir(parents=True)
    untrained_teacher(tmp_path / "logs/models/teacher.safetensors", mnist, "hinton_800")
    small = block.replace("seed=0", "seed=0, limit_train=2560, val_size=256").replace("epochs=5", "epochs=2")
    assert small.count("2560") == small.count("epochs=2") == 1
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", small],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    printed = re.fullmatch(r"\{'eval/accuracy': ([\d.]+), 'eval/cross_entropy': [\d.]+\}\n", finished.stdout)
    assert printed is not None
    assert float(printed[1]) > 0.5
    assert re.match(r"student +1/2  loss ", finished.stderr)
    assert load_model(tmp_path / "logs/notebook/checkpoints/best.safetensors").card.arch == "student_mlp"


@pytest.mark.parametrize(
    "command", [line for block in blocks(MODELS, "sh") for line in block.splitlines()][:2]
)
def test_commands_that_list_networks_work(command: str, run_kdtrain: RunKdtrain, tmp_path: Path) -> None:
    program, *words = shlex.split(command)
    assert program == "scripts/kdtrain"
    finished = run_kdtrain(*words, cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "resnet20" in finished.stdout


def test_network_of_the_page_is_trained_and_tested(run_kdtrain: RunKdtrain, tmp_path: Path) -> None:
    ((name, code),) = re.findall(r'^```python title="(.+?)"\n(.*?)^```$', MODELS, re.MULTILINE | re.DOTALL)
    (tmp_path / name).write_text(code)
    (commands,) = blocks(MODELS, "sh")[1:]
    fit, evaluate = (shlex.split(line)[1:] for line in commands.splitlines())
    small = ("--limit-train", "512", "--val-size", "256")
    for words in ((*fit, *small), evaluate):
        finished = run_kdtrain(*words, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        assert "accuracy" in finished.stdout


def test_page_names_every_network_and_its_links_lead_somewhere() -> None:
    assert all(f"`{arch}`" in MODELS for arch in ARCHITECTURES)
    for link in re.findall(r"\]\((?!http)(.+?)\)", MODELS):
        assert (ROOT / "docs" / link).exists(), link
