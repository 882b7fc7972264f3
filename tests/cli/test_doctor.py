"""``kdtrain doctor``: faults are found with their remedy, and no fault makes the command itself fail."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdtrain.cli.doctor import Check, disk_check, memory_check, report
from kdtrain.runtime.oneflow import load_stubs
from kdtrain.runtime.processor import processor_flags
from tests import warm
from tests.tools import ROOT

COMMAND = [sys.executable, "-c", "from kdtrain.cli.doctor import *; raise SystemExit(report(run_checks()))"]

needs_avx2 = pytest.mark.skipif(
    not {"avx2", "fma"} <= processor_flags(), reason="this processor has no fast kernel to miss"
)


def doctor(*folders: Path, **variables: str) -> tuple[int, dict[str, str]]:
    """Runs the doctor with ``folders`` ahead of the installed packages; returns its code and its lines."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))} | variables
    run = subprocess.run(COMMAND, env=environment, capture_output=True, check=False, timeout=120)
    assert run.stderr == b""
    lines = run.stdout.decode(variables.get("PYTHONIOENCODING", "utf-8")).splitlines()
    return run.returncode, {line[6:].partition(":")[0]: line for line in lines}


def pretend_installed(folder: Path, name: str, version: str, *requires: str) -> None:
    """Makes ``folder`` look as if it held that distribution."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    needed = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")


def pretend_oneflow(folder: Path, code: str) -> None:
    (folder / "oneflow").mkdir(parents=True)
    (folder / "oneflow" / "__init__.py").write_text(code)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the tests run outside the tree, whose kdtrain Python would find first."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder that makes kdtrain count as installed, wherever these tests run."""
    pretend_installed(tmp_path / "whole", "kdtrain", "0.1.0", "numpy<1.24,>=1.23.5", "oneflow==0.9.0")
    return tmp_path / "whole"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a OneFlow that does not import, for tests of something else: it saves the import."""
    pretend_oneflow(tmp_path / "broken", "raise ImportError")
    return tmp_path / "broken"


@needs_avx2
@pytest.mark.parametrize("kernel", ["Prescott", ""])
def test_a_slow_blas_kernel_is_bad_and_the_remedy_is_told(kernel: str, whole: Path) -> None:
    code, lines = doctor(whole, OPENBLAS_CORETYPE=kernel)
    assert code == 1
    assert lines["BLAS kernel"].startswith("BAD")
    assert "Prescott" in lines["BLAS kernel"]
    assert "Unset OPENBLAS_CORETYPE" in lines["BLAS kernel"]


@needs_avx2
def test_a_whole_installation_is_good_line_by_line(whole: Path) -> None:
    code, lines = doctor(whole, OPENBLAS_CORETYPE="Haswell")
    assert [line for line in lines.values() if line.startswith("BAD")] == []
    assert code == 0
    assert lines["numpy"].endswith("1.23.5")
    assert lines["BLAS kernel"] == "good  BLAS kernel: Haswell (OPENBLAS_CORETYPE=Haswell)"
    assert re.fullmatch(r"good  oneDNN: 3\.\d+\.\d+, AVX(2|-512), \d+ threads?", lines["oneDNN"])
    kind = "stubs, enough for a CPU; for a GPU install kdtrain[cuda]" if load_stubs() else "NVIDIA's"
    assert lines["cuBLAS and cuDNN"].startswith(f"good  cuBLAS and cuDNN: {kind}")
    assert "t10k-labels-idx1-ubyte" in lines
    assert {"python", "device", "free disk", "available memory", "terminal"} <= lines.keys()


def test_without_openmp_onednn_is_bad_and_the_remedy_is_told(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "libgomp.so.1").write_bytes(b"no library")
    code, lines = doctor(whole, LD_LIBRARY_PATH=str(tmp_path))
    assert code == 1
    assert lines["oneDNN"].startswith("BAD   oneDNN: cannot be used: ")
    assert "libgomp.so.1" in lines["oneDNN"]
    assert "`apt install libgomp1`" in lines["oneDNN"]


def test_a_package_of_the_wrong_version_is_bad(whole: Path, broken: Path, tmp_path: Path) -> None:
    pretend_installed(tmp_path / "new", "numpy", "2.0.1")
    code, lines = doctor(tmp_path / "new", broken, whole)
    assert code == 1
    assert lines["numpy"].startswith("BAD   numpy: 2.0.1. ")
    assert "it takes numpy <1.24,>=1.23.5" in lines["numpy"]


def test_a_missing_package_is_bad(broken: Path, tmp_path: Path) -> None:
    extra = 'absent-too; extra == "dev"'
    pretend_installed(tmp_path, "kdtrain", "0.1.0", "absent-package>=3", extra)
    code, lines = doctor(tmp_path, broken)
    assert code == 1
    assert lines["absent-package"].startswith("BAD   absent-package: not installed. ")
    assert "absent-too" not in lines


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libcudnn.so.8: cannot open')", "ImportError: libcudnn.so.8: cannot open"),
        ("import os; os.abort()", "importing it ends the process by SIGABRT"),
        ("import sys; sys.stderr.write('no such luck'); sys.exit(3)", "no such luck"),
    ],
)
def test_a_oneflow_that_does_not_import_is_bad_with_the_reason(
    code: str, said: str, whole: Path, tmp_path: Path
) -> None:
    pretend_oneflow(tmp_path / "broken", code)
    exit_code, lines = doctor(tmp_path / "broken", whole)
    assert exit_code == 1
    assert lines["import oneflow"].startswith("BAD")
    assert said in lines["import oneflow"]
    assert "good" in lines["python"]  # the other checks still ran


def test_damaged_data_are_found(whole: Path, broken: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "kdtrain"
    shutil.copytree(ROOT / "kdtrain", copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    code, lines = doctor(tmp_path / "copy", broken, whole)
    assert code == 1
    assert lines["t10k-labels-idx1-ubyte"].startswith("BAD   t10k-labels-idx1-ubyte: damaged or missing. ")
    assert lines["t10k-images-idx3-ubyte"].startswith("good")


def test_a_terminal_that_cannot_show_tables_is_bad_and_gets_the_report(whole: Path, tmp_path: Path) -> None:
    pretend_oneflow(tmp_path / "broken", "raise ImportError('größer')")
    code, lines = doctor(tmp_path / "broken", whole, PYTHONIOENCODING="ascii")
    assert code == 1
    assert lines["terminal"].startswith("BAD   terminal: ascii. ")
    assert "export LC_ALL=C.UTF-8" in lines["terminal"]
    assert "gr??er" in lines["import oneflow"]


def test_a_check_that_cannot_run_is_bad_and_no_traceback(
    whole: Path, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, lines = doctor(broken, whole)
    assert code == 1
    assert lines["machine"].startswith("BAD   machine: cannot be checked: FileNotFoundError")


def test_less_than_1_gb_of_disk_or_2_gb_of_memory_is_bad() -> None:
    few, enough = (disk_check(Path("somewhere"), free) for free in (999_999_999, 1_000_000_000))
    assert (few.good, few.detail) == (False, "1.0 GB in somewhere")
    assert (enough.good, enough.detail) == (True, "1.0 GB in somewhere")
    assert "--logdir" in few.remedy
    assert [memory_check(available).good for available in (1_999_999_999, 2_000_000_000)] == [False, True]


def test_the_exit_code_is_1_if_and_only_if_something_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    good = Check("a", True, "found", "never shown")
    bad = Check("b", False, "broken", "fix it")
    assert report([good]) == 0
    assert capsys.readouterr().out == "good  a: found\neverything is good\n"
    assert report([good, bad]) == 1
    assert capsys.readouterr().out == "good  a: found\nBAD   b: broken. fix it\n1 of 2 are bad\n"


def test_json_is_one_object_with_every_check(whole: Path, broken: Path) -> None:
    path = os.pathsep.join(map(str, [broken, whole, ROOT]))
    run = subprocess.run(
        [sys.executable, "-m", "kdtrain", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (1, b"")
    answer = json.loads(run.stdout)
    assert answer["good"] is False
    assert {tuple(check) for check in answer["checks"]} == {("name", "good", "detail", "remedy")}
    assert {check["name"]: check["good"] for check in answer["checks"]}["import oneflow"] is False


def test_a_terminal_gets_a_table_with_the_remedies_below() -> None:
    checks = "[Check('one', True, 'here'), Check('two', False, 'off', 'Switch it on.')]"
    main, worker = pty.openpty()
    run = warm.run(
        [sys.executable, "-c", f"from kdtrain.cli.doctor import *; raise SystemExit(report({checks}))"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "60", "TERM": "xterm"},
        stdout=worker,
        check=False,
    )
    os.close(worker)
    shown = os.read(main, 10_000).decode()
    os.close(main)
    assert run.returncode == 1
    rows = [" ".join(line.split()) for line in re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()]
    rows = [row for row in rows if "─" not in row]
    assert rows == [
        *("state check result", "good one here", "BAD two off", ""),
        *("what is bad remedy", "two Switch it on.", "1 of 2 are bad"),
    ]
