"""The argument parser of all commands."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from kdtrain._version import __version__
from kdtrain.cli.flags import HelpText, message_flags
from kdtrain.errors import UsageError, clipped, did_you_mean, unknown_name_message
from kdtrain.runtime.bars import terminal_size
from kdtrain.runtime.console import wrapped

COMMANDS = {
    "fit": "train a teacher, a student or a distilled student, or compare them",
    "launch": "train one network in the processes of several machines",
    "tune": "choose the settings of every student, on held-out images",
    "eval": "test a model: accuracy, cross-entropy, per class, confusion matrix",
    "infer": "classify images, and draw the class probabilities",
    "export": "write a checkpoint as an ONNX file, checked on the whole test set",
    "bench": "compare models: size, accuracy, latency, throughput",
    "serve": "answer over HTTP, with a page to draw on",
    "runs": "list the runs in the log directory, or the best of each data set",
    "card": "write a model card: what a model is, its figures, how to use it",
    "views": "draw training images in the variants that --augment makes",
    "models": "list the networks, with parameters and multiply-adds",
    "plugins": "list the callbacks that can be plugged in",
    "recipes": "list the recipes: tested settings for kinds of data",
    "config": "print the settings of a fit as a file for --config",
    "completion": "print a script that completes commands and flags in a shell",
    "doctor": "check this installation, and print a remedy for each fault",
}

_WITH_MESSAGES = ("fit", "tune", "eval", "infer", "export", "bench", "views")
"""The commands that print messages or bars while they work."""

_SYNONYMS = {
    **dict.fromkeys(("train", "distil", "distill"), "fit"),
    "compare": "fit --mode compare",
    **dict.fromkeys(("classify", "predict"), "infer"),
    "test": "eval",
    "search": "tune",
    "benchmark": "bench",
}
"""What others call the commands."""

_DESCRIPTION = "kdtrain: a plugin-style trainer for knowledge distillation on OneFlow."
_EXAMPLES = """examples:
  compare student, KD and teacher: kdtrain fit --mode compare
  distil a teacher into a student: kdtrain fit --mode student_kd
  classify a test image: kdtrain infer --picture-index 9999
  classify an image file: kdtrain infer my_digit.jpg --model-type teacher
  show the curves: tensorboard --logdir logs
"""


class _Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, and suggests the nearest flag for a mistyped one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, exit_on_error=False, formatter_class=HelpText, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `{self.prog} --help`.")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Returns the parsed words.

        Raises:
            UsageError: a flag or a value is unknown, missing or not allowed.
        """
        try:
            options, unknown = self.parse_known_args(words)
        except argparse.ArgumentError as error:
            self.error(f"{error.argument_name} {error.message}")
        if unknown:
            word = unknown[0].partition("=")[0]
            if word.startswith("-"):
                self.error(
                    f"there is no flag {clipped(word)}{did_you_mean(word, self._option_string_actions)}"
                )
            self.error(f"{clipped(unknown[0], repr)} is not a flag, and takes no place here")
        return options


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line, with ``command`` set.

    Raises:
        UsageError: a command, a flag or a value is unknown, missing or not allowed.
    """
    top = top_parser()
    if not words:
        print(wrapped(top.format_help(), terminal_size()[0]), file=sys.stderr)
        raise UsageError("give a command, such as `kdtrain fit`.")
    if words[0] in ("help", "version"):
        words = [*words[1:], f"--{words[0]}"]
    command, *rest = words
    if command not in COMMANDS:
        if command.startswith("-"):
            top.parse([command])  # prints the help or the version, or names the flag
        raise UsageError(unknown_name_message("command", command, COMMANDS, _SYNONYMS.get(command)))
    options = command_parser(command).parse([_dashed(word) for word in rest])
    options.command = command
    return options


def top_parser() -> _Parser:
    """Returns the parser of what comes before a command."""
    listed = "\n".join(f"  {name:<10}  {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="kdtrain",
        usage="%(prog)s COMMAND [flags]",
        description=f"{_DESCRIPTION}\n\ncommands (`kdtrain COMMAND --help` for the flags of each):\n{listed}",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"kdtrain {__version__}")
    return parser


def command_parser(command: str) -> _Parser:
    """Returns the parser of one command."""
    parser = _Parser(prog=f"kdtrain {command}", description=f"{COMMANDS[command].capitalize()}.")
    importlib.import_module(f"kdtrain.cli.{command}").add_flags(parser)
    output = next((group for group in parser._action_groups if group.title == "output"), parser)
    if command in _WITH_MESSAGES:
        message_flags(output)
    output.add_argument("--debug", action="store_true", help="print the Python traceback of an error")
    return parser


def _dashed(word: str) -> str:
    """Turns --batch_size=64 into --batch-size=64: the sample spells its flags with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word
