"""Data sets from a function of the user's: ``package.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from kdtrain.data.arrays import MOST_PIXELS, Dataset
from kdtrain.data.assembling import assemble
from kdtrain.data.npz import ARRAYS, check_classes, too_many
from kdtrain.errors import DataError, KdtrainError, UsageError, describe, no_such


def load_factory(spec: str) -> Dataset:
    """Calls a factory without arguments; it returns arrays under the same names as in a ``.npz``.

    That is a mapping with ``x_train``, ``y_train``, ``x_test``, ``y_test`` and perhaps ``classes``.
    It has to return the same in each process that calls it.

    Args:
        spec: where the function is.

    Raises:
        UsageError: there is no such module or function.
        KdtrainError: the module cannot be imported, or the function raises.
        DataError: what it returns is no data set.
    """
    target, _, name = spec.rpartition(":")
    module = _import_file(Path(target)) if target.endswith(".py") else _import_module(target, spec)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"--dataset {spec}: {no_such('function', name, own)}")
    try:
        result = factory()
    except KdtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"--dataset {spec}: {name} raised {_on_one_line(error)}.") from error
    if not isinstance(result, Mapping) or not all(array in result for array in ARRAYS):
        raise DataError(f"--dataset {spec}: {name} must return a mapping with {', '.join(ARRAYS)}.")
    arrays = [np.array(result[array]) for array in ARRAYS]  # copies: nobody else may write into them
    sources = [f"{array} of {spec}" for array in ARRAYS]
    if sum(array.size for array in arrays[::2]) > MOST_PIXELS:
        raise DataError(too_many(spec))
    return assemble(spec, arrays, sources, check_classes(result.get("classes"), f"classes of {spec}"))


def _import_module(target: str, spec: str) -> ModuleType:
    try:
        found = all(target.split(".")) and importlib.util.find_spec(target) is not None
    except ModuleNotFoundError:  # of a package that it should be in
        found = False
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"--dataset {spec}: {target} cannot be found: {_on_one_line(error)}.") from error
    if not found:
        raise UsageError(
            f"--dataset {spec}: there is no module {target!r} to import (a file is named FILE.py:FACTORY)."
        )
    try:
        return importlib.import_module(target)
    except (Exception, SystemExit) as error:
        raise KdtrainError(
            f"--dataset {spec}: {target} cannot be imported: {_on_one_line(error)}."
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"--dataset {path}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"kdtrain_dataset_{path.stem}", path)
    assert spec is not None  # its name ends with .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"--dataset {path} cannot be imported: {_on_one_line(error)}.") from error
    return module


def _on_one_line(error: BaseException) -> str:
    return " ".join(describe(error).split()).rstrip(".")
