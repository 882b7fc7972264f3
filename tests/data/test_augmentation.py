"""Augmentations change images as their names say, by seed and epoch; mixup also mixes labels."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain.callbacks.distillation import DistillationCallback
from kdtrain.data.augmentation import Crop, Flip, Mixup, Rotate, Shift, augmentation, mixup
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
    arguments: dict[str, object] = {"num_classes": 10, "seed": 0, **options}
    return Loader(images, mnist.train.labels[: len(images)], 64, **arguments)  # type: ignore[arg-type]


_mixing = partial(_loader, mixup=Mixup(0.4))


def _moved(image: Floats, down: int, right: int, background: float) -> Floats:
    """Returns an image (H, W) moved pixel by pixel, in plain Python."""
    height, width = image.shape
    result = np.full_like(image, background)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 8))
SEEDS = st.integers(0, 1000)


@settings(max_examples=30)
@given(pixels=st.integers(1, 9), shape=SHAPES, seed=SEEDS)
def test_each_image_is_moved_as_a_whole_and_the_rest_is_background(
    pixels: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    background = (-1.5, 0.25, 7.0)[: shape[1]]
    shifted = Shift(pixels, background)(images, np.random.default_rng(seed))
    assert shifted.shape == images.shape
    assert shifted.dtype == np.float32
    for before, after in zip(images, shifted, strict=True):
        ways = [(down, right) for down in range(-pixels, pixels + 1) for right in range(-pixels, pixels + 1)]
        assert any(
            all(
                np.array_equal(after[channel], _moved(before[channel], *way, background[channel]))
                for channel in range(shape[1])
            )
            for way in ways
        )


def test_all_distances_are_equally_likely_and_independent() -> None:
    dot = np.zeros((10_000, 1, 9, 9), np.float32)
    dot[:, :, 4, 4] = 1
    _, _, rows, columns = np.nonzero(Shift(2, (0.0,))(dot, np.random.default_rng(0)))
    counts = np.histogram2d(rows, columns, bins=(np.arange(10), np.arange(10)))[0]
    assert counts[2:7, 2:7].sum() == 10_000
    assert counts[2:7, 2:7].min() > 300  # 400 expected, 5 sigma
    assert counts[2:7, 2:7].max() < 500


def test_the_background_is_what_a_black_pixel_becomes(mnist: Dataset) -> None:
    black = mnist.normalization.apply(np.zeros((1, 1, 28, 28), np.uint8))
    np.testing.assert_allclose(black, mnist.normalization.background[0], rtol=1e-6)


def test_the_setting_is_understood() -> None:
    assert augmentation("shift=1", (0.0,)) == Shift(1, (0.0,))
    assert augmentation("shift=9", (0.0,)) == Shift(9, (0.0,))
    assert augmentation("none", (0.0,)) is None
    assert augmentation("rotate=15", (0.5,)) == Rotate(15, (0.5,))
    assert augmentation("crop=4", (0.5,)) == Crop(4)
    assert augmentation("flip", (0.5,)) == Flip()
    assert augmentation("mixup", (0.0,)) is None
    assert augmentation("mixup=0.2,shift=2", (0.5,)) == Shift(2, (0.5,))
    assert mixup("shift=2,flip") is None
    assert mixup("mixup,flip") == Mixup(1.0)
    assert mixup("shift=2,mixup=0.2") == Mixup(0.2)


def test_augmentations_are_applied_in_the_order_of_the_setting(images: Floats) -> None:
    steps = (Shift(2, (-0.5,)), Rotate(15, (-0.5,)), Flip(), Crop(4))
    changed = augmentation("shift=2,rotate=15,flip,crop=4", (-0.5,))
    assert changed is not None
    rng, expected = np.random.default_rng(3), images
    for step in steps:
        expected = step(expected, rng)
    np.testing.assert_array_equal(changed(images, np.random.default_rng(3)), expected)


@pytest.mark.parametrize("text", ["shift=2", "crop=3", "flip", "rotate=20", "shift=1,flip,crop=2,rotate=5"])
def test_every_kind_keeps_shape_type_and_the_data(text: str, mnist: Dataset) -> None:
    images = np.repeat(mnist.normalization.apply(mnist.train.images[:16]), 3, 1)
    before = images.copy()
    changed = augmentation(text, (0.0, 1.0, 2.0))
    assert changed is not None
    first, again, other = (changed(images, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert first.flags.c_contiguous
    assert not np.shares_memory(first, images)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(images, before)


def test_a_flip_mirrors_about_half_of_the_images(mnist: Dataset) -> None:
    images = mnist.normalization.apply(mnist.train.images[:1000])
    flipped = Flip()(images, np.random.default_rng(0))
    mirrored = (flipped == images[..., ::-1]).all((1, 2, 3))
    same = (flipped == images).all((1, 2, 3))
    assert (mirrored | same).all()
    assert 400 < mirrored.sum() < 600


@given(pixels=st.integers(1, 9), shape=SHAPES, seed=SEEDS)
def test_a_crop_is_a_window_of_the_image_mirrored_at_its_edges(
    pixels: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    cropped = Crop(pixels)(images, np.random.default_rng(seed))

    def mirrored(position: int, length: int) -> int:
        position = abs(position) % (2 * length - 2 or 1)
        return min(position, 2 * length - 2 - position) if length > 1 else 0

    height, width = shape[2:]
    way = range(-pixels, pixels + 1)
    for before, after in zip(images, cropped, strict=True):
        windows = (
            before[:, [mirrored(row + down, height) for row in range(height)]][
                :, :, [mirrored(column + right, width) for column in range(width)]
            ]
            for down in way
            for right in way
        )
        assert any(np.array_equal(after, window) for window in windows)


def _turned(image: Floats, angle: float, background: float) -> Floats:
    """An image (H, W) turned by ``angle`` (radians), pixel by pixel, in float64."""
    height, width = image.shape
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            down = math.cos(angle) * y - math.sin(angle) * x + (height - 1) / 2
            right = math.sin(angle) * y + math.cos(angle) * x + (width - 1) / 2
            value = 0.0
            for near_row in (math.floor(down), math.floor(down) + 1):
                for near_column in (math.floor(right), math.floor(right) + 1):
                    weight = (1 - abs(down - near_row)) * (1 - abs(right - near_column))
                    inside = 0 <= near_row < height and 0 <= near_column < width
                    value += weight * (image[near_row, near_column] if inside else background)
            result[row, column] = value
    return result.astype(np.float32)


@settings(max_examples=30)
@given(degrees=st.integers(1, 180), shape=SHAPES, seed=SEEDS)
def test_a_rotation_agrees_with_the_formula(
    degrees: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    background = (-1.5, 0.25, 7.0)[: shape[1]]
    turned = Rotate(degrees, background)(images, np.random.default_rng(seed))
    angles = np.radians(np.random.default_rng(seed).uniform(-degrees, degrees, shape[0]))
    for before, after, angle in zip(images, turned, angles, strict=True):
        for channel in range(shape[1]):
            expected = _turned(before[channel], angle, background[channel])
            np.testing.assert_allclose(after[channel], expected, atol=2e-5)


def test_a_loader_changes_its_images_anew_in_each_epoch_by_seed(images: Floats, mnist: Dataset) -> None:
    shift = Shift(2, mnist.normalization.background)

    def epoch(number: int, seed: int = 0) -> Floats:
        (batch,) = _loader(images[:64], mnist, seed=seed, augment=shift).epoch(number)
        order = np.argsort(batch.indices.numpy())
        inputs: Floats = batch.inputs.numpy()[order]
        return inputs

    np.testing.assert_array_equal(epoch(1), epoch(1))
    for other in (epoch(2), epoch(1, seed=1), images[:64]):
        assert not np.array_equal(epoch(1), other)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    rng, pixels = np.random.default_rng(0), np.zeros((2, 1, 1, 1), np.float32)
    shares = [Mixup(alpha)(pixels, rng)[1] for _ in range(2000)]
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_each_image_is_mixed_with_one_of_its_batch_in_one_proportion(images: Floats, mnist: Dataset) -> None:
    labels = mnist.train.labels
    batches = list(_mixing(images, mnist).epoch(1))
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


def test_mixup_comes_after_the_other_augmentations_and_not_in_evaluation(
    images: Floats, mnist: Dataset
) -> None:
    shift = Shift(2, mnist.normalization.background)
    loader = _mixing(images, mnist, augment=shift)
    moved = next(iter(_loader(images, mnist, augment=shift).epoch(1)))
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


def test_mixup_follows_seed_epoch_and_process(images: Floats, mnist: Dataset) -> None:
    class Second(Ranks):
        rank, size = 1, 2

    def first(epoch: int = 1, **options: object) -> Batch:
        return next(iter(_mixing(images, mnist, **options).epoch(epoch)))

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

    loader = _mixing(images, mnist)
    trainer = Trainer(student, partial(flow.optim.Adam, lr=1e-3), [DistillationCallback(teacher), Watch()])
    trainer.fit(loader, loader.sequential(64), epochs=1, directory=tmp_path)
    assert len(seen) == 1 + len(loader)  # one image to count the classes with


def test_gradient_norms_of_terms_count_both_labels(images: Floats, mnist: Dataset, tmp_path: Path) -> None:
    flow.manual_seed(3)
    student, loader = build_model("student_mlp", (1, 28, 28), 10), _mixing(images, mnist)
    trainer = Trainer(student, partial(flow.optim.SGD, lr=1e-9), [GradNorm(every=1)])
    trainer.fit(loader, loader.sequential(64), epochs=1, directory=tmp_path)
    curves = read_scalars(tmp_path)
    assert curves["grad_norm"] == pytest.approx(curves["grad_norm/task"], rel=1e-4)
