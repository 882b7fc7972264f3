"""The overhead of the Trainer with its five usual callbacks over a bare loop with the same steps."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
from bare_step import bare_step
from bench import Bench, run_data
from tools import Row, ratio_row, side_by_side

from kdtrain.callbacks import Checkpoint, LearningRateSchedule, Progress, StopOnNonFinite, TensorBoard
from kdtrain.callbacks.schedule import learning_rate
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EpochEnd
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import Trainer
from kdtrain.experiment.loaders import RunData
from kdtrain.models.registry import build_model
from kdtrain.nn.optimizers import Adam
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, run_jobs
from kdtrain.store.card import ModelCard, model_card

LR = 3e-3
PAIRS = 2  # in each process


def overhead(bench: Bench) -> list[Row]:
    """Measures the Trainer with five callbacks against a bare loop, in four processes per repeat."""
    jobs = [Job("overhead", partial(_pairs, bench.folder, layout)) for layout in range(4 * bench.repeats)]
    measured = [run_jobs([job])[0] for job in jobs]  # one job at a time, so that nothing runs beside it
    what = "student, an epoch in the Trainer with five callbacks, evaluation and files not counted"
    trainer = [seconds for of_trainer, _ in measured for seconds in of_trainer]
    bare = [seconds for _, of_bare_loop in measured for seconds in of_bare_loop]
    return [ratio_row(what, trainer, bare, 1.02, "a bare loop")]


def _pairs(folder: Path, layout: int) -> tuple[list[float], list[float]]:
    """Measures in a separate process with a different heap layout.

    The addresses that malloc gives the weights make either loop up to 2 % faster or slower for the
    lifetime of the process.
    """
    rng = np.random.default_rng(layout)
    blocks = [np.empty(size, np.uint8) for size in rng.integers(1, 1 << 13, 400)]
    kept = [*blocks[::2], np.empty(rng.integers(1, 1 << 20), np.uint8)]
    del blocks
    data = run_data()
    card = model_card("student", "student_mlp", data.dataset)
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
    """Returns the seconds of an epoch in the bare loop."""
    network = _model(card)
    optimizer = Adam(network.parameters(), lr=LR)
    start = time.perf_counter()
    network.train()
    for step, batch in enumerate(data.train.epoch(1)):
        optimizer.param_groups[0]["lr"] = learning_rate("one_cycle", LR, step, len(data.train))
        loss = bare_step(network, optimizer, batch.inputs, batch.targets)
    loss.item()
    return time.perf_counter() - start


class _Stopwatch(Callback):
    """Records the training seconds of an epoch."""

    seconds = 0.0

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Records the seconds."""
        self.seconds = event.seconds


def _trainer(card: ModelCard, data: RunData, folder: Path) -> float:
    """Returns the seconds of the same epoch in the Trainer."""
    stopwatch = _Stopwatch()
    callbacks = [
        stopwatch,
        StopOnNonFinite(),
        LearningRateSchedule("one_cycle", LR),
        Checkpoint(card),
        TensorBoard(),
        Progress("student"),
    ]
    trainer = Trainer(_model(card), partial(Adam, lr=LR), callbacks)
    trainer.fit(data.train, data.validation, epochs=1, directory=folder / f"{time.time_ns()}")
    return stopwatch.seconds
