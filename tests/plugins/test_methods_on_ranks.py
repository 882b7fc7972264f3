"""Methods with several processes: the same student as with one, or one process only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdtrain import BatchEnd, Callback, DistillationCallback, Loader, Run, Trainer, build_model, flow
from kdtrain.data.dataset import Dataset
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.session import Session
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import Floats, Ranks
from kdtrain.store.checkpoint import load_model, snapshot
from plugins.dkd import Dkd
from plugins.fitnet import FitNet
from tests.cli.conftest import untrained_teacher

pytestmark = pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")

IMAGES = 300  # batches of 64, the last of 44


class Gradients(Callback):
    """Keeps the first step's gradients, and the weights after the last, of student and regressor."""

    def __init__(self) -> None:
        self.first = np.zeros(0, np.float32)
        self.weights = np.zeros(0, np.float32)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        if event.step == 1:
            gradients = [p.grad.numpy().ravel() for module in run.modules for p in module.parameters()]
            self.first = np.concatenate(gradients)
        parts = [array.ravel() for module in run.modules for array in snapshot(module).values()]
        self.weights = np.concatenate(parts)


def distil(mnist: Dataset, folder: Path, ranks: Ranks) -> Floats:
    """Distils by two methods; returns gradients and weights, a row for each rank."""
    flow.manual_seed(7)
    teacher = build_model("hinton_800", (1, 28, 28), 10)
    flow.manual_seed(1)
    model = build_model("student_mlp", (1, 28, 28), 10)
    images, labels = mnist.normalization.apply(mnist.train.images[:IMAGES]), mnist.train.labels[:IMAGES]
    train, held_out = (Loader(images, labels, 64, num_classes=10, seed=s, ranks=ranks) for s in (3, None))
    kept = Gradients()
    callbacks = [DistillationCallback(teacher), Dkd(warmup=1), FitNet("fc1", "fc1"), kept]
    trainer = Trainer(model, partial(flow.optim.SGD, lr=1e-3, momentum=0.9), callbacks)
    trainer.fit(train, held_out, epochs=1, directory=folder / f"rank_{ranks.rank}")
    return ranks.all_gather(np.stack([kept.first, kept.weights])[None])


def test_two_processes_distil_as_one_and_hold_the_same_regressor(mnist: Dataset, tmp_path: Path) -> None:
    (alone,) = distil(mnist, tmp_path, Ranks())
    (together,) = run_jobs([Job("two", lambda ranks: distil(mnist, tmp_path, ranks), cores=2)])
    np.testing.assert_array_equal(together[0, 1], together[1, 1])
    assert np.abs(alone[0]).max() > 0.01
    np.testing.assert_allclose(together[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("plugin", "cores"),
    [
        ("dkd", 2),
        ("fitnet,student_layer=conv1,teacher_layer=conv1", 2),
        ("dist", 1),
        ("rkd,student_layer=fc1,teacher_layer=fc1", 1),
        ("similarity,student_layer=fc1,teacher_layer=fc1", 1),
    ],
)
def test_a_method_that_relates_images_keeps_its_batches_whole(
    plugin: str, cores: int, mnist: Dataset, tmp_path: Path
) -> None:
    config = FitConfig(
        mode="student_kd", student_arch="teacher_cnn", logdir=tmp_path, plugin=(plugin,), limit_train=512
    )
    session = Session(config)
    teacher = load_model(untrained_teacher(tmp_path / "teacher.safetensors", mnist))
    distilled = session.fit_and_test_job(FitSpec("student_kd", 0, tmp_path / "student_kd", teacher))
    assert min(distilled.cores, 2) == cores
    plain = session.fit_and_test_job(FitSpec("student", 0, tmp_path / "student"))
    assert plain.cores > 1, "where the method takes no part it forbids nothing"
