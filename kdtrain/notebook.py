"""What a notebook needs besides the trainer and its callbacks: data, by the settings of ``kdtrain fit``."""

from __future__ import annotations

from typing import Any

from kdtrain.config_file import load_config
from kdtrain.data.datasets import load_dataset
from kdtrain.data.prepare import RunData, check_sizes, prepare
from kdtrain.errors import UsageError, no_such
from kdtrain.runtime.oneflow import resolve_device

_SETTINGS = ("dataset", "data_dir", "val_size", "limit_train", "augment", "batch_size", "seed", "device")


def load_data(**settings: Any) -> RunData:
    """Returns a data set as ``kdtrain fit --mode student`` sees it, in loaders.

    Args:
        settings: of those of ``kdtrain fit``: dataset, data_dir, val_size, limit_train, augment,
            batch_size, seed and device, with the same defaults.

    Returns:
        The loaders ``train``, ``validation`` and ``test``, and the ``dataset`` itself.

    Raises:
        UsageError: there is no such setting, or its value is not allowed.
        DataError: files are missing, damaged or inconsistent.
    """
    for name in settings:
        if name not in _SETTINGS:
            raise UsageError(f"load_data: {no_such('setting', name, _SETTINGS)}")
    config = load_config({"mode": "student", **settings})
    dataset = load_dataset(config.dataset, config.data_dir)
    check_sizes(dataset, config)
    return prepare(dataset, config, "student", config.seed, resolve_device(config.device))
