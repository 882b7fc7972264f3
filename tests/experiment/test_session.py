"""The session: jobs that have no effect until they start, and loaders that are made one at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.data.dataset import Dataset, Normalization, Normalized, Split
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.modes import logit_cache
from kdtrain.experiment.result import FitResult
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.experiment.teachers.find import TrainedTeacher, trained_here
from kdtrain.runtime.processes import Job, available_cores
from kdtrain.store.checkpoint import SavedModel, load_model
from tests.cli.conftest import untrained_teacher
from tests.conftest import RunKdtrain
from tests.tools import TEST, write_digits

CODE = """
from pathlib import Path

from kdtrain import Callback, flow

def record(event):
    with Path(__file__).with_name("events").open("a") as file:
        print(event, file=file)

record("import")

def make(image_shape, num_classes):
    record("network")
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(784, num_classes))

class Recorder(Callback):
    def __init__(self):
        record("plugin")

    def on_fit_start(self, run):
        record(f"start {(run.directory / 'config.toml').exists()}")
"""


@pytest.fixture
def session(mnist: Dataset, tmp_path: Path) -> Session:
    """A session with a network and a plugin that record their use in the file ``events``."""
    code = tmp_path / "mine.py"
    code.write_text(CODE)
    arch = f"{code}:make"
    return Session.open(
        FitConfig(
            mode="student_kd",
            teacher_arch=arch,
            student_arch=arch,
            plugin=(f"{code}:Recorder",),
            data_dir=write_digits(tmp_path / "digits", mnist),
            epochs=1,
            logdir=tmp_path / "logs",
            device="cpu",
        )
    )


@pytest.fixture
def teacher(session: Session, tmp_path: Path) -> TrainedTeacher:
    arch = session.config.student_arch
    path = untrained_teacher(tmp_path / "teacher.safetensors", session.dataset, arch)
    return trained_here(load_model(path, arch=arch))


def saved(teacher: TrainedTeacher) -> SavedModel:
    model = teacher.members[0].saved
    assert model is not None
    return model


def events(folder: Path) -> list[str]:
    return (folder / "events").read_text().splitlines()


def test_making_a_job_has_no_effect(session: Session, teacher: TrainedTeacher, tmp_path: Path) -> None:
    runs = tmp_path / "logs" / "runs"
    plain = FitSpec("student", 0, runs / "student")
    distilled = FitSpec("student_kd", 0, runs / "student_kd", teacher)
    files, before = sorted(tmp_path.rglob("*")), events(tmp_path)
    jobs = [
        session.fit_and_test_job(plain),
        session.fit_and_test_job(distilled),
        session.fit_job(plain),
        session.test_fitted_job(plain, FitResult(saved(teacher))),
        session.test_teacher_job(0, teacher),
        *session.soft_label_jobs({0: teacher, 1: teacher}),
    ]
    assert len(jobs) == 6, "seeds with one teacher share a job"
    assert events(tmp_path) == before, "no network was built, and no plugin was loaded"
    assert sorted(tmp_path.rglob("*")) == files


def test_seeds_share_the_teacher_s_outputs_for_the_views(session: Session, teacher: TrainedTeacher) -> None:
    session = session.with_config(dataclasses.replace(session.config, augment="shift=1", views=3, epochs=9))
    session.run(session.soft_label_jobs({0: teacher, 1: teacher}))
    files = list(logit_cache(session.config).iterdir())
    assert len(files) == 3, "a file for each view, not for each view and seed"
    fitted = session.run([session.fit_job(FitSpec("student_kd", 1, session.config.logdir / "kd", teacher))])
    assert len(fitted) == 1
    assert sorted(logit_cache(session.config).iterdir()) == sorted(files)


@pytest.mark.parametrize("arch", ["student_mlp", "hinton_800"])
def test_the_layers_that_plugins_compare_are_computed_before_the_fits(
    arch: str, mnist: Dataset, tmp_path: Path
) -> None:
    config = FitConfig("compare", logdir=tmp_path / "logs", limit_train=40, epochs=2, plugin=("fitnet",))
    config = dataclasses.replace(config, student_arch=arch, batch_size=20)
    session = Session.open(dataclasses.replace(config, augment="shift=1", views=3))
    teacher = trained_here(
        load_model(untrained_teacher(tmp_path / "teacher.safetensors", mnist, "hinton_800"))
    )
    session.run(session.soft_label_jobs({0: teacher, 1: teacher}))
    cache = logit_cache(session.config)
    content = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(content) == 3 * 2, "the logits and a layer of each view that some image takes"
    specs = [FitSpec("student_kd", seed, tmp_path / f"kd{seed}", teacher) for seed in (0, 1)]
    session.run([session.fit_job(spec) for spec in specs])
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == content, "all was there"


def test_the_configuration_is_on_disk_before_training_starts(session: Session, tmp_path: Path) -> None:
    directory = tmp_path / "logs" / "runs" / "student"
    job = session.fit_job(FitSpec("student", 5, directory))
    assert not directory.exists()
    before = len(events(tmp_path))
    [fitted] = session.run([job])
    assert "start True" in events(tmp_path)[before:]
    config = load_config({}, directory / "config.toml")
    assert (config.mode, config.seed) == ("student", 5)
    assert fitted.saved.path == directory / "checkpoints/best.safetensors"


@pytest.mark.parametrize(
    ("arch", "plugin", "cores"),
    [
        ("teacher_cnn", "dkd", len(available_cores())),
        ("teacher_cnn", "rkd,student_layer=fc1,teacher_layer=fc1", len(available_cores())),
        ("resnet8", "dist", len(available_cores())),
        ("hinton_800", "dist", len(available_cores())),
        ("student_mlp", "dist", 1),
    ],
)
def test_a_network_with_convolutions_or_large_layers_has_all_cores_whatever_its_plugins(
    arch: str, plugin: str, cores: int, mnist: Dataset, tmp_path: Path
) -> None:
    config = FitConfig("student_kd", student_arch=arch, logdir=tmp_path, plugin=(plugin,), limit_train=16)
    session = Session.open(config)
    teacher = trained_here(load_model(untrained_teacher(tmp_path / "teacher.safetensors", mnist, arch)))
    spec = FitSpec("student_kd", 0, tmp_path / "student_kd", teacher)
    jobs: list[Job[Any]] = [session.fit_job(spec), session.fit_and_test_job(spec)]
    jobs += [session.test_fitted_job(spec, FitResult(saved(teacher))), session.test_teacher_job(0, teacher)]
    jobs += session.soft_label_jobs({0: teacher})
    assert [job.cores for job in jobs] == [cores] * 5


def test_testing_normalises_the_test_images_only(
    session: Session, teacher: TrainedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalised = []
    normalize = Split.normalized

    def counted(
        split: Split, normalization: Normalization, indices: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32] | Normalized:
        normalised.append(len(split if indices is None else indices))
        return normalize(split, normalization, indices)

    monkeypatch.setattr(Split, "normalized", counted)
    tested = session.test_teacher_job(0, teacher).work()
    assert normalised == [tested.test.images] == [TEST]


def test_too_few_test_images_for_the_processes_are_refused_before_training(
    mnist: Dataset, tmp_path: Path, run_kdtrain: RunKdtrain
) -> None:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, split, count in (("train", mnist.train, 40), ("test", mnist.test, 1)):
        arrays |= {f"x_{name}": split.images[:count, 0], f"y_{name}": split.labels[:count]}
    np.savez(tmp_path / "few.npz", **arrays)
    words = ("--mode", "student", "--dataset", "npz:few.npz", "--nproc-per-node", "2", "--epochs", "1")
    finished = run_kdtrain("fit", *words, cwd=tmp_path)
    assert finished.returncode == 1
    assert "1 test images cannot be shared by 2 processes" in finished.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("peers", [0, 2])
def test_several_networks_divide_the_cores_also_where_only_one_of_them_is_left(
    peers: int, session: Session
) -> None:
    def job() -> Job[int]:
        return Job("one of several", lambda: len(available_cores()), cores=len(available_cores()))

    count = len(available_cores())
    alone = session.run([job()], peers)
    assert alone == [count if peers == 0 else max(1, count // peers)]
    assert session.run([job(), job()], peers) == [max(1, count // 2)] * 2
