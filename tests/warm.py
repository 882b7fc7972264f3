"""Processes of kdtrain that are forked from one that has imported OneFlow, which saves the import.

``Popen`` and ``run`` take what those of ``subprocess`` take. ``python -m kdtrain ...`` and ``python -c CODE``
are carried out in a fork of the *warm parent*: a process that each pytest process starts once, from this
file, that has imported what commands import, and that only forks. Every other command gets a real process;
so does one whose variables or folder change how Python starts or what it imports (``_needs_real_process``).
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import gc
import importlib
import io
import os
import pickle
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]

_SET_BY_IMPORT = ("GLOG_", "ONEFLOW_")
_AT_START = (
    *("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "TZ", "MPL", "TQDM_", "OMP_", "GOMP_", "MKL_"),
    *("OPENBLAS_", "ONEDNN_", "DNNL_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", *_SET_BY_IMPORT),
)
"""How the names of variables begin that count when Python starts or when a library is imported."""

_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(_SET_BY_IMPORT)} | {
    "PYTHONPATH": str(ROOT)
}
"""The warm parent's variables: those of pytest before any test, without those that OneFlow's import sets."""

_MOST = 1 << 20  # bytes of a message
_LIMITS = [number for name, number in vars(resource).items() if name.startswith("RLIMIT_")]


@dataclass(frozen=True)
class _Request:
    """What a new process is given, but for its standard streams."""

    words: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    own_session: bool
    umask: int
    limits: Mapping[int, tuple[int, int]]


class Popen(subprocess.Popen[Any]):
    """A process: a fork of the warm parent if the command allows it, otherwise a real one."""

    _status: socket.socket | None = None

    def _execute_child(self, *given: Any) -> None:
        command, executable, prepare, _, passed, folder, environment, _, _, shell, *more = given
        words = list(map(os.fspath, command))
        folder = os.path.abspath(folder or ".")
        environment = dict(os.environ if environment is None else environment)
        if executable or prepare or passed or shell or _needs_real_process(words, folder, environment):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        os.umask(umask := os.umask(0))
        limits = {number: resource.getrlimit(number) for number in _LIMITS}
        request = _Request(words, folder, environment, more[-1], umask, limits)
        stdin, _, _, stdout, _, stderr = pipes = more[:6]
        streams = [own if end == -1 else end for own, end in enumerate((stdin, stdout, stderr))]
        self._status = _warm_parent().fork(request, streams)
        self.pid = int(self._status.recv(_MOST).removeprefix(b"process "))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, *given: Any, **more: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*given, **more)  # type: ignore[misc,no-any-return]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._status is None:
            return super()._wait(timeout)  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._status:
                self.returncode = int(self._status.recv(_MOST).removeprefix(b"code "))
        return self.returncode


def run(
    command: Sequence[str | Path],
    *,
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Runs a command to its end, as ``subprocess.run`` does."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    finished = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        finished.check_returncode()
    return finished


def _needs_real_process(words: Sequence[str], folder: str, environment: Mapping[str, str]) -> bool:
    """Decides whether a fork of the warm parent could differ from a new process with these."""
    if words[0] != sys.executable or not (words[1:3] == ["-m", "kdtrain"] or words[1:2] == ["-c"]):
        return True
    if "launch" in words or "--nproc-per-node" in words:
        return True  # OneFlow connects these processes while it is imported
    parent = _warm_parent()
    at_start = {name: value for name, value in environment.items() if name.startswith(_AT_START)}
    if {"PYTHONPATH": str(ROOT), **parent.set_by_import, **at_start} != parent.variables:
        return True
    here = Path(folder)
    modules = {file.stem for file in here.glob("*.py")} | {
        file.parent.name for file in here.glob("*/__init__.py")
    }
    return here != ROOT and not parent.modules.isdisjoint(modules)


class _WarmParent:
    """The warm parent, seen from pytest.

    Attributes:
        variables: its variables that count at a start.
        set_by_import: those of them that OneFlow's import sets.
        modules: the modules and packages that it has imported.
    """

    def __init__(self) -> None:
        self._requests, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            command = [sys.executable, __file__, str(others.fileno())]
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=_ENVIRONMENT, pass_fds=[others.fileno()], stdin=subprocess.DEVNULL
            )
        message = pickle.loads(self._requests.recv(_MOST))
        self.variables: dict[str, str] = message["variables"]
        self.set_by_import: dict[str, str] = message["set by import"]
        self.modules: set[str] = message["modules"]

    def close(self) -> None:
        self._requests.close()
        self._process.wait()

    def fork(self, request: _Request, streams: Sequence[int]) -> socket.socket:
        """Returns the socket that gets the process's number once it is ready, then its exit code."""
        status, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            socket.send_fds(self._requests, [pickle.dumps(request)], [*streams, others.fileno()])
        return status


@functools.cache
def _warm_parent() -> _WarmParent:
    return _WarmParent()


@atexit.register
def close() -> None:
    """Ends the warm parent, if there is one."""
    if _warm_parent.cache_info().currsize:
        _warm_parent().close()
        _warm_parent.cache_clear()


# Below: what runs in the warm parent and in its forks.


