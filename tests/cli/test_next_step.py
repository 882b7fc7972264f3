"""The last lines of a command: they can be copied, and fit a terminal of 80 columns."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdtrain.cli.next_step import after_comparison, after_fit
from kdtrain.cli.output import Output
from kdtrain.cli.parser import parse
from kdtrain.experiment.config import FitConfig
from kdtrain.runtime.locations import command_name
from tests.tools import ROOT

RUN = Path("logs/student_kd/version_0/checkpoints/best.safetensors")


def after(config: FitConfig, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Returns the lines after a fit."""
    (after_comparison if config.mode == "compare" else after_fit)(Output(), config, RUN)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Next:")
    return lines


def commands(lines: list[str]) -> list[list[str]]:
    """Returns the words of each command, after the parser has accepted them."""
    found = [shlex.split(line[line.index("kdtrain ") :]) for line in lines if "kdtrain " in line]
    for words in found:
        parse(words[1:])
    return found


@pytest.mark.parametrize("mode", ["teacher", "student", "student_kd", "compare"])
def test_lines_after_a_fit_are_commands_within_80_columns(
    mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDTRAIN_COMMAND", "scripts/kdtrain")
    lines = after(FitConfig(mode=mode), capsys)
    assert max(map(len, lines)) <= 80
    expected = {
        "teacher": ["fit --mode student_kd"],
        "student": ["fit --mode compare"],
        "student_kd": ["infer my_digit.jpg", f"export {RUN}"],
        "compare": ["infer my_digit.jpg", "fit --mode compare --dataset folder:DIR"],
    }
    assert [" ".join(words[1:]) for words in commands(lines)] == expected[mode]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"mode": "teacher", "dataset": "folder:my photos", "image_size": 32, "keep": "never"},
            f"fit --mode student_kd --dataset 'folder:my photos' --image-size 32 --teacher-checkpoint {RUN}",
        ),
        ({"mode": "student", "logdir": Path("runs")}, "fit --mode compare --logdir runs"),
        ({"mode": "compare", "dataset": "folder:photos"}, f"infer IMAGE --checkpoint {RUN}"),
        ({"mode": "compare", "logdir": Path("runs")}, "infer my_digit.jpg --model-save-dir runs/models"),
        (
            {"mode": "compare", "keep": "never", "student_arch": "net.py:make"},
            f"infer my_digit.jpg --checkpoint {RUN} --arch net.py:make",
        ),
    ],
)
def test_commands_have_the_data_and_the_models_of_the_fit(
    settings: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = commands(after(FitConfig(**settings), capsys))
    assert first == ["kdtrain", *shlex.split(expected)]


def test_a_command_begins_as_the_user_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KDTRAIN_COMMAND", raising=False)
    for begun in (".venv/bin/kdtrain", "/opt/kd/bin/kdtrain"):
        monkeypatch.setattr(sys, "argv", [begun])
        assert command_name() == begun
    monkeypatch.setattr(sys, "argv", ["/home/ada/kdtrain/__main__.py"])
    assert command_name() == "kdtrain"
    (tmp_path / "kdtrain").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "kdtrain")])
    assert command_name() == "kdtrain", "it is found in PATH"
    monkeypatch.setenv("KDTRAIN_COMMAND", "scripts/kdtrain")
    assert command_name() == "scripts/kdtrain"


def test_scripts_kdtrain_says_how_it_was_begun(tmp_path: Path) -> None:
    """The script of the tree, with a set-up and a program that print the variable."""
    for name, content in {
        "scripts/kdtrain": (ROOT / "scripts/kdtrain").read_text(),
        "scripts/bootstrap": "",
        ".venv/bin/kdtrain": '#!/bin/sh\necho "$KDTRAIN_COMMAND $*"\n',
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(0o755)
    begun = subprocess.run(
        ["scripts/kdtrain", "fit"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert begun.stdout == "scripts/kdtrain fit\n"
