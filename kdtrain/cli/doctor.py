"""``kdtrain doctor``: checks of the installation and of the machine.

Each check gives one or more lines, good or bad, and each bad line has a remedy. OneFlow is imported in a
separate process, because a broken installation can abort the process that imports it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from rich.text import Text

from kdtrain.cli.flags import json_flag
from kdtrain.cli.output import Output
from kdtrain.report.table import Column, Table
from kdtrain.runtime.oneflow import REMEDY

_GB = 1e9
_REINSTALL = (
    "In a clone, remove .venv and run scripts/kdtrain again; elsewhere, install kdtrain's wheel again"
)

# OpenBLAS's kernels for processors with AVX2 and FMA. On others it computes 2 to 4 times slower.
_FAST_KERNELS = {"haswell", "zen", "skylakex", "cooperlake", "sapphirerapids"}

# With OPENBLAS_VERBOSE=2, OpenBLAS prints its kernel to stderr when it is loaded.
_PROBE = """
import json
from kdtrain.nn import onednn
from kdtrain.runtime.oneflow import load_stubs
from kdtrain.runtime.oneflow import prepare_environment, resolve_device
from kdtrain.runtime.oneflow import thread_pool_obstacle, with_openblas_coretype
answer = {"error": "", "device": "", "onednn": "", "obstacle": "", "stubs": [], "threads": ""}
try:
    prepare_environment()
    answer["stubs"] = load_stubs()
    with with_openblas_coretype():
        import oneflow
    answer["device"] = resolve_device("auto")
    answer["threads"] = thread_pool_obstacle() or ""
    answer["obstacle"] = onednn.obstacle() or ""
    answer["onednn"] = "" if answer["obstacle"] else onednn.summary()
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(answer))
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    json_flag(parser, "one JSON object")


def run(options: argparse.Namespace) -> int:
    """Checks the installation; 1 if anything is bad."""
    checks = run_checks()
    return _print_json(checks) if options.json else report(checks)


@dataclass(frozen=True)
class Check:
    """One line of the report: the name of the check, its result, its details, and the remedy if it is bad."""

    name: str
    good: bool
    detail: str
    remedy: str = ""


def run_checks() -> list[Check]:
    """Returns the results of all checks. A check that raises an exception is bad."""
    checks: list[Check] = []
    for group in (_python, _packages, _oneflow, _embedded_data, _machine, _terminal):
        checks += _guarded(group)
    return checks


def report(checks: list[Check]) -> int:
    """Writes the checks to stdout, as a table on a terminal and as plain lines elsewhere.

    Returns:
        The exit code: 1 if anything is bad, otherwise 0.
    """
    bad = [check for check in checks if not check.good]
    if sys.stdout.isatty():
        _print_table(checks)
    else:
        for check in checks:
            _print_line(check)
    print("everything is good" if not bad else f"{len(bad)} of {len(checks)} are bad")
    return 1 if bad else 0


def _guarded(group: Callable[[], list[Check]]) -> list[Check]:
    try:
        return group()
    except Exception as error:
        name = group.__name__.strip("_").replace("_", " ")
        detail = f"cannot be checked: {type(error).__name__}: {error}"
        return [Check(name, False, detail, f"{_REINSTALL}.")]


def _python() -> list[Check]:
    good = sys.version_info[:2] == (3, 10) and platform.python_implementation() == "CPython"
    detail = f"{platform.python_implementation()} {platform.python_version()}"
    return [Check("python", good, detail, "Use CPython 3.10: OneFlow 0.9.0 has no wheel for a later one.")]


def _packages() -> list[Check]:
    try:
        declared = metadata.requires("kdtrain") or []
    except metadata.PackageNotFoundError:
        return [Check("kdtrain", False, "runs, but is not installed", f"{_REINSTALL}.")]
    requirements = [Requirement(line) for line in declared]
    return [
        Check("kdtrain", True, metadata.version("kdtrain")),
        *(
            _package(requirement)
            for requirement in requirements
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ),
    ]


def _package(needed: Requirement) -> Check:
    remedy = f"{_REINSTALL}; it takes {needed.name} {needed.specifier}."
    try:
        version = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return Check(needed.name, False, "not installed", remedy)
    good = needed.specifier.contains(version, prereleases=True)
    return Check(needed.name, good, version, remedy)


