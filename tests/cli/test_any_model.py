"""Networks of any kind as student, teacher and tested model; no code runs because a file names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import Call, assert_explained, untrained_teacher
from tests.tools import read_tested

QUICK = ("--recipe=none", "--val-size", "100", "--limit-train", "128", "--epochs", "1", "--batch-size", "32")
NET = """
from kdtrain import flow

def make(image_shape, num_classes):
    channels, height, width = image_shape
    size = channels * height * width
    hidden = flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(size, 8), flow.nn.BatchNorm1d(8))
    return flow.nn.Sequential(hidden, flow.nn.ReLU(), flow.nn.Dropout(0.2), flow.nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_figures_are_those_of_the_saved_resnet(
    processes: str, tiles: Path, spawn: Call, call: Call, tmp_path: Path
) -> None:
    """Running means included: those that the file holds are those that were evaluated."""
    words = ("--mode", "student", "--student-arch", "resnet8", "--data-dir", tiles, *QUICK, "--epochs", "2")
    spawn("fit", *words, "--nproc-per-node", processes, cwd=tmp_path)
    run = tmp_path / "logs/student/version_0"
    best = run / "checkpoints/best.safetensors"
    evaluated = call("eval", best, "--data-dir", tiles, "--json")
    figures, test = json.loads(evaluated.stdout), read_tested(run)
    assert figures["errors"] == test["test_errors"]
    assert figures["cross_entropy_nats"] == pytest.approx(test["test_cross_entropy_nats"], rel=1e-6)


@pytest.mark.parametrize("alone", ["--batch-size", "--limit-train"])
def test_an_image_alone_in_a_batch_normalisation_is_explained(
    alone: str, tiles: Path, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    words = ("--mode", "student", "--student-arch", "net.py:make", "--data-dir", tiles, *QUICK)
    assert_explained(call.any_code("fit", *words, alone, "1"), 2, "batch normalisation", "--batch-size")
    call("fit", *words, "--limit-train", "33")


def test_a_teachers_architecture_is_read_from_its_file(tiles: Path, call: Call, tmp_path: Path) -> None:
    data = load_dataset(data_dir=tiles)
    (tmp_path / "logs/models").mkdir(parents=True)
    teacher = untrained_teacher(tmp_path / "logs/models/teacher.safetensors", data, "hinton_800")
    words = ("fit", "--mode", "student_kd", "--data-dir", tiles, *QUICK)
    finished = call(*words)
    assert "logs/models/teacher.safetensors" in finished.stderr.splitlines()[0]
    config = tomli.loads((tmp_path / "logs/student_kd/version_0/config.toml").read_text())
    assert config["teacher_arch"] == "hinton_800"
    named = (*words, "--teacher-arch", "hinton_1200", "--teacher-checkpoint", teacher)
    assert_explained(call.any_code(*named), 1, "hinton_800", "--teacher-arch is hinton_1200")


def test_flowvision_teaches_a_network_from_a_file(
    digits: Path, mnist: Dataset, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    untrained_teacher(tmp_path / "t.safetensors", mnist, "flowvision:shufflenet_v2_x0_5")
    words = ("--mode", "student_kd", "--student-arch", "net.py:make", "--data-dir", digits, *QUICK)
    call("fit", *words, "--teacher-checkpoint", "t.safetensors")
    best = tmp_path / "logs/models/student_kd.safetensors"
    assert load_model(best, arch="net.py:make").card.arch == "net.py:make"

    # A command that reads the file runs its code only with --arch.
    for command in (("eval", best), ("infer", "--checkpoint", best, "--picture-index", "0")):
        named = (*command, "--data-dir", digits, "--json")
        assert_explained(call.any_code(*named), 1, f"--arch {tmp_path}/net.py:make")
        call(*named, "--arch", "net.py:make")
        wrong = call.any_code(*named, "--arch", "student_mlp")
        assert_explained(wrong, 1, "net.py:make", "--arch is student_mlp")
    teaches = ("fit", "--mode", "student_kd", "--teacher-checkpoint", best, "--data-dir", digits, *QUICK)
    assert_explained(call.any_code(*teaches), 1, f"--teacher-arch {tmp_path}/net.py:make")
    call(*teaches, "--teacher-arch", "net.py:make")

    # A run's own configuration names it.
    call("fit", "--resume", "logs/student_kd/version_0")


@pytest.mark.parametrize(
    ("arch", "code", "reason"),
    [
        *(("flowvision:resnet10", 2, "'resnet10'"), ("flowvision:resnet18", 2, "28x28")),
        *(("net.py:mak", 2, "'make'"), ("nte.py:make", 2, "nte.py")),
        ("no_such_module_at_all:make", 1, "no_such_module_at_all"),
    ],
)
def test_networks_that_cannot_be_made_are_refused_before_any_work(
    tiles: Path, call: Call, tmp_path: Path, arch: str, code: int, reason: str
) -> None:
    (tmp_path / "net.py").write_text(NET)
    words = ("fit", "--mode", "student", "--student-arch", arch, "--data-dir", tiles, *QUICK)
    assert_explained(call.any_code(*words), code, reason)
    assert not list(tmp_path.glob("logs/student*"))
