"""``kdtrain fit`` for one network: its output, its files, its teacher and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import load_model, load_tensors
from kdtrain.store.metrics_file import read_metrics
from tests.cli.conftest import EPOCH, LOGDIR, MODES, Call, Fitted, assert_explained, untrained_teacher
from tests.runs import metrics
from tests.tools import files_in, read_result, read_tested

ONE_EPOCH = ("--recipe=none", "--val-size", "300", "--epochs", "1", "--batch-size", "64")


@pytest.mark.parametrize("mode", MODES)
def test_answer_on_stdout_and_a_line_per_epoch_on_stderr(fitted: Fitted, mode: str) -> None:
    finished = fitted.processes[mode]
    assert finished.returncode == 0
    answer = finished.stdout.partition("Next:")[0]
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in answer.splitlines())
    assert list(rows) == [
        *("test accuracy", "cross-entropy", "parameters", "training time", "best epoch", "best weights")
    ]
    result = read_result(fitted.run(mode))
    test = result["models"][0]
    assert rows["best epoch"] == f"{test['best_epoch']} of 3"
    assert rows["training time"] == f"{result['seconds']:.1f} s"
    assert (
        rows["test accuracy"] == f"{test['test_accuracy_fraction']:.2%} ({test['test_errors']} errors in 300)"
    )
    assert float(rows["cross-entropy"]) == pytest.approx(test["test_cross_entropy_nats"], abs=1e-4)
    assert (fitted.folder / rows["best weights"]).samefile(fitted.run(mode) / "checkpoints/best.safetensors")
    lines = finished.stderr.splitlines()
    if mode == "student_kd":
        assert f"{LOGDIR}/models/teacher.safetensors recognises " in lines.pop(0)
        assert f"{LOGDIR}/models/teacher.safetensors" in lines.pop(0)
        figures = r"Teacher: [\d.]+ % of 300 held-out images, calibration error [\d.]+ %\."
        assert re.fullmatch(figures, lines.pop(0))
    epochs = [EPOCH.fullmatch(line) for line in lines]
    assert [match and match.groups() for match in epochs] == [(mode, str(n), "3") for n in (1, 2, 3)]


@pytest.mark.parametrize("mode", MODES)
def test_run_directory_is_complete(fitted: Fitted, mode: str) -> None:
    run = fitted.run(mode)
    files = {re.sub(r"events\.out\.tfevents\.\d+\.[^.]+\.\d+", "events", name) for name in files_in(run)}
    checkpoints = {"checkpoints/best.safetensors", "checkpoints/last.safetensors"}
    assert files == {
        "config.toml", "metrics.jsonl", "result.json", "events", "events.results", *checkpoints
    }  # fmt: skip
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    losses = {"loss/task", "loss/total"} | ({"loss/kd"} if mode == "student_kd" else set())
    assert {name for name in rows[0] if name.startswith("loss/")} == losses
    result = read_result(run)
    assert (result["status"], result["reason"], result["epochs"]) == ("completed", None, 3)
    assert result["steps"] == rows[-1]["step"] == 3 * 19  # 1,200 images in batches of 64
    assert (result["mode"], result["seed"]) == (mode, 0)
    best = max(rows, key=lambda row: (row["val/accuracy"], row["epoch"]))
    [model] = result["models"]
    assert model["best_epoch"] == best["epoch"]
    assert model["held_out_accuracy_fraction"] == best["val/accuracy"]
    history = [tuple(point.values()) for point in model["held_out_history"]]
    assert history == [(row["epoch"], row["val/accuracy"], row["val/cross_entropy"]) for row in rows]
    seconds = [row["train_seconds"] + row["eval_seconds"] for row in read_metrics(run)]
    assert result["seconds"] == round(sum(seconds), 3)
    assert load_tensors(run / "checkpoints/last.safetensors")[1]["end"]["epoch"] == 3


@pytest.mark.parametrize("mode", MODES)
def test_figures_are_those_of_the_saved_model(fitted: Fitted, mode: str, call: Call) -> None:
    best = fitted.run(mode) / "checkpoints/best.safetensors"
    assert fitted.model(mode).read_bytes() == best.read_bytes()
    evaluated = json.loads(
        call("eval", best, "--data-dir", fitted.flags[1], "--json", cwd=fitted.folder).stdout
    )
    test = read_tested(fitted.run(mode))
    figures = ("accuracy_fraction", "cross_entropy_nats", "errors", "images", "calibration_error_fraction")
    assert [test[f"test_{name}"] for name in figures] == [
        pytest.approx(evaluated[name], rel=1e-6) for name in figures
    ]


@pytest.mark.parametrize("mode", MODES)
def test_config_of_a_run_reproduces_it(fitted: Fitted, mode: str, call: Call, tmp_path: Path) -> None:
    config = fitted.run(mode) / "config.toml"
    before = files_in(fitted.folder)
    call("fit", "--config", config, "--logdir", tmp_path, cwd=fitted.folder)
    best = "checkpoints/best.safetensors"
    assert (tmp_path / mode / "version_0" / best).read_bytes() == (fitted.run(mode) / best).read_bytes()
    assert files_in(fitted.folder) == before


def test_seed_decides_the_weights_and_runs_are_numbered(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "version_7").mkdir()
    student = ("fit", "--mode", "student", "--logdir", tmp_path, *fitted.flags)
    for number, seed in ((8, "0"), (9, "1")):
        before = files_in(tmp_path / "student")
        call(*student, "--seed", seed)
        after = files_in(tmp_path / "student")
        assert {name: after[name] for name in before} == before
        assert {Path(name).parts[0] for name in after.keys() - before.keys()} == {f"version_{number}"}
    weights = [
        run.joinpath("checkpoints/best.safetensors").read_bytes()
        for run in (fitted.run("student"), tmp_path / "student/version_8", tmp_path / "student/version_9")
    ]
    assert weights[0] == weights[1]
    assert weights[1] != weights[2]


def test_without_weight_for_the_teacher_student_kd_is_the_student_bit_for_bit(
    fitted: Fitted, call: Call, tmp_path: Path
) -> None:
    flags = ("--alpha", "0", "--teacher-checkpoint", fitted.model("teacher"), "--logdir", tmp_path)
    call("fit", "--mode", "student_kd", *flags, *fitted.flags)
    for which in ("best", "last"):
        path = f"checkpoints/{which}.safetensors"
        with_teacher, alone = (
            load_model(run / path).weights
            for run in (tmp_path / "student_kd/version_0", fitted.run("student"))
        )
        assert {name: array.tobytes() for name, array in with_teacher.items()} == {
            name: array.tobytes() for name, array in alone.items()
        }


def test_teacher_makes_a_difference(fitted: Fitted) -> None:
    distilled, alone = (load_model(fitted.model(mode)).weights for mode in ("student_kd", "student"))
    assert all((distilled[name] != alone[name]).any() for name in alone)


def test_student_kd_trains_a_teacher_where_there_is_none(tiles: Path, call: Call, tmp_path: Path) -> None:
    words = ("fit", "--mode", "student_kd", "--data-dir", tiles, *ONE_EPOCH, "--model-save-dir", "best")
    first = call(*words)
    note, *epochs = first.stderr.splitlines()
    assert "tiles" in note
    assert [line.split()[0] for line in epochs] == ["teacher", "Teacher:", "student_kd"]
    second = call(*words)
    assert "best/teacher.safetensors" in second.stderr.splitlines()[0]
    assert not (tmp_path / "logs/teacher").exists()
    best = [tmp_path / f"logs/student_kd/version_{n}/checkpoints/best.safetensors" for n in (0, 1)]
    assert best[0].read_bytes() == best[1].read_bytes()
    # The run says which teacher taught it.
    config = tomli.loads((tmp_path / "logs/student_kd/version_0/config.toml").read_text())
    with_teacher = tmp_path / "logs/student_kd/version_0/teacher/checkpoints/best.safetensors"
    assert config["teacher_checkpoint"] == str(with_teacher)


@pytest.mark.parametrize("mode", ["student_kd", "compare"])
@pytest.mark.parametrize(
    ("kind", "sides"),
    [
        ("other architecture", ("student_mlp", "--teacher-arch", "teacher_cnn")),
        ("other classes", ("has 4 classes", "the data have 10", "no 4, 5, 6, 7, 8, and 1 more")),
        ("other weights", ("conv1.weight",)),
        ("no checkpoint", ("notes.txt",)),
        ("nothing", ("nothing.safetensors",)),
    ],
)
def test_unfit_teacher_is_refused_before_any_work(
    fitted: Fitted,
    tiles: Path,
    digits: Path,
    mnist: Dataset,
    call: Call,
    tmp_path: Path,
    mode: str,
    kind: str,
    sides: tuple[str, str],
) -> None:
    data, teacher = tiles, tmp_path / "nothing.safetensors"
    if kind == "other architecture":
        teacher = fitted.model("student")
    elif kind == "other classes":
        data = digits
        teacher = untrained_teacher(tmp_path / "four.safetensors", load_dataset(data_dir=tiles))
    elif kind == "other weights":
        teacher = tmp_path / "directory"
        flow.save({"conv1.weight": flow.zeros(2, 2)}, str(teacher))
    elif kind == "no checkpoint":
        teacher = tmp_path / "notes.txt"
        teacher.write_text("Teach them well.")
    flags: tuple[str | Path, ...] = ("--data-dir", data, "--teacher-checkpoint", teacher)
    flags += ("--logdir", tmp_path / "logs")
    if kind == "other architecture":
        flags += ("--teacher-arch", "teacher_cnn")
    assert_explained(call.any_code("fit", "--mode", mode, *flags, *ONE_EPOCH), 1, *sides)
    assert files_in(tmp_path / "logs") == {}
    assert not (tmp_path / "logs" / mode).exists()


def test_damaged_teacher_in_model_directory_is_refused_too(tiles: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "logs/models").mkdir(parents=True)
    (tmp_path / "logs/models/teacher.safetensors").write_text("Teach them well.")
    finished = call.any_code("fit", "--mode", "student_kd", "--data-dir", tiles, *ONE_EPOCH)
    assert_explained(finished, 1, "logs/models/teacher.safetensors")
    assert not (tmp_path / "logs/student_kd").exists()


def test_early_stopping_ends_the_run_and_says_why(tiles: Path, call: Call, tmp_path: Path) -> None:
    words = ("fit", "--mode=student", "--data-dir", tiles, "--val-size=300", "--epochs=40", "--recipe=none")
    finished = call(*words, "--early-stopping", "1")
    run = tmp_path / "logs/student/version_0"
    result = read_result(run)
    accuracies = [row["val/accuracy"] for row in metrics(run)]
    assert result["status"] == "stopped"
    assert result["epochs"] == len(accuracies) < 40
    assert accuracies[-1] <= max(accuracies[:-1])
    assert "val/accuracy" in result["reason"]
    assert f"{max(accuracies):.4f}" in result["reason"]
    *_, last = finished.stderr.splitlines()
    assert last.startswith("student: ")
    assert f"epoch {len(accuracies)}" in last
    assert result["reason"] in last
