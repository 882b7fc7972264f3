"""The logits of an ONNX file in onnxruntime, timed.

Runs in a process of its own, without OneFlow. Reads its task as JSON (``model``, ``images``, ``threads``,
``batch``) and prints the seconds for all images as JSON.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime


def main() -> None:
    """Computes the logits of all images and prints the seconds, without those of loading the model."""
    work = json.loads(sys.argv[1])
    images = np.load(work["images"])  # (N, C, H, W) float32, normalised
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = work["threads"], 1
    session = onnxruntime.InferenceSession(work["model"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    start = time.perf_counter()
    for first in range(0, len(images), work["batch"]):
        session.run(None, {name: images[first : first + work["batch"]]})
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
