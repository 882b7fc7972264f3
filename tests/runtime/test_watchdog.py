"""Jobs without progress are ended and their line is named; what waits for others, or is stopped, is not."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kdtrain.errors import KdtrainError
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.runtime.user_code import is_library_code
from kdtrain.runtime.watchdog import location

HERE = Path(__file__).name
LIMIT = 1.0  # seconds without CPU time


def stand_still_in_c() -> None:
    """Locks a mutex twice, which no signal's handler can interrupt."""
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)


def compute(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def test_a_job_that_stands_still_is_ended_and_its_line_is_named() -> None:
    def work() -> None:
        threading.Event().wait()

    started = time.monotonic()
    with pytest.raises(
        KdtrainError, match=rf"training x .*{HERE}, line \d+, in work.*--stall-timeout"
    ) as caught:
        run_jobs([Job("training x", work)], stall_timeout=LIMIT)
    assert time.monotonic() - started < LIMIT + 4
    assert "threading.py" in str(caught.value.__cause__)  # the whole stack, which --debug shows


def test_a_job_that_stands_still_in_c_code_is_ended_as_well() -> None:
    with pytest.raises(KdtrainError, match=f"{HERE}, line .*, in stand_still_in_c"):
        run_jobs([Job("training x", stand_still_in_c)], stall_timeout=LIMIT)


def test_a_child_may_wait_for_a_thread_that_computes() -> None:
    def work() -> str:
        thread = threading.Thread(target=compute, args=(2 * LIMIT,))
        thread.start()
        thread.join()
        return "went on"

    assert run_jobs([Job("training x", work)], stall_timeout=LIMIT) == ["went on"]


def test_a_child_may_wait_for_a_program_that_it_has_started() -> None:
    program = f"import time; end = time.time() + {2 * LIMIT}\nwhile time.time() < end: pass"

    def work() -> int:
        return subprocess.run([sys.executable, "-c", program], check=True).returncode

    assert run_jobs([Job("training x", work)], stall_timeout=LIMIT) == [0]


def test_the_time_that_a_child_is_stopped_does_not_count() -> None:
    def work() -> str:
        resume = f"sleep {2 * LIMIT}; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", resume], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        return "went on"

    assert run_jobs([Job("training x", work)], stall_timeout=LIMIT) == ["went on"]


def test_0_sets_no_limit() -> None:
    assert run_jobs([Job("training x", lambda: time.sleep(0.5))], stall_timeout=0) == [None]


def test_a_crash_names_its_line() -> None:
    def work() -> None:
        os.abort()

    with pytest.raises(KdtrainError, match=rf"SIGABRT at .*{HERE}, line \d+, in work"):
        run_jobs([Job("training x", work)])


STACK = """\
  File "/usr/lib/python3.10/site-packages/oneflow/nn/modules/module.py", line 9 in __call__
  File "/home/me/focal.py", line 12 in focal
  File "/home/me/focal.py", line 30 in on_batch
"""


def test_a_location_is_the_innermost_line_of_a_users_file() -> None:
    assert location(STACK) == "/home/me/focal.py, line 12, in focal"
    assert location("".join(STACK.splitlines(keepends=True)[:1])).endswith("module.py, line 9, in __call__")
    assert location("") == ""


def test_installed_plugins_are_not_taken_for_libraries() -> None:
    site = Path(np.__file__).parent.parent
    assert not is_library_code(str(site / "kdtrain_plugins" / "dkd.py"))
    assert not is_library_code(str(site / "their_plugins" / "focal.py"))
    assert not is_library_code("focal.py")
    for library in (np.__file__, os.__file__, sys.modules["kdtrain.runtime.watchdog"].__file__, "<string>"):
        assert is_library_code(str(library))
