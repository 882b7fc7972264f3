"""``kdtrain fit``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from kdtrain import launch
from kdtrain.cli.output import Output
from kdtrain.config import FitConfig, load_config
from kdtrain.interrupts import turn_sigterm_into_exception
from kdtrain.store.atomic import write_bytes


def run(options: argparse.Namespace) -> int:
    """Trains, and prints how the models did."""
    settings = {field.name for field in dataclasses.fields(FitConfig)}
    flags = {name: value for name, value in vars(options).items() if name in settings}
    config = load_config(flags, options.config)
    turn_sigterm_into_exception()
    if config.nproc_per_node > 1 and launch.rank() is None:
        return launch.launch(options.words, config.nproc_per_node)
    with launch.as_rank(config) as config:
        _fit(config)
    return 0


def _fit(config: FitConfig) -> None:
    if config.mode == "compare":
        _compare(config)
    else:
        _single(config)


def _single(config: FitConfig) -> None:
    from kdtrain.fitting import Session

    trained = Session(config).fit_one()
    test = trained.test
    rows = {
        "test accuracy": f"{test.accuracy:.2%} ({test.errors:,} errors in {test.images:,})",
        "cross-entropy": f"{test.cross_entropy:.4f}",
        "parameters": f"{trained.parameters:,}",
        "seconds": f"{trained.seconds:.1f}",
        "best weights": trained.saved.path,
    }
    output = Output()
    for name, value in rows.items():
        output.text(f"{name:<13}  {value}")


def _compare(config: FitConfig) -> None:
    from kdtrain.comparing import run_comparison
    from kdtrain.fitting import Session
    from kdtrain.report.comparison import comparison_table

    comparison, directory = run_comparison(Session(config))
    picture = directory / "compare.png"
    if config.image_save_dir is not None or config.image_save_name is not None:
        copy = picture_path(config.image_save_dir, config.image_save_name, Path("compare.png"))
        write_bytes(copy, picture.read_bytes())
        picture = copy
    output = Output()
    output.print(comparison_table(comparison))
    output.sentence(comparison.verdict)
    output.text(f"Picture: {picture}")
    output.text(f"Figures: {directory / 'compare.json'}")


def picture_path(folder: Path | None, name: Path | None, default: Path) -> Path:
    """Returns where a picture goes: a name alone is a path of its own, as in the sample."""
    if name is None:
        return (folder or Path()) / default
    return folder / name if folder is not None else name
