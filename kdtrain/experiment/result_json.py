"""The result of ``kdtrain fit`` as plain values for JSON. docs/fit-json.md explains each key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtrain.experiment.compare import ComparisonRun
from kdtrain.experiment.result import TestedModel
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.comparison import ModelResult
from kdtrain.report.comparison_file import to_json

VERSION = 1


def fit_to_json(config: FitConfig, model: TestedModel, warning: str | None) -> dict[str, Any]:
    """Returns the result of one network.

    Args:
        config: configuration of the command.
        model: the network, tested.
        warning: a warning about its figures; None without one.
    """
    assert model.directory is not None, "it was trained here"
    entry = {
        "model": model.mode,
        "seed": model.seed,
        "arch": model.saved.card.arch,
        "parameters": model.parameters,
        "multiply_adds": model.multiply_adds,
        "seconds": float(model.seconds),
        "held_out_accuracy_fraction": model.saved.card.accuracy,
        **_test_figures(model.test),
        **_paths(directory=model.directory, checkpoint=model.path),
    }
    sentences = [] if warning is None else [warning]
    return _about(config, model.directory) | {"sentences": sentences, "models": [entry]}


def comparison_to_json(config: FitConfig, run: ComparisonRun) -> dict[str, Any]:
    """Returns the result of a comparison: its models, its files, and the content of compare.json.

    Args:
        config: configuration of the command.
        run: the finished comparison.
    """
    files = _paths(report=run.report, picture=run.picture, figures=run.figures)
    return _about(config, run.directory) | {
        "sentences": list(run.sentences),
        "models": [_compared(result, run) for result in run.results],
        **files,
        "comparison": to_json(run.comparison),
    }


def _about(config: FitConfig, directory: Path) -> dict[str, Any]:
    about = {"version": VERSION, "mode": config.mode, "name": config.name}
    about |= {"dataset": config.dataset, "labels": config.labels}
    return about | _paths(directory=directory)


def _compared(result: ModelResult, run: ComparisonRun) -> dict[str, Any]:
    """Returns an entry of ``models``; a teacher that existed already has no directory and no history."""
    trained = result.directory is not None
    return {
        "model": result.model,
        "seed": result.seed,
        "arch": result.arch,
        "parameters": result.parameters,
        "multiply_adds": result.multiply_adds,
        "seconds": float(result.seconds),
        "held_out_accuracy_fraction": float(result.held_out_accuracy) if result.history else None,
        **_test_figures(result.test),
        **_paths(
            directory=run.directory / str(result.directory) if trained else None,
            checkpoint=run.checkpoint(result.model, result.seed) if trained else None,
        ),
    }


def _test_figures(test: Evaluation) -> dict[str, Any]:
    return {
        "test_images": test.images,
        "test_errors": test.errors,
        "test_accuracy_fraction": test.accuracy,
        "test_cross_entropy_nats": test.cross_entropy,
        "test_calibration_error_fraction": test.calibration_error,
    }


def _paths(**paths: Path | None) -> dict[str, str | None]:
    return {name: None if path is None else str(path.absolute()) for name, path in paths.items()}
