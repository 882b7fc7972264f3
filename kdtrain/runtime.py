"""What must happen before oneflow is imported, and what stands between it and the process.

Every other module writes ``from kdtrain.runtime import flow``: the first such import prepares the
environment, imports oneflow quietly and gives Ctrl-C back to Python. ``docs/oneflow.md`` has the
reasons for each step.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import platform
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtrain import launch
from kdtrain.errors import KdtrainError, UsageError
from kdtrain.interrupts import interrupts_put_off, take_interrupts_back

if TYPE_CHECKING:
    import oneflow as flow

__all__ = [
    "clear_wide_registers",
    "derive_seed",
    "flow",
    "import_oneflow",
    "kernels_chosen",
    "prepare_environment",
    "processor_flags",
    "resolve_device",
    "subnormals_as_zero",
]

# The wheel holds machine code for these CUDA compute capabilities, and nothing to compile for others.
_COMPUTE_CAPABILITIES = ((6, 0), (8, 9))

_OPEN_FILES = 64  # some 25 are enough for two processes that train together

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)

_MXCSR, _AS_ZERO = 7, 0x8040  # which word of x86-64's fenv_t; its bits "flush to zero", "denormals are zeros"

_A_REGISTER = np.ones(16, np.float32)  # as much as the widest holds
_ITS_SUM = np.empty_like(_A_REGISTER)


def __getattr__(name: str) -> Any:
    if name == "flow":
        return import_oneflow()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def import_oneflow() -> ModuleType:
    """Imports oneflow without its noise on stderr, and with Ctrl-C still Python's.

    Raises:
        KdtrainError: oneflow cannot be imported; the text says why.
    """
    _allow_open_files()
    prepare_environment()
    launch.prepare_rank()
    with interrupts_put_off(), tempfile.TemporaryFile() as heard:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(heard.fileno(), 2)  # oneflow's C++ part writes to the descriptor, not to sys.stderr
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its sources have escape sequences that Python deprecates
                _load_library()
                module = importlib.import_module("oneflow")
        except Exception as error:
            heard.seek(0)
            noise = heard.read().decode(errors="replace").strip()
            raise KdtrainError(
                f"oneflow cannot be imported: {error}. Run `kdtrain doctor` to see what is missing."
                + (f"\noneflow itself said:\n{noise}" if noise else "")
            ) from error
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
    return module


def prepare_environment() -> None:
    """Sets the variables that oneflow reads while it is imported, where the user has not set them."""
    os.environ.setdefault("GLOG_minloglevel", "3")  # fatal only: no word about absent CUDA drivers
    # Each distinct scalar attribute (a learning rate, say) is cached for good: bound that.
    os.environ.setdefault("ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE", "1000")
    _keep_freed_memory()


@contextlib.contextmanager
def kernels_chosen() -> Iterator[None]:
    """Has oneflow's OpenBLAS, if it is loaded meanwhile, use AVX2, unless the user has chosen otherwise.

    It does not know recent AMD processors and would fall back to SSE. Other libraries, and the
    processes that this one starts, do know, so they do not get to see the variable.
    """
    name = "OPENBLAS_CORETYPE"
    if name in os.environ or not {"avx2", "fma"} <= processor_flags():
        yield
        return
    os.environ[name] = "Haswell"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _keep_freed_memory() -> None:
    """Makes malloc reuse what is freed, large arrays included, instead of giving it back.

    Every step frees and asks for the same tens of megabytes. New pages must be zeroed by the kernel
    first, which takes longer than filling them.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def clear_wide_registers() -> None:
    """Makes what follows a matrix product as fast as it can be, on the CPU.

    OpenBLAS's AVX kernels return without clearing the upper halves of the registers they used. Until
    someone does, each scalar instruction has to keep those halves and waits for the one before:
    optimizers and additions take 2 to 4 times as long. NumPy's addition clears them.
    """
    np.add(_A_REGISTER, _A_REGISTER, out=_ITS_SUM)


@contextlib.contextmanager
def subnormals_as_zero() -> Iterator[None]:
    """Has this thread take numbers closer to 0 than 1.2e-38 for 0.

    Such numbers cost the processor a hundred cycles each, and real training makes many: when a unit is
    dead, Adam's first moments of its weights shrink to a few times 1e-45, where 0.9 of a number is
    rounded to that number again. With a third of the units dead, a step takes twice as long.
    A child computes in the thread that calls; the threads of OneFlow's that compute elsewhere are not
    reached.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        yield
        return
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # is kept; made anew, it would warn that the smallest number is 0
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


def _allow_open_files() -> None:
    """Makes sure that enough files can be open at once: oneflow aborts the process where they cannot.

    Raises:
        KdtrainError: the limit is too low and cannot be raised.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES:
        return
    if most < _OPEN_FILES:
        raise KdtrainError(
            f"Too many open files would be needed: the limit is {hard}, kdtrain needs {_OPEN_FILES}. "
            f"Raise it with `ulimit -n {_OPEN_FILES}`."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, hard))


def processor_flags() -> set[str]:
    """Returns the instruction sets that the first processor reports (empty where unknown)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _load_library() -> None:
    """Loads oneflow's library ahead of the package, and puts Python's SIGINT handler in force again.

    The library replaces it by ``exit(-1)`` as soon as it is loaded. Half of the import's time comes
    afterwards, and a Ctrl-C in it must not end the process like that.
    """
    spec = importlib.util.find_spec("oneflow")
    folders = spec.submodule_search_locations if spec is not None else None
    for library in (path for folder in folders or () for path in Path(folder).glob("_oneflow_internal*.so")):
        with kernels_chosen():
            ctypes.CDLL(str(library))
    take_interrupts_back()


def resolve_device(name: str) -> str:
    """Returns ``"cpu"`` or ``"cuda"`` for ``"auto"``, ``"cpu"`` or ``"cuda"``.

    CUDA is not touched until a usable GPU is known to be there, because OneFlow aborts the process
    otherwise.

    Raises:
        UsageError: ``"cuda"`` was asked for and there is no usable GPU.
    """
    if name == "cpu":
        return "cpu"
    obstacle = _gpu_obstacle()
    if obstacle is None:
        return "cuda"
    if name == "cuda":
        raise UsageError(f"--device cuda: {obstacle}. Use --device cpu.")
    return "cpu"


def _gpu_obstacle() -> str | None:
    """Returns why no GPU can be used, or None."""
    cuda = import_oneflow().cuda
    if not cuda.is_available():  # the one question that is safe without a driver
        return "oneflow finds no GPU with a working driver"
    properties = cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    lowest, highest = _COMPUTE_CAPABILITIES
    if not lowest <= capability <= highest:
        theirs = "{}.{}".format(*capability)
        return f"{properties.name} has compute capability {theirs}, oneflow's kernels are for 6.0 to 8.9"
    return None


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Returns a 63-bit seed for one purpose, independent of the seeds for all other purposes.

    Weights, data order and dropout each draw from a stream of their own, named by ``purpose`` (and
    the epoch), so that none of them depends on how much another one has drawn before.
    """
    words = [seed, *(int.from_bytes(str(part).encode(), "little") for part in purpose)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
