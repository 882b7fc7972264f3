"""OneFlow's thread pool in a forked process, and its replacement.

OneFlow 0.9.0 keeps one global ``oneflow::ThreadPool``. A fork copies the object but none of its threads,
so that a kernel that hands work to the pool and waits for it (``argmax``, ``topk``, ``median``, ...) never
returns in a child. OneFlow's library exports the pool's constructor and the pointer to the global pool,
so a child can replace the dead pool by a new one.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from kdtrain.runtime.oneflow import import_oneflow

_CONSTRUCTOR = "_ZN7oneflow10ThreadPoolC1Ei"  # oneflow::ThreadPool::ThreadPool(int threads)
_GLOBAL = "_ZZN7oneflow9SingletonINS_10ThreadPoolEvE7GetPPtrEvE3ptr"  # Singleton<ThreadPool>::GetPPtr()::ptr
_SIZE = 4096  # bytes; the object takes a few hundred

_pools: list[ctypes.Array[ctypes.c_char]] = []  # a pool's threads use its memory until the process ends


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
