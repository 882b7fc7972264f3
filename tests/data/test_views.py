"""Variants of training images depend on seed, image and variant alone; mixes follow their formulas."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats

from kdtrain.callbacks.distillation import DistillationCallback
from kdtrain.data.augmentation import Mixing, mixing
from kdtrain.data.dataset import Dataset
from kdtrain.data.draws import Draws, derive_seed
from kdtrain.data.loader import Loader, Source
from kdtrain.data.views import views
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import Trainer
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.ranks import Ranks
from plugins.grad_norm import GradNorm
from tests.tools import ROOT, read_scalars

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def images(mnist: Dataset) -> Floats:
    return mnist.normalization.apply(mnist.train.images[:200])


def _loader(
    images: Floats,
    mnist: Dataset,
    text: str,
    count: int = 4,
    views_seed: int = 0,
    size: int = 64,
    **more: object,
) -> Loader:
    arguments: dict[str, object] = {"num_classes": 10, "seed": 0, **more}
    chosen = views(text, mnist.normalization, count, views_seed)
    return Loader(images, mnist.train.labels[: len(images)], size, views=chosen, **arguments)  # type: ignore[arg-type]


def _seen(loader: Loader, epoch: int) -> Floats:
    """The images of an epoch, in the order of the data."""
    batches = list(loader.epoch(epoch))
    order = np.argsort(np.concatenate([batch.indices.numpy() for batch in batches]))
    inputs: Floats = np.concatenate([batch.inputs.numpy() for batch in batches])[order]
    return inputs


def _splitmix64(word: int) -> int:
    mask = (1 << 64) - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def test_draws_are_those_of_the_generator_s_definition() -> None:
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    drawn = Draws(7, np.array([0, 5, 59_999]), np.array([0, 3, 1000])).uniform("share")
    for value, image, variant in zip(drawn, (0, 5, 59_999), (0, 3, 1000), strict=True):
        word = _splitmix64((derive_seed(7, "variants", "share") + golden * image) & mask)
        word = _splitmix64((word + golden * (variant + 1)) & mask)
        assert value == (word >> 11) / 2**53


def test_draws_are_uniform_and_independent() -> None:
    images, zeros = np.arange(20_000), np.zeros(20_000, np.int64)
    columns = [
        Draws(0, images, zeros).uniform("a"),
        Draws(0, images, zeros).uniform("b"),
        Draws(0, images, zeros + 1).uniform("a"),
        Draws(1, images, zeros).uniform("a"),
        Draws(0, zeros, images).uniform("a"),
    ]
    for column in columns:
        assert scipy.stats.kstest(column, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.03
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 0.03
    assert set(Draws(0, images, zeros).integers("c", 5)) == {0, 1, 2, 3, 4}


def test_a_part_of_the_images_gets_the_same_numbers() -> None:
    images, variants = np.arange(100), np.arange(100) % 7
    chosen = np.array([99, 3, 50])
    everything = Draws(3, images, variants).uniform("x")
    np.testing.assert_array_equal(Draws(3, images[chosen], variants[chosen]).uniform("x"), everything[chosen])


def test_image_has_each_of_its_fixed_variants_once_in_as_many_epochs(images: Floats, mnist: Dataset) -> None:
    loader = _loader(images, mnist, "shift=2,rotate=10", count=4)
    epochs = [_seen(loader, epoch) for epoch in range(1, 9)]
    for first, again in zip(epochs[:4], epochs[4:], strict=True):
        np.testing.assert_array_equal(first, again)
    unchanged = sum((epoch == images).all((1, 2, 3)).astype(int) for epoch in epochs[:4])
    assert (unchanged >= 1).all(), "one variant is the image itself"
    assert unchanged.mean() < 1.1
    counts = [(epoch == images).all((1, 2, 3)).sum() for epoch in epochs[:4]]
    assert min(counts) > 25, "an epoch has all variants, each of about as many images"


def test_variants_depend_on_nothing_but_seed_image_and_variant(images: Floats, mnist: Dataset) -> None:
    class Second(Ranks):
        rank, size = 1, 2

    text = "shift=2,flip,mixup=0.4"
    expected = _seen(_loader(images, mnist, text), 3)
    for options in ({"size": 7}, {"seed": 5}, {"seed": None}):
        np.testing.assert_array_equal(_seen(_loader(images, mnist, text, **options), 3), expected)
    for batch in _loader(images, mnist, text, ranks=Second()).epoch(3):
        np.testing.assert_array_equal(batch.inputs.numpy(), expected[batch.indices.numpy()])
    assert not np.array_equal(_seen(_loader(images, mnist, text, views_seed=1), 3), expected)


def test_an_image_keeps_its_variants_where_others_are_held_out(images: Floats, mnist: Dataset) -> None:
    everything = _seen(_loader(images, mnist, "shift=2"), 2)
    kept = np.arange(200)[50:]
    source = Source("", kept, 200)
    part = Loader(
        images[kept], mnist.train.labels[kept], 64, num_classes=10, seed=0, source=source,
        views=views("shift=2", mnist.normalization, 4, 0),
    )  # fmt: skip
    np.testing.assert_array_equal(_seen(part, 2), everything[kept])


def test_without_a_number_of_variants_each_epoch_has_new_ones(images: Floats, mnist: Dataset) -> None:
    loader = _loader(images, mnist, "shift=2", count=0)
    assert loader.is_endless
    epochs = [_seen(loader, epoch) for epoch in range(1, 6)]
    np.testing.assert_array_equal(epochs[0], _seen(loader, 1))
    for epoch in epochs[1:]:
        assert not np.array_equal(epoch, epochs[0])
    same = np.mean([(epoch == images).all((1, 2, 3)) for epoch in epochs])
    assert same < 0.1, "1 of 25 shifts is none"


def test_the_setting_of_mixes_is_understood() -> None:
    assert mixing("shift=2,flip") is None
    assert mixing("mixup,flip") == Mixing(1.0, None)
    assert mixing("cutmix=0.5,mixup=0.2") == Mixing(0.2, 0.5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    pixels = np.zeros((4000, 1, 1, 1), np.float32)
    _, shares = Mixing(alpha)(pixels, pixels, Draws(0, np.arange(4000), np.zeros(4000, np.int64)))
    expected = np.random.default_rng(0).beta(alpha, alpha, 20_000).astype(np.float32)
    assert shares.min() >= 0.5
    assert scipy.stats.ks_2samp(shares, np.maximum(expected, 1 - expected)).pvalue > 0.01


def test_partners_are_others_and_equally_likely() -> None:
    positions = np.arange(50).repeat(400)
    draws = Draws(0, positions, np.tile(np.arange(400), 50))
    partners = Mixing(1.0).partners(draws, positions, 50)
    assert (partners != positions).all()
    assert scipy.stats.chisquare(np.bincount(partners, minlength=50)).pvalue > 0.001
    np.testing.assert_array_equal(Mixing(1.0).partners(draws, positions, 1), 0 * positions)


def test_mixup_blends_each_image_with_another_in_the_same_variant(images: Floats, mnist: Dataset) -> None:
    labels = mnist.train.labels
    plain = _loader(images, mnist, "shift=2")
    for batch in _loader(images, mnist, "shift=2,mixup=0.4").epoch(2):
        assert batch.variants is not None
        assert batch.mixup_lambda is not None
        assert batch.mixup_targets is not None
        positions, variants = batch.indices.numpy(), batch.variants.numpy()
        draws = Draws(0, positions, variants)
        partners = Mixing(0.4).partners(draws, positions, len(images))
        own, other = (plain.batch(rows, variants).inputs.numpy() for rows in (positions, partners))
        share = batch.mixup_lambda.numpy().reshape(-1, 1, 1, 1).astype(np.float64)
        np.testing.assert_allclose(batch.inputs.numpy(), share * own + (1 - share) * other, atol=1e-6)
        np.testing.assert_array_equal(batch.targets.numpy(), labels[positions])
        np.testing.assert_array_equal(batch.mixup_targets.numpy(), labels[partners])
        assert len(set(batch.mixup_lambda.numpy())) > len(positions) / 2, "each image has a share of its own"


def test_cutmix_takes_a_rectangle_of_the_other_image() -> None:
    count = 400
    own, other = np.zeros((count, 2, 12, 9), np.float32), np.ones((count, 2, 12, 9), np.float32)
    mixed, shares = Mixing(None, 1.0)(own, other, Draws(0, np.arange(count), np.zeros(count, np.int64)))
    assert set(np.unique(mixed)) == {0.0, 1.0}
    np.testing.assert_array_equal(mixed[:, 0], mixed[:, 1])
    np.testing.assert_allclose(shares, 1 - mixed[:, 0].mean(axis=(1, 2)), atol=1e-6)
    assert shares.min() >= 1 - 9 * 7 / (12 * 9), "the largest rectangle of whole pixels"
    for image in mixed[:, 0]:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum() == len(rows) * len(columns), "what is mixed in is a rectangle"


def test_the_smallest_shares_of_cutmix_are_those_of_the_page() -> None:
    text = (ROOT / "docs" / "concepts" / "views.md").read_text(encoding="utf-8")
    documented = re.findall(r"(0\.4\d+) for (\d+)x\d+", text)
    assert len(documented) == 2
    for smallest, size in documented:
        pixels = np.zeros((20_000, 1, int(size), int(size)), np.float32)
        draws = Draws(0, np.arange(20_000), np.zeros(20_000, np.int64))
        _, shares = Mixing(None, 1.0)(pixels, pixels, draws)
        assert f"{shares.min():.2f}" == smallest
        assert 0 < (shares < 0.5).mean() < 0.01
    _, shares = Mixing(1.0)(pixels, pixels, draws)
    assert shares.min() >= 0.5, "mixup's shares are not rounded"


def test_with_both_about_half_of_the_images_get_cutmix() -> None:
    count = 2000
    own, other = np.zeros((count, 1, 6, 6), np.float32), np.ones((count, 1, 6, 6), np.float32)
    mixed, _ = Mixing(1.0, 1.0)(own, other, Draws(0, np.arange(count), np.zeros(count, np.int64)))
    blended = np.array([len(np.unique(image)) == 1 and 0 < image[0, 0, 0] < 1 for image in mixed])
    assert 0.45 < blended.mean() < 0.55


def test_a_teacher_is_asked_once_a_step_about_endless_mixed_images(
    images: Floats, mnist: Dataset, tmp_path: Path
) -> None:
    flow.manual_seed(3)
    student, teacher = (build_model("student_mlp", (1, 28, 28), 10) for _ in range(2))
    seen: list[bytes] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy().tobytes()))

    class Watch(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            assert seen[-1] == event.batch.inputs.numpy().tobytes()

    loader = _loader(images, mnist, "mixup", count=0)
    trainer = Trainer(student, partial(flow.optim.Adam, lr=1e-3), [DistillationCallback(teacher), Watch()])
    trainer.fit(loader, loader.sequential(64), epochs=1, directory=tmp_path)
    assert len(seen) == 3 + len(loader)  # images to know it again, one to count classes, a batch to time


def test_gradient_norms_of_terms_count_both_labels(images: Floats, mnist: Dataset, tmp_path: Path) -> None:
    flow.manual_seed(3)
    student, loader = build_model("student_mlp", (1, 28, 28), 10), _loader(images, mnist, "mixup=0.4")
    trainer = Trainer(student, partial(flow.optim.SGD, lr=1e-9), [GradNorm(every=1)])
    trainer.fit(loader, loader.sequential(64), epochs=1, directory=tmp_path)
    curves = read_scalars(tmp_path)
    assert curves["grad_norm"] == pytest.approx(curves["grad_norm/task"], rel=1e-4)
