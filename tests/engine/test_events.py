"""Events: order, stopping and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import Callback, Checkpoint, EarlyStopping, Loader, Objective, Progress, Run, Trainer, flow
from kdtrain.callbacks import DistillationCallback, LearningRateSchedule, RunLog, StopOnNonFinite, TensorBoard
from kdtrain.data.loader import Batch
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
from kdtrain.engine.recorder import Output
from kdtrain.errors import CallbackError, KdtrainError
from kdtrain.models.registry import build_model
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_tensors
from tests.conftest import ADAM, Fit
from tests.engine.fits import mlp
from tests.runs import curves, metrics

EVENTS = ("on_fit_start", "on_batch", "on_eval", "on_epoch_end", "on_fit_end")


class Probe(Callback):
    """Logs the name of every hook; calls ``act`` in one of them."""

    def __init__(
        self, name: str, log: list[tuple[str, str]], at: str = "", act: Callable[[Run], None] | None = None
    ):
        self.name, self.log, self.at, self.act = name, log, at, act
        self.end: FitEnd | None = None

    def _note(self, hook: str, run: Run) -> None:
        self.log.append((self.name, hook))
        if hook == self.at and self.act is not None:
            self.act(run)

    def on_fit_start(self, run: Run) -> None:
        self._note("on_fit_start", run)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        self._note("on_batch", run)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        self._note("on_eval", run)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        self._note("on_epoch_end", run)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        self.end = event
        self._note("on_fit_end", run)


def _raise(error: BaseException) -> Callable[[Run], None]:
    def act(run: Run) -> None:
        raise error

    return act


def test_callbacks_run_in_the_order_given_and_end_in_reverse(fit: Fit) -> None:
    log: list[tuple[str, str]] = []
    fit(Probe("b", log), Probe("a", log))
    one_epoch = ["on_fit_start", *["on_batch"] * 4, "on_eval", "on_epoch_end"]
    assert log == [(name, hook) for hook in one_epoch for name in "ba"] + [("a", EVENTS[4]), ("b", EVENTS[4])]


def test_every_permutation_of_the_built_ins_gives_the_same_artefacts(
    make_loader: Callable[..., Loader], card: ModelCard, tmp_path: Path
) -> None:
    """All neighbours swapped, all rotations, and the reverse: 8 + 7 + 1 orders of 8 callbacks."""
    train, validation = make_loader(96, batch_size=32), make_loader(64, start=512, seed=None)
    flow.manual_seed(5)
    teacher = build_model("hinton_800", (1, 28, 28), 10)

    def artefacts(order: tuple[int, ...], folder: Path) -> Any:
        callbacks = [
            *(StopOnNonFinite(), LearningRateSchedule("one_cycle", 3e-3), Checkpoint(card)),
            *(EarlyStopping(patience=1, min_delta=1.0), TensorBoard("x = 1", every=2), RunLog()),
            *(Progress("student"), DistillationCallback(teacher, cache_directory=tmp_path / "cache")),
        ]
        trainer = Trainer(mlp(), ADAM, [callbacks[i] for i in order])
        end = trainer.fit(train, validation, epochs=4, directory=folder)
        files = {path.name: load_tensors(path) for path in sorted((folder / "checkpoints").iterdir())}
        tensors = {
            name: {key: array.tobytes() for key, array in arrays.items()}
            for name, (arrays, _) in files.items()
        }
        headers = {name: header for name, (_, header) in files.items()}
        for timed in ("seconds", "eval_seconds"):
            del headers["last.safetensors"]["end"][timed]
        ended = (end.status, end.reason, end.epoch, end.step)
        return ended, tensors, headers, metrics(folder), curves(folder)

    identity = tuple(range(8))
    orders = {identity, identity[::-1]}
    orders |= {identity[k:] + identity[:k] for k in range(8)}
    orders |= {(*identity[:k], k + 1, k, *identity[k + 2 :]) for k in range(7)}
    results = [artefacts(order, tmp_path / str(number)) for number, order in enumerate(sorted(orders))]
    reason = f"no better val/accuracy for an epoch (best {results[0][3][0]['val/accuracy']:.4f})"
    assert results[0][0][:3] == (Status.STOPPED, reason, 2)
    for result in results[1:]:
        assert result == results[0]


@pytest.mark.parametrize(("at", "batches"), [("on_batch", 1), ("on_eval", 4), ("on_epoch_end", 4)])
def test_a_stop_takes_effect_after_every_callback_has_the_event_and_the_epoch_is_ended(
    fit: Fit, at: str, batches: int
) -> None:
    log: list[tuple[str, str]] = []
    end = fit(Probe("a", log, at, lambda run: run.stop("had enough")), Probe("b", log), epochs=3)
    hooks = ["on_fit_start", *["on_batch"] * batches, "on_eval", "on_epoch_end"]
    assert log[:-2] == [(name, hook) for hook in hooks for name in "ab"]
    assert (end.status, end.reason, end.epoch, end.step) == (Status.STOPPED, "had enough", 1, batches)


def test_reasons_add_up_and_a_stop_before_the_first_epoch_counts(fit: Fit) -> None:
    log: list[tuple[str, str]] = []
    first = Probe("a", log, "on_fit_start", lambda run: run.stop("one"))
    second = Probe("b", log, "on_fit_start", lambda run: run.stop("two"))
    end = fit(first, second)
    assert (end.reason, end.epoch, end.step) == ("one; two", 0, 0)
    assert first.end == end


class CrashError(Exception):
    pass


@pytest.mark.parametrize("hook", EVENTS)
@pytest.mark.parametrize(
    "error", [CrashError("oops"), StopIteration("oops"), SystemExit(0), KdtrainError("oops")]
)
def test_an_error_names_its_hook_and_every_started_callback_is_ended(
    fit: Fit, hook: str, error: BaseException
) -> None:
    log: list[tuple[str, str]] = []
    before, after = Probe("before", log), Probe("after", log)
    with pytest.raises(CallbackError, match=rf"Probe#2\.{hook}") as caught:
        fit(before, Probe("bad", log, hook, _raise(error)), after, epochs=2)
    assert caught.value.__cause__ is error
    assert before.end is not None
    if hook == "on_fit_start":
        assert after.end is None
        assert log == [("before", hook), ("bad", hook), ("before", "on_fit_end")]
    else:
        assert after.end is not None
    if hook != "on_fit_end":
        assert before.end.status is Status.FAILED
        assert "oops" in str(before.end.reason) or isinstance(error, SystemExit)


@pytest.mark.parametrize("hook", EVENTS)
def test_ctrl_c_passes_through_and_every_started_callback_is_ended(fit: Fit, hook: str) -> None:
    log: list[tuple[str, str]] = []
    before = Probe("before", log)
    with pytest.raises(KeyboardInterrupt):
        fit(before, Probe("bad", log, hook, _raise(KeyboardInterrupt())), epochs=2)
    assert before.end is not None
    assert before.end.status is (Status.COMPLETED if hook == "on_fit_end" else Status.INTERRUPTED)


def test_the_first_error_is_reported_also_when_ending_fails(fit: Fit) -> None:
    log: list[tuple[str, str]] = []

    class BadEnd(Callback):
        def on_fit_end(self, run: Run, event: FitEnd) -> None:
            raise CrashError("second")

    first = Probe("first", log)
    with pytest.raises(CallbackError, match="first"):
        fit(first, BadEnd(), Probe("bad", log, "on_eval", _raise(CrashError("first"))))
    assert first.end is not None


def test_an_error_in_configure_or_in_a_term_is_not_swallowed(fit: Fit) -> None:
    class BadConfigure(Callback):
        def configure(self, objective: Objective) -> Objective:
            return None  # type: ignore[return-value]

    class BadTerm(Callback):
        def configure(self, objective: Objective) -> Objective:
            return objective.replace("task", self.term)

        def term(self, batch: Batch, output: Output) -> flow.Tensor:
            raise CrashError("in the loss")

    with pytest.raises(CallbackError, match=r"BadConfigure\.configure returned None"):
        fit(BadConfigure())
    message = r"BadTerm, term 'task', line \d+: CrashError: in the loss"
    with pytest.raises(KdtrainError, match=message) as caught:
        fit(BadTerm())
    assert isinstance(caught.value.__cause__, CrashError)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        *((None, "None is not a dict"), ([1], "list is not a dict"), ({"best": np.zeros(2)}, "ndarray")),
        ({(1, 2): 3}, "keys must be str"),
    ],
)
def test_a_state_that_no_checkpoint_can_hold_names_the_plugin(
    state: Any, reason: str, fit: Fit, card: ModelCard
) -> None:
    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return state  # type: ignore[no-any-return]

    with pytest.raises(CallbackError, match=rf"^plugin .*:Keeps\.state_dict .*{reason}.*plain values.*\)\.$"):
        fit(Keeps(), Checkpoint(card))
