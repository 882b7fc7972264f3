"""The command ``kdtrain config``: the resolved settings as a TOML file."""

from __future__ import annotations

import argparse
import sys

from kdtrain.cli.flags import config_flags, settings_in
from kdtrain.experiment.settings.load import new_config


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    config_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the resolved settings, which ``kdtrain fit --config`` takes."""
    sys.stdout.write(new_config(settings_in(options), options.config).to_toml())
    return 0
