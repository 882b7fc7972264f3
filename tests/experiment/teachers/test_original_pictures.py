"""A teacher of another input size gets the pictures of the files at its own size, in the student's views."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdtrain
from kdtrain.callbacks.teacher_outputs.cache import OutputCache
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.datasets import load_dataset
from kdtrain.data.draws import Draws
from kdtrain.data.images.resize import InputForm, read_image
from kdtrain.data.views import Views, views
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.recorder import Teacher
from kdtrain.errors import DataError
from kdtrain.experiment.loaders import prepare
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import TrainedTeacher, find_teacher
from kdtrain.models.registry import build_model
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import save_model, snapshot
from tests.tools import read_result

LARGE, SMALL = 32, 8
CHESS = np.indices((LARGE, LARGE)).sum(axis=0) % 2 * 2.0 - 1.0
"""A pattern that is grey everywhere in pictures of a fourth of the size."""


def pictures(folder: Path, count: int = 60) -> Path:
    """Writes two classes that differ in the phase of a chess board under smooth noise."""
    random = np.random.default_rng(0)
    for number in range(count):
        for name, sign in (("even", 1), ("odd", -1)):
            smooth = np.kron(random.uniform(60, 190, (4, 4)), np.ones((8, 8)))
            path = folder / name / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((smooth + 20 * sign * CHESS).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def data_at(folder: Path, side: int) -> Dataset:
    return load_dataset(f"folder:{folder}", image_size=side, cache_dir=folder.parent / ".cache")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A network for 32x32 pixels that knows the phase of the chess board."""
    large = data_at(folder, LARGE)
    model = build_model("student_mlp", large.image_shape, 2)
    weights = {name: np.zeros_like(array) for name, array in snapshot(model).items()}
    for row, sign in enumerate((1, -1)):
        weights["fc1.weight"][row] = sign * CHESS.ravel() / 100
        weights["fc2.weight"][row, row] = weights["fc3.weight"][row, row] = 1.0
    path = tmp_path_factory.mktemp("teacher") / "large.safetensors"
    save_model(path, weights, model_card("teacher", "student_mlp", large))
    return path


def found(data: Dataset, *paths: Path, **settings: Any) -> TrainedTeacher:
    result = find_teacher(FitConfig("student_kd", teacher_checkpoint=paths, **settings), data)
    assert result is not None
    return result


def loaders(data: Dataset, **settings: Any) -> Any:
    return prepare(data, FitConfig("student_kd", batch_size=16, **settings), "student", 0, "cpu")


