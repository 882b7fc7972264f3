"""Jobs in forked children: results in order, cores of their own, and every kind of end reported."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from tests import warm
from tests.tools import wait_until

two_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")


def test_results_come_in_the_order_of_the_jobs_whichever_ends_first() -> None:
    def job(number: int) -> Job[int]:
        def work() -> int:
            time.sleep(0.2 if number == 0 else 0.0)
            return number * 10

        return Job(f"job {number}", work)

    assert run_jobs([job(number) for number in range(5)]) == [0, 10, 20, 30, 40]
    assert run_jobs([]) == []


@two_cores
def test_as_many_run_at_once_as_there_are_cores_each_on_its_own() -> None:
    def work() -> tuple[set[int], float, float]:
        start = time.monotonic()
        time.sleep(0.3)
        return os.sched_getaffinity(0), start, time.monotonic()

    cores = len(available_cores())
    spans = run_jobs([Job("nap", work)] * (cores + 1))
    assert all(len(affinity) == 1 for affinity, _, _ in spans)
    assert len({min(affinity) for affinity, _, _ in spans[:cores]}) == cores
    latest_start, first_end = max(start for _, start, _ in spans[:cores]), min(end for _, _, end in spans)
    assert latest_start < first_end  # they overlapped
    assert spans[cores][1] > first_end  # the last one had to wait for a core
    assert len(available_cores()) == cores


@two_cores
def test_a_job_with_several_cores_is_one_process_whose_threads_use_them() -> None:
    def work() -> tuple[int, set[int], float, float]:
        start = time.monotonic()
        time.sleep(0.1)
        return os.getpid(), os.sched_getaffinity(0), start, time.monotonic()

    cores = len(available_cores())
    spans = run_jobs([Job("narrow", work), Job("wide", work, cores), Job("wider", work, cores + 1)])
    assert len({pid for pid, *_ in spans} | {os.getpid()}) == 4
    assert [affinity for _, affinity, *_ in spans[1:]] == [set(available_cores())] * 2
    for (*_, end), (*_, start, _) in itertools.pairwise(spans):
        assert end <= start  # it waited for its cores


def test_oneflow_computes_the_same_bits_in_a_child() -> None:
    flow.manual_seed(0)
    x = flow.randn(64, 100) / 2  # no probability below 1e-38, which a child takes for 0

    def work() -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = flow.nn.functional.softmax(x @ x.T, dim=1).numpy().copy()
        return probabilities

    np.testing.assert_array_equal(run_jobs([Job("softmax", work)])[0], work())


def test_a_child_takes_subnormal_numbers_for_0_and_its_parent_does_not() -> None:
    number = np.full(64, 1e-40, np.float32)

    def work() -> tuple[float, float]:
        return float((number * np.float32(0.5)).sum()), flow.from_numpy(number.copy()).mul(0.5).sum().item()

    assert run_jobs([Job("halve", work)]) == [(0.0, 0.0)]
    assert (number * np.float32(0.5)).all()


def test_adam_makes_the_same_bits_in_a_child_when_units_die() -> None:
    def work() -> npt.NDArray[np.float32]:
        weights = flow.nn.Parameter(flow.ones(4, 4))
        adam = flow.optim.Adam([weights], lr=0.01)
        for step in range(1000):  # 0.9 ** 1000 of a gradient is subnormal
            weights.grad = flow.ones(4, 4) if step < 3 else flow.zeros(4, 4)
            adam.step()
        kept: npt.NDArray[np.float32] = weights.numpy().copy()
        return kept

    assert run_jobs([Job("dead units", work)])[0].tobytes() == work().tobytes()


def test_an_error_reaches_the_parent_as_it_was_with_its_traceback() -> None:
    def work() -> None:
        raise UsageError("--alpha 7: too much.")

    with pytest.raises(UsageError, match=r"--alpha 7: too much\.") as caught:
        run_jobs([Job("failing", work)])
    assert "in work" in str(caught.value.__cause__)


def test_an_error_that_cannot_travel_is_described() -> None:
    class LocalError(Exception):
        pass

    def work() -> None:
        raise LocalError("only known here")

    with pytest.raises(RuntimeError, match="LocalError: only known here"):
        run_jobs([Job("failing", work)])


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was ended by signal SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "its process was ended by signal SIGSEGV"),
        (lambda: os._exit(7), "exit code 7"),
    ],
)
def test_a_child_without_a_result_is_named_with_its_end(end: Callable[[], None], reason: str) -> None:
    def work() -> None:
        faulthandler.disable()  # pytest's would print where this test stands
        end()
        time.sleep(60)

    with pytest.raises(KdtrainError, match=f"training x: .*{reason}"):
        run_jobs([Job("training x", work)])


@two_cores
def test_when_one_fails_the_others_are_interrupted_and_close_their_files(tmp_path: Path) -> None:
    def failing() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        raise KdtrainError("no more")

    def working() -> None:
        try:
            (tmp_path / "started").touch()
            time.sleep(60)
        finally:
            (tmp_path / "closed").touch()

    with pytest.raises(KdtrainError, match="no more"):
        run_jobs([Job("failing", failing), Job("working", working)])
    assert (tmp_path / "closed").exists()


SCRIPT = """
import os, sys, time
from pathlib import Path
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.runtime.signals import raise_on_sigterm

folder = Path(sys.argv[1])

def work():
    try:
        (folder / "started").touch()
        time.sleep(60)
    except BaseException as error:
        time.sleep(0.5)
        (folder / "ended").write_text(type(error).__name__)
        raise

def start_slowly():
    (folder / "starts").touch()
    time.sleep(0.5)

if "slowly" in sys.argv:
    os.register_at_fork(after_in_child=start_slowly)
raise_on_sigterm()
run_jobs([Job("work", work)])
"""


@pytest.mark.parametrize(
    ("number", "to_group", "expected"),
    [
        *((signal.SIGINT, True, "KeyboardInterrupt"), (signal.SIGINT, False, "KeyboardInterrupt")),
        *((signal.SIGTERM, True, "Terminated"), (signal.SIGTERM, False, "Terminated")),
        (signal.SIGKILL, False, "Terminated"),
    ],
)
def test_signals_reach_the_children_once(
    tmp_path: Path, number: signal.Signals, to_group: bool, expected: str
) -> None:
    """Also when a terminal sends the signal to everybody, and when the parent is simply gone."""
    ended = tmp_path / "ended"
    process = warm.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_until((tmp_path / "started").exists)
        (os.killpg if to_group else os.kill)(process.pid, number)
        process.wait(30)
        wait_until(lambda: ended.exists() and ended.read_text())
        assert ended.read_text() == expected
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_child_starts_is_not_lost(tmp_path: Path, number: signal.Signals) -> None:
    process = warm.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "slowly"],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((tmp_path / "starts").exists)
        process.send_signal(number)
        process.wait(3)
        assert not (tmp_path / "started").exists()
    finally:
        process.kill()
