"""OneFlow in this process: its import and environment, NVIDIA's libraries, its thread pool after a fork.

``docs/oneflow.md`` has the reasons for each step.
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
from typing import Any

from kdtrain.errors import KdtrainError, UsageError, unknown_name_message
from kdtrain.runtime.ranks import prepare_rank
from kdtrain.runtime.signals import defer_signals, restore_sigint_handler
from kdtrain.runtime.value_checks import DEVICES

STUBS = Path(__file__).parent / "cuda_stubs"
REMEDY = "install kdtrain[cuda] (in a clone: scripts/bootstrap --cuda)"

# The wheel holds machine code for these CUDA compute capabilities, and nothing to compile for others.
_COMPUTE_CAPABILITIES = ((6, 0), (8, 9))

_OPEN_FILES = 64  # two processes that train together need about 25

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)

_CONSTRUCTOR = "_ZN7oneflow10ThreadPoolC1Ei"  # oneflow::ThreadPool::ThreadPool(int threads)
_GLOBAL = "_ZZN7oneflow9SingletonINS_10ThreadPoolEvE7GetPPtrEvE3ptr"  # Singleton<ThreadPool>::GetPPtr()::ptr
_SIZE = 4096  # bytes; the object takes a few hundred

_pools: list[ctypes.Array[ctypes.c_char]] = []  # a pool's threads use its memory until the process ends


@functools.cache
def import_oneflow() -> ModuleType:
    """Imports oneflow without its output on stderr, and keeps Python's SIGINT handler.

    Raises:
        KdtrainError: oneflow cannot be imported; the text says why.
    """
    _allow_open_files()
    prepare_environment()
    prepare_rank()
    with defer_signals(), tempfile.TemporaryFile() as captured:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)  # oneflow's C++ part writes to the descriptor, not to sys.stderr
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its sources have deprecated escape sequences
                load_stubs()
                _remember_dtypes()
                _load_library()
                module = importlib.import_module("oneflow")
        except Exception as error:
            captured.seek(0)
            output = captured.read().decode(errors="replace").strip()
            raise KdtrainError(
                f"oneflow cannot be imported: {error}. Run `kdtrain doctor` to see what is missing."
                + (f"\nstderr of oneflow:\n{output}" if output else "")
            ) from error
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
    return module


def prepare_environment() -> None:
    """Sets the variables that oneflow reads while it is imported, where the user has not set them."""
    os.environ.setdefault("GLOG_minloglevel", "3")  # fatal only: no warning about absent CUDA drivers
    # Each distinct scalar attribute, such as a learning rate, is cached for ever: bound the cache.
    os.environ.setdefault("ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE", "1000")
    _keep_freed_memory()


@contextlib.contextmanager
def with_openblas_coretype() -> Iterator[None]:
    """Makes oneflow's OpenBLAS, if it is loaded in the block, use AVX2, unless the user has set a kernel.

    It does not recognise recent AMD processors and falls back to SSE. Other libraries and child processes
    do, so the variable is removed after the block.
    """
    from kdtrain.runtime.processor import processor_flags  # here: its file imports NumPy

    name = "OPENBLAS_CORETYPE"
    if name in os.environ or not {"avx2", "fma"} <= processor_flags():
        yield
        return
    os.environ[name] = "Haswell"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _remember_dtypes() -> None:
    """Makes NumPy remember the dtype of a buffer's format.

    A tensor's ``to_numpy`` asks for it at each call, of which a small network makes thirty in a step. NumPy
    parses the format in Python, which takes longer than the rest of the call.
    """
    module: Any = importlib.import_module("numpy.core._internal")
    if hasattr(module, "_dtype_from_pep3118"):
        module._dtype_from_pep3118 = functools.lru_cache(64)(module._dtype_from_pep3118)


def _keep_freed_memory() -> None:
    """Makes malloc keep freed memory, that of large arrays too, in place of returning it to the system.

    Every step frees and allocates the same tens of megabytes. The kernel zeroes new pages, which takes
    longer than filling them.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _allow_open_files() -> None:
    """Raises the limit of open files if it is too low: oneflow aborts the process at that limit.

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


def _load_library() -> None:
    """Loads oneflow's library before the package, and installs Python's SIGINT handler again.

    The library replaces the handler by ``exit(-1)`` when it is loaded. The import then takes about as long
    again, and a Ctrl-C in that time must raise KeyboardInterrupt.
    """
    spec = importlib.util.find_spec("oneflow")
    folders = spec.submodule_search_locations if spec is not None else None
    for library in (path for folder in folders or () for path in Path(folder).glob("_oneflow_internal*.so")):
        with with_openblas_coretype():
            ctypes.CDLL(str(library))
    restore_sigint_handler()


def resolve_device(name: str) -> str:
    """Returns ``"cpu"`` or ``"cuda"`` for ``"auto"``, ``"cpu"`` or ``"cuda"``.

    CUDA is not used before a usable GPU has been found, because OneFlow aborts the process without one.

    Raises:
        UsageError: another name, or ``"cuda"`` without a usable GPU, is given.
    """
    if name not in DEVICES:
        raise UsageError(f"--device: {unknown_name_message('device', str(name), DEVICES)}")
    if name == "cpu":
        return "cpu"
    obstacle = _gpu_obstacle()
    if obstacle is None:
        return "cuda"
    if name == "cuda":
        raise UsageError(f"--device cuda: {obstacle}. Use --device cpu.")
    return "cpu"


def _gpu_obstacle() -> str | None:
    """Returns the reason why no GPU can be used, or None."""
    cuda = import_oneflow().cuda
    if not cuda.is_available():  # the only call that is safe without a driver
        return "oneflow finds no GPU with a working driver"
    if load_stubs():
        return f"there is a GPU, but NVIDIA's cuBLAS and cuDNN are not installed: {REMEDY}"
    properties = cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    lowest, highest = _COMPUTE_CAPABILITIES
    if not lowest <= capability <= highest:
        version = "{}.{}".format(*capability)
        return f"{properties.name} has compute capability {version}, oneflow's kernels are for 6.0 to 8.9"
    return None


# ---------------------------------------------------------------------------------- NVIDIA's libraries
# The loader wants cuBLAS and cuDNN before oneflow runs, although oneflow calls them on a GPU only. A stub
# has the name, the functions and the symbol versions that oneflow wants, and each of its functions ends the
# process.


def library_names() -> list[str]:
    """Returns the names of the libraries that have a stub."""
    return sorted(path.name for path in STUBS.glob("*.so.*"))


@functools.cache
def load_stubs() -> tuple[str, ...]:
    """Loads a stub for each library that the loader would not find; returns their names.

    oneflow's library is loaded afterwards. The loader takes a library that is there already by its name.
    """
    spec = importlib.util.find_spec("oneflow")
    folders = spec.submodule_search_locations if spec is not None else None
    # The search path of oneflow's library begins with these folders. The packages nvidia-* are in them.
    nvidia = [path for folder in folders or () for path in (Path(folder).parent / "nvidia").glob("*/lib/*")]
    found = {path.name for path in nvidia}
    return tuple(name for name in library_names() if name not in found and _load_stub(name))


def _load_stub(name: str) -> bool:
    """Loads a stub unless the system has the library; returns whether it did."""
    try:
        ctypes.CDLL(name)
    except OSError:
        ctypes.CDLL(str(STUBS / name))
        return True
    return False


# ------------------------------------------------------------------- the thread pool of a forked process
# OneFlow 0.9.0 keeps one global oneflow::ThreadPool. A fork copies the object but none of its threads, so
# that a kernel that hands work to the pool and waits for it (argmax, topk, median, ...) never returns in a
# child. OneFlow's library exports the pool's constructor and the pointer to the global pool.


def replace_thread_pool(threads: int = 1) -> bool:
    """Replaces the thread pool of this forked process by one whose threads exist.

    The threads inherit the caller's processor affinity and floating-point mode, so call this after both
    are set.

    Args:
        threads: the number of threads of the new pool.

    Returns:
        False if OneFlow's library does not export the symbols that this needs.
    """
    exports = _exports()
    if exports is None:
        return False
    constructor, pointer = exports
    memory = ctypes.create_string_buffer(_SIZE)
    _pools.append(memory)
    constructor(ctypes.addressof(memory), threads)
    pointer.value = ctypes.addressof(memory)
    return True


def thread_pool_obstacle() -> str | None:
    """Returns the reason why the thread pool cannot be replaced, or None if it can."""
    if _exports() is not None:
        return None
    return "this build of oneflow does not export its thread pool"


@functools.cache
def _exports() -> tuple[ctypes._NamedFuncPointer, ctypes.c_void_p] | None:
    """Returns the pool's constructor and the pointer to the global pool, or None if one is missing."""
    import_oneflow()
    library = ctypes.CDLL(sys.modules["oneflow._oneflow_internal"].__file__)
    try:
        constructor, pointer = library[_CONSTRUCTOR], ctypes.c_void_p.in_dll(library, _GLOBAL)
    except (AttributeError, ValueError):
        return None
    constructor.argtypes, constructor.restype = (ctypes.c_void_p, ctypes.c_int), None
    return constructor, pointer
