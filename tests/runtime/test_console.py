"""Messages of kdtrain: silent from Python unless logging is set up, printed by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Call, run_python

NOTE = "the teacher runs at every step"

FIT = """
import logging, sys
from functools import partial
from pathlib import Path
import kdtrain
{setup}
data = kdtrain.load_data(limit_train=64, augment="flip", views=0, device="cpu")
network = partial(kdtrain.build_model, "student_mlp", data.dataset.image_shape, data.dataset.num_classes)
optimizer = partial(kdtrain.flow.optim.SGD, lr=0.01)
callbacks = [kdtrain.DistillationCallback(network()), kdtrain.Progress("x")]
trainer = kdtrain.Trainer(network(), optimizer, callbacks)
trainer.fit(data.train, data.train, epochs=1, directory=Path("run"))
"""


@pytest.mark.parametrize(
    ("setup", "is_printed"), [("", False), ("logging.basicConfig(level=logging.INFO)", True)]
)
def test_from_python_messages_are_printed_only_if_logging_is_set_up(
    setup: str, is_printed: bool, tmp_path: Path
) -> None:
    finished = run_python(FIT.format(setup=setup), cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr
    assert (NOTE in finished.stderr) == is_printed
    if not is_printed:
        assert finished.stderr == ""


def test_the_command_line_prints_messages_to_stderr(spawn: Call, tiles: Path, tmp_path: Path) -> None:
    few = ("--data-dir", tiles, "--val-size", "100", "--limit-train", "64", "--recipe", "none")
    flags = (*few, "--epochs", "1", "--augment", "flip", "--views", "0")
    finished = spawn("fit", "--mode", "student_kd", *flags, cwd=tmp_path)
    assert NOTE in finished.stderr
    assert NOTE not in finished.stdout
