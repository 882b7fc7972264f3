"""OneFlow in a forked child: every public function and layer ends, with the values of any process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow, oneflow
from kdtrain.runtime.processes import Job, run_jobs
from tests.runtime.oneflow_calls import CRASHES, LEFT_OUT, REFUSED, calls

SECONDS = 5.0  # without CPU time: an operation that waits for a thread that is not there uses none
VALUES = np.array([[3, 1, 2], [0, 9, 4], [5, 5, 6]], np.float32)


def in_child(work: Callable[[], Any]) -> Any:
    return run_jobs([Job("an operation", work)], stall_timeout=SECONDS)[0]


def tensors(outcome: Any) -> Iterator[Any]:
    for part in outcome if isinstance(outcome, (tuple, list)) else [outcome]:
        if isinstance(part, flow.Tensor):
            yield part


def call_forward_and_backward(call: Callable[[], Any]) -> bool:
    """Returns whether there was a backward pass."""
    made = list(tensors(call()))
    for tensor in made:
        tensor.numpy()  # waits for the values
    losses = [tensor.sum() for tensor in made if tensor.requires_grad and tensor.is_floating_point()]
    if losses:
        losses[0].backward()
    return bool(losses)


def test_every_public_function_and_layer_ends_in_a_child() -> None:
    wanted = calls()
    assert len(wanted) > 700

    def work() -> dict[str, str]:
        outcomes = {}
        for name, call in wanted.items():
            if name in CRASHES:
                continue
            os.write(log, f"{name}\n".encode())
            try:
                outcomes[name] = "backward" if call_forward_and_backward(call) else "forward"
            except Exception as error:
                outcomes[name] = f"{type(error).__name__}: {error}"
        return outcomes

    log = os.memfd_create("names")
    try:
        outcomes = in_child(work)
    except KdtrainError as error:
        pytest.fail(f"{os.pread(log, 1 << 20, 0).decode().splitlines()[-1]}: {error}")
    finally:
        os.close(log)
    failed = {name: text for name, text in outcomes.items() if text not in ("forward", "backward")}
    assert failed.keys() == REFUSED.keys(), {name: failed[name] for name in failed.keys() - REFUSED.keys()}
    backward = {name for name, text in outcomes.items() if text == "backward"}
    assert {"flow.max(dim)", "flow.min(dim)", "flow.median", "flow.topk", "nn.GRU", "F.conv2d"} <= backward
    assert len(backward) > 450


@pytest.mark.parametrize("name", CRASHES)
def test_what_is_known_to_crash_still_does(name: str) -> None:
    with pytest.raises(KdtrainError, match=signal.SIGABRT.name):
        in_child(lambda: calls()[name]())


def test_the_lists_hold_no_name_that_oneflow_has_not() -> None:
    names = {*calls(), *LEFT_OUT}
    assert not (CRASHES.keys() | REFUSED.keys()) - calls().keys()
    for name in names:
        space, _, rest = name.partition(".")
        holders = {"F": flow.nn.functional, "flow": flow, "Tensor": flow.Tensor, "nn": flow.nn}
        holders |= {"linalg": flow.linalg, "init": flow.nn.init, "utils": flow.nn.utils, "optim": flow.optim}
        assert hasattr(holders[space], rest.partition("(")[0]), name


def test_operations_on_the_thread_pool_are_right_in_a_child() -> None:
    x = flow.tensor(VALUES)

    def work() -> list[Any]:
        weights = flow.tensor(VALUES, requires_grad=True)
        weights.max(dim=1)[0].sum().backward()
        found = [x.argmax(dim=1), x.argmin(dim=1), *x.max(dim=1), *x.min(dim=1), *x.topk(2, dim=1)]
        found += [x.median(), flow.multinomial(x, 3), weights.grad]
        return [tensor.numpy().copy() for tensor in found]

    *found, drawn, gradient = in_child(work)
    highest, lowest = VALUES.argmax(axis=1), VALUES.argmin(axis=1)
    order = np.argsort(-VALUES, axis=1, kind="stable")[:, :2]
    expected = [highest, lowest, VALUES.max(axis=1), highest, VALUES.min(axis=1), lowest]
    expected += [np.take_along_axis(VALUES, order, axis=1), order, np.median(VALUES)]
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert sorted(drawn[0]) == [0, 1, 2]
    np.testing.assert_array_equal(gradient, np.eye(3, dtype=np.float32)[highest])


def test_the_new_pools_threads_keep_to_the_childs_core() -> None:
    def work() -> set[frozenset[int]]:
        flow.tensor(VALUES).argmax(dim=1).numpy()
        tasks = [int(task) for task in os.listdir("/proc/self/task")]
        assert len(tasks) > 1
        return {frozenset(os.sched_getaffinity(task)) for task in tasks}

    (cores,) = in_child(work)
    assert len(cores) == 1


def test_a_process_that_a_child_forks_has_a_pool_as_well() -> None:
    class Rows(flow.utils.data.Dataset):
        def __len__(self) -> int:
            return len(VALUES)

        def __getitem__(self, index: int) -> Any:
            return flow.tensor(VALUES[index]).argmax()

    def work() -> list[int]:
        loader = flow.utils.data.DataLoader(Rows(), batch_size=3, num_workers=1)
        return [int(row) for batch in loader for row in batch.numpy()]

    assert in_child(work) == list(VALUES.argmax(axis=1))


def test_without_the_symbols_doctor_tells_and_a_child_is_ended_with_its_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oneflow, "_CONSTRUCTOR", "_ZN7oneflow10ThreadPoolC1Ez")
    oneflow._exports.cache_clear()
    try:
        assert oneflow.thread_pool_obstacle() is not None
        assert not oneflow.replace_thread_pool()
        with pytest.raises(KdtrainError, match=rf"{Path(__file__).name}, line \d+, in call_argmax"):
            run_jobs([Job("argmax", call_argmax)], stall_timeout=1)
    finally:
        monkeypatch.undo()
        oneflow._exports.cache_clear()


def call_argmax() -> None:
    flow.tensor(VALUES).argmax(dim=1).numpy()


def test_a_static_graph_which_needs_oneflows_own_threads_is_ended() -> None:
    class Graph(flow.nn.Graph):
        def build(self, x: Any) -> Any:
            return x + 1

    with pytest.raises(KdtrainError, match="no CPU time"):
        run_jobs([Job("a graph", lambda: Graph()(flow.tensor(VALUES)))], stall_timeout=1)
