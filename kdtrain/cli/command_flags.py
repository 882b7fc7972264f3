"""The flags of each command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from kdtrain.cli.flag_types import choice, number, whole_number
from kdtrain.cli.flags import Parser, data_flags, device_flag, json_flag, model_folder_flag
from kdtrain.cli.setting_flags import add_setting_flag, add_setting_flags
from kdtrain.cli.sharing_flags import card_flags, completion_flags, runs_flags
from kdtrain.experiment.halving import DEFAULT_BUDGET
from kdtrain.experiment.settings import MODE_CHOICES
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.value_checks import DEFAULT_TEMPERATURE


def _fit(parser: Parser) -> None:
    groups = _config(parser)
    networks, output = groups["what to train"], groups["output"]
    _resume(networks, "continue an interrupted run [the latest of the mode]")
    networks.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="try it on two batches, in seconds, and leave no file",
    )
    json_flag(output, "the result as one JSON object")


def _launch(parser: Parser) -> None:
    parser.description = (
        "Start this machine's processes of one fit by OneFlow's launcher. Give the command on each machine, "
        "with its --node-rank: `kdtrain launch --nnodes 2 --node-rank 0 --master-addr ADDRESS fit ...`."
    )
    numbers = {
        "--nnodes": ("number of machines", 1),
        "--node-rank": ("number of this machine, from 0 on", 0),
        "--nproc-per-node": ("number of processes on each machine", 1),
        "--master-port": ("free port of machine 0, at which the processes connect", 29500),
    }
    for flag, (text, default) in numbers.items():
        parser.add_argument(flag, type=whole_number, default=default, metavar="N", help=f"{text} [{default}]")
    parser.add_argument(
        "--master-addr", default="127.0.0.1", metavar="ADDRESS", help="address of machine 0 [127.0.0.1]"
    )
    parser.add_argument(
        "fit", nargs=argparse.REMAINDER, metavar="fit ...", help="`fit` with its flags, for every process"
    )


def _tune(parser: Parser) -> None:
    parser.description = (
        "Choose settings of the students of a comparison on held-out images, by successive halving: a ninth "
        "of the epochs for all trials, a third for the best third of them, all epochs for the best of these. "
        "The plain student gets as many trials as the distilled one. The test set is not read."
    )
    parser.add_argument(
        "--budget",
        default=argparse.SUPPRESS,
        metavar="20m|N",
        help=f"minutes for everything, such as 20m, or number of trials of each student [{DEFAULT_BUDGET}]",
    )
    parser.add_argument(
        "--search",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME=LOW..HIGH|V,V",
        help="values to choose from, for temperature, alpha, lr, weight_decay, views (on,off) or an argument "
        "of a plugin, such as dkd.beta=1..10 (repeatable) [sensible ranges; plugins keep their arguments]",
    )
    parser.add_argument(
        "--tune-seeds",
        type=whole_number,
        default=argparse.SUPPRESS,
        metavar="N",
        help="number of seeds that each trial is trained with [1]",
    )
    _resume(parser, "continue an interrupted search [the latest one in the log directory]")
    _config(parser)


def _resume(parser: argparse._ActionsContainer, help: str) -> None:
    """Adds --resume, whose directory may be left out."""
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=Path(),
        default=argparse.SUPPRESS,
        metavar="RUN_DIR",
        help=help,
    )


def _config(parser: Parser) -> Mapping[str, argparse._ArgumentGroup]:
    """Adds the flags of all settings, and --config; returns the groups of the help by heading."""
    groups = add_setting_flags(parser)
    groups["what to train"].add_argument(
        "--config", type=Path, metavar="FILE", help="read settings from a TOML file; flags win over it"
    )
    return groups


def _print_config(parser: Parser) -> None:
    _config(parser)


def _eval(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, a OneFlow checkpoint directory, or an .onnx file from `kdtrain export`",
    )
    data_flags(parser)
    device_flag(parser)
    json_flag(parser, "one JSON object")


def _bias(parser: Parser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="run directory of a student that was trained with `kdtrain fit --omit-class`",
    )
    parser.add_argument(
        "--by",
        **choice("transfer", "validation", "labels"),
        default="validation",
        help="what the biases are fitted to: the teacher's mean probability of these classes on the "
        "student's training images (transfer) or on the validation images (validation), or the labels of "
        "the validation images (labels) [validation]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="checkpoint to write [RUN_DIR/checkpoints/bias_BY.safetensors]",
    )
    device_flag(parser)
    json_flag(parser, "one JSON object")


def _infer(parser: Parser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="image files to classify, or folders of image files, in order of name; for a model of MNIST, "
        "photos or scans of one digit each",
    )
    parser.add_argument(
        "--picture-index",
        type=whole_number,
        metavar="N",
        help="classify image N of the test set, counted from 0, in place of files",
    )
    parser.add_argument(
        "--model-type",
        **choice(*(mode for mode in MODE_CHOICES if mode != "compare")),
        default="student_kd",
        help="mode of the trained model to use [student_kd]",
    )
    model_folder_flag(parser)
    parser.add_argument(
        "--checkpoint",
        "--model-load-dir",
        type=Path,
        metavar="MODEL",
        help="use this model: a .safetensors file, a OneFlow checkpoint directory, an .onnx file from "
        "`kdtrain export`, or a folder with the model of --model-type [the folder --model-save-dir]",
    )
    _figure_flags(parser)
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write a table with a row for each image: path, prediction, probability, the probabilities of "
        "all classes, warning and error [not written]",
    )
    data_flags(parser)
    device_flag(parser)
    json_flag(parser, "a JSON list")


def _figure_flags(parser: Parser) -> None:
    """Adds the flags of the figure that ``kdtrain infer`` draws."""
    parser.add_argument(
        "--temperature",
        type=number,
        metavar="T",
        help="temperature, above 0, of the softened probabilities in the third panel of the figure [the one "
        f"that the model was distilled with, or {DEFAULT_TEMPERATURE:g}]",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no figure")
    parser.add_argument(
        "--image-save-dir", type=Path, metavar="DIR", help="folder for the figures [logs/images]"
    )
    parser.add_argument(
        "--image-save-name",
        type=Path,
        metavar="FILE",
        help="file name of the figure, in --image-save-dir if that is given [MODEL_IMAGE.png]",
    )


def _export(parser: Parser) -> None:
    parser.description = (
        "Write a checkpoint as an ONNX file that runs without oneflow. Before the file gets its name, "
        "onnxruntime must give oneflow's predictions for every test image. The file's input `pixels` takes "
        "images with values from 0 to 255."
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, or a OneFlow checkpoint directory",
    )
    text = "file to write [CHECKPOINT with the ending .onnx]"
    parser.add_argument("--output", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--normalized-input",
        action="store_true",
        help="leave the normalisation out of the file: its input is then called `inputs`, and takes "
        "normalised images",
    )
    parser.add_argument(
        "--quantize",
        **choice("int8"),
        help="also write FILE.int8.onnx, in 8-bit integers, calibrated on training images [not written]",
    )
    parser.add_argument(
        "--calibration-images",
        type=whole_number,
        default=512,
        metavar="N",
        help="number of training images that --quantize calibrates with [512]",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="seed of the choice of calibration images [0]",
    )
    data_flags(parser)
    json_flag(parser, "one JSON object")


def _bench(parser: Parser) -> None:
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


def _serve(parser: Parser) -> None:
    parser.description = (
        "Serve an exported model over HTTP: a page to draw a digit on or to drop an image file on, and an "
        "endpoint, POST /predict. Needs no oneflow."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a file from `kdtrain export`")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="a second file from `kdtrain export`, whose predictions are shown beside the model's",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on [127.0.0.1: only this machine can connect]",
    )
    parser.add_argument(
        "--port",
        type=whole_number,
        default=8000,
        metavar="N",
        help="TCP port to listen on; 0 takes any free one [8000]",
    )
    parser.add_argument(
        "--max-body", type=number, default=10.0, metavar="MB", help="largest request body in megabytes [10]"
    )


def _models(parser: Parser) -> None:
    parser.description = (
        "List networks with their trainable parameters and their multiply-adds for one image. Only "
        "multiply-adds of linear layers and convolutions are counted; there are twice as many FLOPs."
    )
    parser.add_argument(
        "archs",
        nargs="*",
        metavar="ARCH",
        help="networks to list: names, MODULE:FACTORY or FILE.py:FACTORY, or patterns such as "
        "'flowvision:resnet*' [kdtrain's own]",
    )
    parser.add_argument(
        "--dataset",
        default="mnist",
        metavar="NAME",
        help="data set whose image shape and number of classes the networks are built for [mnist]",
    )
    add_setting_flag(parser, "data_dir", default=None)
    parser.add_argument(
        "--image-shape",
        metavar="C,H,W",
        help="channels, height and width in pixels, in place of a data set's; with 10 classes. "
        "Such as 3,32,32",
    )
    json_flag(parser, "a JSON list")


def _plugins(parser: Parser) -> None:
    json_flag(parser, "a JSON list")


def _recipes(parser: Parser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="print this recipe's file, which --config reads [list all]"
    )
    json_flag(parser, "a JSON list")


def _doctor(parser: Parser) -> None:
    json_flag(parser, "one JSON object")


FLAGS: dict[str, Callable[[Parser], None]] = {
    "fit": _fit,
    "launch": _launch,
    "tune": _tune,
    "eval": _eval,
    "bias": _bias,
    "infer": _infer,
    "export": _export,
    "bench": _bench,
    "serve": _serve,
    "runs": runs_flags,
    "card": card_flags,
    "models": _models,
    "plugins": _plugins,
    "recipes": _recipes,
    "config": _print_config,
    "completion": completion_flags,
    "doctor": _doctor,
}
"""The function that adds a command's flags to its parser."""
