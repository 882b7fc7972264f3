"""The flags of the commands that list, describe and complete: ``runs``, ``card`` and ``completion``."""

from __future__ import annotations

from pathlib import Path

from kdtrain.cli.flag_types import choice
from kdtrain.cli.flags import Parser, json_flag
from kdtrain.cli.setting_flags import add_setting_flag
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.runs import SORTS

SHELLS = ("bash", "zsh", "fish")
"""The shells that ``kdtrain completion`` writes a script for."""


def runs_flags(parser: Parser) -> None:
    """Adds the flags of ``kdtrain runs``."""
    parser.description = (
        "List the runs in the log directory with status and figures, the newest first. A comparison is one "
        "row: its figures are those of the distilled student, and its gain is over the plain student."
    )
    add_setting_flag(parser, "logdir", default=FitConfig.logdir, help="folder of the runs [logs]")
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--sort",
        **choice(*SORTS) | {"metavar": "COLUMN"},
        default="changed",
        help=f"column to sort by: {', '.join(SORTS)}; figures and times from the highest, names from the "
        "first [changed]",
    )
    order.add_argument(
        "--best",
        action="store_true",
        help="list the best run of each network and mode, data set by data set; held-out figures choose it",
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="also list the runs inside of comparisons and searches, indented",
    )
    json_flag(parser, "a JSON list")


def card_flags(parser: Parser) -> None:
    """Adds the flags of ``kdtrain card``."""
    parser.description = (
        "Write a model card in Markdown, with the front matter that model hubs read. It says what is in the "
        "checkpoint, in the files of its run, and in an ONNX file beside it; nothing else."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors file")
    parser.add_argument(
        "--output",
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write, such as README.md [printed]",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="identifier of the licence that you give the model, such as apache-2.0 [unknown]",
    )


def completion_flags(parser: Parser) -> None:
    """Adds the flags of ``kdtrain completion``."""
    parser.description = (
        "Print a script that completes kdtrain's commands, flags and values in a shell. "
        "bash: `source <(kdtrain completion bash)` in ~/.bashrc. "
        'zsh: `eval "$(kdtrain completion zsh)"` in ~/.zshrc, after compinit. '
        "fish: `kdtrain completion fish > ~/.config/fish/completions/kdtrain.fish`."
    )
    parser.add_argument("shell", **choice(*SHELLS), help="the shell")
