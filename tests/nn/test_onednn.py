"""oneDNN in every kind of process: its threads, its errors, its memory, and networks without it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.errors import KdtrainError
from kdtrain.nn import kernels, onednn
from kdtrain.nn.kernels import MOST_KERNELS
from kdtrain.nn.onednn import OneDnnError
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import ranks_of_machine
from tests.cli.conftest import Call, run, run_python
from tests.runs import metrics
from tests.tools import ROOT

Array = npt.NDArray[np.float32]
IMAGES, WEIGHTS = (8, 32, 33, 32), (32, 32, 3, 3)  # work for all cores: some 20 ms on one
SECONDS = 20.0  # until a process counts as hanging

two_cores = pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")


def draw(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def convolution() -> kernels.ConvolutionKernel:
    return kernels.ConvolutionKernel.of(IMAGES, WEIGHTS, (1, 1), (1, 1), (1, 1), 1, True, False)


def compute() -> list[Array]:
    """A convolution and its gradients, on all cores of this process."""
    kernel, x, weight = convolution(), draw(*IMAGES), draw(*WEIGHTS)
    y = kernel.forward(x, weight, draw(32))
    return [y, kernel.gradient_of_images(y, weight), *kernel.gradients_of_weights(y, x)]


def digest(_: object = None) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in compute())).hexdigest()


def close_to_here(results: list[Array]) -> bool:
    """Whether results equal this process's, in all but the last bits, which depend on the threads."""
    pairs = zip(results, compute(), strict=True)
    return all(np.abs(result - here).max() < 1e-5 * np.abs(here).max() for result, here in pairs)


def in_a_fork(work: Callable[[], Any]) -> Any:
    """The result of a function in a forked process, which is killed if it hangs."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    try:
        assert receiver.poll(SECONDS), "the forked process hangs"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


@two_cores
def test_a_fork_computes_with_threads_of_its_own() -> None:
    def work() -> tuple[list[Array], int, int]:
        before = threads_of_this_process()
        return compute(), before, threads_of_this_process()

    compute()  # this process has threads, which a fork does not copy
    for _ in range(2):
        results, before, after = in_a_fork(work)
        assert close_to_here(results)  # this process still computes, too
        assert (before, after) == (1, len(available_cores()))


def test_forks_of_forks_and_of_threads_compute() -> None:
    """A DataLoader's workers are forks of a job, and a notebook's thread may start one."""

    def job() -> list[Array]:
        compute()
        results: list[Array] = in_a_fork(compute)
        return results

    compute()
    cores = len(available_cores())
    (results,) = run_jobs([Job("a convolution", job, cores)], stall_timeout=SECONDS)
    assert close_to_here(results)
    received: list[list[Array]] = []
    thread = threading.Thread(target=lambda: received.append(in_a_fork(compute)))
    thread.start()
    thread.join(SECONDS)
    assert close_to_here(received[0])


def test_a_fork_computes_that_was_made_while_another_thread_did() -> None:
    stop = threading.Event()

    def compute_until_then() -> None:
        while not stop.is_set():
            compute()

    thread = threading.Thread(target=compute_until_then)
    thread.start()
    try:
        digests = {in_a_fork(digest) for _ in range(10)}
    finally:
        stop.set()
        thread.join(SECONDS)
    assert digests == {digest()}


def test_threads_of_a_process_compute_at_the_same_time() -> None:
    """As those of the HTTP service do, with the same kernels."""
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(digest())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert results == [digest()] * 8


def test_a_process_on_one_core_computes_with_one_thread() -> None:
    def work() -> tuple[list[Array], int, int]:
        os.sched_setaffinity(0, available_cores()[:1])
        return compute(), onednn.available_threads(), threads_of_this_process()

    compute()
    results, available, threads = in_a_fork(work)
    assert (available, threads) == (1, 1)
    assert close_to_here(results)


@pytest.mark.parametrize(("ranks", "threads"), [("2", 4), ("3", 2), ("16", 1), ("0", 8), ("two", 8)])
def test_processes_that_train_together_divide_the_cores(
    monkeypatch: pytest.MonkeyPatch, ranks: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert onednn.available_threads() == 8  # it trains alone
    ranks_of_machine.cache_clear()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert onednn.available_threads() == threads
    ranks_of_machine.cache_clear()


def test_the_same_number_of_threads_makes_the_same_bits() -> None:
    def alone() -> str:
        os.sched_setaffinity(0, available_cores()[:1])
        return digest()

    here = digest()
    for _ in range(10):
        kernels._kept.cache_clear()  # kernels are compiled again
        assert digest() == here
    assert in_a_fork(digest) == here
    assert len({in_a_fork(alone), in_a_fork(alone)}) == 1


def test_the_environment_stays_as_it_was() -> None:
    """OpenMP reads variables when it is loaded; other libraries and child processes read them too."""
    code = """