def _serve(requests: socket.socket) -> tuple[_Request, list[int]]:
    """Forks for each request. Returns in the forks only, with the request and its descriptors."""
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != requests.fileno():
                poll.unregister(ready)
                process, status = children.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                with status, contextlib.suppress(OSError):  # nobody may wait for it any more
                    status.send(b"code %d" % code)
                continue
            data, descriptors, _, _ = socket.recv_fds(requests, _MOST, 4)
            if not data:
                os._exit(0)  # pytest has ended; the kernel ends the forks
            process = os.fork()
            if process == 0:
                return pickle.loads(data), descriptors
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            handle = os.pidfd_open(process)
            children[handle] = process, socket.socket(fileno=descriptors[3])
            poll.register(handle, select.POLLIN)


def _become(request: _Request, descriptors: Sequence[int], kept: set[str]) -> None:
    """Gives this fork what a new process has."""
    from kdtrain.runtime import flow
    from kdtrain.runtime.oneflow import prepare_environment, replace_thread_pool
    from kdtrain.runtime.signals import die_with_parent

    die_with_parent(signal.SIGKILL)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for name in set(os.listdir("/proc/self/fd")) - kept:
        with contextlib.suppress(OSError):  # that of the folder is closed already
            os.close(int(name))
    if request.own_session:
        os.setsid()
    os.umask(request.umask)
    for limit, values in request.limits.items():
        resource.setrlimit(limit, values)
    os.environ.clear()
    os.environ.update(request.environment)
    prepare_environment()
    os.chdir(request.folder)
    tempfile.tempdir = None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _open_stream(number, name)
    replace_thread_pool()
    flow.seed()
    importlib.import_module("numpy").random.seed()


def _open_stream(number: int, name: str) -> None:
    """Opens a standard stream as Python does at its start: with PYTHONUNBUFFERED, writers have no buffer."""
    before = getattr(sys, name)
    buffer: Any = open(  # noqa: SIM115
        number,
        "wb" if number else "rb",
        buffering=0 if number and before.write_through else -1,
        closefd=False,
    )
    getattr(buffer, "raw", buffer).name = f"<{name}>"
    by_line = not before.write_through and (number == 2 or buffer.isatty())
    stream = io.TextIOWrapper(
        buffer,
        before.encoding,
        before.errors,
        "\n",
        line_buffering=by_line,
        write_through=before.write_through,
    )
    stream.mode = "w" if number else "r"  # type: ignore[misc]
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _execute(request: _Request, path: Sequence[str]) -> NoReturn:
    """Carries out ``-m MODULE`` or ``-c CODE``, and ends as Python does."""
    option, subject, *arguments = request.words[1:]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__.update(__annotations__={}, __builtins__=builtins)
    sys.argv = [option, *arguments]
    sys.orig_argv = list(request.words)
    own = request.environment.get("PYTHONPATH", "")
    sys.path[:] = [request.folder if option == "-m" else "", *filter(None, own.split(os.pathsep)), *path]
    importlib.invalidate_caches()
    code = 0
    try:
        if option == "-m":
            runpy._run_module_as_main(subject)  # type: ignore[attr-defined]
        else:
            exec(compile(subject, "<string>", "exec"), main.__dict__)
    except SystemExit as error:
        code = _exit_code(error.code)
    except BaseException as error:
        trace = error.__traceback__ and error.__traceback__.tb_next  # without this function
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _exit_code(value: object) -> int:
    if value is None or isinstance(value, int):
        return value or 0
    print(value, file=sys.stderr)
    return 1


def _import_everything() -> None:
    """Imports what commands import, but for plugins."""
    register = atexit.register

    def register_others(function: Callable[..., Any], *given: Any, **more: Any) -> Callable[..., Any]:
        # OneFlow's function ends threads, which a fork does not have.
        return function if function.__module__.startswith("oneflow") else register(function, *given, **more)

    atexit.register = register_others  # type: ignore[assignment]
    import kdtrain

    for module in pkgutil.walk_packages(kdtrain.__path__, "kdtrain."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        *("matplotlib.backends.backend_svg", "matplotlib.figure", "onnx", "onnxruntime", "scipy.stats"),
    ):
        importlib.import_module(name)
    from kdtrain.runtime import flow

    assert flow
    atexit.register = register


def _main() -> NoReturn:
    requests = socket.socket(fileno=int(sys.argv[1]))
    kept = {"0", "1", "2"}
    interrupt = signal.getsignal(signal.SIGINT)
    path = sys.path[2:]  # without tests/ and PYTHONPATH
    sys.path.pop(0)
    before = set(os.listdir("/proc/self/fd"))
    at_start = dict(os.environ)
    _import_everything()
    kept |= set(os.listdir("/proc/self/fd")) - before
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to this process too
    variables = {name: value for name, value in os.environ.items() if name.startswith(_AT_START)}
    set_by_import = {name: value for name, value in variables.items() if name not in at_start}
    modules = {name.partition(".")[0] for name in sys.modules}
    gc.collect()
    gc.freeze()
    message = {"variables": variables, "set by import": set_by_import, "modules": modules}
    requests.send(pickle.dumps(message))
    request, descriptors = _serve(requests)
    status = socket.socket(fileno=os.dup(descriptors[3]))
    _become(request, descriptors, kept | {str(status.fileno())})
    signal.signal(signal.SIGINT, interrupt)
    with status:
        status.send(b"process %d" % os.getpid())
    _execute(request, path)


if __name__ == "__main__":
    _main()
