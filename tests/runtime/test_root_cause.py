"""The rule of which process is reported when several have ended, as a table of cases."""

from __future__ import annotations

import signal

import pytest

from kdtrain.errors import Terminated
from kdtrain.runtime.root_cause import Outcome, RankLostError, root_cause

KILLED, ABORTED, SEGFAULT = -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV
TERMINATED = 143
LOST, INTERRUPTED, ERROR = RankLostError("lost"), KeyboardInterrupt(), OSError("the disk is full")


@pytest.mark.parametrize(
    ("outcomes", "index"),
    [
        ([], None),
        ([0, 0], None),
        ([None, None], None),
        # exit codes of ranks
        ([0, 1], 1),
        ([1, 2], 0),
        ([ABORTED, KILLED], 1),
        ([KILLED, ABORTED], 0),
        ([TERMINATED, SEGFAULT, ABORTED], 1),
        ([ABORTED, TERMINATED, 1], 2),
        ([0, ABORTED], 1),
        ([TERMINATED, ABORTED], 0),
        # errors of forked ranks
        ([LOST, ERROR], 1),
        ([LOST, INTERRUPTED, ERROR], 2),
        ([LOST, None, Terminated()], 0),
        ([ERROR, LOST], 0),
        ([INTERRUPTED, LOST], 0),
        ([None, LOST], 1),
    ],
)
def test_the_first_process_with_a_failure_of_its_own_is_reported(
    outcomes: list[Outcome], index: int | None
) -> None:
    assert root_cause(outcomes) == index
