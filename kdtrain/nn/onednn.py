"""oneDNN: the library, its threads, and its primitives on NumPy arrays.

oneDNN is the library that PyTorch computes convolutions with on a CPU. It comes as a plain C library, which
is called through ctypes. A primitive is one of its operations, compiled for the shapes of its arguments and
for the processor's instruction set.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError
from kdtrain.runtime.ranks import ranks_of_machine

logger = logging.getLogger(__name__)

# The constants of dnnl_types.h that the operations need.
TRAINING, BACKWARD = 64, 128
DIRECT, MAX, AVERAGE, AVERAGE_WITH_PADDING = 1, 0x1FF, 0x3FF, 0x2FF
RELU, HARDSWISH, ADD, MULTIPLY = 0x20, 0x34, 0x1FFF0, 0x1FFF1
GLOBAL_STATISTICS, SCALE_AND_SHIFT, WITH_RELU = 1, 2 | 4, 8
SRC, SRC_1, DST, WEIGHTS, BIAS = 1, 2, 17, 33, 41
MEAN, VARIANCE, SCALE, SHIFT, WORKSPACE = 49, 50, 51, 52, 64
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS, DIFF_SCALE, DIFF_SHIFT = 129, 145, 161, 169, 255, 256
FLOAT32, BYTE = 3, 6
_CPU, _IN_ORDER, _ANY_LAYOUT, _OF_ARGUMENT = 1, 1, 1, 255

_STATUS = {1: "memory ran out", 2: "invalid arguments", 3: "not implemented", 5: "an error at run time"}
_INSTRUCTIONS = {0x20: "AVX-512", 0x4: "AVX2", 0: "no AVX2: expect slow runs"}
_END_THREADS = 2  # omp_pause_hard
_LINE = 64  # bytes of a line of the cache, and of the widest register
_SMALL = 1 << 14  # numbers, too few for their alignment to matter
_WAKING = 50.0  # microseconds until a sleeping thread works

Array = npt.NDArray[np.float32]


class OneDnnError(KdtrainError):
    """oneDNN cannot be loaded, or refuses an operation; the text has its name and the library's status."""


class Description:
    """The shape, the layout and the type of an array.

    Args:
        shape: in oneDNN's order of axes, whatever the layout: images are (N, C, H, W).
        order: the axes from the slowest to the fastest in memory; None lets a primitive choose.
        dtype: of its numbers: ``FLOAT32``, or ``BYTE`` (unsigned).
    """

    def __init__(
        self, shape: Sequence[int], order: Sequence[int] | None = None, dtype: int = FLOAT32
    ) -> None:
        self.handle, self._dtype = ctypes.c_void_p(), dtype
        if order is None:
            self._create("with_tag", shape, ctypes.c_int(_ANY_LAYOUT))
            return
        strides, step = [0] * len(shape), 1
        for axis in reversed(order):
            strides[axis] = step
            step *= shape[axis]
        self._create("with_strides", shape, _numbers(strides))

    @classmethod
    def copy_of(cls, handle: ctypes.c_void_p) -> Description:
        """Returns a copy of a description that belongs to a primitive."""
        copy = cls.__new__(cls)
        copy.handle = ctypes.c_void_p()
        library().call("memory_desc_clone", ctypes.byref(copy.handle), handle)
        _destroy_with(copy, ("memory_desc", copy.handle))
        return copy

    def _create(self, how: str, shape: Sequence[int], layout: Any) -> None:
        arguments = ctypes.byref(self.handle), len(shape), _numbers(shape), self._dtype, layout
        library().call(f"memory_desc_create_{how}", *arguments)
        _destroy_with(self, ("memory_desc", self.handle))


