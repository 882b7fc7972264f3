"""Matrix products of NumPy arrays by kdtrain's own OpenBLAS.

OneFlow's and NumPy's OpenBLAS are older than today's processors: neither selects the right kernels, and
OneFlow's has none for AVX-512. Which of them is loaded first also changes their results. This one gives
the same results in every process of a machine, and runs on the core of the caller.
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


class Accumulation:
    """Matrix products added to an array, one after another: ``out[n, s] += a[n, s] @ b[n, s]``.

    Each call does this for one n and every s. Missing axes, and those of length 1, are repeated as NumPy
    does it; matrices of ``out`` may be one and the same, or overlap. Nothing is copied: in each matrix
    either the numbers of a row or those of a column must be neighbours in memory; in ``out``, those of
    a row. The arrays are held, and may change between calls.

    Args:
        a: (N, S, M, K), all three in float32 or in float64.
        b: (N, S, K, N').
        out: (N, S, M, N').

    Raises:
        ValueError: shapes, dtypes or strides do not fit.
    """

    def __init__(self, a: Array, b: Array, out: Array) -> None:
        (rows, inner), columns = a.shape[-2:], b.shape[-1]
        fit = a.dtype == b.dtype == out.dtype and (b.shape[-2], *out.shape[-2:]) == (inner, rows, columns)
        if not fit or max(array.ndim for array in (a, b, out)) > 4:
            raise ValueError(
                f"{out.dtype} {out.shape} is no product of {a.dtype} {a.shape}, {b.dtype} {b.shape}"
            )
        self._arrays = a, b, out
        self._gemm = _gemm(a.dtype.char)
        self._size = rows, columns, inner
        self._count, self._steps = np.broadcast_shapes((1, 1), *(array.shape[:-2] for array in self._arrays))
        self._layouts = [_Layout(array) for array in self._arrays]
        if self._layouts[2].order != _AS_IT_IS or not out.flags.writeable:
            raise ValueError("the result must be writeable, and have the numbers of a row side by side")

    def __call__(self, n: int = 0) -> None:
        """Adds the n-th products.

        Raises:
            IndexError: ``n`` is out of range.
        """
        if not 0 <= n < self._count:
            raise IndexError(f"product {n} of {self._count}")
        a, b, out = self._layouts
        a_at, b_at, at = a.start + n * a.outer, b.start + n * b.outer, out.start + n * out.outer
        for s in range(self._steps):
            self._gemm(
                *(_ROW_MAJOR, a.order, b.order, *self._size, 1.0, a_at + s * a.inner, a.line),
                *(b_at + s * b.inner, b.line, 1.0, at + s * out.inner, out.line),
            )


class _Layout:
    """The memory layout of the matrices in an array.

    Attributes:
        start: address of the first matrix.
        outer: bytes from one matrix to the next along the first axis, 0 if that is repeated.
        inner: bytes from one matrix to the next along the second axis.
        order: CBLAS's constant for not transposed or transposed.
        line: the leading dimension: elements from one row (or column) to the next.
    """

    def __init__(self, array: Array) -> None:
        *outer, row, column = array.strides
        (rows, columns), size = array.shape[-2:], array.itemsize
        # OpenBLAS rejects an invalid leading dimension without an error code. NumPy's stride of an axis
        # of length 1 is arbitrary.
        if (column == size or columns == 1) and (row >= columns * size or rows == 1):
            self.order, line = _AS_IT_IS, max(row, columns * size)
        elif (row == size or rows == 1) and (column >= rows * size or columns == 1):
            self.order, line = _TRANSPOSED, max(column, rows * size)
        else:
            raise ValueError(f"neither rows nor columns lie in one piece: strides {array.strides}")
        self.line = line // size
        self.start = array.ctypes.data
        steps = [0 if length == 1 else step for length, step in zip(array.shape[:-2], outer, strict=True)]
        self.outer, self.inner = [0, 0, *steps][-2:]


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
    """Returns the name of the kernels in use, which is that of a processor, such as "SkylakeX"."""
    name = _library().scipy_openblas_get_corename
    name.restype = ctypes.c_char_p
    return str(name().decode())


@functools.cache
def _library() -> ctypes.CDLL:
    """Loads the library without importing its package, which would hide SciPy's symbols of the same name.

    Raises:
        KdtrainError: it is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    for path in (path for folder in folders or () for path in Path(folder).glob("lib/libscipy_openblas*.so")):
        with _one_thread():
            return ctypes.CDLL(str(path))
    raise KdtrainError(f"{_PACKAGE} is not installed. Run `kdtrain doctor` to see what else is missing.")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Makes an OpenBLAS that is loaded in the block start no threads: kdtrain runs one process per core."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
