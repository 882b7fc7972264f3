"""Observers: their figures are right, TensorBoard finds them, and training is not changed."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdtrain import Callback, KdtrainError, Loader, Run, Trainer, flow, predict_logits
from kdtrain.callbacks import Checkpoint, DistillationCallback, RunLog, TensorBoard
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd
from kdtrain.engine.resume import FitState, load_state
from kdtrain.metrics.evaluation import measure_fidelity
from kdtrain.metrics.probabilities import reliability
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import snapshot
from plugins.calibration import Calibration
from plugins.confusion import Confusion, confusion_matrix, draw_matrix
from plugins.csv import Csv
from plugins.dashboard import Dashboard, bars
from plugins.fidelity import Fidelity
from plugins.grad_norm import GradNorm
from plugins.histograms import Histograms
from plugins.similarity import Similarity
from tests.cli.conftest import Call
from tests.engine.fits import mlp
from tests.runs import TIMES, count_points, curves, metrics
from tests.terminal import show_on_terminal
from tests.tools import read_scalars

SGD = partial(flow.optim.SGD, lr=0.1)
Data = tuple[Loader, Loader]


def fit(data: Data, folder: Path, *callbacks: Callback, epochs: int = 2) -> flow.nn.Module:
    model = mlp()
    Trainer(model, SGD, callbacks).fit(*data, epochs=epochs, directory=folder)
    return model


def images(folder: Path, tag: str) -> dict[int, Image.Image]:
    """The images of a tag by step, as TensorBoard reads them."""
    events = EventAccumulator(str(folder)).Reload().Images(tag)
    return {event.step: Image.open(io.BytesIO(event.encoded_image_string)) for event in events}


@pytest.fixture
def data(make_loader: Any) -> Data:
    return make_loader(256), make_loader(128, start=512, seed=None)


@pytest.fixture
def teacher() -> flow.nn.Module:
    return mlp(7)


def test_watching_changes_nothing(data: Data, tmp_path: Path, teacher: flow.nn.Module) -> None:
    confusion = Confusion(every=1)
    drawn = (Histograms(every=1), TensorBoard(every=1))
    observers = (Calibration(every=1), confusion, Csv(), Dashboard(), Fidelity(), GradNorm(every=1), *drawn)
    ends = []
    for number, watching in enumerate(((), observers)):
        distillation = DistillationCallback(teacher, cache_directory=tmp_path / "cache")
        ends.append(snapshot(fit(data, tmp_path / str(number), distillation, *watching)))
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name])


class Killed(Callback):
    """Ends a fit where a signal could: within an epoch, or between two callbacks' ``on_epoch_end``."""

    def __init__(self, hook: str, epoch: int) -> None:
        self.hook, self.epoch = hook, epoch

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        if self.hook == "on_batch" and event.epoch == self.epoch and event.step % len(run.train) == 0:
            raise KeyboardInterrupt

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        if self.hook == "on_epoch_end" and event.epoch == self.epoch:
            raise KeyboardInterrupt


def test_after_resuming_every_point_and_image_is_there_once(
    data: Data, tmp_path: Path, teacher: flow.nn.Module, card: ModelCard
) -> None:
    """One run is killed between two callbacks' ``on_epoch_end``, then within an epoch; one is not killed."""

    def fit_with(name: str, *killed: Callback, **options: Any) -> None:
        confusion = Confusion(every=2)
        drawn = (Calibration(every=2), confusion, Histograms(every=2))
        observers = (GradNorm(every=1), *killed, *drawn, Fidelity(), Csv())
        distillation = DistillationCallback(teacher, cache_directory=tmp_path / "cache")
        trainer = Trainer(mlp(), SGD, [distillation, Checkpoint(card), TensorBoard(every=1), *observers])
        trainer.fit(*data, epochs=3, directory=tmp_path / name, **options)

    def state() -> FitState:
        return load_state(tmp_path / "parts/checkpoints/last.safetensors")

    fit_with("whole")
    with pytest.raises(KeyboardInterrupt):
        fit_with("parts", Killed("on_epoch_end", 2))
    assert ("calibration/ece", 4) not in count_points(tmp_path / "parts"), "the kill has left it out"
    with pytest.raises(KeyboardInterrupt):
        fit_with("parts", Killed("on_batch", 3), resume=state())
    fit_with("parts", resume=state())
    points = count_points(tmp_path / "parts")
    assert points == count_points(tmp_path / "whole")
    assert set(points.values()) == {1}
    tags = {tag for tag, _ in points}
    assert {"calibration/ece", "confusion/matrix", "fidelity/kl", "grad_norm/kd", "val/mistakes"} < tags
    assert {step for tag, step in points if tag == "weights/fc1.weight"} == {4, 6}
    texts = [(tmp_path / run / "metrics.csv").read_text() for run in ("parts", "whole")]
    tables = [list(csv.DictReader(text.splitlines())) for text in texts]
    for row, expected in zip(*tables, strict=True):
        same = expected.keys() - TIMES
        assert {name: row[name] for name in same} == {name: expected[name] for name in same}


