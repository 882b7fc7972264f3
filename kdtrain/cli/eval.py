"""``kdtrain eval``."""

from __future__ import annotations

import argparse
import json

from kdtrain.cli.common import open_data, open_model
from kdtrain.cli.output import Output
from kdtrain.data.datasets import Normalization
from kdtrain.data.loader import Loader
from kdtrain.evaluation import Evaluation
from kdtrain.predict import predict_logits
from kdtrain.report.evaluation import evaluation_report, to_json
from kdtrain.runtime import resolve_device


def run(options: argparse.Namespace) -> int:
    """Tests a checkpoint on the test set, and prints what came out."""
    device = resolve_device(options.device)
    saved = open_model(options.checkpoint, arch=options.arch)
    data = open_data(saved, options.dataset, options.data_dir)
    normalization = Normalization(saved.card.mean, saved.card.std)
    test = Loader(
        normalization.apply(data.test.images),
        data.test.labels,
        250,
        num_classes=data.num_classes,
        device=device,
    )
    logits = predict_logits(saved.build(device), test, description="test set")
    evaluation = Evaluation.from_logits(logits, data.test.labels)
    if options.json:
        about = {"checkpoint": str(saved.path), "arch": saved.card.arch, "dataset": data.name}
        print(json.dumps(about | to_json(evaluation, saved.card.classes), indent=2))
    else:
        output = Output()
        output.text(f"{saved.path} ({saved.card.arch}) on the test set of {data.name}")
        output.print(evaluation_report(evaluation, saved.card.classes))
    return 0
