"""Start-up: quiet, interruptible, without CUDA, and seeds that do not depend on one another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.data.draws import derive_seed
from kdtrain.errors import UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processor import processor_flags
from tests.cli.conftest import run_python
from tests.tools import ROOT


def test_the_import_is_quiet(tmp_path: Path) -> None:
    done = run_python("from kdtrain.runtime import flow; print(flow.ones(2).sum().item())", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")
    assert list(tmp_path.iterdir()) == []


def test_when_the_import_fails_the_reason_is_shown(tmp_path: Path) -> None:
    package = tmp_path / "oneflow"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os\nos.write(2, b'from the C++ part\\n')\n"
        "raise ImportError('libcudnn_cnn_infer.so.8: missing')\n"
    )
    done = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom kdtrain.cli import main\n"
        "sys.exit(main(['fit', '--mode', 'student']))",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "libcudnn_cnn_infer.so.8: missing" in done.stderr
    assert "from the C++ part" in done.stderr
    assert "kdtrain doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_oneflow_gets_fast_kernels_and_a_users_choice_is_kept() -> None:
    """Which kernels its OpenBLAS has taken is what its pointer ``gotoblas`` points at."""
    code = """
import ctypes, os
from kdtrain.runtime import flow
flow.zeros(1)
(path,) = {line.split()[-1] for line in open("/proc/self/maps") if "/liboneflow-" in line}
library = ctypes.CDLL(path)
taken = ctypes.c_void_p.in_dll(library, "gotoblas").value
kernels = ("HASWELL", "SANDYBRIDGE", "PRESCOTT")
address = lambda name: ctypes.addressof(ctypes.c_char.in_dll(library, "gotoblas_" + name))
print(*(name for name in kernels if address(name) == taken), os.environ.get("OPENBLAS_CORETYPE"))
"""
    if {"avx2", "fma"} <= processor_flags():
        assert run_python(code).stdout == "HASWELL None\n"
    assert run_python(code, OPENBLAS_CORETYPE="Sandybridge").stdout == "SANDYBRIDGE Sandybridge\n"


def test_oneflows_cache_of_scalars_is_bounded() -> None:
    """Each learning rate that a schedule sets would stay in it for good."""
    name = "ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE"
    code = f"import os; from kdtrain.runtime import flow; print(os.environ['{name}'])"
    assert run_python(code).stdout == "1000\n"


def test_ctrl_c_reaches_python_after_the_import() -> None:
    code = """
import os, signal
from kdtrain.runtime import flow
try:
    x = flow.ones(64, 64)
    while True:
        x = x @ x * 1e-3
        x.sum().item()
        os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("caught", flow.ones(3).sum().item())
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "caught 3.0\n")


def test_ctrl_c_during_the_import_is_not_lost() -> None:
    code = """
import time
from kdtrain.runtime.signals import defer_signals
print('ready', flush=True)
try:
    with defer_signals():
        from kdtrain.runtime import flow
    print('imported', flush=True)
    time.sleep(5)
except KeyboardInterrupt:
    print('caught', flow.ones(2).sum().item())
"""
    for delay in (0.02, 0.2, 0.4, 0.7):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out.removeprefix("imported\n")) == (0, "caught 2.0\n")


@pytest.mark.skipif(flow.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_cuda_is_refused_and_never_touched(tmp_path: Path) -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="--device cuda: oneflow finds no GPU"):
        resolve_device("cuda")
    words = ["fit", "--device", "cuda", "--mode", "student"]
    done = run_python(f"import sys; from kdtrain.cli import main; sys.exit(main({words}))", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_seeds_for_different_purposes_differ_and_stay_the_same() -> None:
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1) == 7863014049771178065
    seeds = [
        derive_seed(s, purpose, e) for s in range(5) for purpose in ("order", "dropout") for e in range(50)
    ]
    assert len(set(seeds)) == len(seeds)


@given(st.integers(0, 2**64), st.text(min_size=1), st.integers(0, 10**6))
def test_any_seed_gives_one_that_oneflow_takes(seed: int, purpose: str, epoch: int) -> None:
    assert 0 <= derive_seed(seed, purpose, epoch) < 2**63
