"""Printed commands: they can be copied, and the last lines of a command fit a terminal of 80 columns."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdtrain.cli.output import Stdout, after_comparison, after_fit
from kdtrain.cli.parser import COMMANDS, command_parser, parse, top_parser
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.runtime.locations import command_name
from tests.cli.conftest import Call
from tests.tools import ROOT

RUN = Path("logs/student_kd/version_0/checkpoints/best.safetensors")


def after(config: FitConfig, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Returns the lines after a fit."""
    (after_comparison if config.mode == "compare" else after_fit)(Stdout(), config, RUN)
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


BARE = re.compile(rf"(?<![\w./-])kdtrain ({'|'.join(COMMANDS)}|COMMAND)\b")
"""A command that does not begin as the user began."""

PRINTED = {
    "": "`scripts/kdtrain fit`",
    "fit --moed x": "See `scripts/kdtrain fit --help`.",
    "tune --mode student": "`scripts/kdtrain tune` is for the students",
    "infer a.png": "Train one with `scripts/kdtrain fit --mode student_kd`",
    "bench": "train one with `scripts/kdtrain fit`",
    "serve model.safetensors": "`scripts/kdtrain export model.safetensors`",
    "launch --nnodes 2": "`scripts/kdtrain launch --nnodes 2 fit --mode student`",
    "runs": "The first one: scripts/kdtrain fit\n",
    "plugins": "Hooks and sources: scripts/kdtrain plugins --json\n",
    "recipes": "A copy to change: scripts/kdtrain recipes NAME > mine.toml\n",
}


@pytest.mark.parametrize("words", PRINTED)
def test_every_printed_command_begins_as_the_user_began(
    words: str, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KDTRAIN_COMMAND", "scripts/kdtrain")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "logs").mkdir()
    finished = call.any_code(*words.split())
    assert PRINTED[words] in finished.stdout + finished.stderr
    assert not BARE.search(finished.stdout + finished.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_help_begin_as_the_user_began(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDTRAIN_COMMAND", "50%/kdtrain")
    text = command_parser(command).format_help()
    assert text.startswith(f"usage: 50%/kdtrain {command} ")
    text += top_parser().format_help()
    assert "\n  compare student, KD and teacher: 50%/kdtrain fit --mode compare\n" in text
    assert not BARE.search(text)


def test_a_command_in_a_message_is_marked_as_one_by_backticks_or_by_a_colon() -> None:
    """Otherwise it does not begin as the user began, and may be broken into two lines."""
    unmarked = re.compile(rf"(?<!`)(?<!: )(?<!\()(?<![\w./-]){BARE.pattern}")
    after_a_colon = "kdtrain fit --resume "  # in kept_models.py
    of_the_card = ROOT / "kdtrain/experiment/history/model_card.py"  # others read it, who began otherwise
    for file in sorted({*(ROOT / "kdtrain").rglob("*.py")} - {of_the_card}):
        tree = ast.parse(file.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
        found = {str(text.value) for text in texts if unmarked.search(str(text.value))}
        assert found <= {after_a_colon}, file
