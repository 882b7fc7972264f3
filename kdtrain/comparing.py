"""Carries out ``kdtrain fit --mode compare``: teacher and paired students, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.calibration import reliability
from kdtrain.callbacks.tensorboard import write_picture
from kdtrain.children import Job
from kdtrain.console import note
from kdtrain.fidelity import measure_fidelity
from kdtrain.fitting import Session, resumable
from kdtrain.modes import COMPARE, MODES
from kdtrain.report.comparison import Comparison, EpochPoint, ModelResult, compare
from kdtrain.report.comparison_file import FILES, logits_key, to_json
from kdtrain.report.comparison_plot import comparison_figure
from kdtrain.report.style import save_figure
from kdtrain.results import Trained
from kdtrain.store.atomic import write_text
from kdtrain.store.checkpoint import SavedModel, save_tensors
from kdtrain.store.run_directory import claim_run_directory
from kdtrain.teachers import find_teacher


def run_comparison(session: Session, resume: Path | None = None) -> tuple[Comparison, Path]:
    """Trains the three models for every seed; returns the comparison and its directory.

    The directory gets ``compare.json``, ``compare.png`` and a run directory per seed and model.

    Args:
        session: the configuration and the data.
        resume: the directory of a comparison to go on with: what is trained already is only tested.
    """
    config = session.config
    given = _given_teacher(session)
    directory = resume or claim_run_directory(config.logdir, "compare")
    if resume is None:
        write_text(directory / "config.toml", config.to_toml())
    with resumable(directory):
        trained = _train_all(session, directory, given)
    comparison = compare(_results(trained, session.dataset.test.labels, directory))
    if session.ranks.rank == 0:
        logits = {logits_key(model.mode, model.seed): model.logits for model in trained}
        labels = session.dataset.test.labels.astype(np.int64)
        save_tensors(directory / FILES["test_logits"], {**logits, "labels": labels}, {})
        _file(comparison, directory, session.dataset.name)
    return comparison, directory


def _file(comparison: Comparison, directory: Path, dataset: str) -> None:
    """Writes the comparison's figures and picture."""
    write_text(directory / "compare.json", json.dumps(to_json(comparison), indent=2) + "\n")
    picture = directory / FILES["picture"]
    save_figure(comparison_figure(comparison, title_extra=dataset), picture)
    write_picture(directory, "comparison", picture)


def _given_teacher(session: Session) -> Trained | None:
    """Tests the teacher of --teacher-checkpoint, one for all seeds; None if each seed trains its own."""
    config = session.config
    saved = find_teacher(config, session.dataset) if config.teacher_checkpoint is not None else None
    if saved is None:
        return None
    note(f"The teacher is {saved.path}.")
    return session.run([session.testing("teacher", config.seed, saved)])[0]


def _train_all(session: Session, directory: Path, given: Trained | None) -> list[Trained]:
    """Trains the teachers, then all the students, as many side by side as there are cores.

    The models of one seed see the same images in the same order.
    """
    config = session.config
    seeds = range(config.seed, config.seed + config.seeds)

    if len(seeds) > 1:
        note(f"Seeds {seeds[0]} to {seeds[-1]}: each line begins with the model and its seed.")

    def training(mode: str, seed: int, teacher: SavedModel | None = None) -> Job[Trained]:
        label = mode if len(seeds) == 1 else f"{mode}/{seed}"
        folder, is_last = directory / f"seed_{seed}" / mode, seed == seeds[-1]
        return session.training(mode, seed, folder, teacher, label, keep=is_last)

    teachers = [given] if given is not None else session.run([training("teacher", seed) for seed in seeds])
    taught_by = {seed: teachers[0 if given is not None else i].saved for i, seed in enumerate(seeds)}
    session.prepare_soft_labels(taught_by)
    students = [
        training(mode, seed, taught_by[seed] if MODES[mode].has_teacher else None)
        for seed in seeds
        for mode in COMPARE
        if mode != "teacher"
    ]
    trained = teachers + session.run(students)
    return sorted(trained, key=lambda model: (model.seed, COMPARE.index(model.mode)))


def _results(trained: Sequence[Trained], labels: npt.NDArray[np.int64], directory: Path) -> list[ModelResult]:
    """Returns each model's figures; fidelity is to the teacher of its seed, or to the only one."""
    teachers = {model.seed: model for model in trained if model.mode == "teacher"}
    only = next(iter(teachers.values()))
    return [_result(model, teachers.get(model.seed, only), labels, directory) for model in trained]


def _result(
    trained: Trained, teacher: Trained, labels: npt.NDArray[np.int64], directory: Path
) -> ModelResult:
    fidelity = None if trained is teacher else measure_fidelity(trained.logits, teacher.logits)
    return ModelResult(
        model=trained.mode,  # type: ignore[arg-type]
        seed=trained.seed,
        test_accuracy=trained.test.accuracy,
        test_cross_entropy=trained.test.cross_entropy,
        test_images=trained.test.images,
        test_errors=trained.test.errors,
        calibration_error=reliability(trained.logits, labels).error,
        fidelity=fidelity,
        parameters=trained.parameters,
        multiply_adds=trained.multiply_adds,
        seconds=trained.seconds,
        history=tuple(
            EpochPoint(row["epoch"], row["eval/accuracy"], row["eval/cross_entropy"])
            for row in trained.history
        ),
        correct=trained.test.correct,
        arch=trained.saved.card.arch,
        directory=str(trained.directory.relative_to(directory)) if trained.directory else None,
    )
