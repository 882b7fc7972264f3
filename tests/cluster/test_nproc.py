"""Data-parallel fits in several processes: the result of one process, one set of files, and no hanging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdtrain.cluster.launch import _free_port
from kdtrain.store.checkpoint import load_tensors
from tests.cli.conftest import EPOCH, MODES, Call, Finished, assert_explained, run
from tests.runs import TIMES
from tests.tools import ROOT, files_in, read_result, read_scalars, start_kdtrain, wait_until

FEW = ("--recipe=none", "--val-size", "300", "--limit-train", "320")
SGD = (
    *("--mode", "student", *FEW, "--epochs", "2", "--optimizer", "sgd", "--lr", "0.05"),
    *("--augment", "shift=2,flip,mixup=0.4"),
)
TWO = ("--nproc-per-node", "2")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Path:
    """A folder where two processes have trained a student on batches of 2 x 32."""
    folder = tmp_path_factory.mktemp("together")
    finished = spawn("fit", *SGD, "--data-dir", tiles, "--batch-size", "32", *TWO, cwd=folder)
    assert finished.stdout.startswith("test accuracy  ")
    assert [bool(EPOCH.fullmatch(line)) for line in finished.stderr.splitlines()] == [True] * 2
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Path:
    """A folder where one process has trained the same student on batches of 64."""
    folder = tmp_path_factory.mktemp("alone")
    spawn("fit", *SGD, "--data-dir", tiles, "--batch-size", "64", cwd=folder)
    return folder


def assert_same_training(first: Path, second: Path) -> None:
    """Asserts equal weights, optimizer state and metrics, but for rounding."""
    run = Path("logs/student/version_0")
    tensors, _ = load_tensors(first / run / "checkpoints/last.safetensors")
    expected, _ = load_tensors(second / run / "checkpoints/last.safetensors")
    assert tensors.keys() == expected.keys()
    for name, array in tensors.items():
        np.testing.assert_allclose(array.astype(float), expected[name].astype(float), rtol=0, atol=1e-4)
    lines = [(folder / run / "metrics.jsonl").read_text().splitlines() for folder in (first, second)]
    for row, expected_row in zip(*(map(json.loads, rows) for rows in lines), strict=True):
        for name in row.keys() - TIMES:
            assert row[name] == pytest.approx(expected_row[name], rel=1e-4), name


def test_two_processes_train_as_one_with_the_same_batches(together: Path, alone: Path) -> None:
    assert_same_training(together, alone)
    losses = [read_scalars(folder / "logs/student/version_0")["loss/total"] for folder in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_only_one_process_writes(together: Path, alone: Path) -> None:
    def names(folder: Path) -> list[str]:
        return sorted(name for name in files_in(folder) if "tfevents" not in name)

    assert names(together) == names(alone)
    runs = [folder / "logs/student/version_0" for folder in (together, alone)]
    assert len({len(list(run.glob("events.*"))) for run in runs}) == 1


def test_two_nodes_on_loopback_train_as_one_process(tmp_path: Path, tiles: Path, alone: Path) -> None:
    words = ["fit", *SGD, "--data-dir", str(tiles), "--batch-size", "32"]
    port = str(_free_port())
    nodes = []
    for node in ("0", "1"):
        where = ["--nnodes", "2", "--node-rank", node, "--master-port", port]
        (tmp_path / node).mkdir()
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-m", "kdtrain", "launch", *where, *words],
                cwd=tmp_path / node,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        )
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "test accuracy" in outputs[0]
    assert "test accuracy" not in outputs[1]
    assert files_in(tmp_path / "1") == {}
    assert_same_training(tmp_path / "0", alone)


def test_two_processes_of_one_launcher_train_as_one_process(
    tmp_path: Path, tiles: Path, alone: Path, spawn: Call
) -> None:
    launch = ("launch", "--nproc-per-node", "2", "--master-port", _free_port())
    words = ("fit", *SGD, "--data-dir", tiles, "--batch-size", "32", "--quiet")
    finished = spawn(*map(str, launch), *words, cwd=tmp_path)
    assert finished.stdout.startswith("test accuracy  ")  # the launcher's own messages are on stderr
    assert_same_training(tmp_path, alone)


def test_when_a_process_of_the_launcher_fails_there_is_no_traceback(tmp_path: Path, spawn: Call) -> None:
    finished = spawn.any_code("launch", "fit", "--mode", "studnt", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "did you mean 'student'?" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_commands_of_the_launchers_processes_begin_as_the_user_began(tmp_path: Path) -> None:
    program = tmp_path / "bin/kdtrain"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom kdtrain.cli import process\nprocess()\n")
    program.chmod(0o755)
    finished = run("bin/kdtrain", "launch", "fit", "--moed", "student", cwd=tmp_path)
    assert "See `bin/kdtrain fit --help`." in finished.stderr


def test_compare_works_with_two_processes(tmp_path: Path, tiles: Path, spawn: Call) -> None:
    flags = ("--data-dir", tiles, *FEW, "--epochs", "1", "--batch-size", "32")
    finished = spawn("fit", "--mode", "compare", *flags, *TWO, cwd=tmp_path)
    assert finished.stdout.count("logs/compare/version_0/compare.json\n") == 1, "one rank prints"
    results = json.loads((tmp_path / "logs/compare/version_0/compare.json").read_text())["models"]
    assert [row["model"] for row in results] == list(MODES)
    assert not (tmp_path / "logs/compare/version_1").exists()


def test_a_wrong_flag_is_explained_once(tmp_path: Path, spawn: Call) -> None:
    finished = spawn.any_code("fit", "--mode", "student", "--student-arch", "student_mpl", *TWO, cwd=tmp_path)
    assert_explained(finished, 2, "student_mpl", "student_mlp")


SLOW = """
import os, time
from pathlib import Path

