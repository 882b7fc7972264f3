"""``kdtrain bench``."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from kdtrain.cli.common import check_fits, is_named, open_any_model, open_data, open_model
from kdtrain.cli.flags import check_flags
from kdtrain.cli.output import Output
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import Contender, run_benchmark
from kdtrain.deploy.benchmark_table import benchmark_table, to_json
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.errors import CheckpointError
from kdtrain.experiment.teacher import is_of
from kdtrain.runtime.limits import MOST_PROCESSES
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.value_checks import IMAGES, between
from kdtrain.store.checkpoint import SavedModel

logger = logging.getLogger(__name__)

_MOST_ROUNDS = 100_000


def run(options: argparse.Namespace) -> int:
    """Tests and times models side by side; prints a row for each."""
    check_flags(
        options, rounds=between(1, _MOST_ROUNDS), batch_size=IMAGES, threads=between(1, MOST_PROCESSES)
    )
    paths = options.models or _found(options.model_save_dir)
    contenders = [Contender(_open(path, options.arch, options.threads), options.threads) for path in paths]
    if not options.models:  # the first one decides how the data are read
        contenders.sort(key=lambda one: not is_named(one.model.card, options.dataset, options.data_dir))
    data = open_data(
        contenders[0].model, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt
    )
    if not options.models:
        contenders = _of_these_data(contenders, data)
    for contender in contenders:
        check_fits(contender.model, data)
    results = run_benchmark(
        contenders, data.test, batch_size=min(options.batch_size, len(data.test)), rounds=options.rounds
    )
    if options.json:
        rows = [to_json(result) | {"threads": options.threads} for result in results]
        print(json.dumps(rows, indent=2))
        return 0
    output = Output()
    output.text(f"{data.name}: {len(data.test):,} test images, {options.rounds} rounds")
    output.print(benchmark_table(results))
    several = "s" * (options.threads > 1)
    output.sentence(
        "From pixels to logits. p50, p95: for one image. ±: half of the rounds were as close to the median. "
        f"On {options.threads} core{several}, onnxruntime with {options.threads} thread{several}, "
        "oneflow with one."
    )
    return 0


def _found(folder: Path) -> list[Path]:
    """Returns the models in a folder by name; those named after nothing but their mode come first."""
    found = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".onnx")]
    if not found:
        raise CheckpointError(
            f"there is no model in {missing_path_text(folder)}: train one with `kdtrain fit`, or name a file."
        )
    return sorted(found, key=lambda path: ("-" in path.stem, path.name))


def _of_these_data(contenders: list[Contender], data: Dataset) -> list[Contender]:
    """Returns those that were trained on the data, and says which others there are; all if none was."""
    own = [one for one in contenders if is_of(one.model.card, data)]
    others = [one.model.path.name for one in contenders if not is_of(one.model.card, data)]
    if own and others:
        logger.info(f"Left out, because trained on other data than {data.name}: {', '.join(others)}.")
    return own or contenders


def _open(path: Path, arch: str | None, threads: int) -> OnnxModel | SavedModel:
    """Reads a model; ``arch`` allows the code that a checkpoint names, others do not need it."""
    try:
        return open_any_model(path, threads=threads)
    except CheckpointError:
        if arch is None or path.suffix == ".onnx":
            raise
        return open_model(path, arch=arch)
