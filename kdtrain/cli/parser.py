"""The argument parser: all commands, and help for people who mistype."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdtrain._version import __version__
from kdtrain.cli.flags import bench_flags, data_flags, device_flag, export_flags, serve_flags
from kdtrain.cli.setting_flags import add_flags
from kdtrain.errors import UsageError, clipped, did_you_mean, unknown_name_message
from kdtrain.experiment.config import MODES, FitConfig

COMMANDS = {
    "fit": "train a teacher, a student, a distilled student, or compare all three",
    "eval": "test a checkpoint: accuracy, cross-entropy, per class, confusion matrix",
    "bias": "raise the biases of the classes that a student was trained without",
    "infer": "say which class an image shows, and draw the probabilities",
    "export": "write a checkpoint as an ONNX file, checked on the whole test set",
    "bench": "compare models: size, accuracy, latency, throughput",
    "serve": "answer over HTTP, with a page to draw on",
    "models": "list the networks, with parameters and multiply-adds",
    "plugins": "list the callbacks that can be plugged in",
    "config": "print the settings of a fit as a file for --config",
    "doctor": "check this installation and say how to mend it",
}

_DESCRIPTION = "kdtrain: a plugin-style trainer for knowledge distillation on OneFlow."
_EXAMPLES = """examples:
  kdtrain fit --mode compare                     teacher, student with and without KD, and a picture
  kdtrain fit --mode student_kd --temperature 4  distil the best teacher into a student
  kdtrain infer --picture-index 9999             ask the distilled student about a test image
  kdtrain infer my_digit.jpg --model-type teacher
  tensorboard --logdir logs                      watch the curves
"""


class _Parser(argparse.ArgumentParser):
    """Raises UsageError, with the nearest flag where one was mistyped."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            message = f"there is no flag {unknown[1]}{did_you_mean(unknown[1], self._option_string_actions)}"
        number = re.match(r"argument (\S+): invalid (int|float) value: (.*)", message)
        if number:
            wanted = {"int": "a whole number", "float": "a number"}[number[2]]
            if number[3].strip("'-").isdecimal():
                wanted = "a number of fewer digits"
            message = f"{number[1]} is {clipped(number[3])}: it must be {wanted}"
        choice = re.search(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            options = re.findall(r"'(.*?)'", choice[3])
            message = f"{choice[1]}: {unknown_name_message('choice', choice[2], options)}".rstrip(".")
        raise UsageError(f"{message}. See `{self.prog} --help`.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses; leaves nothing unrecognised to the caller, so that each command names its own flags."""
        known, extras = self.parse_known_args(args, namespace)
        if extras:
            self.error(f"unrecognized arguments: {' '.join(extras)}")
        return known


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line, with ``command`` set.

    Raises:
        UsageError: something in it is unknown or not allowed.
    """
    top = _Parser(prog="kdtrain", description=_DESCRIPTION, epilog=_EXAMPLES)
    top.add_argument("--version", action="version", version=f"kdtrain {__version__}")
    listed = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
    top.usage = "kdtrain COMMAND [flags]"
    top.description = (
        f"{top.description}\n\ncommands (`kdtrain COMMAND --help` for the flags of each):\n{listed}"
    )
    if not words:
        top.print_help(sys.stderr)
        raise UsageError("say what to do, such as `kdtrain fit`.")
    command, *rest = words
    if command not in COMMANDS:
        if not command.startswith("-"):
            raise UsageError(unknown_name_message("command", command, COMMANDS))
        top.parse_args([command])
    parser = _Parser(prog=f"kdtrain {command}", description=f"{COMMANDS[command].capitalize()}.")
    _FLAGS[command](parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    namespace: argparse.Namespace = parser.parse_args([_dashed(word) for word in rest])
    namespace.command = command
    return namespace


def settings_in(options: argparse.Namespace) -> dict[str, Any]:
    """Returns those settings that ``add_flags``'s flags have given."""
    names = {field.name for field in dataclasses.fields(FitConfig)}
    return {name: value for name, value in vars(options).items() if name in names}


def _dashed(word: str) -> str:
    """Turns --batch_size=64 into --batch-size=64: the sample spells its flags with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _config(parser: _Parser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="read settings from a TOML file; flags win"
    )
    add_flags(parser)


def _fit(parser: _Parser) -> None:
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=Path(),
        default=argparse.SUPPRESS,
        metavar="RUN_DIR",
        help="go on with a run that was interrupted [the mode's latest one in --logdir]",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="try everything out on two batches, in seconds, without leaving a file",
    )
    _config(parser)


def _eval(parser: _Parser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, a OneFlow checkpoint directory, or an .onnx file of kdtrain's",
    )
    data_flags(parser)
    device_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _bias(parser: _Parser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="of a student that was trained with --omit-class"
    )
    parser.add_argument(
        "--by",
        choices=("transfer", "validation", "labels"),
        default="validation",
        help="what decides how far: the teacher, whose mean probability of those classes is matched over "
        "the student's training images or over the validation images, or the validation images' labels "
        "[validation]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the new checkpoint [RUN_DIR/checkpoints/bias_BY.safetensors]",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute [auto]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _infer(parser: _Parser) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        type=Path,
        metavar="IMAGE",
        help="pictures; of single digits, for a model of MNIST",
    )
    parser.add_argument("--picture-index", type=int, metavar="N", help="take image N of the test set instead")
    models = tuple(mode for mode in MODES if mode != "compare")
    parser.add_argument(
        "--model-type",
        choices=models,
        default="student_kd",
        help="which of the trained models to ask [student_kd]",
    )
    parser.add_argument(
        "--checkpoint",
        "--model-load-dir",
        type=Path,
        metavar="FILE",
        help="ask this model instead: what `eval` takes",
    )
    parser.add_argument(
        "--model-save-dir",
        type=Path,
        default=Path("logs/models"),
        metavar="DIR",
        help="where the trained models are [logs/models]",
    )
    parser.add_argument(
        "--temperature", type=float, default=10.0, metavar="T", help="how soft the third panel is [10]"
    )
    parser.add_argument("--image-save-dir", type=Path, metavar="DIR", help="where pictures go [logs/images]")
    parser.add_argument(
        "--image-save-name", type=Path, metavar="FILE", help="name of the picture [MODEL_IMAGE.png]"
    )
    data_flags(parser)
    device_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _models(parser: _Parser) -> None:
    parser.description = (
        "Lists networks with their trainable parameters and their multiply-adds for one image, which are\n"
        "counted in linear layers and convolutions (twice as many FLOPs; everything else is left out)."
    )
    parser.add_argument(
        "archs",
        nargs="*",
        metavar="ARCH",
        help="what --student-arch takes, or a pattern such as 'flowvision:resnet*' [kdtrain's own]",
    )
    parser.add_argument(
        "--dataset", default="mnist", metavar="NAME", help="for its images and classes [mnist]"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="read the four IDX files from here")
    parser.add_argument(
        "--image-shape", metavar="C,H,W", help="for images of this shape in 10 classes, such as 3,32,32"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def _plugins(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def _doctor(parser: _Parser) -> None:
    """It has no flags."""


_FLAGS = {
    "fit": _fit,
    "eval": _eval,
    "bias": _bias,
    "infer": _infer,
    "export": export_flags,
    "bench": bench_flags,
    "serve": serve_flags,
    "models": _models,
    "plugins": _plugins,
    "config": _config,
    "doctor": _doctor,
}