from kdtrain import Callback

class Slow(Callback):
    def __init__(self, fail: str = ""):
        self.fail = fail

    def on_batch(self, run, event):
        Path(f"rank {os.environ['RANK']} is {os.getpid()}").touch()
        if self.fail == os.environ["RANK"]:
            raise RuntimeError("no more")
        time.sleep(0.05)
"""


def start(folder: Path, tiles: Path, plugin: str = "slow.py:Slow", **variables: str) -> subprocess.Popen[str]:
    """Starts two processes that train slowly."""
    (folder / "slow.py").write_text(SLOW)
    flags = ("--mode", "student", "--data-dir", tiles, "--val-size", "300", "--epochs", "50", *TWO)
    return start_kdtrain("fit", *flags, "--plugin", plugin, cwd=folder, **variables)


def ranks_of(folder: Path) -> dict[int, int]:
    """Waits until both ranks train; returns their process numbers."""
    wait_until(lambda: len(list(folder.glob("rank *"))) == 2)
    names = [path.name.split() for path in folder.glob("rank *")]
    return {int(name[1]): int(name[3]) for name in names}


def finish(process: subprocess.Popen[str], ranks: dict[int, int]) -> Finished:
    """Expects all processes to end within 30 s."""
    out, err = process.communicate(timeout=30)
    assert not [number for number in ranks.values() if Path(f"/proc/{number}").exists()]
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_others_end(tmp_path: Path, tiles: Path, victim: int) -> None:
    with start(tmp_path, tiles) as process:
        ranks = ranks_of(tmp_path)
        os.kill(ranks[victim], signal.SIGKILL)
        finished = finish(process, ranks)
    assert (finished.returncode, finished.stdout) == (1, "")
    last = finished.stderr.splitlines()[-1]
    assert f"process {victim} " in last
    assert "SIGKILL" in last
    assert not [name for name in files_in(tmp_path) if name.endswith(".tmp")]
    assert not (tmp_path / "logs/models").exists() or not list((tmp_path / "logs/models").iterdir())


def test_when_a_process_is_stopped_the_others_end(tmp_path: Path, tiles: Path) -> None:
    with start(tmp_path, tiles, KDTRAIN_SILENCE="2") as process:
        ranks = ranks_of(tmp_path)
        os.kill(ranks[1], signal.SIGSTOP)
        finished = finish(process, ranks)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "process 1 " in finished.stderr.splitlines()[-1]
    assert read_result(tmp_path / "logs/student/version_0")["status"] == "failed"


@pytest.mark.parametrize("rank", [0, 1])
def test_when_plugin_fails_in_one_process_its_error_is_shown(tmp_path: Path, tiles: Path, rank: int) -> None:
    with start(tmp_path, tiles, f"slow.py:Slow,fail={rank}") as process:
        finished = finish(process, {})
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "Slow.on_batch" in finished.stderr
    assert "RuntimeError: no more" in finished.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_all_of_them(
    tmp_path: Path, tiles: Path, number: signal.Signals, code: int
) -> None:
    with start(tmp_path, tiles) as process:
        ranks = ranks_of(tmp_path)
        process.send_signal(number)
        finished = finish(process, ranks)
    assert finished.returncode == code
    assert finished.stderr.splitlines()[-1].startswith("kdtrain: ")
    assert "Traceback" not in finished.stderr
    assert read_result(tmp_path / "logs/student/version_0")["status"] == "interrupted"
