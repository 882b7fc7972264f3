"""Data sets from a function of the user's: ``package.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from kdtrain.data.checks import assemble, check_classes
from kdtrain.data.dataset import Dataset
from kdtrain.data.npz import ARRAYS, too_many
from kdtrain.errors import DataError, KdtrainError, UsageError, one_line, unknown_name_message
from kdtrain.runtime.limits import MOST_PIXELS
from kdtrain.runtime.user_code import import_file, located, not_importable


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
    asked = f"--dataset {spec}"
    is_file = target.endswith(".py")
    module = import_file(Path(target), "data set", asked) if is_file else _import_module(target, asked)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{asked}: {unknown_name_message('function', name, own)}")
    try:
        result = factory()
    except KdtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"{located(asked, error)}: {name} raised {one_line(error)}.") from error
    if not isinstance(result, Mapping) or not all(array in result for array in ARRAYS):
        raise DataError(f"{asked}: {name} must return a mapping with {', '.join(ARRAYS)}.")
    arrays = [np.array(result[array]) for array in ARRAYS]  # copies: nobody else may write into them
    sources = [f"{array} of {spec}" for array in ARRAYS]
    if sum(array.size for array in arrays[::2]) > MOST_PIXELS:
        raise DataError(too_many(spec))
    return assemble(spec, arrays, sources, check_classes(result.get("classes"), f"classes of {spec}"))


def _import_module(target: str, asked: str) -> ModuleType:
    try:
        found = all(target.split(".")) and importlib.util.find_spec(target) is not None
    except ModuleNotFoundError:  # of a package that it should be in
        found = False
    except (Exception, SystemExit) as error:
        raise KdtrainError(f"{asked}: {target} cannot be found: {one_line(error)}.") from error
    if not found:
        raise UsageError(
            f"{asked}: there is no module {target!r} to import (a file is named FILE.py:FACTORY)."
        )
    try:
        return importlib.import_module(target)
    except (Exception, SystemExit) as error:
        raise not_importable(f"{asked}: {target}", error) from error
