"""Ranks: each image once per epoch, and the same training as in one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdtrain.callbacks import LearningRateSchedule
from kdtrain.data.dataset import Dataset
from kdtrain.data.loader import Loader
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, EvalEnd, FitEnd, Status
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.run import Run
from kdtrain.engine.trainer import Trainer
from kdtrain.errors import KdtrainError
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import Floats, Ranks
from kdtrain.store.checkpoint import Weights, snapshot

pytestmark = pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")

IMAGES = 300  # batches of 64, the last of 44


class Recorder(Callback):
    """Keeps what the fit said."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        self.losses.append(event.losses["total"].item())

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        self.metrics.append(dict(event.metrics))


def _loader(mnist: Dataset, ranks: Ranks, start: int = 0, seed: int | None = 3) -> Loader:
    images = mnist.normalization.apply(mnist.train.images[start : start + IMAGES])
    labels = mnist.train.labels[start : start + IMAGES]
    return Loader(images, labels, 64, num_classes=10, seed=seed, ranks=ranks)


def _fit(
    mnist: Dataset, folder: Path, ranks: Ranks, *more: Callback, arch: str = "student_mlp"
) -> tuple[Weights, Recorder, FitEnd]:
    flow.manual_seed(1)
    model = build_model(arch, (1, 28, 28), 10)
    recorder = Recorder()
    callbacks = [LearningRateSchedule("one_cycle", 1e-3), recorder, *more]
    trainer = Trainer(model, partial(flow.optim.SGD, lr=1e-3, momentum=0.9), callbacks)
    train, validation = _loader(mnist, ranks), _loader(mnist, ranks, start=IMAGES, seed=None)
    end = trainer.fit(train, validation, epochs=2, directory=folder / f"rank_{ranks.rank}")
    return snapshot(model), recorder, end


def test_every_image_is_on_one_rank_once_an_epoch(mnist: Dataset) -> None:
    def work(ranks: Ranks) -> Floats:
        seen = [batch.indices.numpy() for batch in _loader(mnist, ranks).epoch(1)]
        assert len(seen) == len(_loader(mnist, ranks)) == 5
        return ranks.all_gather(np.concatenate(seen).astype(np.float32))

    (gathered,) = run_jobs([Job("indices", work, cores=2)])
    assert sorted(gathered) == list(range(IMAGES))


def test_two_ranks_train_as_one_process_with_the_same_batches(mnist: Dataset, tmp_path: Path) -> None:
    alone, said_alone, _ = _fit(mnist, tmp_path, Ranks())
    job = Job("two", lambda ranks: _fit(mnist, tmp_path, ranks), cores=2)
    ((together, said, end),) = run_jobs([job])
    assert (end.status, end.step) == (Status.COMPLETED, 10)
    for name, weights in alone.items():
        np.testing.assert_allclose(together[name].astype(float), weights.astype(float), rtol=0, atol=1e-5)
    np.testing.assert_allclose(said.losses, said_alone.losses, rtol=1e-5)
    for row, expected in zip(said.metrics, said_alone.metrics, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(), (10,), (2, 3)])
@pytest.mark.parametrize("counts", [(2, 3), (1, 0)])
def test_rows_of_any_shape_are_gathered_in_the_order_of_ranks(
    shape: tuple[int, ...], counts: tuple[int, int]
) -> None:
    def work(ranks: Ranks) -> tuple[Floats, Floats]:
        rows = np.full((counts[ranks.rank], *shape), ranks.rank, np.float32)
        return ranks.all_gather(rows), ranks.all_reduce(np.full((4, *shape), ranks.rank + 1, np.float32))

    ((gathered, summed),) = run_jobs([Job("rows", work, cores=2)])
    assert gathered.shape == (sum(counts), *shape)
    assert [set(row.ravel()) for row in gathered] == [{0.0}] * counts[0] + [{1.0}] * counts[1]
    np.testing.assert_array_equal(summed, np.full((4, *shape), 3, np.float32))
    for result in (gathered, summed):
        assert result.dtype == np.float32


def test_all_ranks_hold_the_same_bits(mnist: Dataset, tmp_path: Path) -> None:
    """Also with dropout, which draws other units on each rank."""

    def work(ranks: Ranks) -> Floats:
        weights, _, _ = _fit(mnist, tmp_path, ranks, arch="teacher_cnn")
        return ranks.all_gather(np.concatenate([array.ravel() for array in weights.values()])[None])

    (rows,) = run_jobs([Job("two", work, cores=2)])
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("odd", [0, 1])
def test_different_files_are_refused_on_all_ranks(odd: int) -> None:
    def work(ranks: Ranks) -> list[str]:
        said = []
        for value in (b"same", b"odd" if ranks.rank == odd else b"other"):
            try:
                ranks.check_same("the teachers", value)
            except KdtrainError as error:
                said.append(str(error))
        return [str(count) for count in ranks.all_gather(np.array([len(said)], np.float32))] + said

    (said,) = run_jobs([Job("two", work, cores=2)])
    assert said[:2] == ["1.0", "1.0"]
    assert said[2].startswith("the teachers are not the same")


def test_dropout_differs_between_ranks(mnist: Dataset, tmp_path: Path) -> None:
    class Look(Callback):
        def __init__(self) -> None:
            self.drawn = np.zeros(0, np.float32)

        def on_batch(self, run: Run, event: BatchEnd) -> None:
            self.drawn = flow.nn.functional.dropout(flow.ones(1, 64), 0.5).numpy().copy()
            run.stop("seen")

    def work(ranks: Ranks) -> Floats:
        look = Look()
        _fit(mnist, tmp_path, ranks, look)
        return ranks.all_gather(look.drawn)

    (rows,) = run_jobs([Job("two", work, cores=2)])
    assert not np.array_equal(rows[0], rows[1])


def test_logits_are_shared_out_and_come_back_in_order(mnist: Dataset) -> None:
    flow.manual_seed(1)
    model = build_model("student_mlp", (1, 28, 28), 10)
    alone = predict_logits(model, _loader(mnist, Ranks()))
    job = Job("logits", lambda ranks: predict_logits(model, _loader(mnist, ranks)), cores=2)
    (together,) = run_jobs([job])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_a_stop_on_one_rank_stops_all_of_them(mnist: Dataset, tmp_path: Path) -> None:
    class StopOnRank1(Callback):
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def on_batch(self, run: Run, event: BatchEnd) -> None:
            if self.rank == 1 and event.step == 3:
                run.stop("enough")

    job = Job("two", lambda ranks: _fit(mnist, tmp_path, ranks, StopOnRank1(ranks.rank))[2], cores=2)
    (end,) = run_jobs([job])
    assert (end.status, end.step, end.epoch) == (Status.STOPPED, 3, 1)
    assert end.reason == "a callback of another process asked for it"
