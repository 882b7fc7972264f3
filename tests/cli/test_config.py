"""``kdtrain config`` prints what a fit would do; given back, it does the same."""

from __future__ import annotations

from pathlib import Path

import tomli

from kdtrain.experiment.settings.load import absolute_paths, load_config
from tests.cli.conftest import Call, assert_explained
from tests.runs import assert_same_tensors


def test_printed_settings_reproduce_the_run(tiles: Path, call: Call, tmp_path: Path) -> None:
    few = ("--val-size", "300", "--epochs", "1", "--limit-train", "256")
    other = ("--recipe", "sample", "--seed", "7", "--augment", "shift=1", "--temperature", "2")
    words = ("--mode", "student_kd", "--data-dir", tiles, *few, *other)
    printed = call("config", *words)
    assert printed.stderr == ""
    (tmp_path / "run.toml").write_text(printed.stdout)
    assert call("config", "--config", "run.toml").stdout == printed.stdout
    runs = [tmp_path / f"logs/student_kd/version_{number}" for number in (0, 1)]
    for run, arguments in zip(runs, (words, ("--config", "run.toml")), strict=True):
        call("fit", *arguments)
        own = tomli.loads((run / "config.toml").read_text())
        asked = absolute_paths(load_config(tomli.loads(printed.stdout))).resolved()
        assert {name: own[name] for name in asked} == asked
    assert_same_tensors(*(run / "checkpoints/last.safetensors" for run in runs))


def test_flags_win_over_the_file_and_mistakes_are_explained(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("seed = 3\nalpha = 0.5\n")
    printed = call("config", "--config", "run.toml", "--seed", "4")
    settings = tomli.loads(printed.stdout)
    assert (settings["seed"], settings["alpha"], settings["mode"]) == (4, 0.5, "compare")
    (tmp_path / "run.toml").write_text("sede = 3\n")
    finished = call.any_code("config", "--config", "run.toml")
    assert_explained(finished, 2, "there is no setting 'sede' (did you mean 'seed'?)")
