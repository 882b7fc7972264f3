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
from kdtrain.store.checkpoint import SavedModel
from kdtrain.store.run_directory import claim_run_directory
from kdtrain.teachers import find_teacher


def run_comparison(session: Session) -> tuple[Comparison, Path]:
    """Trains the three models for every seed; returns the comparison and its directory.

    The directory gets ``compare.json``, ``compare.png`` and a run directory per seed and model.
    """
    config = session.config
    directory = claim_run_directory(config.logdir, "compare")
    write_text(directory / "config.toml", config.to_toml())
    results = []
    for seed in range(config.seed, config.seed + config.seeds):
        if config.seeds > 1:
            note(f"Seed {seed} ({seed - config.seed + 1} of {config.seeds})")
        results += [_result(trained) for trained in _one_seed(session, seed, directory / f"seed_{seed}")]
    comparison = compare(results)
    write_text(directory / "compare.json", json.dumps(to_json(comparison), indent=2) + "\n")
    picture = directory / "compare.png"
    save_figure(comparison_figure(comparison, title_extra=session.dataset.name), picture)
    write_picture(directory, "comparison", picture)
    return comparison, directory


def _one_seed(session: Session, seed: int, directory: Path) -> list[Trained]:
    """Trains the three models of one seed on the same images in the same order."""
    data = session.data(seed)
    trained: dict[str, Trained] = {}
    for mode in COMPARE:
        teacher: SavedModel | None = trained["teacher"].saved if MODES[mode].has_teacher else None
        if mode == "teacher" and session.config.teacher_checkpoint is not None:
            given = find_teacher(session.config, session.dataset)
            assert given is not None, "a checkpoint that was named is there, or it is an error"
            trained[mode] = session.test(mode, seed, given, data)
        else:
            trained[mode] = session.train(mode, seed, data, directory / mode, teacher)
    return list(trained.values())


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
