"""Classes of different sizes count equally: drawn equally often, or with weights; figures that show them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdtrain
from kdtrain.data.dataset import Normalization
from kdtrain.data.loader import Loader
from kdtrain.data.sampling import BalancedDraw, TransferDraw
from kdtrain.data.views import views
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.runtime.ranks import Ranks
from tests.data.test_folder import noise, save
from tests.tools import read_result, read_scalars

SIZES = (40, 10, 3)
LABELS = np.repeat(np.arange(3), SIZES)


def loader(balance: str = "sample", **more: Any) -> Loader:
    images = np.arange(len(LABELS), dtype=np.float32).reshape(-1, 1, 1, 1).repeat(4, axis=2)
    return Loader(images, LABELS, 8, num_classes=3, seed=5, balance=balance, **more)


def drawn(images: Loader, epoch: int) -> npt.NDArray[np.int64]:
    return np.concatenate([batch.indices.numpy() for batch in images.epoch(epoch)])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 5))
def test_classes_are_equally_frequent_and_so_are_the_images_of_a_class(
    sizes: list[int], epochs: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    draw, seen = BalancedDraw(labels, seed), Counter[int]()
    for epoch in range(1, epochs + 1):
        images, rounds = draw.epoch(epoch)
        assert len(images) == len(labels)
        counts = np.bincount(labels[images], minlength=len(sizes))
        assert counts.max() - counts.min() <= 1
        for image, number in zip(images.tolist(), rounds.tolist(), strict=True):
            seen[image] += 1
            assert seen[image] == number, "the rounds count the draws of an image"
    for label in range(len(sizes)):
        times = [seen[image] for image in np.flatnonzero(labels == label).tolist()]
        assert max(times) - min(times) <= 1
    assert all(seen[image] <= most for image, most in enumerate(draw.rounds(epochs)))


def test_an_epoch_is_the_same_again_and_another_in_the_next() -> None:
    first, again, second = drawn(loader(), 1), drawn(loader(), 1), drawn(loader(), 2)
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != second.tolist()
    assert sorted(drawn(loader("none"), 1)) == list(range(len(LABELS)))


def test_ranks_share_the_images_of_one_process() -> None:
    alone = list(loader().epoch(3))

    class Half(Ranks):
        def __init__(self, number: int) -> None:
            self.rank, self.size = number, 2

    halves = [list(loader(ranks=Half(number)).epoch(3)) for number in (0, 1)]
    for whole, first, second in zip(alone, *halves, strict=True):
        parts = np.concatenate([first.indices.numpy(), second.indices.numpy()])
        assert sorted(parts) == sorted(whole.indices.numpy())


@pytest.mark.parametrize("with_transfer", [False, True])
def test_an_image_gets_another_view_each_time_that_it_is_drawn(with_transfer: bool) -> None:
    """And the teacher has computed all of them."""
    count, labelled = 4, len(LABELS)
    transfer = TransferDraw(20, 0.5, 0) if with_transfer else None
    images = np.zeros((labelled + (20 if with_transfer else 0), 1, 4, 4), np.float32)
    train = Loader(
        images,
        LABELS,
        8,
        num_classes=3,
        seed=5,
        balance="sample",
        views=views("shift=1", Normalization((0.0,), (1.0,)), count, 0),
        transfer=transfer,
    )
    wanted = [set(positions.tolist()) for positions in train.wanted(3)]
    seen: dict[int, list[int]] = {}
    for epoch in (1, 2, 3):
        for batch in train.epoch(epoch):
            assert batch.variants is not None
            pairs = zip(batch.indices.numpy().tolist(), batch.variants.numpy().tolist(), strict=True)
            for image, variant in pairs:
                assert image in wanted[variant]
                seen.setdefault(image, []).append(variant)
    rare = [variants for image, variants in seen.items() if labelled - 3 <= image < labelled]
    assert min(map(len, rare)) > count
    for image, variants in seen.items():
        times = np.bincount(variants, minlength=count)
        assert image >= labelled or times.max() - times.min() <= 1


def test_weights_have_the_mean_1_over_the_images() -> None:
    batch = next(iter(loader("loss").epoch(1)))
    assert batch.class_weights is not None
    weights = batch.class_weights.numpy()
    np.testing.assert_allclose(weights, len(LABELS) / (3 * np.array(SIZES)), rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1.0)
    assert next(iter(loader("none").epoch(1))).class_weights is None


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 99))
def test_figures_by_class_are_those_of_the_formulas(classes: int, images: int, seed: int) -> None:
    """Recall and F1 of each class from its counts, one by one."""
    random = np.random.default_rng(seed)
    truth, logits = random.integers(0, classes, images), random.normal(size=(images, classes))
    predicted, recalls, scores = logits.argmax(axis=1), [], []
    for label in range(classes):
        right = int(((truth == label) & (predicted == label)).sum())
        wrong = int(((truth == label) != (predicted == label)).sum())
        if (truth == label).any():
            recalls.append(right / (truth == label).sum())
        if right or wrong:
            precision = right / max(1, (predicted == label).sum())
            recall = right / max(1, (truth == label).sum())
            scores.append(0.0 if not right else 2 * precision * recall / (precision + recall))
    evaluation = Evaluation.from_logits(logits, truth)
    assert evaluation.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert evaluation.macro_f1 == pytest.approx(np.mean(scores))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of one class and 15 of the other, whose means differ a little."""
    folder = tmp_path_factory.mktemp("data") / "uneven"
    for name, count, light in (("many", 60, 0), ("few", 15, 12)):
        for number in range(count):
            pixels = np.clip(noise(number + 1000 * light, grey=True).astype(int) + light, 0, 255)
            save(folder / name / f"{number:03}.png", pixels.astype(np.uint8))
    return folder


