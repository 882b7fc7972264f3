"""``kdtrain runs``: every run of a log directory is listed with what its files tell, whatever they hold."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtrain.cli import main
from kdtrain.errors import UsageError
from kdtrain.experiment.history.run import RunInfo
from kdtrain.experiment.history.runs import SORTS, best_runs, list_runs
from kdtrain.store.record import FitRecord, Model, write_record
from kdtrain.store.run_directory import is_active, run_directory
from kdtrain.store.search_record import RungScore, TunedModel, TunedTrial, Tuning
from tests.cli.conftest import CallKdtrain
from tests.documents import DOCS, text_of
from tests.tools import ROOT, read_tested

FORK = multiprocessing.get_context("fork")
FEW = ("--val-size", "60", "--limit-train", "200", "--recipe", "none", "--teacher-arch", "student_cnn")
GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"status": "comp',
    "a list": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
}
WRONG = {
    b'{"version": 2, "kind": "fit", "status": 3}': "status: expected `str`, got `int`",
    b'{"version": 2, "kind": "fit"}': "it has no status",
    b'{"version": 2, "kind": "fit", "status": "running", "epochs": 1e999}': "epochs: number out of range",
    b'{"version": 2, "kind": "fit", "status": "failed", "models": [{}]}': "models[0] has no model",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> Path:
    """The log directory of a comparison, of a student of another network, and of a distilled one."""
    logs = tmp_path_factory.mktemp("runs") / "logs"
    flags = (*FEW, "--data-dir", str(tiles), "--logdir", str(logs))
    fits = (
        ("compare", "--seeds", "2", "--epochs", "2"),
        ("student", "--student-arch", "student_cnn", "--epochs", "1"),
        ("student_kd", "--epochs", "1"),
    )
    for mode, *words in fits:
        assert main(["fit", "--mode", mode, *words, *flags]) == 0
    return logs


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(trained, tmp_path / "logs"))


def by_name(runs: list[RunInfo]) -> dict[str, RunInfo]:
    return {run.run: run for run in runs}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tested(run: Path, **values: Any) -> None:
    change(run / "result.json", models=[read_tested(run) | values])


def test_figures_are_those_of_the_files_and_the_newest_run_is_first(trained: Path, tiles: Path) -> None:
    runs = list_runs(trained)
    assert [run.run for run in runs] == ["student_kd/version_0", "student/version_0", "compare/version_0"]
    assert {run.status for run in runs} == {"finished"}
    _, student, comparison = runs
    result = json.loads((trained / "student/version_0/result.json").read_text())
    assert student.test_accuracy == result["models"][0]["test_accuracy_fraction"]
    assert (student.epochs, student.arch, student.recipe) == (1, "student_cnn", "none")
    assert student.data_dir == str(tiles)
    figures = json.loads((trained / "compare/version_0/compare.json").read_text())
    gain = figures["differences"][0]["gain_percentage_points"]
    assert comparison.gain is not None
    assert (comparison.gain.points, comparison.gain.low, comparison.gain.seeds) == (
        gain["mean"],
        gain["low"],
        2,
    )
    assert (
        comparison.test_accuracy == figures["summaries"]["student_kd"]["test_accuracy_percent"]["mean"] / 100
    )
    runs_of = trained.glob("compare/*/*/student_kd")
    accuracies = [read_tested(run)["held_out_accuracy_fraction"] for run in runs_of]
    assert comparison.held_out_accuracy == pytest.approx(sum(accuracies) / 2)


def test_parts_are_listed_on_request(trained: Path) -> None:
    (comparison,) = [run for run in list_runs(trained) if run.mode == "compare"]
    assert comparison.parts == ()
    (comparison,) = [run for run in list_runs(trained, parts=True) if run.mode == "compare"]
    students = [f"seed_{seed}/{model}" for seed in (0, 1) for model in ("student", "student_kd")]
    assert sorted(part.run for part in comparison.parts) == sorted(["seed_0/teacher", *students])
    assert {part.status for part in comparison.parts} == {"finished"}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_damaged_file_makes_its_run_damaged_and_no_other(logs: Path, content: bytes) -> None:
    files = {
        "student": "student/version_0/result.json",
        "compare": "compare/version_0/compare.json",
        "student_kd": "student_kd/version_0/config.toml",
    }
    for file in files.values():
        (logs / file).write_bytes(content or b"=")
    runs = list_runs(logs, parts=True)
    assert [run.status for run in runs] == ["damaged"] * 3
    for run in runs:
        assert run.reason is not None
        assert Path(files[str(run.mode)]).name in run.reason
    best_runs(logs)


def test_what_is_no_file_or_no_run_is_listed_as_damaged(logs: Path) -> None:
    (logs / "student/version_1").mkdir()
    (logs / "student/version_2/result.json").mkdir(parents=True)
    (logs / "student/version_3").mkdir()
    os.mkfifo(logs / "student/version_3/result.json")
    (logs / "student/version_4").mkdir()
    (logs / "student/version_4/metrics.jsonl").write_text('{"epoch": 1}\n')
    for number, content in enumerate(WRONG, 5):
        (logs / f"student/version_{number}").mkdir()
        (logs / f"student/version_{number}/result.json").write_bytes(content)
    (logs / "student/version_20").mkdir()
    (logs / "student/version_20/result.json").write_text('{"status": "completed"}')
    (logs / "notes").mkdir()
    (logs / "notes/mine.txt").touch()
    runs = by_name(list_runs(logs))
    reasons = {name: runs[f"student/version_{name}"].reason for name in range(1, 5)}
    assert all(runs[f"student/version_{name}"].status == "damaged" for name in reasons)
    assert reasons[1] == "it holds neither config.toml nor result.json"
    assert reasons[2] == "result.json cannot be read: it is a folder, not a file"
    assert reasons[3] == "result.json cannot be read: it is a pipe, not a file"
    assert reasons[4] == "metrics.jsonl is damaged, line 1: it has no step"
    for number, reason in enumerate(WRONG.values(), 5):
        run = runs[f"student/version_{number}"]
        assert (run.status, run.reason) == ("damaged", f"result.json is damaged: {reason}")
    assert runs["student/version_20"].reason == "result.json was written by an older version of kdtrain"
    assert not any("notes" in name for name in runs)


def test_statuses_of_runs_that_did_not_finish(logs: Path) -> None:
    result = logs / "student/version_0/result.json"
    for values, status, reason in (
        ({"status": "failed", "reason": "no\nspace"}, "failed", "no space"),
        ({"status": "interrupted", "reason": "Ctrl-C"}, "interrupted", "Ctrl-C"),
        ({"status": "running", "reason": None}, "interrupted", "its process was killed"),
        ({"status": "stopped", "reason": "early"}, "finished", "early"),
        ({"status": "completed", "reason": None, "models": []}, "interrupted", "trained, but not tested"),
    ):
        change(result, **values)
        run = by_name(list_runs(logs))["student/version_0"]
        assert (run.status, run.reason) == (status, reason)
    (logs / "compare/version_0/compare.json").unlink()
    change(logs / "compare/version_0/seed_1/student/result.json", status="failed", reason="disk full")
    (logs / "student_kd/version_0/result.json").unlink()
    runs = by_name(list_runs(logs))
    assert runs["compare/version_0"].status == "failed"
    assert runs["compare/version_0"].reason == "seed_1/student: disk full"
    assert (runs["student_kd/version_0"].status, runs["student_kd/version_0"].test_accuracy) == (
        "interrupted",
        None,
    )


def test_a_search_is_finished_when_its_file_says_so(logs: Path) -> None:
    """Its config.toml is that of a comparison, which it is not."""
    search = logs / "tune/mine"
    search.mkdir(parents=True)
    shutil.copy(logs / "compare/version_0/config.toml", search)
    rungs = [RungScore(1, 0.5 + number / 10, 1.0, (0.5,), 1.0) for number in range(2)]
    trials = tuple(TunedTrial(number, {}, (rung,)) for number, rung in enumerate(rungs))
    students: dict[Model, TunedModel] = {"student_kd": TunedModel(trials, {}, 1)}
    for finished, status in ((False, "interrupted"), (True, "finished")):
        write_record(search, Tuning(budget="2", seeds=1, seconds=3.5, students=students, finished=finished))
        run = by_name(list_runs(logs))["tune/mine"]
        assert (run.mode, run.status, run.held_out_accuracy, run.seconds) == ("tune", status, 0.6, 3.5)


def test_an_interrupted_run_has_the_best_held_out_accuracy_so_far(logs: Path) -> None:
    run = logs / "compare/version_0/seed_0/student"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_record(run, FitRecord(status="running"))
    (part,) = [part for part in list_runs(logs, parts=True)[-1].parts if part.run == "seed_0/student"]
    assert part.epochs == 2
    assert part.held_out_accuracy == max(row["val/accuracy"] for row in rows)


def test_a_run_is_running_while_a_process_works_on_it(tmp_path: Path) -> None:
    started, go_on = FORK.Event(), FORK.Event()

    def work() -> None:
        with run_directory(tmp_path, "student"):
            started.set()
            go_on.wait(30)

    process = FORK.Process(target=work)
    process.start()
    assert started.wait(30)
    for _ in range(3):  # to ask changes nothing
        assert [run.status for run in list_runs(tmp_path)] == ["running"]
    process.kill()
    process.join()
    assert not is_active(tmp_path / "student/version_0")
    with run_directory(tmp_path, "student", tmp_path / "student/version_0"):
        assert is_active(tmp_path / "student/version_0")
        with run_directory(tmp_path, "student", tmp_path / "student/version_0"):  # as several ranks do
            pass


def test_held_out_figures_choose_the_best_run(logs: Path) -> None:
    first = logs / "student/version_0"
    for number, held_out, test in ((1, 0.9, 0.1), (2, 0.8, 0.99)):
        copy = Path(shutil.copytree(first, logs / f"student/version_{number}"))
        change_tested(copy, held_out_accuracy_fraction=held_out, test_accuracy_fraction=test)
    chosen = Path(shutil.copytree(first, logs / "student/version_3"))  # the test set has chosen its epoch
    change_tested(chosen, held_out_accuracy_fraction=1.0)
    config = (chosen / "config.toml").read_text()
    (chosen / "config.toml").write_text(re.sub("val_size = .*", "val_size = 0", config))
    rows = {(row.arch, row.model): row for row in best_runs(logs)}
    cnn, mlp = "student_cnn", "student_mlp"
    assert set(rows) == {(cnn, "student"), (cnn, "teacher"), (mlp, "student"), (mlp, "student_kd")}
    best = rows["student_cnn", "student"]
    assert (best.path, best.of, best.run.test_accuracy) == ("student/version_1", 3, 0.1)
    assert rows["student_mlp", "student_kd"].of == 3, "two seeds, and one alone"


@pytest.mark.parametrize("sort", SORTS)
def test_sorted_by_any_column(logs: Path, sort: str) -> None:
    for number in (2, 10):
        shutil.copytree(logs / "student/version_0", logs / f"student/version_{number}")
    runs = list_runs(logs, sort=sort)
    key: Callable[[RunInfo], Any] = SORTS[sort]
    assert len(runs) == 5
    assert list(map(key, runs)) == sorted(map(key, runs))
    names = [run.run for run in runs if run.mode == "student"]
    if sort == "run":
        assert names == ["student/version_0", "student/version_2", "student/version_10"]
    if sort == "gain":
        assert runs[0].gain is not None


def test_thousands_of_runs_are_listed_without_oneflow(logs: Path) -> None:
    for number in range(1, 2000):
        (logs / f"student/version_{number}").mkdir()
        for name in ("config.toml", "result.json"):
            os.link(logs / "student/version_0" / name, logs / f"student/version_{number}/{name}")
    code = (
        "import sys\n"
        "from kdtrain.cli import main\n"
        f"assert main(['runs', '--logdir', {str(logs)!r}, '--json']) == 0\n"
        "print(sorted({'oneflow', 'numpy'} & set(sys.modules)), file=sys.stderr)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    assert len(json.loads(finished.stdout)) == 2002
    assert finished.stderr == "[]\n"


def test_command_prints_a_table_and_json_with_the_documented_keys(
    logs: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    change(logs / "student/version_0/result.json", status="failed", reason="disk full")
    finished = call_kdtrain("runs", "--parts", cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    (row,) = [line for line in finished.stdout.splitlines() if line.startswith("compare/version_0")]
    assert re.search(r"finished +\d+\.\d\d +\d+\.\d\d +[+-]\d+\.\d\d ± \d+\.\d\d", row)
    assert "\n  seed_0/student_kd " in finished.stdout
    assert "student/version_0 (failed): disk full" in finished.stdout
    best = call_kdtrain("runs", "--best", cwd=tmp_path)
    assert re.search(
        r"^student_mlp +student_kd .* 3 +(compare|student_kd)/version_0/", best.stdout, re.MULTILINE
    )
    entries = json.loads(call_kdtrain("runs", "--parts", "--json", cwd=tmp_path).stdout)
    table = text_of(DOCS / "sharing.md").partition("| key | value |")[2].partition("\n\n")[0]
    keys = [line.split("|")[1] for line in table.splitlines()[2:]]
    documented = {name for key in keys for name in re.findall(r"`(\w+)`", key)}
    assert set(entries[0]) == documented
    assert {entry["run"] for entry in entries} == {
        f"{mode}/version_0" for mode in ("compare", "student", "student_kd")
    }


def test_wrong_folders_and_columns_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--logdir .*nowhere: No such file"):
        list_runs(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"--sort: .*'tests'.*did you mean 'test'"):
        list_runs(tmp_path, sort="tests")