import os
from kdtrain.nn import onednn
before = dict(os.environ)
onednn.library()
print(dict(os.environ) == before, os.environ.get("GOMP_SPINCOUNT"))
"""
    assert run_python(code).stdout.split() == ["True", "None"]
    assert run_python(code, GOMP_SPINCOUNT="7").stdout.split() == ["True", "7"]


def test_kernels_for_many_shapes_take_bounded_memory() -> None:
    """Without a bound, 400 more convolutions would take 100 MB."""

    def work() -> tuple[float, int]:
        sizes, weight = [], draw(4, 3, 3, 3)
        for height in range(3, MOST_KERNELS + 430):
            x = draw(1, height, 5, 3)
            kernel = kernels.ConvolutionKernel.of(
                x.shape, weight.shape, (1, 1), (1, 1), (1, 1), 1, False, False
            )
            y = kernel.forward(x, weight)
            kernel.gradient_of_images(y, weight)
            kernel.gradients_of_weights(y, x)
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024)
        return sizes[-1] - sizes[MOST_KERNELS + 20], kernels._kept.cache_info().currsize

    ((megabytes, kept),) = run_jobs([Job("many shapes", work)])
    assert kept == MOST_KERNELS
    assert megabytes < 50


def test_a_refused_operation_is_an_error_with_the_librarys_status() -> None:
    assert issubclass(OneDnnError, KdtrainError)
    geometry = (2, 2), (1, 1), (0, 0), (1, 1)
    with pytest.raises(OneDnnError, match=r"oneDNN's pooling_forward.* failed: invalid arguments\."):
        kernels.PoolingKernel.of((1, 4, 4, 1), 0x7777, *geometry)
    with pytest.raises(OneDnnError, match=r"oneDNN's convolution_forward.* failed: invalid arguments\."):
        kernels.ConvolutionKernel.of((1, 4, 4, 3), (2, 4, 2, 2), *geometry[1:], 1, False, False)
    (y,) = kernels.ActivationKernel.of((1,), onednn.RELU).forward(np.ones(1, np.float32))
    assert y == 1


@pytest.mark.parametrize(
    "weight",
    [draw(32, 32, 3, 2), draw(*WEIGHTS).astype(np.float64)],
    ids=["other shape", "other dtype"],
)
def test_arrays_of_another_size_are_refused_before_memory_beside_them_is_read(weight: Array) -> None:
    with pytest.raises(OneDnnError, match="takes arrays of other shapes or of another dtype"):
        convolution().forward(draw(*IMAGES), weight, draw(32))


Variables = dict[str, Any]


def without_the_package(folder: Path) -> Variables:
    """The variables of a process for which the package has no files."""
    info = folder / "onednn_cpu_gomp-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onednn-cpu-gomp\nVersion: 0\n")
    (info / "RECORD").write_text("")
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def without_openmp(folder: Path) -> Variables:
    """The variables of a process for which libgomp is damaged."""
    (folder / "libgomp.so.1").write_bytes(b"not a library")
    return {"LD_LIBRARY_PATH": str(folder)}


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (without_the_package, "the package onednn-cpu-gomp is not installed."),
        (without_openmp, "libgomp.so.1"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_named_in_one_warning(
    tmp_path: Path, variables: Callable[[Path], Variables], reason: str
) -> None:
    code = "from kdtrain.nn import onednn; print(onednn.is_usable(), onednn.is_usable())"
    finished = run(sys.executable, "-c", code, **variables(tmp_path))
    assert finished.stdout.split() == ["False", "False"]
    (warning,) = finished.stderr.splitlines()
    for words in ("networks run on OneFlow's own operations", reason, "`kdtrain doctor` names the remedy."):
        assert words in warning


def test_without_the_library_a_fit_warns_once_and_has_nearly_the_same_losses(
    tiles: Path, call: Call, spawn: Call, tmp_path: Path
) -> None:
    words = (
        *("fit", "--recipe=none", "--mode=student", "--student-arch=resnet8", "--epochs=1"),
        f"--data-dir={tiles}",
    )
    call(*words, "--logdir", "with")
    finished = spawn(*words, "--logdir", "without", cwd=tmp_path, **without_openmp(tmp_path))
    assert finished.stderr.count("oneDNN") == 1
    row, expected = (metrics(tmp_path / name / "student/version_0")[0] for name in ("without", "with"))
    assert row["loss/total"] == pytest.approx(expected["loss/total"], rel=0.01)
    assert row["loss/total"] != expected["loss/total"], "oneDNN was used"
