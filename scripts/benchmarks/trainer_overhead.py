"""Measures what the Trainer and its five usual callbacks add to a bare loop that makes the same steps."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
from tools import Row, ratio_row, side_by_side

from kdtrain.callbacks import Checkpoint, LearningRateSchedule, Progress, StopOnNonFinite, TensorBoard
from kdtrain.callbacks.schedule import learning_rate
from kdtrain.data.datasets import load_dataset
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EpochEnd
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import Trainer
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.loaders import RunData, prepare
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.runtime.processor import zero_upper_avx
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.card import ModelCard, model_card

LR = 3e-3
PAIRS = 2  # in each process


def measure(folder: Path, repeats: int) -> list[Row]:
    """Returns the line of the table.

    Args:
        folder: for the files that callbacks write.
        repeats: groups of four processes.
    """
    jobs = [Job("overhead", partial(_pairs, folder, layout)) for layout in range(4 * repeats)]
    measured = [run_jobs([job])[0] for job in jobs]  # one at a time: nothing else is to run meanwhile
    what = "student, an epoch in the Trainer with five callbacks, evaluation and files not counted"
    ours = [seconds for one, _ in measured for seconds in one]
    theirs = [seconds for _, other in measured for seconds in other]
    return [ratio_row(what, ours, theirs, 1.02, "a bare loop")]


def _pairs(folder: Path, layout: int, ranks: Ranks) -> tuple[list[float], list[float]]:
    """Measures in a process of its own, with holes of its own in its memory.

    Where malloc happens to put the weights makes either loop up to 2 % faster or slower for as long as
    the process lives.
    """
    rng = np.random.default_rng(layout)
    blocks = [np.empty(size, np.uint8) for size in rng.integers(1, 1 << 13, 400)]
    kept = [*blocks[::2], np.empty(rng.integers(1, 1 << 20), np.uint8)]
    del blocks
    dataset = load_dataset()
    data = prepare(dataset, FitConfig(mode="student"), "student", 0, "cpu")
    card = model_card("student", "student_mlp", dataset)
    trainer = partial(_trainer, card, data, folder / f"layout_{layout}")
    bare = partial(_bare, card, data)
    trainer(), bare()  # warm up
    measured = side_by_side(trainer, bare, PAIRS)
    del kept
    return measured


def _model(card: ModelCard) -> flow.nn.Module:
    flow.manual_seed(0)
    return build_model(card.arch, card.image_shape, len(card.classes))


def _bare(card: ModelCard, data: RunData) -> float:
    """Returns the seconds of an epoch."""
    network = _model(card)
    optimizer = flow.optim.Adam(network.parameters(), lr=LR)
    start = time.perf_counter()
    network.train()
    for step, batch in enumerate(data.train.epoch(1)):
        optimizer.param_groups[0]["lr"] = learning_rate("one_cycle", LR, step, len(data.train))
        optimizer.zero_grad(set_to_none=True)
        logits = network(batch.inputs)
        zero_upper_avx()
        loss = flow.nn.functional.cross_entropy(logits, batch.targets)
        loss.backward()
        zero_upper_avx()
        optimizer.step()
    loss.item()
    return time.perf_counter() - start


class _Stopwatch(Callback):
    """Keeps the seconds of an epoch's training."""

    seconds = 0.0

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Notes them."""
        self.seconds = event.seconds


def _trainer(card: ModelCard, data: RunData, folder: Path) -> float:
    """Returns the seconds of the same epoch."""
    stopwatch = _Stopwatch()
    callbacks = [
        stopwatch,
        StopOnNonFinite(),
        LearningRateSchedule("one_cycle", LR),
        Checkpoint(card),
        TensorBoard(),
        Progress("student"),
    ]
    trainer = Trainer(_model(card), partial(flow.optim.Adam, lr=LR), callbacks)
    trainer.fit(data.train, data.validation, epochs=1, directory=folder / f"{time.time_ns()}")
    return stopwatch.seconds
