"""The command ``kdtrain bench``: accuracy and latency of models, side by side."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from kdtrain.cli.output import Output
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import bench_models, benchmark_json, benchmark_table, check_numbers, open_all
from kdtrain.deploy.predict.opening import is_named, open_data
from kdtrain.deploy.predict.predictor import Predictor
from kdtrain.errors import CheckpointError
from kdtrain.experiment.teacher_files import is_of
from kdtrain.runtime.locations import missing_path_text

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Tests and times models side by side, and prints a row for each."""
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
    output = Output()
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
    kept = [model for model in models if is_of(model.card, data)]
    omitted = [model.path.name for model in models if not is_of(model.card, data)]
    if kept and omitted:
        logger.info(f"Left out, because trained on other data than {data.name}: {', '.join(omitted)}.")
    return kept or models
