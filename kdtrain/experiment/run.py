"""The command ``fit`` without its output, for the command line and for Python."""

from __future__ import annotations

from pathlib import Path

from kdtrain.experiment.compare import run_comparison
from kdtrain.experiment.comparison_run import ComparisonRun, place_picture
from kdtrain.experiment.loaders import count_validation
from kdtrain.experiment.result import TestedModel
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.single import run_single
from kdtrain.report.verdict import far_apart_sentence


def run_fit(config: FitConfig, resume: Path | None) -> tuple[TestedModel, str | None]:
    """Trains the network of mode teacher, student or student_kd.

    Args:
        config: configuration of the fit.
        resume: directory of a run to resume; None for a new one.

    Returns:
        The network, and a warning if its test images are unlike the held-out ones.
    """
    session = Session(config)
    model = run_single(session, resume)
    held_out = (model.saved.card.accuracy, count_validation(session.dataset, config))
    return model, far_apart_sentence(config.mode, held_out, (model.test.accuracy, model.test.images))


def run_compare(config: FitConfig, resume: Path | None) -> ComparisonRun:
    """Trains and compares the networks of mode compare; the arguments are those of ``run_fit``."""
    comparison, directory = run_comparison(Session(config), resume)
    return ComparisonRun(comparison, directory, place_picture(config, directory))
