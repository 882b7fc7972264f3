"""The command ``kdtrain bench``: accuracy and latency of models, side by side."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kdtrain.cli.flags import data_flags, json_flag, model_folder_flag, whole_number
from kdtrain.cli.output import Stdout
from kdtrain.errors import CheckpointError
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.signals import defer_signals

if TYPE_CHECKING:  # the help needs this file, but no OneFlow
    from kdtrain.data.dataset import Dataset
    from kdtrain.deploy.predict.predictor import Predictor

logger = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Compare models, checkpoints as well as .onnx files: size, accuracy on the test set, latency of one "
        "image, and throughput in batches. Every model has a turn in every round, so a disturbance of the "
        "machine affects all of them."
    )
    parser.add_argument(
        "models", nargs="*", type=Path, metavar="MODEL", help="model files [all in the model folder]"
    )
    model_folder_flag(parser)
    parser.add_argument(
        "--rounds", type=whole_number, default=20, metavar="N", help="number of rounds of measurements [20]"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        default=IMAGES_AT_ONCE,
        metavar="N",
        help=f"images per batch when throughput is measured [{IMAGES_AT_ONCE}]",
    )
    parser.add_argument(
        "--threads",
        type=whole_number,
        default=1,
        metavar="N",
        help="threads of onnxruntime; oneflow always has one [1]",
    )
    data_flags(parser)
    json_flag(parser, "a JSON list")


def run(options: argparse.Namespace) -> int:
    """Tests and times models side by side, and prints a row for each."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.deploy.benchmark import (
            bench_models,
            benchmark_json,
            benchmark_table,
            check_numbers,
            open_all,
        )
        from kdtrain.deploy.predict.opening import is_named, open_data
    check_numbers(options.rounds, options.batch_size, options.threads)
    paths = options.models or _kept_models(options.model_save_dir)
    models = open_all(paths, options.arch, options.threads)
    if not options.models:  # the first model decides how the data are read
        models.sort(key=lambda model: not is_named(model.card, options.dataset, options.data_dir))
    data = open_data(models[0], options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    if not options.models:
        models = _trained_on(data, models)
    results = bench_models(models, data, options.rounds, options.batch_size, options.threads)
    if options.json:
        rows = [benchmark_json(result) | {"threads": options.threads} for result in results]
        print(json.dumps(rows, indent=2))
        return 0
    output = Stdout()
    rounds = f"{options.rounds} round{'s' * (options.rounds > 1)}"
    output.text(f"{data.name}: {len(data.test):,} test images, {rounds}")
    output.print(benchmark_table(results))
    plural = "s" * (options.threads > 1)
    output.sentence(
        f"On {options.threads} core{plural}, onnxruntime with {options.threads} thread{plural}, "
        "oneflow with one."
    )
    return 0


def _kept_models(folder: Path) -> list[Path]:
    """Returns the models in a folder by name; those named after their mode alone come first."""
    paths = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".onnx")]
    if not paths:
        raise CheckpointError(
            f"there is no model in {missing_path_text(folder)}: train one with `kdtrain fit`, or name a file."
        )
    return sorted(paths, key=lambda path: ("-" in path.stem, path.name))


def _trained_on(data: Dataset, models: list[Predictor]) -> list[Predictor]:
    """Returns the models that were trained on the data, and logs the others; all models if none was."""
    from kdtrain.experiment.teachers.files import is_of

    kept = [model for model in models if is_of(model.card, data)]
    omitted = [model.path.name for model in models if not is_of(model.card, data)]
    if kept and omitted:
        logger.info(f"Left out, because trained on other data than {data.name}: {', '.join(omitted)}.")
    return kept or models
