"""The first steps of a distillation, against a recorded trace.

A change of these numbers changes every user's results. If it is intended, record them again with
``python -m tests.engine.test_golden_losses`` and write it into the changelog.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from kdtrain import DistillationCallback, LearningRateSchedule, Loader, Trainer, build_model, flow
from kdtrain.data.datasets import load_dataset
from kdtrain.data.draws import derive_seed
from tests.engine.fits import Notes, mlp

TRACE = Path(__file__).with_name("losses.json")


def trace(folder: Path) -> dict[str, list[float]]:
    mnist = load_dataset()
    images = mnist.normalization.apply(mnist.train.images[:640])
    train = Loader(images[:512], mnist.train.labels[:512], 64, num_classes=10, seed=3)
    validation = Loader(images[512:], mnist.train.labels[512:640], 64, num_classes=10)
    flow.manual_seed(derive_seed(3, "weights", "teacher"))
    teacher = build_model("hinton_800", (1, 28, 28), 10)
    student = mlp(derive_seed(3, "weights", "student"))
    notes = Notes()
    callbacks = [
        LearningRateSchedule("one_cycle", 3e-3),
        DistillationCallback(teacher, temperature=4.0, alpha=0.9, cache_directory=folder),
        notes,
    ]
    trainer = Trainer(student, partial(flow.optim.Adam, lr=1e-3), callbacks, seed=3)
    trainer.fit(train, validation, epochs=3, directory=folder)
    return {name: [row[name] for row in notes.losses] for name in notes.losses[0]}


def test_the_first_steps_go_as_recorded(tmp_path: Path) -> None:
    recorded = json.loads(TRACE.read_text())
    traced = trace(tmp_path)
    assert list(traced) == list(recorded) == ["task", "kd", "total"]
    for name, losses in recorded.items():
        # Not to the bit, because another processor's matrix product rounds differently.
        np.testing.assert_allclose(traced[name], losses, rtol=2e-3, err_msg=name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        TRACE.write_text(json.dumps(trace(Path(folder)), indent=1) + "\n")
