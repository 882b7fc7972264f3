"""The measurement of networks: training steps beside PyTorch, with GFLOP/s and the share of the peak."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bare_step import bare_step
from bench import HERE, Bench
from tools import THREADS, Row, answer, range_text, ratios_text

from kdtrain.models.registry import build_model, count_multiply_adds, count_parameters
from kdtrain.nn.optimizers import Adam
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, run_jobs

CLASSES, RATE, WARM_UP = 10, 1e-3, 3


@dataclass(frozen=True)
class Case:
    """A network whose step is measured.

    Attributes:
        arch: its name, as ``--teacher-arch`` takes it.
        batch: images in a step.
        shape: channels, height and width of an image.
        most: the promised ratio to PyTorch's step.
    """

    arch: str
    batch: int
    shape: tuple[int, int, int]
    most: float


CASES = (
    Case("hinton_1200", 128, (1, 28, 28), 0.9),
    Case("resnet8", 128, (3, 32, 32), 0.95),
    Case("resnet20", 128, (3, 32, 32), 0.95),
    Case("flowvision:resnet18", 64, (3, 32, 32), 0.95),
    Case("flowvision:mobilenet_v3_small", 64, (3, 32, 32), 1.2),
    Case("flowvision:shufflenet_v2_x0_5", 64, (3, 32, 32), 1.1),
    Case("teacher_cnn", 128, (1, 28, 28), 0.6),
)


@dataclass(frozen=True)
class _Kdtrain:
    """kdtrain's side of a pair: seconds of a step, parameters, and multiply-adds for one image."""

    seconds: float
    parameters: int
    multiply_adds: int


def networks(bench: Bench) -> list[Row]:
    """Measures steps of kdtrain and PyTorch in turn, each in a process of its own, with alternating order."""
    measured = {case: [_pair(bench, case, number % 2) for number in range(bench.repeats)] for case in CASES}
    peaks = sorted(torch["peak"] for pairs in measured.values() for _, torch in pairs)
    peak = statistics.median(peaks)
    what = f"the machine's peak: PyTorch's product of two 2048x2048 float32 matrices, {THREADS} threads"
    rows = [Row(what, f"{peak:.0f} GFLOP/s {range_text(peaks, '.0f')}")]
    return rows + [_row(case, pairs, peak) for case, pairs in measured.items()]


def _pair(bench: Bench, case: Case, torch_first: int) -> tuple[_Kdtrain, dict[str, Any]]:
    """Returns the figures of kdtrain and of PyTorch.

    Raises:
        SystemExit: the two networks have different numbers of parameters.
    """
    work = json.dumps({**asdict(case), "steps": bench.steps, "threads": THREADS})
    assert bench.peer is not None
    command: list[str | Path] = [bench.peer, HERE / "torch_networks.py", work]
    job = Job(case.arch, partial(_measure, case, bench.steps), cores=THREADS)
    torch = answer(command) if torch_first else None
    (kdtrain,) = run_jobs([job])
    torch = torch or answer(command)
    if kdtrain.parameters != torch["parameters"]:
        raise SystemExit(
            f"{case.arch} has {kdtrain.parameters:,} parameters in kdtrain, "
            f"{torch['parameters']:,} in PyTorch."
        )
    return kdtrain, torch


def _measure(case: Case, steps: int) -> _Kdtrain:
    """Returns the median step on random images, in this process."""
    rng = np.random.default_rng(0)
    inputs = flow.tensor(rng.standard_normal((case.batch, *case.shape), np.float32))
    targets = flow.tensor(rng.integers(0, CLASSES, case.batch))
    flow.manual_seed(0)
    network = build_model(case.arch, case.shape, CLASSES).train()
    optimizer = Adam(network.parameters(), lr=RATE)
    *_, last = network.parameters()
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        bare_step(network, optimizer, inputs, targets)
        last.numpy()  # waits for the step
        seconds.append(time.perf_counter() - start)
    median, parameters = statistics.median(seconds[WARM_UP:]), count_parameters(network)
    return _Kdtrain(median, parameters, count_multiply_adds(network, case.shape))


def _row(case: Case, pairs: Sequence[tuple[_Kdtrain, dict[str, Any]]], peak: float) -> Row:
    """Returns a network's row; PyTorch's memory format is the one with the lower median.

    A step has three times the operations of a forward pass, two for each multiply-add.
    """
    seconds = [kdtrain.seconds for kdtrain, _ in pairs]
    by_format = {name: [torch["seconds"][name] for _, torch in pairs] for name in pairs[0][1]["seconds"]}
    best, other = sorted(by_format, key=lambda name: statistics.median(by_format[name]))
    ratios = [a / b for a, b in zip(seconds, by_format[best], strict=True)]
    rate = 3 * 2 * pairs[0][0].multiply_adds * case.batch / statistics.median(seconds) / 1e9
    result = (
        f"{_milliseconds(seconds)}, PyTorch {best} {_milliseconds(by_format[best])} "
        f"({other} {_milliseconds(by_format[other])}): {ratios_text(ratios)}; "
        f"{rate:.3g} GFLOP/s, {rate / peak:.0%} of the peak"
    )
    size = "x".join(map(str, case.shape))
    what = f"{case.arch}, a step on {case.batch} images of {size}"
    return Row(what, result, f"at most {case.most:g} x", statistics.median(ratios) <= case.most)


def _milliseconds(seconds: Sequence[float]) -> str:
    milliseconds = 1000 * statistics.median(seconds)
    return f"{milliseconds:,.{1 if milliseconds < 100 else 0}f} ms"
