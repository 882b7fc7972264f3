"""The example of chains: each network is the next one's teacher, with initial weights of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.chains.chain import train_chain
from kdtrain.experiment.settings.load import load_config
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import Fitted


def test_each_network_is_taught_by_the_one_before(
    tiles: Path, fitted: Fitted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = ["hinton_800", "student_mlp", "student_mlp"]
    few: dict[str, Any] = {"data_dir": tiles, "val_size": 300, "limit_train": 256, "epochs": 1}
    few |= {"logdir": tmp_path, "model_save_dir": fitted.model("teacher").parent, "keep": "never"}
    last = train_chain(networks, recipe="none", **few)
    runs = [tmp_path / f"student_kd/version_{number}" for number in range(3)]
    models = [run / "checkpoints/best.safetensors" for run in runs]
    assert last.path == models[-1]
    configs = [load_config({}, run / "config.toml") for run in runs]
    assert [config.teacher_checkpoint for config in configs[1:]] == [(model,) for model in models[:-1]]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == networks
    first, second = (load_model(model).weights["fc1.weight"] for model in models[1:])
    assert (first != second).any()
