"""``kdtrain config`` prints what a fit would do; given back, it does the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tomli

from kdtrain.experiment.settings.load import absolute_paths, load_config
from kdtrain.store.checkpoint import Weights, load_tensors
from tests.cli.conftest import CallKdtrain, assert_explained


def test_printed_settings_reproduce_the_run(tiles: Path, call_kdtrain: CallKdtrain, tmp_path: Path) -> None:
    few = ("--val-size", "300", "--epochs", "1", "--limit-train", "256")
    other = ("--recipe", "sample", "--seed", "7", "--augment", "shift=1", "--temperature", "2")
    words = ("--mode", "student_kd", "--data-dir", tiles, *few, *other)
    printed = call_kdtrain("config", *words, cwd=tmp_path)
    assert (printed.returncode, printed.stderr) == (0, "")
    (tmp_path / "run.toml").write_text(printed.stdout)
    assert call_kdtrain("config", "--config", "run.toml", cwd=tmp_path).stdout == printed.stdout
    weights: list[Weights] = []
    for arguments in (words, ("--config", "run.toml")):
        assert call_kdtrain("fit", *arguments, cwd=tmp_path).returncode == 0
        run = tmp_path / f"logs/student_kd/version_{len(weights)}"
        weights.append(load_tensors(run / "checkpoints/last.safetensors")[0])
        own = tomli.loads((run / "config.toml").read_text())
        asked = absolute_paths(load_config(tomli.loads(printed.stdout))).resolved()
        assert {name: own[name] for name in asked} == asked
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_flags_win_over_the_file_and_mistakes_are_explained(
    call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text("seed = 3\nalpha = 0.5\n")
    printed = call_kdtrain("config", "--config", "run.toml", "--seed", "4", cwd=tmp_path)
    settings = tomli.loads(printed.stdout)
    assert (settings["seed"], settings["alpha"], settings["mode"]) == (4, 0.5, "compare")
    (tmp_path / "run.toml").write_text("sede = 3\n")
    finished = call_kdtrain("config", "--config", "run.toml", cwd=tmp_path)
    assert_explained(finished, 2, "there is no setting 'sede' (did you mean 'seed'?)")
