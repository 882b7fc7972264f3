"""The teacher's figures before students start: their images, and what the measurement leaves untouched."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset, hold_out
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.session import Session, measured
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.student import run_single
from kdtrain.experiment.teachers.find import find_teacher, trained_here
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import SavedModel, load_model
from tests.cli.conftest import untrained_teacher
from tests.tools import write_digits

IMAGES, HELD_OUT = 6000, 1000
EPOCHS = 2

CODE = """
from kdtrain import flow

def linear(image_shape, num_classes):
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(784, num_classes))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", mnist, IMAGES)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def session_of(code: Path, digits: Path, epochs: int = EPOCHS, **settings: Any) -> Session:
    config = FitConfig(
        mode="student_kd",
        teacher_arch=f"{code}:linear",
        student_arch=f"{code}:linear",
        data_dir=digits,
        epochs=epochs,
        batch_size=500,
        logdir=code.parent / "logs",
        device="cpu",
    )
    return Session.open(dataclasses.replace(config, **settings))


@pytest.fixture
def teacher(code: Path, mnist: Dataset) -> SavedModel:
    arch = f"{code}:linear"
    return load_model(untrained_teacher(code.parent / "teacher.safetensors", mnist, arch), arch=arch)


def test_accuracy_is_that_on_the_held_out_images(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits, seed=3)
    figures = measured(session, trained_here(teacher)).figures
    train = session.dataset.train
    _, held_out = hold_out(train, HELD_OUT, 3)
    weights = {name: np.asarray(array, np.float32) for name, array in teacher.weights.items()}
    inputs = session.dataset.normalization.apply(train.images[held_out]).reshape(HELD_OUT, -1)
    logits = inputs @ weights["1.weight"].T + weights["1.bias"]
    assert figures is not None
    assert figures.images == HELD_OUT
    assert figures.members == (figures.accuracy,)
    assert figures.accuracy == pytest.approx(
        (logits.argmax(axis=1) == train.labels[held_out]).mean(), abs=0.005
    )
    assert figures.may_have_seen, "an untrained teacher's card names no held-out images"


def test_the_test_images_are_never_read(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits)
    no_images = session.dataset.test.take(np.empty(0, np.int64))
    blind = dataclasses.replace(session, dataset=dataclasses.replace(session.dataset, test=no_images))
    figures = measured(blind, trained_here(teacher)).figures
    assert figures is not None
    assert figures == measured(session, trained_here(teacher)).figures


def test_the_figures_are_logged_and_no_file_is_written(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = session_of(code, digits)
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.INFO, "kdtrain"):
        figures = measured(session, trained_here(teacher)).figures
    assert figures is not None
    assert [record.message for record in caplog.records] == [
        f"Teacher: {100 * figures.accuracy:.2f} % of 1,000 held-out images, calibration error "
        f"{100 * figures.calibration_error:.1f} %.",
        "It may have been trained on some of these images, so its accuracy may be too high.",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_teacher_that_held_out_the_same_images_has_not_seen_them(
    code: Path, digits: Path, tmp_path: Path
) -> None:
    session = session_of(code, digits)
    [own] = session.run([session.fit_job(FitSpec("teacher", 0, tmp_path / "own"))])
    for seed in (0, 1):
        figures = measured(session_of(code, digits, seed=seed), trained_here(own.saved)).figures
        assert figures is not None
        assert figures.may_have_seen == (seed == 1)
    assert own.saved.card.accuracy == measured(session, trained_here(own.saved)).inputs[0].held_out_accuracy


def test_without_held_out_images_nothing_is_measured(code: Path, digits: Path, teacher: SavedModel) -> None:
    assert measured(session_of(code, digits, val_size=0), trained_here(teacher)).figures is None


def test_the_data_sets_own_validation_images_are_the_held_out_images(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits)
    validation = session.dataset.train.take(np.arange(100))
    session = dataclasses.replace(
        session, dataset=dataclasses.replace(session.dataset, validation=validation)
    )
    figures = measured(session, trained_here(teacher)).figures
    assert figures is not None
    assert figures.images == 100


def test_the_students_weights_are_those_without_the_measurement(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits, teacher_checkpoint=(teacher.path,))
    found = find_teacher(session.config, session.dataset)
    spec = FitSpec("student_kd", session.config.seed, tmp_path / "alone", found)
    [alone] = session.run([session.fit_job(spec)])
    after = run_single(session)
    for name, array in alone.saved.weights.items():
        assert np.array_equal(array, after.saved.weights[name]), name
    assert alone.saved.card.metrics == after.saved.card.metrics


def test_in_this_process_too_the_measurement_changes_no_weights(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    """As on a GPU, where jobs run in the process of the command, one after another."""

    class InProcess(Session):
        def run(self, jobs: Any, peers: int = 0) -> Any:
            return [job.work() for job in jobs]

    opened = session_of(code, digits)
    session = InProcess(opened.config, opened.dataset, opened.device, opened.ranks)
    spec = FitSpec("student_kd", 0, tmp_path / "alone", trained_here(teacher))
    [alone] = session.run([session.fit_job(spec)])
    flow.manual_seed(7)
    measured(session, trained_here(teacher))
    [after] = session.run([session.fit_job(dataclasses.replace(spec, directory=tmp_path / "after"))])
    for name, array in alone.saved.weights.items():
        assert np.array_equal(array, after.saved.weights[name]), name
