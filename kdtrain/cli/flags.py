"""Flags that several commands share, and the check of their numbers."""

from __future__ import annotations

import argparse
import logging

from kdtrain.cli.flag_types import choice
from kdtrain.cli.setting_flags import add_setting_flag
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.schema import DATA_SETS, flag_of
from kdtrain.runtime.value_checks import DEVICES, Check, check_value

Parser = argparse.ArgumentParser


def check_flags(options: argparse.Namespace, **checks: Check) -> None:
    """Raises UsageError if a flag's number fails its check."""
    for name, check in checks.items():
        check_value(flag_of(name), getattr(options, name), check, float)


def data_flags(parser: Parser) -> None:
    """Adds the flags that say which data a model is tested on."""
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="architecture that the model must have. MODULE:FACTORY and FILE.py:FACTORY need this flag: "
        "without it, code that a model file names is not run [the one that the model names]",
    )
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        help=f"data set whose test images are used: {DATA_SETS} "
        "[the one that the model was trained on, if it is built in]",
    )
    add_setting_flag(parser, "data_dir", default=None)
    add_setting_flag(parser, "skip_corrupt", default=False)


def device_flag(parser: Parser) -> None:
    """Adds ``--device``."""
    add_setting_flag(parser, "device", default=FitConfig.device, **choice(*DEVICES))


def model_folder_flag(parser: Parser) -> None:
    """Adds ``--model-save-dir`` for commands that read models."""
    default = FitConfig().models
    add_setting_flag(
        parser, "model_save_dir", default=default, help=f"folder of the trained models [{default}]"
    )


def message_flags(parser: argparse._ActionsContainer) -> None:
    """Adds ``--quiet`` and ``--verbose``, which set the level of the messages on stderr."""
    group = parser.add_mutually_exclusive_group()
    for flag, level, text in (
        ("--quiet", logging.WARNING, "print only warnings, errors and the result; no progress bars"),
        (
            "--verbose",
            logging.DEBUG,
            "also print every epoch; its speed; when each job begins and ends",
        ),
    ):
        group.add_argument(
            flag, dest="level", action="store_const", const=level, default=argparse.SUPPRESS, help=text
        )


def json_flag(parser: argparse._ActionsContainer, what: str) -> None:
    """Adds ``--json``, which prints ``what``."""
    parser.add_argument("--json", action="store_true", help=f"print {what} in place of text")
