"""Jobs in forked children: results in order, every kind of end reported, and which of several ends."""

from __future__ import annotations

import faulthandler
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

from kdtrain.errors import KdtrainError, Terminated, UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import Ranks
from kdtrain.runtime.root_cause import Outcome, RankLostError, root_cause
from tests.tools import wait_until

two_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")


def test_results_come_in_the_order_of_the_jobs_whichever_ends_first() -> None:
    def job(number: int) -> Job[int]:
        def work(ranks: Ranks) -> int:
            time.sleep(0.2 if number == 0 else 0.0)
            return number * 10

        return Job(f"job {number}", work)

    assert run_jobs([job(number) for number in range(5)]) == [0, 10, 20, 30, 40]
    assert run_jobs([]) == []


@two_cores
def test_as_many_run_at_once_as_there_are_cores_each_on_its_own() -> None:
    def work(ranks: Ranks) -> tuple[set[int], float, float]:
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


def test_oneflow_computes_the_same_bits_in_a_child() -> None:
    flow.manual_seed(0)
    x = flow.randn(64, 100) / 2  # no probability below 1e-38, which a child takes for 0

    def work(ranks: Ranks) -> npt.NDArray[np.float32]:
        probabilities: npt.NDArray[np.float32] = flow.nn.functional.softmax(x @ x.T, dim=1).numpy().copy()
        return probabilities

    np.testing.assert_array_equal(run_jobs([Job("softmax", work)])[0], work(Ranks()))


def test_a_child_takes_subnormal_numbers_for_0_and_its_parent_does_not() -> None:
    number = np.full(64, 1e-40, np.float32)

    def work(ranks: Ranks) -> tuple[float, float]:
        return float((number * np.float32(0.5)).sum()), flow.from_numpy(number.copy()).mul(0.5).sum().item()

    assert run_jobs([Job("halve", work)]) == [(0.0, 0.0)]
    assert (number * np.float32(0.5)).all()


def test_adam_makes_the_same_bits_in_a_child_when_units_die() -> None:
    def work(ranks: Ranks) -> npt.NDArray[np.float32]:
        weights = flow.nn.Parameter(flow.ones(4, 4))
        adam = flow.optim.Adam([weights], lr=0.01)
        for step in range(1000):  # 0.9 ** 1000 of a gradient is subnormal
            weights.grad = flow.ones(4, 4) if step < 3 else flow.zeros(4, 4)
            adam.step()
        kept: npt.NDArray[np.float32] = weights.numpy().copy()
        return kept

    assert run_jobs([Job("dead units", work)])[0].tobytes() == work(Ranks()).tobytes()


def test_an_error_reaches_the_parent_as_it_was_with_its_traceback() -> None:
    def work(ranks: Ranks) -> None:
        raise UsageError("--alpha 7: too much.")

    with pytest.raises(UsageError, match=r"--alpha 7: too much\.") as caught:
        run_jobs([Job("failing", work)])
    assert "in work" in str(caught.value.__cause__)


def test_an_error_that_cannot_travel_is_described() -> None:
    class LocalError(Exception):
        pass

    def work(ranks: Ranks) -> None:
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
    def work(ranks: Ranks) -> None:
        faulthandler.disable()  # pytest's would print where this test stands
        end()
        time.sleep(60)

    with pytest.raises(KdtrainError, match=f"training x: .*{reason}"):
        run_jobs([Job("training x", work)])


@two_cores
def test_when_one_fails_the_others_are_interrupted_and_close_their_files(tmp_path: Path) -> None:
    def failing(ranks: Ranks) -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        raise KdtrainError("no more")

    def working(ranks: Ranks) -> None:
        try:
            (tmp_path / "started").touch()
            time.sleep(60)
        finally:
            (tmp_path / "closed").touch()

    with pytest.raises(KdtrainError, match="no more"):
        run_jobs([Job("failing", failing), Job("working", working)])
    assert (tmp_path / "closed").exists()


@two_cores
def test_a_rank_that_dies_is_what_is_reported_and_the_others_end() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.all_reduce(np.ones(2_000_000, np.float32))
        time.sleep(60)

    start = time.monotonic()
    with pytest.raises(KdtrainError, match="teacher: its process was ended by signal SIGKILL"):
        run_jobs([Job("teacher", work, cores=2)])
    assert time.monotonic() - start < 30


@two_cores
def test_an_error_of_a_rank_is_what_is_reported() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise KdtrainError("the disk is full")
        ranks.all_reduce(np.ones(10, np.float32))

    with pytest.raises(KdtrainError, match="the disk is full"):
        run_jobs([Job("teacher", work, cores=2)])


SCRIPT = """
import sys, time
from pathlib import Path
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.runtime.signals import raise_on_sigterm

folder = Path(sys.argv[1])

def work(ranks):
    try:
        (folder / "started").touch()
        time.sleep(60)
    except BaseException as error:
        time.sleep(0.5)
        (folder / "ended").write_text(type(error).__name__)
        raise

raise_on_sigterm()
run_jobs([Job("work", work)])
"""


@pytest.mark.parametrize(
    ("number", "to_group", "expected"),
    [
        (signal.SIGINT, True, "KeyboardInterrupt"),
        (signal.SIGINT, False, "KeyboardInterrupt"),
        (signal.SIGTERM, True, "Terminated"),
        (signal.SIGTERM, False, "Terminated"),
        (signal.SIGKILL, False, "Terminated"),
    ],
)
def test_signals_reach_the_children_once(
    tmp_path: Path, number: signal.Signals, to_group: bool, expected: str
) -> None:
    """Also when a terminal sends the signal to everybody, and when the parent is simply gone."""
    ended = tmp_path / "ended"
    process = subprocess.Popen(
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
