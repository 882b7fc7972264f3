"""The command ``kdtrain eval``: the figures of one model on a test set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kdtrain.cli.flags import data_flags, device_flag, json_flag
from kdtrain.cli.output import Stdout, after_model
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.signals import defer_signals


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, a OneFlow checkpoint directory, or an .onnx file from `kdtrain export`",
    )
    data_flags(parser)
    device_flag(parser)
    json_flag(parser, "one JSON object")


def run(options: argparse.Namespace) -> int:
    """Tests a model on the test set, and prints its figures."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.deploy.predict.evaluate import evaluate
        from kdtrain.report.evaluation import evaluation_report, evaluation_to_json
    evaluated = evaluate(
        options.checkpoint,
        arch=options.arch,
        dataset=options.dataset,
        data_dir=options.data_dir,
        skip_corrupt=options.skip_corrupt,
        device=options.device,
    )
    model, data, evaluation = evaluated.model, evaluated.dataset, evaluated.test
    if options.json:
        about = {"checkpoint": str(model.path), "arch": model.card.arch, "dataset": data.name}
        print(json.dumps(about | evaluation_to_json(evaluation, model.card.classes), indent=2))
    else:
        output = Stdout()
        output.sentence(f"{model.path} ({short_name(model.card.arch)}) on the test set of {data.name}")
        output.print(evaluation_report(evaluation, model.card.classes))
        if model.path.suffix != ".onnx":
            after_model(output, "export", model.path, options)
    return 0