def fit(uneven: Path, logs: Path, **settings: Any) -> Any:
    data = f"folder:{uneven}"
    kdtrain.fit(mode="student", dataset=data, logdir=logs, recipe="none", epochs=6, batch_size=16, **settings)
    run = logs / "student/version_0"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return run, rows, read_result(run)["models"][0]


@pytest.mark.parametrize("monitor", ["accuracy", "balanced_accuracy", "macro_f1", "cross_entropy"])
def test_the_best_epoch_is_that_of_the_monitored_figure(uneven: Path, tmp_path: Path, monitor: str) -> None:
    run, rows, model = fit(uneven, tmp_path, monitor=monitor, val_size=30)
    values = [row[f"val/{monitor}"] for row in rows]
    best = min(values) if monitor == "cross_entropy" else max(values)
    latest = max(row["epoch"] for row, value in zip(rows, values, strict=True) if value == best)
    assert model["best_epoch"] == latest
    scalars = read_scalars(run)
    assert list(scalars[f"val/{monitor}"].values()) == pytest.approx(values)
    for name in ("balanced_accuracy", "macro_f1"):
        assert list(scalars[f"test/{name}"].values()) == [pytest.approx(model[f"test_{name}_fraction"])]


@pytest.mark.parametrize("balance", ["none", "sample", "loss"])
def test_uneven_classes_are_named_once(
    uneven: Path, tmp_path: Path, balance: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        kdtrain.compare(
            dataset=f"folder:{uneven}",
            logdir=tmp_path,
            recipe="none",
            epochs=2,
            balance=balance,
            teacher_arch="student_mlp",
        )
    sentence = "The classes are uneven: many has 48 training images, few 12; "
    assert caplog.text.count(sentence) == 1
    record = json.loads((tmp_path / "compare/version_0/compare.json").read_text())
    assert record["summaries"]["student"]["test_balanced_accuracy_percent"]["n"] == 1
    page = (tmp_path / "compare/version_0/report.html").read_text()
    assert page.count("The classes are uneven") == page.count("balanced accuracy, %") == 1


def test_even_classes_are_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "two"):
        for number in range(20):
            save(tmp_path / "data" / name / f"{number}.png", noise(number))
    with caplog.at_level(logging.INFO):
        fit(tmp_path / "data", tmp_path / "logs")
    assert "uneven" not in caplog.text