@pytest.mark.parametrize("side", [SMALL, 20, LARGE, 64])
def test_teacher_recognises_as_much_whatever_size_the_student_takes(
    folder: Path, teacher: Path, side: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        network = found(data_at(folder, side), teacher).build()
    assert "recognises 100.00% of 16 held-out images" in caplog.text
    said = f"The teacher takes 32x32, the data have {side}x{side}: it gets the pictures of the files"
    assert (said in caplog.text) == (side != LARGE)
    validation = loaders(data_at(folder, side)).validation
    logits = predict_logits(network, validation)
    assert (logits.argmax(axis=1) == validation.targets).all()


def test_arrays_are_resized_and_a_line_says_so(
    folder: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same pictures without their files: the detail is lost."""
    data = data_at(folder, SMALL)
    train, test = (dataclasses.replace(split, files=()) for split in (data.train, data.test))
    with caplog.at_level(logging.INFO):
        found(dataclasses.replace(data, train=train, test=test), teacher)
    assert "The teacher takes 32x32, the data have 8x8: each image is enlarged for it." in caplog.text
    assert "of 16 held-out images, which is near chance" in caplog.text


def test_pictures_are_those_of_the_files_at_the_size_of_the_form(folder: Path) -> None:
    train = loaders(data_at(folder, SMALL)).train
    form = InputForm((3, 20, 20), Normalization((0.4,) * 3, (0.2, 0.3, 0.4)))
    of_form = train.in_form(form)
    chosen = np.array([3, 0, 41])
    files = [train.originals.files[index].path for index in chosen]
    expected = np.stack([read_image(path, (20, 20)) for path in files]) / 255
    expected = (expected - 0.4) / np.array([0.2, 0.3, 0.4]).reshape(3, 1, 1)
    assert of_form.inputs.shape == (len(train.targets), *form.shape)
    np.testing.assert_allclose(of_form.batch(chosen).inputs.numpy(), expected, atol=1e-5)


def test_a_form_of_other_proportions_shows_the_same_part(tmp_path: Path) -> None:
    """Students see the centre of wide pictures; a teacher for tall ones gets no more and no less of it."""
    for number in range(12):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        wide = np.zeros((20, 60), np.uint8)
        wide[:, 18:42] = 200  # resizing reads two pixels beside the square
        Image.fromarray(wide).save(path)
    train = loaders(data_at(tmp_path, 10)).train
    assert (train.inputs[:] == train.inputs[0, 0, 0, 0]).all(), "students see the square in the middle"
    tall = train.in_form(InputForm((1, 40, 20), Normalization((0.0,), (1.0,)))).inputs[:]
    np.testing.assert_allclose(tall, 200 / 255, atol=0.01)


@pytest.mark.parametrize(
    "change", ["shift=2", "flip", "shift=1,flip", "mixup", "rotate=90", "scale=0.3..1", "colour=0.5"]
)
@pytest.mark.parametrize("times", [1, 3])
def test_views_show_the_same_part_at_another_size(change: str, times: int) -> None:
    coarse = np.random.default_rng(0).normal(size=(40, 1, 5, 6))
    small = np.kron(coarse, np.ones((2, 2))).astype(np.float32)
    large = np.kron(small, np.ones((1, 1, times, times), np.float32))
    none = Normalization((0.0,), (1.0,))
    of_small = views(change, none, 4, 7)
    assert isinstance(of_small, Views)
    of_large = of_small.in_form(InputForm((1, 10, 12), none), InputForm((1, 10 * times, 12 * times), none))
    numbers = np.arange(len(small))
    variants = numbers % 4
    (expected, _), (seen, _) = (
        each.apply(images, numbers, numbers, variants)
        for each, images in ((of_small, small), (of_large, large))
    )
    expected = np.kron(expected, np.ones((1, 1, times, times), np.float32))
    if change.startswith(("rotate", "scale")) and times > 1:  # interpolated: the same but for soft edges
        turned = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(expected, seen, strict=True)]
        assert min(turned) > 0.8
    else:
        np.testing.assert_allclose(seen, expected, atol=1e-5 if change.startswith("colour") else 0.0)


@pytest.mark.parametrize("change", ["crop=2", "cutmix", "erase=1"])
def test_moves_and_rectangles_are_fractions_of_the_side(change: str) -> None:
    """Both round to pixels of their own size, at the edges."""
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 1, 1, 16).repeat(16, axis=2)
    small = np.concatenate([ramp + number for number in range(60)])
    large = np.kron(small, np.ones((1, 1, 5, 5), np.float32))
    none = Normalization((0.0,), (1.0,))
    of_small = views(change, none, 4, 7)
    assert isinstance(of_small, Views)
    of_large = of_small.in_form(InputForm((1, 16, 16), none), InputForm((1, 80, 80), none))
    numbers = np.arange(len(small))
    expected, seen = (
        each.apply(images, numbers, numbers, numbers % 4)[0]
        for each, images in ((of_small, small), (of_large, large))
    )
    difference = np.abs(np.kron(expected, np.ones((1, 1, 5, 5), np.float32)) - seen)
    assert (difference > 0.05).mean() < 0.1
    assert np.abs(expected - small).mean() > 0.01, "the views change something"


@pytest.mark.parametrize("number", [1, 2])
def test_a_teacher_that_runs_at_every_step_sees_the_views_at_its_own_size(
    folder: Path, teacher: Path, number: int
) -> None:
    """Mirroring swaps the phases of the chess board, so the teacher has to see which images are mirrored."""
    data = data_at(folder, SMALL)
    train = loaders(data, augment="flip", views=0, recipe="none").train
    batch = next(iter(train.epoch(3)))
    assert batch.variants is not None
    numbers = train.source.numbers[batch.indices.numpy()]
    first = Draws(0, numbers, np.zeros_like(numbers)).integers("flip", 2)
    mirrored = (first + 3) % 2 == 1  # every other epoch
    taught = Teacher(found(data, *[teacher] * number).build(), batch.inputs)
    taught.use_images(train)
    classes = taught.logits(batch).numpy().argmax(axis=1)
    np.testing.assert_array_equal(classes, batch.labels.numpy() ^ mirrored)


def test_soft_labels_are_kept_by_files_and_size(folder: Path, teacher: Path, tmp_path: Path) -> None:
    data, large = data_at(folder, SMALL), data_at(folder, LARGE)
    expected = predict_logits(found(large, teacher).build(), loaders(large).train)
    keys = []
    for changed in (False, True):
        if changed:  # the same pixels, written later
            first = data.train.files[0].path
            os.utime(first, ns=(0, first.stat().st_mtime_ns + 10**9))
            data = data_at(folder, SMALL)
        cache = OutputCache(found(data, teacher).build(), loaders(data).train, tmp_path)
        np.testing.assert_allclose(cache.plain(), expected, atol=1e-4)
        keys.append(len(list(tmp_path.rglob("*.safetensors"))))
    assert keys == [1, 2], "a file that has changed has new soft labels"


def test_a_fit_takes_images_without_labels_from_files_and_from_arrays(
    folder: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.savez(tmp_path / "more.npz", images=np.full((9, SMALL, SMALL), 128, np.uint8))
    with caplog.at_level(logging.INFO):
        kdtrain.fit(
            mode="student_kd",
            dataset=f"folder:{folder}",
            image_size=SMALL,
            labels="50%",
            transfer_data=tmp_path / "more.npz",
            teacher_checkpoint=teacher,
            augment="shift=1",
            views=2,
            recipe="none",
            epochs=1,
            logdir=tmp_path / "logs",
            keep="never",
        )
    assert re.search(r"Teacher: 100\.00 % of \d+ held-out images", caplog.text)
    assert read_result(tmp_path / "logs/student_kd/version_0")["status"] == "completed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "has changed since the command began"),
        (lambda path: path.unlink(), "cannot be read now"),
    ],
)
def test_a_file_that_changes_meanwhile_ends_the_command(
    tmp_path: Path, teacher: Path, change: Callable[[Path], object], words: str
) -> None:
    data = data_at(pictures(tmp_path / "own", 20), SMALL)
    network, validation = found(data, teacher).build(), loaders(data).validation
    changed = validation.originals.files[0].path
    change(changed)
    with pytest.raises(DataError, match=words) as raised:
        predict_logits(network, validation)
    assert str(changed) in str(raised.value)
