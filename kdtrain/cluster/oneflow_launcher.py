"""OneFlow's own launcher, which starts this machine's processes of a group on several machines."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence

from kdtrain.cluster.launch import LAUNCHER
from kdtrain.runtime.locations import command_name
from kdtrain.runtime.oneflow import import_oneflow


def launch_with_oneflow(settings: dict[str, str | int], words: Sequence[str]) -> int:
    """Runs ``kdtrain`` with ``words`` in the processes of this machine; returns the exit code, 0 or 1.

    Args:
        settings: the flags of oneflow's launcher, without their dashes, with their values.
        words: a command of kdtrain with its flags.

    Raises:
        KdtrainError: oneflow cannot be imported.
    """
    import_oneflow()
    launcher = importlib.import_module("oneflow.distributed.launch")
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    os.environ["KDTRAIN_COMMAND"] = begun = command_name()  # of sys.argv, which the processes do not have
    sys.argv = [f"{begun} launch", *flags, "-m", "kdtrain", *words]
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its messages; the processes keep stdout
            launcher.main()
    except (subprocess.CalledProcessError, SystemExit):  # a process failed; SIGINT or SIGTERM
        return 1
    return 0
