"""The teacher's lead before students start: its images, its baseline, and what it leaves untouched."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset, hold_out
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.result import keep_best
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.single import run_single
from kdtrain.experiment.teacher_lead import FILE, measure_lead
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
    return Session(dataclasses.replace(config, **settings))


@pytest.fixture
def teacher(code: Path, mnist: Dataset) -> SavedModel:
    arch = f"{code}:linear"
    return load_model(untrained_teacher(code.parent / "teacher.safetensors", mnist, arch), arch=arch)


def keep_student(session: Session) -> SavedModel:
    """Trains a plain student as ``--mode student`` does, and keeps it."""
    directory = session.config.logdir / f"student_{session.config.seed}"
    [model] = session.run([session.fit_and_test_job(FitSpec("student", session.config.seed, directory))])
    keep_best([model], session.config, session.ranks)
    return model.saved


def test_accuracy_is_that_on_the_held_out_images(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits, seed=3)
    lead = measure_lead(session, tmp_path, trained_here(teacher))
    train = session.dataset.train
    _, held_out = hold_out(train, HELD_OUT, 3)
    weights = {name: np.asarray(array, np.float32) for name, array in teacher.weights.items()}
    inputs = session.dataset.normalization.apply(train.images[held_out]).reshape(HELD_OUT, -1)
    logits = inputs @ weights["1.weight"].T + weights["1.bias"]
    assert lead is not None
    assert (lead.images, lead.baseline) == (HELD_OUT, None)
    assert lead.accuracy == pytest.approx((logits.argmax(axis=1) == train.labels[held_out]).mean(), abs=0.005)
    assert lead.may_have_seen, "an untrained teacher's card names no held-out images"


def test_the_test_images_are_never_read(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session, blind = session_of(code, digits), session_of(code, digits)
    blind.dataset = dataclasses.replace(blind.dataset, test=blind.dataset.test.take(np.empty(0, np.int64)))
    (tmp_path / "blind").mkdir()
    lead = measure_lead(blind, tmp_path / "blind", trained_here(teacher))
    assert lead is not None
    assert lead == measure_lead(session, tmp_path, trained_here(teacher))


def test_without_a_kept_student_the_teacher_alone_is_measured_and_logged(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = session_of(code, digits, epochs=60)
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.INFO, "kdtrain"):
        lead = measure_lead(session, tmp_path, trained_here(teacher))
    assert lead is not None
    assert lead.baseline is None
    first, *others = [record.message for record in caplog.records]
    assert first.startswith(f"Teacher: {100 * lead.accuracy:.2f} % of 1,000 held-out images, calibration")
    assert others == ["It may have been trained on some of these images, so its accuracy may be too high."]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / FILE]), "no student is trained for it"


def test_the_kept_plain_student_is_the_baseline_if_it_was_measured_on_the_same_images(
    code: Path, digits: Path, tmp_path: Path
) -> None:
    session = session_of(code, digits)
    kept = keep_student(session)
    lead = measure_lead(session, tmp_path, trained_here(kept))
    assert lead is not None
    assert lead.baseline is not None
    assert lead.baseline.epochs == EPOCHS
    assert lead.baseline.accuracy == kept.card.accuracy == lead.accuracy
    assert not lead.may_have_seen
    others: dict[str, dict[str, Any]] = {
        "other held-out images": {"seed": 1},
        "longer training": {"epochs": 2 * EPOCHS + 1},
        "other network": {"student_arch": "student_mlp"},
        "other folder": {"model_save_dir": tmp_path / "elsewhere"},
    }
    for name, settings in others.items():
        (tmp_path / name).mkdir()
        other = measure_lead(session_of(code, digits, **settings), tmp_path / name, trained_here(kept))
        assert other is not None
        assert other.baseline is None, name
        assert other.may_have_seen == ("seed" in settings), name


def test_a_resumed_run_keeps_its_figures_even_if_a_student_was_kept_meanwhile(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = session_of(code, digits)
    first = measure_lead(session, tmp_path, trained_here(teacher))
    keep_student(session)
    with caplog.at_level(logging.INFO, "kdtrain"):
        assert measure_lead(session, tmp_path, trained_here(teacher)) == first
    assert caplog.records == [], "it was said when the run began"
    for damage in ("{", "[]", json.dumps({"baseline": {}})):
        (tmp_path / FILE).write_text(damage)
        again = measure_lead(session, tmp_path, trained_here(teacher))
        assert again is not None
        assert again.baseline is not None, "a damaged file is measured again"


def test_without_held_out_images_nothing_is_measured(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    assert measure_lead(session_of(code, digits, val_size=0), tmp_path, trained_here(teacher)) is None
    assert not (tmp_path / FILE).exists()


def test_the_data_sets_own_validation_images_are_the_held_out_images(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits)
    validation = session.dataset.train.take(np.arange(100))
    session.dataset = dataclasses.replace(session.dataset, validation=validation)
    lead = measure_lead(session, tmp_path, trained_here(teacher))
    assert lead is not None
    assert lead.images == 100


def test_the_students_weights_are_those_without_the_measurement(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    session = session_of(code, digits, teacher_checkpoint=(teacher.path,))
    found = find_teacher(session.config, session.dataset)
    spec = FitSpec("student_kd", session.config.seed, tmp_path / "alone", found)
    [alone] = session.run([session.fit_job(spec)])
    measured = run_single(session)
    assert measured.directory is not None
    assert json.loads((measured.directory / FILE).read_text())["held_out_images"] == HELD_OUT
    for name, array in alone.saved.weights.items():
        assert np.array_equal(array, measured.saved.weights[name]), name
    assert alone.saved.card.metrics == measured.saved.card.metrics


def test_in_this_process_too_the_measurement_changes_no_weights(
    code: Path, digits: Path, teacher: SavedModel, tmp_path: Path
) -> None:
    """As on a GPU, where jobs run in the process of the command, one after another."""

    class InProcess(Session):
        def run(self, jobs: Any, peers: int = 0) -> Any:
            return [job.work() for job in jobs]

    session = InProcess(session_of(code, digits).config)
    spec = FitSpec("student_kd", 0, tmp_path / "alone", trained_here(teacher))
    [alone] = session.run([session.fit_job(spec)])
    flow.manual_seed(7)
    measure_lead(session, tmp_path, trained_here(teacher))
    [after] = session.run([session.fit_job(dataclasses.replace(spec, directory=tmp_path / "after"))])
    for name, array in alone.saved.weights.items():
        assert np.array_equal(array, after.saved.weights[name]), name
