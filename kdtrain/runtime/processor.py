"""Processor state: AVX registers, denormal numbers, instruction sets."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_MXCSR, _AS_ZERO = 7, 0x8040  # which word of x86-64's fenv_t; its bits "flush to zero", "denormals are zeros"

_A_REGISTER = np.ones(16, np.float32)  # fills the widest register
_ITS_SUM = np.empty_like(_A_REGISTER)


def zero_upper_avx() -> None:
    """Clears the upper halves of the AVX registers, as vzeroupper does, after a matrix product.

    OpenBLAS's AVX kernels return without clearing them. Until they are cleared, each scalar instruction
    keeps the upper halves and so waits for the previous one: optimizers and additions take 2 to 4 times as
    long. NumPy's addition clears them.
    """
    np.add(_A_REGISTER, _A_REGISTER, out=_ITS_SUM)


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Makes this thread treat numbers below 1.2e-38 in magnitude as 0.

    Such numbers cost about a hundred cycles each. Training makes many: when a unit is dead, Adam's first
    moments of its weights shrink to a few times 1e-45, where 0.9 of a number is rounded to that number.
    With a third of the units dead, a step takes twice as long. A child computes in the calling thread;
    OneFlow's threads in other processes are not affected.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        yield
        return
    for kind in (np.float32, np.float64):
        np.finfo(
            kind
        )  # fills NumPy's cache: computed in the block, it would warn that the smallest number is 0
    libc = ctypes.CDLL(None)
    environment = (ctypes.c_uint32 * 8)()
    libc.fegetenv(environment)
    before = environment[_MXCSR]
    environment[_MXCSR] = before | _AS_ZERO
    libc.fesetenv(environment)
    try:
        yield
    finally:
        environment[_MXCSR] = before
        libc.fesetenv(environment)


def processor_flags() -> set[str]:
    """Returns the instruction sets of the first processor; an empty set if they are unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
