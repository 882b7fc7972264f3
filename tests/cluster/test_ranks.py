"""Ranks of ``--nproc-per-node``: each image once an epoch, equal weights, and their collectives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Call
from tests.tools import read_result

IMAGES = 300  # in batches of 2 x 32, the last of 44
PROBE = """
import numpy as np

from kdtrain import Callback, KdtrainError, Loader, flow, predict_logits

SHAPES = ((), (10,), (2, 3))
COUNTS = ((2, 3), (1, 0))

class Probe(Callback):
    def on_fit_start(self, run):
        self.ranks, self.indices, self.drawn = run.train.ranks, [], []
        rank = self.ranks.rank
        self.seen = {}
        for shape in SHAPES:
            for counts in COUNTS:
                rows = np.full((counts[rank], *shape), rank, np.float32)
                self.seen[f"rows {shape} {counts}"] = self.ranks.all_gather(rows)
        refused = []
        for values in ((b"a", b"a"), (b"a", b"b")):
            try:
                self.ranks.check_same("the teachers", values[rank])
            except KdtrainError as error:
                refused.append(str(error))
        self.seen["refused"] = np.array(refused)
        data = run.validation
        alone = Loader(data.inputs, data.targets, 64, num_classes=data.num_classes)
        self.seen["logits alone"] = predict_logits(run.model, alone)
        self.seen["logits"] = predict_logits(run.model, data)

    def on_batch(self, run, event):
        self.drawn.append(flow.nn.functional.dropout(flow.ones(64), 0.5).numpy().copy())
        self.indices.append(event.batch.indices.numpy().copy())
        if self.ranks.rank == 1 and event.step == 8:
            run.stop("enough")

    def on_fit_end(self, run, event):
        self.seen["steps"] = np.array([event.step, event.epoch])
        self.seen["dropout"] = np.stack(self.drawn)
        self.seen["epoch 1"] = np.concatenate(self.indices[:5])
        for name, tensor in run.model.state_dict().items():
            self.seen[f"weights {name}"] = tensor.numpy()
        np.savez(f"rank {self.ranks.rank}.npz", **self.seen)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Path:
    """A folder where two processes have trained a network with dropout, until rank 1 stopped the fit."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "probe.py").write_text(PROBE)
    data = ("--recipe=none", "--data-dir", tiles, "--val-size", "101", "--limit-train", str(IMAGES))
    flags = ("--mode", "teacher", *data, "--batch-size", "32", "--epochs", "3", "--nproc-per-node", "2")
    spawn("fit", *flags, "--plugin", "probe.py:Probe", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """The arrays that each rank has kept."""
    return [dict(np.load(folder / f"rank {rank}.npz")) for rank in (0, 1)]


def test_every_image_is_on_one_rank_once_an_epoch(ranks: list[dict[str, Any]]) -> None:
    parts = [rank["epoch 1"] for rank in ranks]
    assert [len(part) for part in parts] == [150, 150]
    assert sorted(np.concatenate(parts)) == list(range(IMAGES))


def test_all_ranks_hold_the_same_bits_although_each_draws_dropout_of_its_own(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = ranks
    names = [name for name in first if name.startswith("weights ")]
    assert len(names) == 8
    for name in names:
        np.testing.assert_array_equal(first[name], second[name])
    assert not (first["dropout"] == second["dropout"]).all(axis=1).any()


@pytest.mark.parametrize("shape", [(), (10,), (2, 3)])
@pytest.mark.parametrize("counts", [(2, 3), (1, 0)])
def test_rows_of_any_shape_are_gathered_in_the_order_of_ranks(
    shape: tuple[int, ...], counts: tuple[int, int], ranks: list[dict[str, Any]]
) -> None:
    expected = np.concatenate([np.full((counts[rank], *shape), rank, np.float32) for rank in (0, 1)])
    for rank in ranks:
        gathered = rank[f"rows {shape} {counts}"]
        np.testing.assert_array_equal(gathered, expected)
        assert gathered.dtype == np.float32


def test_different_files_are_refused_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (text,) = rank["refused"]
        assert text.startswith("the teachers are not the same on all machines")


def test_logits_are_shared_out_and_come_back_in_order(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank["logits"]) == 101
        np.testing.assert_allclose(rank["logits"], rank["logits alone"], rtol=0, atol=1e-5)


def test_a_stop_on_one_rank_stops_all_of_them(folder: Path, ranks: list[dict[str, Any]]) -> None:
    assert [list(rank["steps"]) for rank in ranks] == [[8, 2]] * 2
    result = read_result(folder / "logs/teacher/version_0")
    assert result["status"] == "stopped"
    assert result["reason"] == "a callback of another process asked for it"
