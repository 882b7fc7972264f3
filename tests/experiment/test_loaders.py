"""The loaders of ``load_data``: the same batches as those of ``kdtrain fit``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdtrain import UsageError, load_data
from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.loaders import prepare
from tests.tools import write_tiles


def test_data_are_those_of_a_fit_with_the_same_settings(mnist: Dataset, tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", mnist)
    data = load_data(data_dir=str(tiles), val_size=300, batch_size=50, seed=3, augment="shift=1")
    config = FitConfig(mode="student", val_size=300, batch_size=50, augment="shift=1")
    expected = prepare(load_dataset(data_dir=tiles), config, "student", 3, "cpu")
    for loader, reference in ((data.train, expected.train), (data.validation, expected.validation)):
        for batch, reference_batch in zip(loader.epoch(1), reference.epoch(1), strict=True):
            assert np.array_equal(batch.inputs.numpy(), reference_batch.inputs.numpy())
            assert np.array_equal(batch.targets.numpy(), reference_batch.targets.numpy())
    assert data.dataset.num_classes == 4
    assert data.test.fingerprint == expected.test.fingerprint


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batchsize": 64}, r"load_data: there is no setting 'batchsize' \(did you mean 'batch_size'\?\)"),
        ({"epochs": 3}, "there is no setting 'epochs'"),
        ({"batch_size": 0}, "batch-size is 0: it must be from 1 to 100,000,000"),
        ({"val_size": 60_000}, "val-size 60000: give 0 to 59999"),
        ({"dataset": "mnits"}, "did you mean 'mnist'"),
        ({"seed": "three"}, "seed is 'three': it must be a whole number"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_data(**settings)
