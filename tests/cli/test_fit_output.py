"""The output of ``kdtrain fit``: one JSON document, few messages or many, and the run's name."""

from __future__ import annotations

import json
from pathlib import Path

import tomli

from kdtrain.runtime.processes import available_cores
from tests.cli.conftest import Call
from tests.tools import read_result

FLAGS = ("--mode", "student", "--limit-train", "64", "--val-size", "64", "--epochs", "1", "--no-keep")

PRINTS = """
from kdtrain import Callback

class Prints(Callback):
    def on_fit_end(self, run, event):
        print("printed by a plugin")
"""


def test_json_is_alone_on_stdout_and_quiet_prints_nothing_else(
    call: Call, tiles: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(PRINTS)
    words = ("--data-dir", tiles, "--json", "--quiet", "--plugin", "mine.py:Prints", "--name", "warm")
    finished = call("fit", *FLAGS, *words)
    assert finished.stderr == "printed by a plugin\n"
    result = json.loads(finished.stdout)
    run = tmp_path / "logs/student/warm"
    assert (result["mode"], result["name"], result["directory"]) == ("student", "warm", str(run))
    [model] = result["models"]
    assert read_result(run) | {"directory": str(run)} == result
    assert (run / model["directory"] / model["checkpoint"]).is_file()
    assert tomli.loads((run / "config.toml").read_text())["name"] == "warm"

    again = call.any_code("fit", *FLAGS, "--name", "warm")
    assert again.returncode == 2
    assert "logs/student/warm exists already" in again.stderr

    resumed = call("fit", "--mode", "student", "--name", "warm", "--resume", "--verbose")
    cores = len(available_cores())  # all: the network has convolutions
    plural = "" if cores == 1 else "s"
    assert f"training student: begun on {cores} core{plural}." in resumed.stderr.splitlines()
    assert "best weights   logs/student/warm/" in resumed.stdout


def test_a_name_is_one_part_of_a_path(call: Call, tmp_path: Path) -> None:
    for name in ("a/b", "..", ".hidden", "-x", "version_3", "", "a b", "x" * 61, "a\0"):
        refused = call.any_code("fit", *FLAGS, f"--name={name}")
        assert refused.returncode == 2, name
        assert "--name is" in refused.stderr
    assert not (tmp_path / "logs").exists()
