"""Contents of docs/writing-a-plugin.md beyond its commands, which test_pages.py runs."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import tomli

from kdtrain import KdtrainError, Loader, Status, Trainer, UsageError, flow
from kdtrain.engine.callback import HOOKS, Callback
from kdtrain.experiment.plugin_loader import GROUP, load_plugin
from tests.documents import DOCS, files, text_of

PAGE = DOCS / "writing-a-plugin.md"
FILES = files(PAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files of the page."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_stop_at_ends_a_fit_that_is_good_enough(
    folder: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    for accuracy, status, epochs in ((0.0, Status.STOPPED, 1), (1.0, Status.COMPLETED, 2)):
        callback = load_plugin(f"{folder}/stop_at.py:StopAt,accuracy={accuracy}")
        trainer = Trainer(student, partial(flow.optim.SGD, lr=0.01), [callback])
        end = trainer.fit(train, validation, epochs=2, directory=folder)
        assert (end.status, end.epoch) == (status, epochs)
        assert ("0.00%" in str(end.reason)) == (accuracy == 0)
    with pytest.raises(UsageError, match=r"accuracy=2\.0"):
        load_plugin(f"{folder}/stop_at.py:StopAt,accuracy=2")


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
    listed = re.findall(r"^\| `(\w+)\(", text_of(PAGE), re.MULTILINE)
    assert listed == ["configure", *HOOKS, "state_dict", "load_state_dict"]
    assert [name for name, value in vars(Callback).items() if callable(value) and name[0] != "_"] == listed


def test_mistyped_hook_is_refused_with_the_name_that_was_meant(folder: Path) -> None:
    (folder / "typo.py").write_text(FILES["loss_csv.py"].replace("on_batch", "on_bach"))
    with pytest.raises(KdtrainError, match=r"'on_bach'.*'on_batch'"):
        load_plugin(f"{folder}/typo.py:LossCsv")
