"""Products that add up: the numbers of NumPy's float64, the same bits in every kind of process."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.runtime.openblas import Accumulation, kernel
from kdtrain.runtime.processes import Job, run_jobs
from tests.cli.conftest import run
from tests.tools import ROOT

Array = npt.NDArray[np.float32]

PRODUCT = """
import hashlib
import numpy as np
from kdtrain.runtime.openblas import Accumulation
random = np.random.default_rng(0)
a, b = (random.normal(size=(3, 200, 200)).astype(np.float32) for _ in range(2))
out = np.zeros((3, 200, 200), np.float32)
Accumulation(a, b, out)()
digest = hashlib.sha256(out.tobytes()).hexdigest()
"""

sizes = st.integers(1, 9)


def lay_out(values: npt.NDArray[np.float64], dtype: str, columns_first: bool, gap: int) -> Array:
    """The same matrices with columns instead of rows in one piece, or with something between the lines."""
    inner = values.swapaxes(-1, -2) if columns_first else values
    room = np.full((*inner.shape[:-1], inner.shape[-1] + gap), np.nan, dtype)
    view = room[..., : inner.shape[-1]]
    view[:] = inner
    return view.swapaxes(-1, -2) if columns_first else view


def axes(random: np.random.Generator, *lengths: int) -> tuple[int, ...]:
    """The axes ahead of a matrix: all of them, fewer, or some of length 1."""
    repeated = [length if random.integers(2) else 1 for length in lengths]
    return tuple(repeated[random.integers(len(lengths) + 1) :])


@given(
    shape=st.tuples(sizes, sizes, sizes),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    dtype=st.sampled_from(["float32", "float64"]),
    columns_first=st.tuples(st.booleans(), st.booleans()),
    gap=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_added_to_what_was_there(
    shape: tuple[int, int, int],
    counts: tuple[int, int],
    dtype: str,
    columns_first: tuple[bool, bool],
    gap: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    m, n, k = shape
    a, b, out = (
        random.normal(size=(*axes(random, *counts), *size)).astype(dtype).astype(np.float64)
        for size in ((m, k), (k, n), (m, n))
    )
    products = a @ b + np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2], out.shape[:-2]), m, n))
    products = products.reshape((1,) * (4 - products.ndim) + products.shape)
    expected = out.reshape((1,) * (4 - out.ndim) + out.shape).copy()
    for axis in (0, 1):
        if expected.shape[axis] == 1:
            products = products.sum(axis, keepdims=True)
    expected += products

    result = lay_out(out, dtype, False, gap)
    add = Accumulation(
        lay_out(a, dtype, columns_first[0], gap), lay_out(b, dtype, columns_first[1], gap), result
    )
    count = max(array.shape[0] if array.ndim == 4 else 1 for array in (a, b, out))
    for i in range(count):
        add(i)
    with pytest.raises(IndexError):
        add(count)
    np.testing.assert_allclose(
        result, expected.reshape(out.shape), rtol=0, atol=1e-4 if dtype == "float32" else 1e-12
    )
    whole = result if result.base is None else result.base
    assert np.isnan(whole[..., n:]).all(), "something was written beside the matrices"


def test_results_may_overlap() -> None:
    line = np.zeros(10, np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(line, 8, writeable=True)[:, None]
    Accumulation(np.ones((3, 1, 1), np.float32), np.ones((1, 8), np.float32), windows)()
    np.testing.assert_array_equal(line, [1, 2, 3, 3, 3, 3, 3, 3, 2, 1])


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def read_only() -> Array:
    array = zeros(2, 4)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("a", "b", "out"),
    [
        (zeros(2, 3), zeros(4, 4), zeros(2, 4)),
        (zeros(2, 3), zeros(3, 4), zeros(2, 5)),
        (zeros(2, 2, 3), zeros(3, 3, 4), zeros(2, 4)),
        (zeros(2, 3), zeros(3, 4), zeros(1, 1, 1, 2, 4)),
        (zeros(2, 3), np.zeros((3, 4)), zeros(2, 4)),
        (np.zeros((2, 3), np.float16), np.zeros((3, 4), np.float16), np.zeros((2, 4), np.float16)),
        (zeros(4, 6)[::2, ::2], zeros(3, 4), zeros(2, 4)),
        (zeros(2, 3), zeros(3, 4)[::-1], zeros(2, 4)),
        (np.broadcast_to(zeros(1, 3), (2, 3)), zeros(3, 4), zeros(2, 4)),
        (zeros(2, 3), zeros(3, 4), zeros(4, 2).T),
        (zeros(2, 3), zeros(3, 4), read_only()),
    ],
)
def test_what_cannot_be_multiplied_is_an_error(a: Array, b: Array, out: Array) -> None:
    with pytest.raises(ValueError, match=r"product|broadcast|strides|side by side"):
        Accumulation(a, b, out)


def python(code: str, **variables: str) -> str:
    finished = run(sys.executable, "-W", "error", "-c", code, cwd=ROOT, **variables)
    assert finished.stderr == ""
    return finished.stdout.strip()


def digest_here(_: object = None) -> str:
    names: dict[str, str] = {}
    exec(PRODUCT, names)
    return names["digest"]


def test_every_kind_of_process_computes_the_same_bits() -> None:
    digests = {
        digest_here(),
        *run_jobs([Job("a product", digest_here)]),
        python(PRODUCT + "print(digest)"),
        python(
            "import scipy.linalg\nfrom kdtrain.runtime import flow\nflow.zeros(1)" + PRODUCT + "print(digest)"
        ),
        python(PRODUCT + "print(digest)", OPENBLAS_NUM_THREADS="2"),
    }
    assert len(digests) == 1


def test_it_computes_on_the_core_of_whoever_calls_and_leaves_the_environment_as_it_was() -> None:
    code = f"""
import os
import numpy
threads, before = len(os.listdir("/proc/self/task")), dict(os.environ)
{PRODUCT}
print(len(os.listdir("/proc/self/task")) - threads, dict(os.environ) == before)
"""
    assert python(code) == "0 True"
    assert python(code, OPENBLAS_NUM_THREADS="2") == "0 True"


def test_a_user_may_choose_the_kernel() -> None:
    code = "from kdtrain.runtime.openblas import kernel; print(kernel())"
    assert python(code, OPENBLAS_CORETYPE="Nehalem") == "Nehalem"
    assert python("from kdtrain.runtime import flow; flow.zeros(1); " + code) == kernel()


def test_scipys_own_library_is_not_mixed_up_with_it() -> None:
    code = f"""
{PRODUCT}
import ctypes
print(hasattr(ctypes.CDLL(None), "scipy_cblas_sgemm"))
"""
    assert python(code) == "False"


def test_without_the_library_the_error_says_what_is_missing() -> None:
    code = """
import sys
sys.modules["scipy_openblas32"] = None
from kdtrain.runtime.openblas import kernel
try:
    kernel()
except Exception as error:
    print(type(error).__name__, error)
"""
    said = python(code)
    assert said.startswith("KdtrainError scipy_openblas32 is not installed.")
    assert "kdtrain doctor" in said
