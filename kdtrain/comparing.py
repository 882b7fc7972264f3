"""Carries out ``kdtrain fit --mode compare``: teacher and paired students, seed by seed."""

from __future__ import annotations

import json
from pathlib import Path

from kdtrain.callbacks.tensorboard import write_picture
from kdtrain.console import note
from kdtrain.fitting import Session, Trained
from kdtrain.modes import COMPARE, MODES
from kdtrain.report.comparison import Comparison, EpochPoint, ModelResult, compare, to_json
from kdtrain.report.comparison_plot import comparison_figure
from kdtrain.report.style import save_figure
from kdtrain.store.atomic import write_text
from kdtrain.store.run_directory import claim_run_directory
from kdtrain.teachers import find_teacher


def run_comparison(session: Session) -> tuple[Comparison, Path]:
    """Trains the three models for every seed; returns the comparison and its directory.

    The directory gets ``compare.json``, ``compare.png`` and a run directory per seed and model.
    """
    config = session.config
    given = _given_teacher(session)
    directory = claim_run_directory(config.logdir, "compare")
    write_text(directory / "config.toml", config.to_toml())
    trained = [given] if given is not None else []
    for seed in range(config.seed, config.seed + config.seeds):
        if config.seeds > 1:
            note(f"Seed {seed} ({seed - config.seed + 1} of {config.seeds})")
        trained += _one_seed(session, seed, directory / f"seed_{seed}", given)
    comparison = compare([_result(model) for model in trained])
    write_text(directory / "compare.json", json.dumps(to_json(comparison), indent=2) + "\n")
    picture = directory / "compare.png"
    save_figure(comparison_figure(comparison, title_extra=session.dataset.name), picture)
    write_picture(directory, "comparison", picture)
    return comparison, directory


def _given_teacher(session: Session) -> Trained | None:
    """Tests the teacher of --teacher-checkpoint, one for all seeds; None if each seed trains its own."""
    config = session.config
    saved = find_teacher(config, session.dataset) if config.teacher_checkpoint is not None else None
    if saved is None:
        return None
    note(f"The teacher is {saved.path}.")
    return session.test("teacher", config.seed, saved, session.data(config.seed))


def _one_seed(session: Session, seed: int, directory: Path, given: Trained | None) -> list[Trained]:
    """Trains the models of one seed on the same images in the same order."""
    data = session.data(seed)
    trained = {"teacher": given} if given is not None else {}
    for mode in COMPARE:
        if mode not in trained:
            teacher = trained["teacher"].saved if MODES[mode].has_teacher else None
            trained[mode] = session.train(mode, seed, data, directory / mode, teacher)
    return [model for model in trained.values() if model is not given]


def _result(trained: Trained) -> ModelResult:
    return ModelResult(
        model=trained.mode,  # type: ignore[arg-type]
        seed=trained.seed,
        test_accuracy=trained.test.accuracy,
        test_cross_entropy=trained.test.cross_entropy,
        test_images=trained.test.images,
        test_errors=trained.test.errors,
        parameters=trained.parameters,
        seconds=trained.seconds,
        history=tuple(
            EpochPoint(row["epoch"], row["eval/accuracy"], row["eval/cross_entropy"])
            for row in trained.history
        ),
        correct=trained.test.correct,
    )
