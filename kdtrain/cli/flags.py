"""Flags that commands share, and those of the commands about finished models."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdtrain.errors import UsageError, clipped
from kdtrain.experiment.config import flag_of
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.value_checks import Check


def check_flags(options: argparse.Namespace, **demands: Check) -> None:
    """Raises UsageError if a flag's number is not as it is demanded of it."""
    for name, (is_allowed, demand) in demands.items():
        value = getattr(options, name)
        if not is_allowed(value):
            raise UsageError(f"{flag_of(name)} is {clipped(value)}: it {demand}.")


def data_flags(parser: argparse.ArgumentParser) -> None:
    """Which data a model is asked about."""
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="what the network must be; allows code of yours, MODULE:FACTORY or FILE.py:FACTORY, to be run",
    )
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        help="the data whose test images are taken, as for fit [what the model was trained on]",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="read the four IDX files from here")
    parser.add_argument(
        "--skip-corrupt", action="store_true", help="leave out pictures of folder:DIR that cannot be read"
    )


def device_flag(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute [auto]"
    )


def export_flags(parser: argparse.ArgumentParser) -> None:
    """Of ``kdtrain export``."""
    parser.description = (
        "Writes a checkpoint as an ONNX file that runs without oneflow, once onnxruntime has given the same\n"
        "predictions for every test image. Its input `pixels` takes images as they are, 0 to 255."
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, or a OneFlow checkpoint directory",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the file to write [CHECKPOINT with .onnx in the end]"
    )
    parser.add_argument(
        "--normalized-input",
        action="store_true",
        help="leave the normalisation out: the input is called `inputs` then, and takes normalised images",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8",),
        help="write FILE.int8.onnx as well, in 8-bit integers, calibrated on training images",
    )
    parser.add_argument(
        "--calibration-images", type=int, default=512, metavar="N", help="how many to calibrate with [512]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which those are [0]")
    data_flags(parser)


def bench_flags(parser: argparse.ArgumentParser) -> None:
    """Of ``kdtrain bench``."""
    parser.description = (
        "Compares models, checkpoints and .onnx files alike: size, accuracy on the test set, how long one\n"
        "image takes, and how many images a second go through in batches. Each has its turn in every round,\n"
        "so that what disturbs one disturbs all."
    )
    parser.add_argument(
        "models", nargs="*", type=Path, metavar="MODEL", help="the files [all in --model-save-dir]"
    )
    parser.add_argument(
        "--model-save-dir",
        type=Path,
        default=Path("logs/models"),
        metavar="DIR",
        help="where the trained models are [logs/models]",
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds [20]")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=IMAGES_AT_ONCE,
        metavar="N",
        help=f"images in a batch [{IMAGES_AT_ONCE}]",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of onnxruntime [1, as oneflow has]"
    )
    data_flags(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def serve_flags(parser: argparse.ArgumentParser) -> None:
    """Of ``kdtrain serve``."""
    parser.description = (
        "Serves an exported model over HTTP: a page on which one draws a digit or drops a picture, and an\n"
        "endpoint, POST /predict. Needs no oneflow."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="what `kdtrain export` has written")
    parser.add_argument("--teacher", type=Path, metavar="FILE", help="another one, to be shown beside it")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen [127.0.0.1, this machine only]",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free [8000]")
    parser.add_argument(
        "--max-body", type=float, default=10.0, metavar="MB", help="megabytes that a request may have [10]"
    )
    parser.add_argument(
        "--rate", type=float, default=30.0, metavar="N", help="requests per second for each client [30]"
    )
