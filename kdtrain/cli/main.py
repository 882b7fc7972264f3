"""The entry point of the command line: commands, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from kdtrain.cli.parser import parse
from kdtrain.cluster import guard
from kdtrain.errors import KdtrainError, Terminated, one_line
from kdtrain.runtime.console import ignore_write_errors, log_to_stderr, message_text, set_level
from kdtrain.runtime.ranks import rank
from kdtrain.runtime.signals import defer_signals

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``kdtrain`` with the given arguments, by default those of the process; returns the exit code.

    0 done or stopped early, 1 failed, 2 wrong usage, 130 SIGINT, 143 SIGTERM.
    """
    _open_missing_streams()
    with ignore_write_errors("stderr"), log_to_stderr():
        return guard.end(_run(list(sys.argv[1:] if arguments is None else arguments)))


def process() -> NoReturn:
    """Runs ``kdtrain`` as a process, and exits without Python's shutdown.

    During oneflow's shutdown a signal would change the exit code or crash the process. Processes that train
    together need that shutdown, because they wait for each other in it.
    """
    code = main()
    if rank() is not None:
        sys.exit(code)
    with contextlib.suppress(OSError):  # the reader of stdout may have closed it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _open_missing_streams() -> None:
    """Opens the null device for standard streams that are closed.

    Otherwise the next file that is opened gets descriptor 1 or 2, and messages are written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _run(words: list[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that stdout cannot encode is no error
    try:
        options = _parse(words)
        options.words = words
        set_level(getattr(options, "level", logging.INFO))
        with defer_signals():
            command = importlib.import_module(f"kdtrain.cli.{options.command}")
        code: int = command.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does. Python would raise again when it flushes at
        # exit, so stdout gets the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        if "--debug" in words:
            traceback.print_exc()
        terminated = isinstance(error, Terminated)
        parts = ["kdtrain: terminated." if terminated else "kdtrain: interrupted.", *map(str, error.args)]
        print(message_text(" ".join(parts)), file=sys.stderr)
        return 143 if terminated else 130
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        print(message_text(f"kdtrain: {_sentence(error)}"), file=sys.stderr)
        return error.exit_code if isinstance(error, KdtrainError) else 1


def _parse(words: list[str]) -> argparse.Namespace:
    try:
        return parse(words)
    except SystemExit:  # after the help: else Python would flush it, and name a closed pipe as an error
        sys.stdout.flush()
        raise


def _sentence(error: Exception) -> str:
    if isinstance(error, KdtrainError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        return f"stdout cannot be written: {error.strerror}."
    return f"unexpected {one_line(error)} (run again with --debug for the traceback)."