def _oneflow() -> list[Check]:
    result = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env=os.environ | {"OPENBLAS_VERBOSE": "2"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    error, answer = "", {}
    if result.returncode < 0:
        error = f"importing it ends the process by {signal.Signals(-result.returncode).name}"
    elif result.returncode > 0:
        error = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    else:
        answer = json.loads(result.stdout.splitlines()[-1])
        error = answer["error"]
    if error:
        return [Check("import oneflow", False, error, f"{_REINSTALL}.")]
    return [
        Check("import oneflow", True, "works"),
        Check("device", True, "cuda" if answer["device"] == "cuda" else "cpu (no GPU that oneflow can use)"),
        _cuda_libraries(answer["stubs"]),
        _child_threads(answer["threads"]),
        _onednn(answer["onednn"], answer["obstacle"]),
        _blas_kernel(result.stderr),
    ]


def _cuda_libraries(stubs: list[str]) -> Check:
    """Says whether cuBLAS and cuDNN are NVIDIA's. Stubs are good, because a CPU needs no more."""
    stand_ins = f"stubs, enough for a CPU; for a GPU {REMEDY}"
    return Check("cuBLAS and cuDNN", True, stand_ins if stubs else "NVIDIA's libraries")


def _child_threads(obstacle: str) -> Check:
    """Checks that operations on OneFlow's thread pool (argmax, topk, median) return in a fit."""
    remedy = (
        "Plugins and networks of your own must not call argmax, topk, median, or max and min with a dim: "
        "a fit that does is ended after --stall-timeout. OneFlow's own wheel of 0.9.0 does not need this."
    )
    return Check("thread pool in fits", not obstacle, obstacle or "renewed in each child process", remedy)


def _onednn(summary: str, obstacle: str) -> Check:
    """Checks that convolutions run on oneDNN; without it they take several times as long."""
    system = "Install the system's OpenMP library: `apt install libgomp1`, or `dnf install libgomp`."
    remedy = system if "libgomp" in obstacle else f"{_REINSTALL}."
    return Check("oneDNN", not obstacle, summary or f"cannot be used: {obstacle.rstrip('.')}", remedy)


def _blas_kernel(loading: str) -> Check:
    """Checks the kernel of oneflow's BLAS library.

    Args:
        loading: stderr of the libraries while they were loaded, oneflow's last.
    """
    from kdtrain.runtime.processor import processor_flags

    cores = [line.partition(":")[2].strip() for line in loading.splitlines() if line.startswith("Core:")]
    kernel = cores[-1] if cores else "unknown"
    if not {"avx2", "fma"} <= processor_flags():
        return Check("BLAS kernel", True, f"{kernel}; this processor has no AVX2 and FMA: expect slow runs")
    wish = os.environ.get("OPENBLAS_CORETYPE")
    chosen = "chosen by kdtrain" if wish is None else f"OPENBLAS_CORETYPE={wish}"
    remedy = "Unset OPENBLAS_CORETYPE, or set it to Haswell: a kernel here is 2 to 4 times slower."
    return Check("BLAS kernel", kernel.lower() in _FAST_KERNELS, f"{kernel} ({chosen})", remedy)


def _embedded_data() -> list[Check]:
    from kdtrain.data.datasets import verify_embedded

    return [
        Check(file, good, "checksum is right" if good else "damaged or missing", f"{_REINSTALL}.")
        for file, good in verify_embedded()
    ]


def _machine() -> list[Check]:
    here = Path.cwd()
    meminfo = Path("/proc/meminfo").read_text()
    available = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    return [disk_check(here, shutil.disk_usage(here).free), memory_check(int(available.split()[1]) * 1024)]


def disk_check(folder: Path, free: int) -> Check:
    """Checks the free disk space, in bytes, of the folder in which ``logs/`` is made by default."""
    remedy = (
        "Make room, or put the runs on another disk with --logdir, --model-save-dir and --image-save-dir."
    )
    return Check("free disk", free >= _GB, f"{free / _GB:.1f} GB in {folder}", remedy)


def memory_check(available: int) -> Check:
    """Checks the memory, in bytes, that a run can use without swapping."""
    remedy = "End other programs: training on MNIST takes up to 2 GB."
    return Check("available memory", available >= 2 * _GB, f"{available / _GB:.1f} GB", remedy)


def _terminal() -> list[Check]:
    encoding = sys.stdout.encoding or "ascii"
    try:
        "±█─│".encode(encoding)
        good = True
    except (UnicodeEncodeError, LookupError):
        good = False
    remedy = "Tables and bars need UTF-8: export LC_ALL=C.UTF-8 (and unset PYTHONIOENCODING)."
    return [Check("terminal", good, encoding, remedy)]


def _print_json(checks: list[Check]) -> int:
    """Prints one JSON object with ``good`` and ``checks``; returns the exit code."""
    good = all(check.good for check in checks)
    print(json.dumps({"good": good, "checks": [asdict(check) for check in checks]}, indent=2))
    return 0 if good else 1


def _print_table(checks: list[Check]) -> None:
    table = Table(*(Column(name, words=True) for name in ("state", "check", "result")))
    remedies = Table(*(Column(name, words=True) for name in ("what is bad", "remedy")))
    for check in checks:
        table.row(Text("good", "green") if check.good else Text("BAD", "bold red"), check.name, check.detail)
        if not check.good:
            remedies.row(Text(check.name, "bold red"), check.remedy)
    output = Output()
    output.print(table)
    if not all(check.good for check in checks):
        output.print("", remedies, sep="\n")


def _print_line(check: Check) -> None:
    line = f"{'good' if check.good else 'BAD '}  {check.name}: {check.detail}"
    if not check.good:
        line += f". {check.remedy}"
    encoding = sys.stdout.encoding or "ascii"
    print(line.encode(encoding, "replace").decode(encoding))  # a report must not fail on a file name
