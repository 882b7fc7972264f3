"""The configuration of the commands ``fit`` and ``tune``: a new one, or that of a run that is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtrain.errors import UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import load_config, new_config, resumed_config
from kdtrain.experiment.settings import flag_of
from kdtrain.runtime.ranks import rank
from kdtrain.store.run_directory import check_name, latest_run

LATEST = Path()
"""The value of ``--resume`` that stands for the latest run."""


def fit_config(
    settings: Mapping[str, Any], file: Path | None, resume: Path | None
) -> tuple[FitConfig, Path | None]:
    """Returns the configuration of a fit, and the directory of the run that is resumed.

    Args:
        settings: values by the name of their setting.
        file: a TOML file; None without one.
        resume: the directory of the run to resume, or ``LATEST``; None for a new one.

    Raises:
        UsageError: a value is not allowed, or contradicts the run that is resumed.
    """
    return _config(settings, file, resume, "run", None)


def tune_config(
    settings: Mapping[str, Any], file: Path | None, resume: Path | None
) -> tuple[FitConfig, Path | None]:
    """Returns the configuration of a search, as ``fit_config`` does.

    Raises:
        UsageError: a value is not allowed, or nothing can be tuned with it.
    """
    config, resume = _config(settings, file, resume, "search", "tune")
    if config.nproc_per_node > 1 or rank() is not None:
        raise UsageError(
            "`kdtrain tune` trains its trials side by side, each in one process: leave --nproc-per-node and "
            "the launcher out."
        )
    if config.mode != "compare":
        raise UsageError(
            f"`kdtrain tune` is for the students of a comparison, not for --mode {config.mode}: "
            "leave it out, or give --mode compare."
        )
    for name in ("grid", "teacher_per_seed"):
        if getattr(config, name):
            raise UsageError(f"{flag_of(name)} is for `kdtrain fit`: leave it out here.")
    if config.val_size == 0:
        raise UsageError(
            "`kdtrain tune` chooses by held-out images, but --val-size 0 holds none out: leave it out."
        )
    return config, resume


def _config(
    settings: Mapping[str, Any], file: Path | None, resume: Path | None, what: str, folder: str | None
) -> tuple[FitConfig, Path | None]:
    """Returns configuration and directory; runs are in ``folder``, or in one named after the mode."""
    if resume is None:
        config = new_config(settings, file)
        if config.name is not None and rank() is None:  # another rank may have begun this run
            check_name(config.logdir, folder or config.mode, config.name)
        return (config if folder is None else dataclasses.replace(config, tuned=None)), None
    if file is not None:
        raise UsageError(f"--resume reads the configuration of the {what}: leave --config out.")
    if resume == LATEST:
        wanted = load_config(settings)
        of_mode = wanted.logdir / (folder or wanted.mode)
        resume = of_mode / wanted.name if wanted.name else latest_run(wanted.logdir, of_mode.name)
    return resumed_config(settings, resume), resume
