"""``kdtrain eval``."""

from __future__ import annotations

import argparse
import json

from kdtrain.cli.common import answer_test_images, open_any_model, open_data
from kdtrain.cli.output import Output
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.evaluation import evaluation_report, to_json
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import available_cores


def run(options: argparse.Namespace) -> int:
    """Tests a model on the test set, and prints what came out."""
    device = resolve_device(options.device)
    model = open_any_model(options.checkpoint, options.arch, threads=len(available_cores()))
    data = open_data(model, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    logits = answer_test_images(model, data, device)
    evaluation = Evaluation.from_logits(logits, data.test.labels)
    if options.json:
        about = {"checkpoint": str(model.path), "arch": model.card.arch, "dataset": data.name}
        print(json.dumps(about | to_json(evaluation, model.card.classes), indent=2))
    else:
        output = Output()
        output.text(f"{model.path} ({short_name(model.card.arch)}) on the test set of {data.name}")
        output.print(evaluation_report(evaluation, model.card.classes))
    return 0
