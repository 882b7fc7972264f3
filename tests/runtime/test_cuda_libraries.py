"""Stubs for NVIDIA's libraries: complete, never silent, and loaded only where the real ones are not."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from kdtrain.errors import UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.oneflow import STUBS, library_names, load_stubs, resolve_device
from tests.cli.conftest import run_python

LIBRARIES = {
    "libcublas.so.11": "cublasCreate_v2",
    "libcublasLt.so.11": "cublasLtCreate",
    "libcudnn_cnn_infer.so.8": "cudnnConvolutionForward",
    "libcudnn_cnn_train.so.8": "cudnnConvolutionBackwardFilter",
    "libcudnn_ops_infer.so.8": "cudnnCreate",
    "libcudnn_ops_train.so.8": "cudnnBatchNormalizationBackward",
}
ANSWERED = ("cudnnGetProperty", "cudnnGetErrorString")  # by the stub; all other functions end the process
with_stubs = pytest.mark.skipif(not load_stubs(), reason="NVIDIA's libraries are installed")


def listed() -> list[tuple[str, str]]:
    """Returns the library and the name of each function, as scripts/cuda-stubs has written them."""
    lines = (STUBS / "symbols.txt").read_text().splitlines()
    return [(library, name) for library, name in (line.split() for line in lines)]


def symbols(file: Path, kind: str) -> set[tuple[str, str]]:
    """Returns version and name of the symbols of cuBLAS and cuDNN that ``nm`` shows."""
    shown = subprocess.run(["nm", "-D", kind, file], capture_output=True, text=True, check=True).stdout
    pairs = (line.split()[-1].replace("@@", "@").split("@") for line in shown.splitlines() if "@" in line)
    return {(pair[1], pair[0]) for pair in pairs if pair[1].startswith(("libcublas", "libcudnn"))}


def test_each_library_that_oneflow_wants_has_a_small_stub() -> None:
    assert library_names() == sorted(LIBRARIES)
    assert {library for library, _ in listed()} == LIBRARIES.keys()
    assert max((STUBS / name).stat().st_size for name in LIBRARIES) <= 16_384


def test_every_listed_function_is_in_its_stub_under_its_version() -> None:
    lookup = ctypes.CDLL(None).dlvsym
    lookup.argtypes, lookup.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p), ctypes.c_void_p
    handles = {name: ctypes.CDLL(str(STUBS / name))._handle for name in LIBRARIES}
    missing = [
        (library, name)
        for library, name in listed()
        if not lookup(handles[library], name.encode(), library.encode())
    ]
    assert missing == []


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm here")
def test_the_stubs_hold_exactly_what_the_wheel_wants() -> None:
    site = Path(sysconfig.get_path("platlib"))
    wheel = [*site.glob("oneflow.libs/liboneflow-*.so"), *site.glob("oneflow/_oneflow_internal*.so")]
    assert len(wheel) == 2
    wanted = set().union(*(symbols(file, "--undefined-only") for file in wheel))
    assert set(listed()) == wanted
    assert (
        set().union(*(symbols(STUBS / name, "--defined-only") for name in LIBRARIES))
        - {(name, name) for name in LIBRARIES}
        == wanted
    )


@pytest.mark.parametrize(("library", "function"), LIBRARIES.items())
def test_a_call_into_a_stub_ends_the_process_with_a_sentence(library: str, function: str) -> None:
    done = run_python(f"import ctypes; ctypes.CDLL({str(STUBS / library)!r}).{function}(0); print('went on')")
    assert (done.returncode, done.stdout) == (-6, "")
    assert done.stderr == (
        f"kdtrain: {function} was called, but NVIDIA's libraries are not installed. Install kdtrain[cuda] "
        "(in a clone: scripts/bootstrap --cuda), or use --device cpu.\n"
    )


def test_the_question_for_cudnn_s_version_which_a_cpu_asks_too_is_answered_with_an_error() -> None:
    stub = ctypes.CDLL(str(STUBS / "libcudnn_ops_infer.so.8"))
    stub.cudnnGetErrorString.restype = ctypes.c_char_p
    status = stub.cudnnGetProperty(0, ctypes.byref(ctypes.c_int()))
    assert status != 0
    assert stub.cudnnGetErrorString(status).startswith(b"cuDNN is not installed. Install kdtrain[cuda]")


def test_a_library_that_is_installed_gets_no_stub(tmp_path: Path) -> None:
    """In the packages' folder beside oneflow, or where the system's loader finds it."""
    (tmp_path / "oneflow").mkdir()
    (tmp_path / "oneflow/__init__.py").touch()
    (tmp_path / "nvidia/cublas/lib").mkdir(parents=True)
    (tmp_path / "nvidia/cublas/lib/libcublas.so.11").touch()
    (tmp_path / "system").mkdir()
    shutil.copy(STUBS / "libcudnn_ops_train.so.8", tmp_path / "system")
    code = "from kdtrain.runtime.oneflow import load_stubs; print(*load_stubs())"
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    done = run_python(f"{path}\n{code}", LD_LIBRARY_PATH=str(tmp_path / "system"))
    assert done.stderr == ""
    found = {"libcublas.so.11", "libcudnn_ops_train.so.8"}
    assert set(done.stdout.split()) == LIBRARIES.keys() - found


@with_stubs
def test_a_program_may_import_oneflow_after_kdtrain_has(tmp_path: Path) -> None:
    done = run_python("from kdtrain import flow; import oneflow; print(oneflow is flow)", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@with_stubs
def test_a_gpu_without_nvidia_s_libraries_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow.cuda, "is_available", lambda: True)
    monkeypatch.setattr(flow.cuda, "get_device_properties", lambda _: pytest.fail("the GPU is touched"))
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UsageError, match=r"--device cuda: .*not installed: install kdtrain\[cuda\]"):
        resolve_device("cuda")
