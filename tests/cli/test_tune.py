"""`kdtrain tune`: a fair choice on held-out images, resumed runs, and a comparison that uses the result."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli

from kdtrain.callbacks.schedule import learning_rate
from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.tune.halving import rung_sizes
from kdtrain.runtime.processes import available_cores
from kdtrain.store.record import FitRecord, write_record
from tests.cli.conftest import Call, assert_explained, untrained_teacher
from tests.runs import count_points, metrics
from tests.tools import files_in, start_kdtrain, wait_until

SMALL = ("--recipe", "none", "--limit-train", "300", "--val-size", "300", "--batch-size", "64", "--no-keep")
TEACHER = ("--teacher-arch", "student_mlp", "--teacher-epochs", "1")
TIMES = ("seconds", "seconds_per_epoch")


@dataclass(frozen=True)
class Tuned:
    """A finished search, and what it has printed."""

    flags: tuple[str | Path, ...]
    folder: Path
    stdout: str
    stderr: str

    @property
    def directory(self) -> Path:
        return self.folder / "logs/tune/version_0"

    @property
    def content(self) -> Any:
        return json.loads((self.directory / "tune.json").read_text())


Search = Callable[..., Tuned]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Search:
    """Runs a search in a folder of its own."""

    def run(*words: str | Path) -> Tuned:
        folder = tmp_path_factory.mktemp("search")
        flags = ("--data-dir", tiles, *SMALL, *words)
        finished = spawn("tune", *flags, cwd=folder)
        return Tuned(flags, folder, finished.stdout, finished.stderr)

    return run


@pytest.fixture(scope="module")
def tuned(search: Search) -> Tuned:
    return search(*TEACHER, "--epochs", "3", "--augment", "shift=1", "--budget", "4")


@pytest.fixture(scope="module")
def listed(search: Search) -> Tuned:
    """A search of a few values."""
    return search(*TEACHER, "--epochs", "2", "--search", "temperature=1,4", "--search", "lr=0.001,0.003")


@pytest.fixture(scope="module")
def late(search: Search) -> Tuned:
    """A search whose time is over before its first trial."""
    return search(*TEACHER, "--epochs", "3", "--budget", "0.0001m")


@pytest.fixture(scope="module")
def behind(search: Search, tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> Tuned:
    """A search with a teacher that is worse than the plain student."""
    file = tmp_path_factory.mktemp("teacher") / "poor.safetensors"
    teacher = untrained_teacher(file, load_dataset(data_dir=tiles), "student_mlp")
    flags = ("--batch-size", "16", "--epochs", "2", "--budget", "1", "--allow-poor-teacher")
    return search("--teacher-checkpoint", teacher, *flags)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_each_student_gets_as_many_trials_and_the_best_third_goes_on(tuned: Tuned) -> None:
    content = tuned.content
    assert content["finished"]
    assert content["trials_of_rungs"] == rung_sizes(4, 2) == [4, 1]
    assert list(content["students"]) == ["student_kd", "student"]
    for result in content["students"].values():
        trials = result["trials"]
        assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
        assert trials[0]["values"]["lr"] == 0.003
        first = {trial["number"]: trial["rungs"][0]["held_out_accuracy_fraction"] for trial in trials}
        (last,) = [trial for trial in trials if len(trial["rungs"]) == 2]
        assert first[last["number"]] == max(first.values())
        assert result["chosen"] == last["number"]


def test_a_run_goes_on_from_its_last_epoch_with_a_cycle_for_each_rung(tuned: Tuned) -> None:
    for model, result in tuned.content["students"].items():
        run = tuned.directory / f"trials/{model}_{result['chosen']}/seed_0"
        rows = metrics(run)
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert set(count_points(run).values()) == {1}
        rungs = result["trials"][result["chosen"]]["rungs"]
        assert [rung["epochs"] for rung in rungs] == [1, 3]
        for rung in rungs:
            assert rung["held_out_accuracy_fraction"] == rows[rung["epochs"] - 1]["val/accuracy"]
        rates = [row["learning_rate"] for row in rows]
        peak = result["settings"]["lr"]
        steps = [(4, 5), (4, 10), (9, 10)]  # the last step of each epoch: of five in the first rung, then ten
        assert rates == [learning_rate("one_cycle", peak, step, total) for step, total in steps]


def test_the_report_holds_the_trials_and_loads_nothing(tuned: Tuned) -> None:
    page = (tuned.directory / "report.html").read_text()
    for model, result in tuned.content["students"].items():
        for trial in result["trials"]:
            assert f"students/{model}/trials/{trial['number']}/rungs/0/held_out_accuracy_fraction" in page
    assert "default-src 'none'" in page
    assert str(tuned.directory.parents[2]) not in page
    assert not any(text in page for text in ("http://", "https://", "<script", "src="))


def test_what_is_printed_says_what_it_shows_and_what_comes_next(tuned: Tuned) -> None:
    assert "Best held-out accuracy after 4 trials of each model: student_kd " in tuned.stdout
    assert "The test set was not read" in tuned.stdout
    command = "Next: kdtrain fit --mode compare --config logs/tune/version_0/best.toml"
    assert tuned.stdout.splitlines()[-1] == command


def test_the_test_set_is_not_read(listed: Tuned, tiles: Path, tmp_path: Path, call: Call) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiles, other)
    for kind in ("labels", "images"):
        [training], [test] = other.glob(f"train-{kind}*"), other.glob(f"t10k-{kind}*")
        shutil.copy(training, test)
    call("tune", *listed.flags, "--data-dir", other)
    results = list((tmp_path / "logs").rglob("result.json"))
    assert len(results) == 1 + 4 + 2
    assert not any(json.loads(path.read_text())["models"] for path in results)
    content = json.loads((tmp_path / "logs/tune/version_0/tune.json").read_text())
    assert without_times(content) == without_times(listed.content)


def test_interrupted_search_ends_like_an_undisturbed_one(tuned: Tuned, tmp_path: Path, spawn: Call) -> None:
    trials = tmp_path / "logs/tune/version_0/trials"
    with start_kdtrain("tune", *tuned.flags, cwd=tmp_path) as process:
        wait_until(lambda: len(list(trials.glob("*/*/metrics.jsonl"))) > 3 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].endswith(f"kdtrain tune --resume {tmp_path}/logs/tune/version_0")
    finished = [
        path.parent.parent.name
        for path in trials.glob("*/*/result.json")
        if json.loads(path.read_text())["status"] == "completed"
    ]
    resumed = spawn("tune", "--resume", cwd=tmp_path)
    assert finished
    for run in finished:
        model, _, number = run.rpartition("_")
        first_rung = re.compile(rf"^{model} trial {number} +epoch 1 ", re.MULTILINE)
        assert first_rung.search(tuned.stderr)
        assert not first_rung.search(resumed.stderr), "a finished rung is not repeated"
    content = json.loads((tmp_path / "logs/tune/version_0/tune.json").read_text())
    for model, result in content["students"].items():
        expected = tuned.content["students"][model]
        assert without_times(result) == without_times(expected)


def test_a_comparison_trains_each_student_with_its_own_settings(
    tuned: Tuned, tmp_path: Path, call: Call
) -> None:
    best = tuned.directory / "best.toml"
    words = ("fit", "--mode", "compare", "--config", best, "--logdir", "logs", "--epochs", "1")
    call(*words)
    folder = tmp_path / "logs/compare/version_0"
    assert not (folder / "seed_0/teacher").exists(), "the teacher is that of the search"
    for model, result in tuned.content["students"].items():
        config = tomli.loads((folder / f"seed_0/{model}/config.toml").read_text())
        assert {name: config[name] for name in result["settings"]} == result["settings"]
        assert "tuned" not in config
    refused = call.any_code(*words, "--lr", "0.5")
    assert_explained(refused, 2, "--lr is 0.5, but --tuned", "leave one of them out")


def test_a_single_student_is_trained_with_its_own_settings_whatever_the_recipe(
    tuned: Tuned, tmp_path: Path, call: Call, tiles: Path
) -> None:
    words = ("--mode", "student", "--tuned", tuned.directory / "tune.json", "--data-dir", tiles)
    call("fit", *words, *SMALL, "--epochs", "1", "--recipe", "mnist")
    config = tomli.loads((tmp_path / "logs/student/version_0/config.toml").read_text())
    assert config["lr"] == tuned.content["students"]["student"]["settings"]["lr"]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"finished": False}, 2, "the search is not finished. Go on with: kdtrain tune --resume"),
        ({"version": 99}, 1, "was written by a newer version of kdtrain. `kdtrain tune` writes this file."),
        ({"students": {"student": {"trials": [], "settings": {"lr": -1}}}}, 2, "--lr is -1"),
        ({"students": {"student": {"trials": [], "settings": {"seed": 1}}}}, 1, "student has seed"),
        ({"students": []}, 1, "is damaged: students: expected `object`, got `array`"),
    ],
)
def test_a_result_that_cannot_be_used_is_refused(
    change: dict[str, Any],
    code: int,
    message: str,
    tuned: Tuned,
    tiles: Path,
    tmp_path: Path,
    call: Call,
) -> None:
    file = tmp_path / "tune.json"
    file.write_text(json.dumps(tuned.content | change))
    words = ("fit", "--mode", "student", "--data-dir", tiles, "--tuned", file, *SMALL)
    assert_explained(call.any_code(*words), code, str(file), message)


def test_when_the_time_is_over_the_best_so_far_is_chosen(late: Tuned) -> None:
    message = "Epochs 2 to 3 would not end within 0.0001m: the best trials after epoch 1 are chosen."
    assert message in " ".join(late.stderr.split())
    assert message in " ".join(late.stdout.split())
    content = late.content
    assert content["trials_of_rungs"] == [1]
    assert {result["chosen"] for result in content["students"].values()} == {0}


def test_the_rest_of_the_time_is_for_the_best_trials(late: Tuned, tmp_path: Path, call: Call) -> None:
    shutil.copytree(late.folder, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "logs/tune/version_0"
    turns = math.ceil(2 / len(available_cores()))
    begun = {"finished": False, "last_epoch": None, "budget": "10m", "seconds_per_epoch": 100.0}
    left = {"seconds": 600 - 160.0 * turns}  # one more epoch of a trial ends in time, two do not
    (directory / "tune.json").write_text(json.dumps(late.content | begun | left))
    resumed = call("tune", "--resume", directory)
    message = "Epochs 2 to 3 would not end within 10m: the best trials are trained to epoch 2."
    assert message in " ".join(resumed.stderr.split())
    content = json.loads((directory / "tune.json").read_text())
    assert (content["trials_of_rungs"], content["last_epoch"]) == ([1, 1], 2)
    assert content["note"].startswith(message)
    for result in content["students"].values():
        chosen = result["trials"][result["chosen"]]
        assert [rung["epochs"] for rung in chosen["rungs"]] == [1, 2]
    again = call("tune", "--resume", directory)
    assert " epoch 3 " not in again.stderr
    assert without_times(json.loads((directory / "tune.json").read_text())) == without_times(content)


def test_a_teacher_behind_the_plain_student_is_said_when_it_is_seen(behind: Tuned) -> None:
    printed = " ".join(behind.stderr.split())
    said = (
        r"The teacher has \S+ % of the held-out images, a plain student \S+ % after 1 epoch: there is nothing"
    )
    assert re.search(said, printed), printed
    assert printed.index("there is nothing to copy") < printed.index("Rung 2 of 2")
    assert printed.count("there is nothing to copy") == 1
    assert "there is nothing to copy" in behind.content["note"]
    assert "there is nothing to copy" in " ".join(behind.stdout.split())


def test_a_search_killed_between_metrics_and_checkpoint_leaves_no_trial_running(
    behind: Tuned, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(behind.folder, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "logs/tune/version_0"
    (directory / "tune.json").write_text(json.dumps(behind.content | {"finished": False}))
    run = directory / "trials/student_0/seed_0"
    shutil.rmtree(run / "checkpoints")
    write_record(run, FitRecord(status="running"))
    settings = (run / "config.toml").read_text()
    call("tune", "--resume", directory)
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    assert (run / "checkpoints/last.safetensors").is_file()
    changed = settings.replace(str(behind.folder), str(tmp_path))
    assert (run / "config.toml").read_text() == changed, "teacher_arch is kept, too"
    content = json.loads((directory / "tune.json").read_text())
    assert without_times(content["students"]["student"]["trials"]) == without_times(
        behind.content["students"]["student"]["trials"]
    )


def test_the_chosen_settings_name_their_data(tuned: Tuned, tiles: Path) -> None:
    comments = (tuned.directory / "best.toml").read_text()
    assert f"# They were chosen on {tiles.name}: 300 training images, 300 held out." in comments


def test_values_of_a_resumed_search_are_refused_with_the_files_name(
    tuned: Tuned, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(tuned.directory, tmp_path / "search")
    file = tmp_path / "search/tune.json"
    file.write_text(json.dumps(tuned.content | {"searches": ["lr=" + ",".join(["1"] * 100_000)]}))
    finished = call.any_code("tune", "--resume", "search")
    assert_explained(finished, 2, "search/tune.json: --search lr=1,1,", "has 100,000 values")


def test_each_combination_of_a_few_values_is_trained_to_the_end(listed: Tuned) -> None:
    assert "student_kd: 4 combinations, each trained to the end." in listed.stderr
    assert "student: 2 combinations, each trained to the end." in listed.stderr
    assert listed.content["trials_of_rungs"] == [4]
    for model, names in (("student_kd", ("temperature", "lr")), ("student", ("lr",))):
        result = listed.content["students"][model]
        trials = result["trials"]
        assert [list(trial["values"]) for trial in trials] == [list(names)] * 2 ** len(names)
        assert all([rung["epochs"] for rung in trial["rungs"]] == [2] for trial in trials)
        errors = [-trial["rungs"][0]["held_out_accuracy_fraction"] for trial in trials]
        assert min(errors) == errors[result["chosen"]]
    assert "Successive halving" not in (listed.directory / "report.html").read_text()


def test_a_trial_of_a_few_values_is_the_fit_with_these_values(
    listed: Tuned, tmp_path: Path, tiles: Path, call: Call
) -> None:
    words = ("--mode", "student", "--data-dir", tiles, *SMALL, "--epochs", "2", "--lr", "0.001")
    call("fit", *words)
    trials = listed.content["students"]["student"]["trials"]
    [number] = [trial["number"] for trial in trials if trial["values"]["lr"] == 0.001]
    runs = listed.directory / f"trials/student_{number}/seed_0", tmp_path / "logs/student/version_0"
    [trained, expected] = [
        [(row["loss/total"], row["val/cross_entropy"]) for row in metrics(run)] for run in runs
    ]
    assert trained == expected


def test_a_search_of_a_few_values_is_resumed(listed: Tuned, tmp_path: Path, call: Call) -> None:
    shutil.copytree(listed.directory, tmp_path / "search")
    shutil.rmtree(tmp_path / "search/trials/student_kd_2")
    file = tmp_path / "search/tune.json"
    file.write_text(json.dumps(listed.content | {"finished": False, "students": {}}))
    resumed = call("tune", "--resume", "search")
    assert re.findall(r"^(\S+ trial \d)", resumed.stderr, re.MULTILINE) == ["student_kd trial 2"]
    models = without_times(json.loads(file.read_text())["students"])
    assert models["student_kd"]["trials"] == without_times(listed.content)["students"]["student_kd"]["trials"]


def test_a_trial_that_diverges_fails_alone_and_seeds_are_averaged(
    tiles: Path, tmp_path: Path, call: Call
) -> None:
    flags = ("--epochs", "1", "--optimizer", "sgd", "--tune-seeds", "2", "--budget", "2")
    searches = ("--search", "lr=1e6", "--search", "weight_decay=0")
    words = ("tune", "--data-dir", tiles, *SMALL, *TEACHER, *flags, *searches)
    finished = call(*words)
    assert "student trial 1/0: failed, the loss is not finite" in finished.stderr
    directory = tmp_path / "logs/tune/version_0"
    trials = json.loads((directory / "tune.json").read_text())["students"]["student"]["trials"]
    assert trials[1]["rungs"] == []
    (score,) = trials[0]["rungs"]
    accuracies = [metrics(directory / f"trials/student_0/seed_{n}")[0]["val/accuracy"] for n in (0, 1)]
    assert score["held_out_accuracy_fractions_of_seeds"] == accuracies
    assert score["held_out_accuracy_fraction"] == pytest.approx(np.mean(accuracies))


WRONG_WORDS = """
--budget 20h | --budget is '20h': it must be minutes, such as 20m, or a number of trials
--tune-seeds 0 | --tune-seeds is 0: it must be from 1 to 100
--search temprature=1..8 | --search temprature=1..8 | did you mean 'temperature'
--search dkd.beta=1..10 | there is no --plugin dkd in the command
--mode student_kd | for the students of a comparison, not for --mode student_kd
--teacher-per-seed | --teacher-per-seed is for `kdtrain fit`
--val-size 0 | --val-size 0 holds none out
--nproc-per-node 2 | leave --nproc-per-node
--resume nowhere | no run directory
--resume | there is no run in logs/tune
"""


@pytest.mark.parametrize("case", WRONG_WORDS.strip().splitlines())
def test_wrong_words_are_explained(case: str, tmp_path: Path, call: Call) -> None:
    words, *expected = case.split(" | ")
    assert_explained(call.any_code("tune", *words.split()), 2, *expected)
    assert files_in(tmp_path) == {}


def test_a_resumed_search_keeps_its_order(tuned: Tuned, call: Call) -> None:
    for flag, value in (("--budget", "9"), ("--search", "lr=0.1"), ("--tune-seeds", "2")):
        finished = call.any_code("tune", "--resume", tuned.directory, flag, value, cwd=tuned.folder)
        assert_explained(finished, 2, f"{flag}: a resumed search keeps its own")


def test_values_that_do_not_go_together_are_refused_before_training(
    tmp_path: Path, tiles: Path, call: Call
) -> None:
    words = ("tune", "--data-dir", tiles, *SMALL, "--search", "lr=100", "--search", "weight_decay=0.1")
    assert_explained(call.any_code(*words), 2, "student_kd with", "--weight-decay 0.1")
    assert files_in(tmp_path) == {}