class Primitive:
    """An operation for arguments of certain shapes and layouts.

    Args:
        kind: its name in oneDNN, such as "convolution_forward".
        arguments: which arrays (``SRC``, ...) each call passes, in that order.
        *parameters: integers, floats, tuples, descriptions, the forward primitive of a backward one, None:
            in the order of ``dnnl_KIND_primitive_desc_create``.
        work: about how many microseconds one core takes. It decides on the number of threads.
        relu: whether a ReLU follows, in the same pass over the memory.

    Raises:
        OneDnnError: there is no such operation.
    """

    def __init__(
        self, kind: str, arguments: Sequence[int], *parameters: Any, work: float, relu: bool = False
    ) -> None:
        self.kind = kind
        self.description, self._primitive = ctypes.c_void_p(), ctypes.c_void_p()
        self._arguments = (_Argument * len(arguments))()
        self._threads = max(1, min(available_threads(), int(work / _WAKING)))
        lib = library()
        with lib.lock:
            lib.use_threads(self._threads)
            values = [_parameter(parameter) for parameter in parameters]
            if kind != "reorder":  # only a reordering has an engine for each of its arrays
                values.insert(0, lib.engine)
            attributes = lib.followed_by_relu if relu else None
            lib.call(f"{kind}_primitive_desc_create", ctypes.byref(self.description), *values, attributes)
            lib.call("primitive_create", ctypes.byref(self._primitive), self.description)
        for argument, number in zip(self._arguments, arguments, strict=True):
            memory, layout = ctypes.c_void_p(), self._layout(number)
            lib.call("memory_create", ctypes.byref(memory), layout, lib.engine, None)
            argument.number, argument.memory = number, memory.value
        self._sizes = [self.bytes_of(number) for number in arguments]
        memories = [("memory", ctypes.c_void_p(argument.memory)) for argument in self._arguments]
        _destroy_with(self, *memories, ("primitive", self._primitive), ("primitive_desc", self.description))

    def bytes_of(self, argument: int) -> int:
        """Returns the size of an argument, in the layout that the primitive has chosen."""
        return int(library().functions.dnnl_memory_desc_get_size(self._layout(argument)))

    def reordering_of(self, argument: int, given: Description, *, back: bool = False) -> Primitive:
        """Returns the primitive that copies an argument from a given layout to the chosen one, or back."""
        chosen, work = Description.copy_of(self._layout(argument)), self.bytes_of(argument) / 5e3
        return reordering(chosen, given, work=work) if back else reordering(given, chosen, work=work)

    def __call__(self, *arrays: npt.NDArray[Any]) -> None:
        """Runs the operation on contiguous arrays of the described layouts; it fills those of the results.

        Raises:
            OneDnnError: it failed, or an array has another size than its description.
        """
        lib = library()
        if [array.nbytes for array in arrays] != self._sizes:
            raise OneDnnError(f"oneDNN's {self.kind} takes arrays of other shapes or of another dtype.")
        with lib.lock:  # between setting the addresses and running
            lib.use_threads(self._threads)
            for argument, array in zip(self._arguments, arrays, strict=True):
                lib.set_address(argument.memory, _address(array))
            status = lib.execute(self._primitive, lib.stream, len(arrays), self._arguments)
        lib.check(self.kind, status)

    def _layout(self, argument: int) -> ctypes.c_void_p:
        query = library().functions.dnnl_primitive_desc_query_md
        return ctypes.c_void_p(query(self.description, _OF_ARGUMENT, argument))


