"""Matrix products on NumPy's arrays, by an OpenBLAS that is kdtrain's alone.

OneFlow's OpenBLAS and NumPy's are older than the processors of today: neither knows which kernels
suit, and OneFlow's has none for AVX-512. Whoever loads them first also decides how they compute.
This one computes the same in every process of a machine, on the core of whoever calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError

Array = npt.NDArray[np.floating[Any]]

_PACKAGE = "scipy_openblas32"
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # of CBLAS


def accumulate(a: Array, b: Array, out: Array) -> None:
    """Adds products of matrices to matrices, one after another: ``out[i] += a[i] @ b[i]``.

    Nothing is copied: in each matrix either the numbers of a row or those of a column must be
    neighbours in memory; in ``out``, those of a row.

    Args:
        a: (S, M, K), all three in float32 or in float64. A matrix without the axis S takes part S times.
        b: (S, K, N).
        out: (S, M, N). Its matrices may overlap.

    Raises:
        ValueError: shapes, types or strides are others.
    """
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    if not (a.dtype == b.dtype == out.dtype and b.shape[-2] == inner and out.shape[-2:] == (rows, columns)):
        raise ValueError(f"{out.dtype} {out.shape} is no product of {a.dtype} {a.shape}, {b.dtype} {b.shape}")
    gemm = _gemm(a.dtype.char)
    count = max(len(stack) if stack.ndim == 3 else 1 for stack in (a, b, out))
    a_at, a_step, a_order, a_stride = _layout(a, count)
    b_at, b_step, b_order, b_stride = _layout(b, count)
    at, step, order, stride = _layout(out, count)
    if order != _AS_IT_IS or not out.flags.writeable:
        raise ValueError("the result must be writeable, and have the numbers of a row side by side")
    for i in range(count):
        gemm(
            *(_ROW_MAJOR, a_order, b_order, rows, columns, inner, 1.0, a_at + i * a_step, a_stride),
            *(b_at + i * b_step, b_stride, 1.0, at + i * step, stride),
        )


def _layout(stack: Array, count: int) -> tuple[int, int, int, int]:
    """Returns address, bytes from one matrix to the next, order, and numbers from one line to the next."""
    *outer, row, column = stack.strides
    (rows, columns), size = stack.shape[-2:], stack.itemsize
    if outer and len(stack) != count:
        raise ValueError(f"{len(stack)} matrices where there are {count}")
    # OpenBLAS itself would print a word about a stride that cannot be, and compute nothing. Of a lone
    # row or column, NumPy gives any stride.
    if (column == size or columns == 1) and (row >= columns * size or rows == 1):
        order, line = _AS_IT_IS, max(row, columns * size)
    elif (row == size or rows == 1) and (column >= rows * size or columns == 1):
        order, line = _TRANSPOSED, max(column, rows * size)
    else:
        raise ValueError(f"neither rows nor columns lie in one piece: strides {stack.strides}")
    return stack.__array_interface__["data"][0], outer[0] if outer else 0, order, line // size


@functools.cache
def _gemm(kind: str) -> Callable[..., None]:
    """Returns CBLAS's product of two matrices, for single ("f") or double ("d") precision."""
    if kind not in ("f", "d"):
        raise ValueError(f"products of float32 and float64 only, not of {np.dtype(kind)}")
    letter, number = ("s", ctypes.c_float) if kind == "f" else ("d", ctypes.c_double)
    function = getattr(_library(), f"scipy_cblas_{letter}gemm")
    integer, address = ctypes.c_int, ctypes.c_void_p
    function.argtypes = [*[integer] * 6, number, *[address, integer] * 2, number, address, integer]
    function.restype = None
    return function  # type: ignore[no-any-return]


def kernel() -> str:
    """Returns the name of the kernels in use, that of a processor: "SkylakeX", for example."""
    name = _library().scipy_openblas_get_corename
    name.restype = ctypes.c_char_p
    return str(name().decode())


@functools.cache
def _library() -> ctypes.CDLL:
    """Loads the library, but does not import its package: that would put its names before SciPy's own.

    Raises:
        KdtrainError: it is not there.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    for path in (path for folder in folders or () for path in Path(folder).glob("lib/libscipy_openblas*.so")):
        with _one_thread():
            return ctypes.CDLL(str(path))
    raise KdtrainError(f"{_PACKAGE} is not installed. Run `kdtrain doctor` to see what else is missing.")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Has an OpenBLAS that is loaded meanwhile start no threads: kdtrain gives each core a process."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
