"""What docs/writing-a-plugin.md tells a newcomer to do works as it is written there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tomli

from kdtrain import KdtrainError, Loader, Status, Trainer, UsageError, flow
from kdtrain.engine.callback import HOOKS, Callback
from kdtrain.experiment.plugin_loader import GROUP, load_plugin
from tests.tools import ROOT

TEXT = (ROOT / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
TINY = ("--limit-train", "2560", "--val-size", "256")

RunKdtrain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all the files that the page shows."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def follow(command: str, folder: Path, run_kdtrain: RunKdtrain) -> Path:
    """Runs a command of the page on few images; returns the run's directory."""
    program, *words = shlex.split(command)
    assert program == "scripts/kdtrain"
    done = run_kdtrain(*words, *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder / "logs" / words[words.index("--mode") + 1] / "version_0"


def test_everything_on_the_page_is_tried_here() -> None:
    assert set(FILES) == {
        "loss_csv.py",
        "stop_at.py",
        "confidence_penalty.py",
        "logit_l1.py",
        "hint.py",
        "test_loss_csv.py",
        "pyproject.toml",
    }
    assert len(re.findall(r"^```\w", TEXT, re.MULTILINE)) == len(FILES) + 4
    assert [command.split()[0] for command in COMMANDS] == [
        "scripts/kdtrain",
        "scripts/kdtrain",
        "scripts/kdtrain",
        ".venv/bin/python",
    ]


def test_first_plugin_writes_its_table(folder: Path, run_kdtrain: RunKdtrain) -> None:
    run = follow(COMMANDS[0], folder, run_kdtrain)
    lines = (run / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,loss"
    assert [int(line.split(",")[0]) for line in lines[1:]] == [10, 20]
    losses = [float(line.split(",")[1]) for line in lines[1:]]
    assert losses[1] < losses[0] < 2.4, "the network learns"


def test_second_plugin_changes_what_is_minimised(folder: Path, run_kdtrain: RunKdtrain) -> None:
    run = follow(COMMANDS[1], folder, run_kdtrain)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert -2.31 < row["loss/confidence"] < 0
        assert row["loss/total"] == pytest.approx(row["loss/task"] + 0.2 * row["loss/confidence"], abs=1e-5)
    assert json.loads((run / "result.json").read_text())["status"] == "completed"


def test_methods_that_ask_the_teacher_train_a_student(folder: Path, run_kdtrain: RunKdtrain) -> None:
    run = follow(COMMANDS[2], folder, run_kdtrain)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        expected = 0.1 * row["loss/task"] + 0.9 * row["loss/logit_l1"] + row["loss/hint_fc2"]
        assert row["loss/total"] == pytest.approx(expected, abs=1e-5)
    assert rows[1]["loss/hint_fc2"] < rows[0]["loss/hint_fc2"] < 1.0
    assert rows[1]["loss/logit_l1"] < rows[0]["loss/logit_l1"]


def test_third_plugin_ends_a_fit_that_is_good_enough(
    folder: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    for accuracy, status, epochs in ((0.0, Status.STOPPED, 1), (1.0, Status.COMPLETED, 2)):
        callback = load_plugin(f"{folder}/stop_at.py:StopAt,accuracy={accuracy}")
        trainer = Trainer(student, partial(flow.optim.SGD, lr=0.01), [callback])
        end = trainer.fit(train, validation, epochs=2, directory=folder)
        assert (end.status, end.epoch) == (status, epochs)
        assert end.reason == ("the accuracy has reached 0.00%" if accuracy == 0 else None)
    with pytest.raises(UsageError, match=r"accuracy=2\.0: it must be from 0 to 1"):
        load_plugin(f"{folder}/stop_at.py:StopAt,accuracy=2")


def test_test_of_the_page_passes(folder: Path) -> None:
    _, *words = shlex.split(COMMANDS[3])
    done = subprocess.run(
        [sys.executable, *words, "-p", "no:cacheprovider"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_published_plugin_is_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomli.loads(FILES["pyproject.toml"])
    offered = project["project"]["entry-points"]
    assert list(offered) == [GROUP]
    information = folder / "kdtrain_loss_csv-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kdtrain-loss-csv\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in offered[GROUP].items()]
    (information / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    assert project["tool"]["setuptools"]["py-modules"] == ["loss_csv"]
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    importlib.invalidate_caches()
    assert type(load_plugin("loss_csv,every=10")).__name__ == "LossCsv"
    monkeypatch.delitem(sys.modules, "loss_csv")


def test_table_of_hooks_is_complete() -> None:
    listed = re.findall(r"^\| `(\w+)\(", TEXT, re.MULTILINE)
    assert listed == ["configure", *HOOKS, "state_dict", "load_state_dict"]
    assert [name for name, value in vars(Callback).items() if name[:2] != "__" and callable(value)] == listed


def test_mistyped_hook_is_refused_as_the_page_says(folder: Path) -> None:
    (folder / "typo.py").write_text(FILES["loss_csv.py"].replace("on_batch", "on_bach"))
    with pytest.raises(KdtrainError, match=r"no hook 'on_bach' \(did you mean 'on_batch'\?\)"):
        load_plugin(f"{folder}/typo.py:LossCsv")


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)(.+?)\)", TEXT)
    assert links
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    places = {re.sub(r"[^a-z0-9 ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in links:
        assert link.removeprefix("#") in places or (ROOT / "docs" / link).exists(), link