def _address(array: Any) -> int:
    """Returns the address of a contiguous array, in a fifth of the time of ``array.ctypes``."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except TypeError:  # the array cannot be written to
        return int(array.ctypes.data)


def reordering(given: Description, wanted: Description, work: float) -> Primitive:
    """Returns the primitive that copies an array from a layout to another one."""
    engine = library().engine
    return Primitive("reorder", (SRC, DST), given, engine, wanted, engine, work=work)


def new_array(shape: Sequence[int]) -> Array:
    """Returns an array of that shape, not initialised; a large one begins with a line of the cache."""
    size = math.prod(shape)
    if size < _SMALL:
        return np.empty(shape, np.float32)
    memory = np.empty(size + _LINE // 4, np.float32)
    start = -_address(memory) % _LINE // 4
    return memory[start : start + size].reshape(shape)


def available_threads() -> int:
    """Returns the number of threads that a large operation uses.

    These are the cores that this process may use, divided by the machine's processes that train together.
    """
    return max(len(os.sched_getaffinity(0)) // ranks_of_machine(), 1)


def obstacle() -> str | None:
    """Returns the reason why oneDNN cannot be used in this process, or None if it can."""
    try:
        library()
    except OneDnnError as error:
        return str(error)
    return None


@functools.cache
def is_usable() -> bool:
    """Returns whether oneDNN can be used in this process; warns once if it cannot."""
    reason = obstacle()
    if reason is not None:
        logger.warning(
            "networks run on OneFlow's own operations, several times as slow, because oneDNN cannot be "
            f"used: {reason} `kdtrain doctor` names the remedy."
        )
    return reason is None


def summary() -> str:
    """Returns the version of oneDNN, the instruction set that it uses, and the number of its threads.

    Raises:
        OneDnnError: it cannot be used.
    """
    functions = library().functions
    functions.dnnl_version.restype = ctypes.POINTER(ctypes.c_int * 3)
    number = ".".join(map(str, functions.dnnl_version().contents))
    used = functions.dnnl_get_effective_cpu_isa()
    name = next(name for bit, name in _INSTRUCTIONS.items() if used & bit == bit)
    threads = available_threads()
    return f"{number}, {name}, {threads} thread{'s' if threads > 1 else ''}"


@functools.cache
def library() -> Library:
    """Returns the library, which is loaded at the first call.

    Raises:
        OneDnnError: it is not installed, or a library that it needs is missing.
    """
    return Library()


class Library:
    """The loaded library, with its engine (the processor) and its stream (the order of operations)."""

    def __init__(self) -> None:
        try:
            files = importlib.metadata.files("onednn-cpu-gomp") or []
            path = next(file for file in files if file.name == "libdnnl.so.3").locate()
            with _sleeping_threads():
                self._openmp = ctypes.CDLL("libgomp.so.1")
                self._end_all = self._openmp.omp_pause_resource_all
            self.functions = ctypes.CDLL(str(path))
        except (StopIteration, importlib.metadata.PackageNotFoundError) as error:
            raise OneDnnError("the package onednn-cpu-gomp is not installed.") from error
        except (OSError, AttributeError) as error:  # libgomp has that function since GCC 9
            raise OneDnnError(f"{error}.") from error
        self.functions.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
        self.functions.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.execute = self.functions.dnnl_primitive_execute
        self.set_address = self.functions.dnnl_memory_set_data_handle
        self.set_address.argtypes = ctypes.c_void_p, ctypes.c_void_p
        self.engine, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("engine_create", ctypes.byref(self.engine), _CPU, ctypes.c_size_t(0))
        self.call("stream_create", ctypes.byref(self.stream), self.engine, _IN_ORDER)
        self.call("set_primitive_cache_capacity", 0)  # kernels.py keeps those that are in use
        self.followed_by_relu, then = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("post_ops_create", ctypes.byref(then))
        self.call("post_ops_append_eltwise", then, RELU, ctypes.c_float(0), ctypes.c_float(0))
        self.call("primitive_attr_create", ctypes.byref(self.followed_by_relu))
        self.call("primitive_attr_set_post_ops", self.followed_by_relu, then)
        self.lock, self._caller = threading.Lock(), threading.local()
        os.register_at_fork(before=self._end_threads, after_in_child=self._enter_child)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls ``dnnl_NAME``.

        Raises:
            OneDnnError: it returns an error.
        """
        self.check(name, self.functions[f"dnnl_{name}"](*arguments))

    def check(self, name: str, status: int) -> None:
        """Raises OneDnnError if a status is an error's."""
        if status:
            raise OneDnnError(f"oneDNN's {name} failed: {_STATUS.get(status, f'status {status}')}.")

    def use_threads(self, threads: int) -> None:
        """Sets the number of threads of the primitives that the calling thread makes and runs next."""
        if threads != getattr(self._caller, "threads", 0):
            self._openmp.omp_set_num_threads(threads)
            self._caller.threads = threads

    def _end_threads(self) -> None:
        """Ends the threads before a fork. A child would wait for them, but it does not have them."""
        self._end_all(_END_THREADS)

    def _enter_child(self) -> None:
        self.lock = threading.Lock()  # another thread of the parent may have held the old one


class _Argument(ctypes.Structure):
    """An array that a primitive is called with: which one it is, and its memory."""

    _fields_ = (("number", ctypes.c_int), ("memory", ctypes.c_void_p))


def _destroy_with(owner: object, *handles: tuple[str, ctypes.c_void_p]) -> None:
    """Destroys objects of the library when their owner is garbage; at the end of the process, nothing."""

    def destroy(library: Library) -> None:
        for kind, handle in handles:
            library.call(f"{kind}_destroy", handle)

    weakref.finalize(owner, destroy, library()).atexit = False


@contextlib.contextmanager
def _sleeping_threads() -> Iterator[None]:
    """Makes the threads of an OpenMP that is loaded in the block sleep soon while they wait for work.

    By default they spin for seconds, and beside another busy process a step takes several times as long.
    If they never spin, waking them makes the steps of networks with many small layers a tenth slower.
    """
    name = "GOMP_SPINCOUNT"
    if name in os.environ:
        yield
        return
    os.environ[name] = "10000"  # some 50 microseconds
    try:
        yield
    finally:
        del os.environ[name]


def _numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 12)(*values)


def _parameter(value: Any) -> Any:
    """Returns a parameter of an operation as its C function takes it."""
    if isinstance(value, Description):
        return value.handle
    if isinstance(value, Primitive):
        return value.description
    if isinstance(value, float):
        return ctypes.c_float(value)
    return _numbers(value) if isinstance(value, tuple) else value
