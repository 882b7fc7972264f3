"""The rule that finds, among several processes that ended, the one whose failure ended the others."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from kdtrain.errors import KdtrainError

Outcome = int | BaseException | None
"""The end of a process: its exit code (negative for a signal) or its error; 0 or None for success."""

_TERMINATED = 128 + signal.SIGTERM  # the exit code of kdtrain after SIGTERM


class RankLostError(KdtrainError):
    """Another process of the group has ended; its own error is the one to report."""


def root_cause(outcomes: Sequence[Outcome]) -> int | None:
    """Returns the index of the process to report, or None if none failed.

    That is the first one with a failure of its own. Where all failures follow from another one, it is
    the first of them.

    Args:
        outcomes: one for each process, in the order of their ranks or of their ends.
    """
    failed = [index for index, outcome in enumerate(outcomes) if outcome not in (0, None)]
    return min(failed, key=lambda index: _is_consequence(outcomes[index]), default=None)


def _is_consequence(outcome: Outcome) -> bool:
    """Returns whether a process failed only because another one had ended."""
    if isinstance(outcome, BaseException):
        # A rank that waits for a lost one raises RankLostError. The parent interrupts the remaining ranks.
        return isinstance(outcome, (RankLostError, KeyboardInterrupt))
    # OneFlow aborts a process that has lost a peer. The launcher sends SIGTERM to the remaining ranks.
    return outcome in (-signal.SIGABRT, _TERMINATED)
