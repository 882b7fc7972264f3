"""Plugins that do not go together are refused before any network is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.errors import CallbackError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.rehearsal import rehearse
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import CallKdtrain, untrained_teacher
from tests.faults.limits import limited
from tests.tools import files_in, write_tiles

PLUGIN = """
from kdtrain import Callback

class Twice(Callback):
    def configure(self, objective):
        return objective.add("mine", lambda batch, output: output.logits.sum())

class Kd(Callback):
    def configure(self, objective):
        return objective.add("kd", lambda batch, output: output.logits.sum())
"""
REFUSED = {
    "an average twice": ("student", "ema", "ema"),
    "an average twice, differently": ("teacher", "ema", "ema,decay=0.9"),
    "one's own twice": ("compare", "mine.py:Twice", "mine.py:Twice"),
    "the name of a built-in term": ("student_kd", "mine.py:Kd"),
    "the name of a built-in term, in a comparison": ("compare", "mine.py:Kd"),
    "a method twice": ("student_kd", "dkd", "dkd"),
    "a layer that the student lacks": ("compare", "fitnet,teacher_layer=conv2,student_layer=conv2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fit_that_cannot_be_configured_is_not_begun(
    call_kdtrain: CallKdtrain, mnist: Dataset, tmp_path: Path, case: str
) -> None:
    mode, *plugins = REFUSED[case]
    write_tiles(tmp_path / "tiles", mnist)
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = [word for plugin in plugins for word in ("--plugin", plugin)]
    with limited(10):
        done = call_kdtrain("fit", "--mode", mode, "--data-dir", "tiles", *words, cwd=tmp_path)
    assert done.returncode in (1, 2), done.stderr
    assert ".configure" in done.stderr
    assert "1/" not in done.stderr  # no epoch was trained
    assert files_in(tmp_path / "logs") == {}


def test_the_teacher_that_is_there_counts_and_not_the_one_that_would_be_trained(
    mnist: Dataset, tmp_path: Path
) -> None:
    teacher = load_model(untrained_teacher(tmp_path / "teacher.safetensors", mnist, "hinton_800"))
    layers = ("fitnet,teacher_layer=fc2,student_layer=fc2", "fitnet,teacher_layer=conv2,student_layer=fc2")
    good, bad = (FitConfig(mode="student_kd", plugin=(layer,)) for layer in layers)
    rehearse(good, mnist, teacher)
    with pytest.raises(CallbackError, match="conv2"):
        rehearse(bad, mnist, teacher)
    rehearse(bad, mnist, None)


def test_each_network_of_a_chain_is_the_next_ones_teacher(mnist: Dataset) -> None:
    plugin = "fitnet,teacher_layer=conv2,student_layer=fc1"
    rehearse(FitConfig(mode="student_kd", plugin=(plugin,)), mnist, None)
    with pytest.raises(CallbackError, match="conv2"):
        rehearse(FitConfig(mode="student_kd", plugin=(plugin,), generations=3), mnist, None)
