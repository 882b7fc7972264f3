"""Mixup: which images are mixed, by how much, and what the loss of mixed images is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats

from kdtrain.callbacks.distillation import DistillationCallback
from kdtrain.data.augmentation import Mixup, Shift, augmentation, mixup
from kdtrain.data.dataset import Dataset
from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import Trainer
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.ranks import Ranks
from plugins.grad_norm import GradNorm
from plugins.label_smoothing import LabelSmoothing
from tests.tools import read_scalars

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def images(mnist: Dataset) -> Floats:
    return mnist.normalization.apply(mnist.train.images[:256])


def _loader(images: Floats, mnist: Dataset, **options: object) -> Loader:
    arguments: dict[str, object] = {"num_classes": 10, "seed": 0, "mixup": Mixup(0.4), **options}
    return Loader(images, mnist.train.labels[: len(images)], 64, **arguments)  # type: ignore[arg-type]


def test_the_setting_is_understood() -> None:
    assert mixup("shift=2,flip") is None
    assert mixup("mixup,flip") == Mixup(1.0)
    assert mixup("shift=2,mixup=0.2") == Mixup(0.2)
    assert augmentation("mixup", (0.0,)) is None
    assert augmentation("mixup=0.2,shift=2", (0.5,)) == Shift(2, (0.5,))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    rng, pixels = np.random.default_rng(0), np.zeros((2, 1, 1, 1), np.float32)
    shares = [Mixup(alpha)(pixels, rng)[1] for _ in range(2000)]
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_each_image_is_mixed_with_one_of_its_batch_in_one_proportion(images: Floats, mnist: Dataset) -> None:
    labels = mnist.train.labels
    batches = list(_loader(images, mnist).epoch(1))
    assert len({batch.mixup_lambda for batch in batches}) == len(batches)
    for batch in batches:
        assert batch.mixup_partner is not None
        assert batch.mixup_partner.inputs is batch.inputs
        rows, partners = batch.indices.numpy(), batch.mixup_partner.indices.numpy()
        assert sorted(rows) == sorted(partners)
        share = batch.mixup_lambda
        expected = share * images[rows].astype(np.float64) + (1 - share) * images[partners]
        np.testing.assert_allclose(batch.inputs.numpy(), expected, atol=1e-6)
        np.testing.assert_array_equal(batch.targets.numpy(), labels[rows])
        np.testing.assert_array_equal(batch.mixup_partner.targets.numpy(), labels[partners])


def test_it_comes_after_the_other_augmentations_and_not_in_evaluation(images: Floats, mnist: Dataset) -> None:
    shift = Shift(2, mnist.normalization.background)
    loader = _loader(images, mnist, augment=shift)
    moved = next(iter(_loader(images, mnist, augment=shift, mixup=None).epoch(1)))
    mixed = next(iter(loader.epoch(1)))
    assert mixed.mixup_partner is not None
    np.testing.assert_array_equal(moved.indices.numpy(), mixed.indices.numpy())
    rows = [list(moved.indices.numpy()).index(index) for index in mixed.mixup_partner.indices.numpy()]
    expected = (
        mixed.mixup_lambda * moved.inputs.numpy() + (1 - mixed.mixup_lambda) * moved.inputs.numpy()[rows]
    )
    np.testing.assert_allclose(mixed.inputs.numpy(), expected, atol=1e-5)
    (batch,) = loader.sequential(256).epoch(1)
    assert batch.mixup_partner is None
    np.testing.assert_array_equal(batch.inputs.numpy(), images)


def test_seed_epoch_and_process_decide_all_of_it(images: Floats, mnist: Dataset) -> None:
    class Second(Ranks):
        rank, size = 1, 2

    def first(epoch: int = 1, **options: object) -> Batch:
        return next(iter(_loader(images, mnist, **options).epoch(epoch)))

    np.testing.assert_array_equal(first().inputs.numpy(), first().inputs.numpy())
    for other in (first(2), first(seed=1), first(ranks=Second())):
        assert other.mixup_lambda != first().mixup_lambda
    part = first(ranks=Second())
    assert part.mixup_partner is not None
    assert sorted(part.indices.numpy()) == sorted(part.mixup_partner.indices.numpy()), (
        "a process mixes its own part"
    )


def _mixed(share: float) -> tuple[Batch, npt.NDArray[np.float64]]:
    """A batch of mixed images, and its soft labels (4, 3)."""
    labels, partner_labels = np.array([0, 1, 2, 1]), np.array([1, 1, 0, 2])
    inputs = flow.zeros(4, 1)
    partner = Batch(inputs, flow.tensor(partner_labels), flow.tensor(np.arange(4)))
    batch = Batch(inputs, flow.tensor(labels), flow.tensor(np.arange(4)), share, partner)
    return batch, share * np.eye(3)[labels] + (1 - share) * np.eye(3)[partner_labels]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_soft_labels(share: float, epsilon: float) -> None:
    values = np.random.default_rng(1).normal(scale=3, size=(4, 3)).astype(np.float32)
    batch, soft = _mixed(share)
    objective = Objective.task()
    if epsilon:
        objective = LabelSmoothing(epsilon).configure(objective)
        soft = soft * (1 - epsilon) + (1 - soft) * epsilon / 2
    logits = flow.tensor(values, requires_grad=True)
    losses = objective(batch, Output(logits))
    losses["total"].backward()
    log_p = scipy.special.log_softmax(values.astype(np.float64), axis=1)
    assert losses["task"].item() == pytest.approx(-(soft * log_p).sum(axis=1).mean(), rel=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), (np.exp(log_p) - soft) / 4, atol=1e-6)


def test_a_teacher_is_asked_once_a_step_about_the_mixed_images(
    images: Floats, mnist: Dataset, tmp_path: Path
) -> None:
    flow.manual_seed(3)
    student, teacher = (build_model("student_mlp", (1, 28, 28), 10) for _ in range(2))
    seen: list[bytes] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy().tobytes()))

    class Watch(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            assert seen[-1] == event.batch.inputs.numpy().tobytes()

    loader = _loader(images, mnist)
    trainer = Trainer(student, partial(flow.optim.Adam, lr=1e-3), [DistillationCallback(teacher), Watch()])
    trainer.fit(loader, loader.sequential(64), epochs=1, directory=tmp_path)
    assert len(seen) == 1 + len(loader)  # one image to count the classes with


def test_gradient_norms_of_terms_count_both_labels(images: Floats, mnist: Dataset, tmp_path: Path) -> None:
    flow.manual_seed(3)
    student, loader = build_model("student_mlp", (1, 28, 28), 10), _loader(images, mnist)
    trainer = Trainer(student, partial(flow.optim.SGD, lr=1e-9), [GradNorm(every=1)])
    trainer.fit(loader, loader.sequential(64), epochs=1, directory=tmp_path)
    curves = read_scalars(tmp_path)
    assert curves["grad_norm"] == pytest.approx(curves["grad_norm/task"], rel=1e-4)