def test_calibration_reaches_tensorboard(data: Data, tmp_path: Path) -> None:
    model = fit(data, tmp_path, Calibration(every=2), epochs=3)
    error = reliability(predict_logits(model, data[1]), data[1].targets, 15).error
    errors = curves(tmp_path)["calibration/ece"]
    assert list(errors) == [2, 4, 6]
    assert errors[6] == pytest.approx(error, rel=1e-6)
    assert list(images(tmp_path, "calibration/reliability")) == [4, 6]


def test_the_confusion_matrix_is_right() -> None:
    logits = np.array([[9, 0, 0], [0, 1, 0], [0, 5, 0], [0, 2, 0], [0, 0, 1]], np.float32)
    targets = np.array([0, 1, 0, 2, 2])
    np.testing.assert_array_equal(confusion_matrix(logits, targets), [[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    assert draw_matrix(np.eye(3, dtype=np.int64), ["cat", "a very long name", "$^$"]).shape[2] == 3
    assert draw_matrix(np.zeros((100, 100), np.int64), [""] * 100).shape[2] == 3


def test_confusion_reaches_tensorboard(data: Data, tmp_path: Path) -> None:
    fit(data, tmp_path, Confusion(every=2), epochs=3)
    drawn = images(tmp_path, "confusion/matrix")
    assert list(drawn) == [4, 6]
    assert np.ptp(np.asarray(drawn[6].convert("L"))) > 100, "not an empty sheet"


def test_histograms_hold_every_weight(data: Data, tmp_path: Path) -> None:
    weights = fit(data, tmp_path, Histograms()).fc1.weight.numpy()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Histograms("weights/fc1.weight")
    histogram = event.histogram_value
    assert (event.step, histogram.num, sum(histogram.bucket)) == (4, weights.size, weights.size)
    assert (histogram.min, histogram.max) == (weights.min(), weights.max())
    intervals = zip(histogram.bucket_limit, histogram.bucket, strict=True)
    below_zero = [count for end, count in intervals if end <= 0]
    assert sum(below_zero) <= (weights < 0).sum() <= sum(below_zero) + max(histogram.bucket)


def test_fidelity_reaches_tensorboard(data: Data, tmp_path: Path, teacher: flow.nn.Module) -> None:
    model = fit(data, tmp_path, DistillationCallback(teacher, cache_directory=tmp_path), Fidelity())
    expected = measure_fidelity(predict_logits(model, data[1]), predict_logits(teacher, data[1]))
    for tag, value in zip(("fidelity/agreement", "fidelity/kl"), expected, strict=True):
        assert curves(tmp_path)[tag][4] == pytest.approx(value, rel=1e-6)


class WholeNorm(Callback):
    """Computes the norm of all gradients by NumPy, in float64."""

    def __init__(self) -> None:
        self.norms: dict[int, float] = {}

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        gradients = [p.grad.numpy().astype(np.float64).ravel() for p in run.model.parameters()]
        self.norms[event.step] = float(np.linalg.norm(np.concatenate(gradients)))


def test_norm_of_all_gradients_reaches_tensorboard_beside_the_run_s_own_figures(
    data: Data, tmp_path: Path
) -> None:
    whole = WholeNorm()
    fit(data, tmp_path, TensorBoard(every=1), GradNorm(every=3), whole, epochs=4)
    norms = read_scalars(tmp_path)["grad_norm"]
    assert list(norms) == [3, 6]
    for step, norm in norms.items():
        assert norm == pytest.approx(whole.norms[step], rel=1e-6)
    assert list(read_scalars(tmp_path)["loss/total"]) == list(range(1, 9))


def test_figures_of_a_failed_fit_are_kept(data: Data, tmp_path: Path) -> None:
    class BreakDown(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            if event.step == 3:
                raise ValueError("broken down")

    with pytest.raises(KdtrainError, match="broken down"):
        fit(data, tmp_path, GradNorm(every=1), BreakDown())
    assert list(read_scalars(tmp_path)["grad_norm"]) == [1, 2, 3]


class Parts(Callback):
    """Computes each term's gradient by a backward pass of its own, on the weights after each step."""

    def __init__(self, alpha: float) -> None:
        self.weights = {"task": 1 - alpha, "kd": alpha}
        self.norms: dict[str, list[float]] = {"task": [], "kd": []}

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        for name, weight in self.weights.items():
            term = run.objective.terms[name].term
            loss = term(event.batch, run.objective.student(event.batch.inputs))
            gradients = flow.autograd.grad(loss, list(run.model.parameters()))
            flat = np.concatenate([g.numpy().astype(np.float64).ravel() for g in gradients])
            self.norms[name].append(weight * float(np.linalg.norm(flat)))


def test_a_term_s_norm_is_found_where_it_does_not_reach_all_layers(
    data: Data, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    distillation = DistillationCallback(teacher, cache_directory=tmp_path)
    fit(data, tmp_path, distillation, Similarity("fc1", "fc1"), GradNorm(every=1))
    assert min(curves(tmp_path)["grad_norm/similarity_fc1"].values()) > 0


@pytest.mark.parametrize("alpha", [0.7, 0.0])
def test_gradient_norms_of_terms_reach_tensorboard(
    alpha: float, data: Data, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    parts = Parts(alpha)
    distillation = DistillationCallback(teacher, 4.0, alpha, cache_directory=tmp_path)
    fit(data, tmp_path, distillation, GradNorm(every=1), parts)
    for name, norms in parts.norms.items():
        assert list(curves(tmp_path)[f"grad_norm/{name}"].values()) == pytest.approx(norms, rel=1e-5)


def test_the_table_has_the_run_s_figures(data: Data, tmp_path: Path) -> None:
    fit(data, tmp_path, RunLog(), Csv(), epochs=3)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 3
    for row, expected in zip(rows, metrics(tmp_path), strict=True):
        assert {name: float(row[name]) for name in expected} == expected


def test_a_damaged_table_is_refused_on_resuming(data: Data, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step\none,two\n")

    class Resumed(Callback):
        def on_fit_start(self, run: Run) -> None:
            object.__setattr__(run, "resumed", object())

    with pytest.raises(KdtrainError, match=r"metrics\.csv is damaged"):
        fit(data, tmp_path, Resumed(), Csv())


class Screens(Callback):
    """Keeps the dashboard's screen after each epoch."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.dashboard = dashboard
        self.texts: list[str] = []

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        console = Console(file=io.StringIO(), width=100, record=True)
        console.print(self.dashboard.screen(run, elapsed=60.0))
        self.texts.append(console.export_text())


def test_the_screen_shows_progress_losses_accuracy_and_the_time_left(data: Data, tmp_path: Path) -> None:
    dashboard = Dashboard()
    screens = Screens(dashboard)
    fit(data, tmp_path, dashboard, screens, epochs=4)
    for words in ("epoch 1/4", "step  2/8", "task", "total", "accuracy", "best", "1:00 gone, 3:00 left"):
        assert words in screens.texts[0], screens.texts[0]
    assert "1:00 gone, 0:00 left" in screens.texts[3]
    assert bars([0.0, 0.5, 1.0]) == "▁▄█" or bars([0.0, 0.5, 1.0]) == "▁▅█"
    assert bars([0.3, 0.3]) == "▁▁"


def test_on_a_terminal_it_draws(tmp_path: Path) -> None:
    words = ("fit", "--mode", "student", "--epochs", "2", "--limit-train", "640", "--val-size", "128")
    drawn, _ = show_on_terminal(*words, "--plugin", "dashboard,seconds=0", cwd=tmp_path, columns=100)
    assert "\x1b[" in drawn
    assert "left, learning rate" in drawn
    assert "%|" not in drawn, "no progress bar beside it"
    assert "student      2/2  loss" in drawn.replace("\x1b[0m", ""), "the epochs' lines stay above it"


def test_without_a_terminal_it_prints_a_line_per_epoch_only(tmp_path: Path, spawn: Call) -> None:
    words = ("--mode", "student", "--epochs", "2", "--limit-train", "640", "--val-size", "128")
    finished = spawn("fit", *words, "--plugin", "dashboard,seconds=0", cwd=tmp_path)
    assert "\x1b" not in finished.stderr
    assert len([line for line in finished.stderr.splitlines() if line.startswith("student ")]) == 2
