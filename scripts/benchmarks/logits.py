"""The measurement of a teacher's logits over a training set, beside onnxruntime."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time

import numpy as np
from bench import HERE, Bench, run_data
from tools import THREADS, Row, answer, kdtrain, ratio_row, side_by_side

from kdtrain.engine.predict import predict_logits
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.store.checkpoint import load_model

SECONDS = 8.0  # the promise for 55,000 images
BATCH = 250  # images at once in onnxruntime, as in kdtrain's own use of it


def logits(bench: Bench) -> list[Row]:
    """Measures a teacher's logits of 55,000 images against onnxruntime's with the exported model."""
    model, images = bench.teacher(), bench.folder / "images.npy"
    kdtrain("export", model, "--normalized-input")
    data = run_data()
    np.save(images, np.asarray(data.train.inputs))
    work = {
        "model": str(model.with_suffix(".onnx")),
        "images": str(images),
        "threads": THREADS,
        "batch": BATCH,
    }

    def measure() -> float:
        network, loader = load_model(model).build(), run_data().train
        start = time.perf_counter()
        predict_logits(network, loader)
        return time.perf_counter() - start

    def run_kdtrain() -> float:
        return run_jobs([Job("logits", measure, cores=THREADS)])[0]

    def run_onnxruntime() -> float:
        seconds: float = answer([sys.executable, HERE / "onnx_peer.py", json.dumps(work)])
        return seconds

    pairs = side_by_side(run_kdtrain, run_onnxruntime, bench.repeats)
    what = f"teacher_cnn, the logits of {data.train.num_images:,} images"
    row = ratio_row(what, *pairs, 1.0, f"onnxruntime with {THREADS} threads")
    in_time = statistics.median(pairs[0]) <= SECONDS
    return [dataclasses.replace(row, target=f"at most {SECONDS:g} s and 1 x", kept=row.kept and in_time)]
