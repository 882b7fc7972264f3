"""The command ``kdtrain eval``: the figures of one model on a test set."""

from __future__ import annotations

import argparse
import json

from kdtrain.cli.common import open_data, open_model, predict_test_set
from kdtrain.cli.output import Output
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.evaluation import evaluation_report, to_json
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import available_cores


def run(options: argparse.Namespace) -> int:
    """Tests a model on the test set, and prints its figures."""
    device = resolve_device(options.device)
    model = open_model(options.checkpoint, options.arch, device=device, threads=len(available_cores()))
    data = open_data(model, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    evaluation = Evaluation.from_logits(predict_test_set(model, data), data.test.labels)
    if options.json:
        about = {"checkpoint": str(model.path), "arch": model.card.arch, "dataset": data.name}
        print(json.dumps(about | to_json(evaluation, model.card.classes), indent=2))
    else:
        output = Output()
        output.text(f"{model.path} ({short_name(model.card.arch)}) on the test set of {data.name}")
        output.print(evaluation_report(evaluation, model.card.classes))
    return 0
