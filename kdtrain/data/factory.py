"""Data sets from a user's function: ``package.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import numpy as np

from kdtrain.data.checks import assemble, check_classes
from kdtrain.data.dataset import Dataset
from kdtrain.data.npz import ARRAYS, too_many
from kdtrain.errors import DataError, KdtrainError, UsageError, one_line
from kdtrain.runtime.limits import MOST_PIXELS
from kdtrain.runtime.user_code import load_callable, with_source_line


def load_factory(spec: str) -> Dataset:
    """Calls a factory without arguments, and returns its data set.

    The factory returns a mapping of arrays, with the names and shapes of a ``.npz``: ``x_train``,
    ``y_train``, ``x_test``, ``y_test`` and perhaps ``classes``. It must return the same arrays in each
    process.

    Args:
        spec: FILE.py:FACTORY or MODULE:FACTORY.

    Raises:
        UsageError: there is no such module or function.
        KdtrainError: the module cannot be imported, or the function raises.
        DataError: the function returns no data set.
    """
    target, _, name = spec.rpartition(":")
    asked = f"--dataset {spec}"
    if not target.endswith(".py"):
        _check_module(target, asked)
    factory = load_callable(spec, "data set", "function", asked)
    try:
        result = factory()
    except KdtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"{with_source_line(asked, error)}: {name} raised {one_line(error)}.") from error
    if not isinstance(result, Mapping) or not all(array in result for array in ARRAYS):
        raise DataError(f"{asked}: {name} must return a mapping with {', '.join(ARRAYS)}.")
    arrays = [np.array(result[array]) for array in ARRAYS]  # copies: the factory may keep its arrays
    sources = [f"{array} of {spec}" for array in ARRAYS]
    if sum(array.size for array in arrays[::2]) > MOST_PIXELS:
        raise DataError(too_many(spec))
    return assemble(spec, arrays, sources, check_classes(result.get("classes"), f"classes of {spec}"))


def _check_module(target: str, asked: str) -> None:
    """Raises UsageError if there is no module ``target``."""
    try:
        exists = all(target.split(".")) and importlib.util.find_spec(target) is not None
    except ModuleNotFoundError:  # a package that contains it is missing
        exists = False
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"{asked}: {target} cannot be found: {one_line(error)}.") from error
    if not exists:
        raise UsageError(
            f"{asked}: there is no module {target!r} to import. To name a file, write FILE.py:FACTORY."
        )
