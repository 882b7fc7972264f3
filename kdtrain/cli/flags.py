"""Flags that several commands share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

from kdtrain.cli.flag_types import choice
from kdtrain.cli.setting_flags import add_setting_flag, add_setting_flags
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import LATEST
from kdtrain.experiment.settings.schema import DATA_SETS
from kdtrain.runtime.value_checks import DEVICES

Parser = argparse.ArgumentParser


def config_flags(parser: Parser) -> Mapping[str, argparse._ArgumentGroup]:
    """Adds the flags of all settings, and ``--config``; returns the groups of the help by heading."""
    groups = add_setting_flags(parser)
    groups["what to train"].add_argument(
        "--config", type=Path, metavar="FILE", help="read settings from a TOML file; flags win over it"
    )
    return groups


def resume_flag(parser: argparse._ActionsContainer, help: str) -> None:
    """Adds ``--resume``, whose directory may be left out."""
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=LATEST,
        default=argparse.SUPPRESS,
        metavar="RUN_DIR",
        help=help,
    )


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
