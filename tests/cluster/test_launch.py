"""The launcher of several processes: which of their ends is reported."""

from __future__ import annotations

import signal

import pytest

from kdtrain.cluster.launch import root_cause

KILLED, ABORTED, SEGFAULT = -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV
TERMINATED = 143


@pytest.mark.parametrize(
    ("codes", "index"),
    [
        *(([], None), ([0, 0], None), ([None, None], None), ([0, 1], 1), ([None, 1], 1), ([1, 2], 0)),
        *(([ABORTED, KILLED], 1), ([KILLED, ABORTED], 0), ([TERMINATED, SEGFAULT, ABORTED], 1)),
        *(([ABORTED, TERMINATED, 1], 2), ([0, ABORTED], 1), ([TERMINATED, ABORTED], 0)),
    ],
)
def test_the_first_process_with_a_failure_of_its_own_is_reported(
    codes: list[int | None], index: int | None
) -> None:
    assert root_cause(codes) == index
