"""``kdtrain doctor``."""

from __future__ import annotations

import argparse

from kdtrain.doctor import report, run_checks


def run(options: argparse.Namespace) -> int:
    """Checks the installation; 1 if anything is bad."""
    return report(run_checks())
