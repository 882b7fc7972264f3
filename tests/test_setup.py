"""Set-up: two commands in a fresh clone, pinned versions, scripts/test, and a wheel that works anywhere."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.tools import ROOT

SETUP_FILES = (".python-version", "constraints.txt", "pyproject.toml", "setup.cfg", "README.md", "scripts")
TOOLS = ("awk", "bash", "cat", "df", "env", "flock", "grep", "head", "mkdir", "mv", "readlink", "rm", "sed")

in_the_project_environment = pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv", reason="concerns .venv, which these tests are not run from"
)


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with ``variables`` as its whole environment, by default with this process's."""
    return subprocess.run(
        command, cwd=cwd, env=variables or None, capture_output=True, text=True, timeout=300, check=False
    )


def copy_tree(folder: Path) -> Path:
    """Copies what a clone contains, but for tests and documents."""
    folder.mkdir(parents=True)
    for name in (*SETUP_FILES, "LICENSE", "kdtrain", "plugins"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder to be the PATH of a machine that has the usual tools and neither Python nor uv."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in (*TOOLS, "tail", "uname"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that scripts/bootstrap reads, in a folder whose name has spaces."""
    folder = tmp_path / "a fresh clone"
    (folder / "kdtrain").mkdir(parents=True)
    shutil.copy(ROOT / "kdtrain" / "_version.py", folder / "kdtrain")
    for name in SETUP_FILES[:4]:
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


def without_python(folder: Path, path: Path) -> dict[str, str]:
    return {"PATH": str(path), "HOME": str(folder), "LANG": "C.UTF-8"}


@pytest.mark.parametrize("script", ["bootstrap", "kdtrain", "test", "check-wheel", "../.ci/run"])
def test_the_scripts_are_executable_bash(script: str, tmp_path: Path) -> None:
    assert os.access(ROOT / "scripts" / script, os.X_OK)
    checked = run("bash", "-n", ROOT / "scripts" / script, cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("failing", ["", "ruff", "pytest"])
def test_scripts_test_runs_all_tools_and_fails_with_any_of_them(
    clone: Path, fast: bool, failing: str
) -> None:
    """The tools print their arguments instead of doing their work."""
    (clone / ".venv/bin").mkdir(parents=True)
    for tool in ("ruff", "mypy", "pytest"):
        (clone / ".venv/bin" / tool).write_text(f"#!/bin/bash\necho {tool} $*\nexit {int(tool == failing)}\n")
        (clone / ".venv/bin" / tool).chmod(0o755)
    (clone / "scripts/bootstrap").write_text('echo bootstrap "$@"\n')
    ended = run(clone / "scripts/test", *["--fast"] * fast, "tests/cli", "-k", "a b", cwd=clone)
    assert ended.returncode == bool(failing)
    lines = [line for line in ended.stdout.splitlines() if line[:2] != "=="]
    assert lines[0] == "bootstrap --dev"
    assert [line.split()[0] for line in lines[1:]] == ["ruff", "ruff", "mypy", "pytest"]
    assert lines[-1].endswith("tests/cli -k a b")
    assert ("--ignore=tests/faults" in lines[-1]) == fast
    *_, last = ended.stdout.splitlines()
    assert ("not everything" in last and "scripts/test" in last) if fast else last == lines[-1]


def test_without_python_and_uv_one_message_says_how_to_get_them(clone: Path, bare: Path) -> None:
    for command in ("kdtrain", "test", "bootstrap"):
        ended = run(clone / "scripts" / command, cwd=bare, **without_python(clone, bare))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith("kdtrain: Python 3.10 is needed")
        for way in ("uv, which fetches it", "pyenv install 3.10", "python3.10-venv"):
            assert way in ended.stderr
    assert not (clone / ".venv").exists()


def test_a_command_named_python3_10_that_does_not_run_it_is_not_believed(clone: Path, bare: Path) -> None:
    for name, code in {
        "python3.10": "echo 'pyenv: command not found' >&2; exit 127",
        "python3": "exit 0",
    }.items():
        (bare / name).write_text(f"#!/usr/bin/env bash\n{code}\n")
        (bare / name).chmod(0o755)
    ended = run(clone / "scripts" / "bootstrap", cwd=bare, **without_python(clone, bare))
    assert ended.returncode == 1
    assert ended.stderr.startswith("kdtrain: Python 3.10 is needed")
    assert "pyenv: command" not in ended.stderr


def project_uv() -> Path | None:
    found = shutil.which("uv") or ROOT / ".uv" / "env" / "bin" / "uv"
    return Path(found) if Path(found).exists() else None


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_without_an_index_one_sentence_says_so(installer: str, clone: Path, bare: Path) -> None:
    (bare / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3.10")
    uv = project_uv()
    if installer == "uv":
        if uv is None:
            pytest.skip("there is no uv on this machine to try it with")
        (bare / "uv").symlink_to(uv)
    # pip's settings alone: uv is expected to follow them, although it does not read them itself.
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    ended = run(
        clone / "scripts" / "kdtrain",
        cwd=bare,
        **without_python(clone, bare),
        **nowhere,
        UV_HTTP_RETRIES="0",
        UV_CACHE_DIR="",
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    last = ended.stderr.splitlines()[-1]
    assert "package index" in last
    assert "Connection refused" in last
    assert "network" in last
    assert all(line.startswith("kdtrain: ") for line in ended.stderr.splitlines())
    assert not (clone / ".venv").exists()


def test_a_second_set_up_at_the_same_time_waits_for_the_first(clone: Path, bare: Path) -> None:
    (clone / ".uv").mkdir()
    command, environment = [clone / "scripts" / "bootstrap"], without_python(clone, bare)
    with (clone / ".uv" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
            try:
                assert waiting.stderr is not None
                assert "another set-up of this folder is running" in waiting.stderr.readline()
                with pytest.raises(subprocess.TimeoutExpired):
                    waiting.wait(timeout=0.5)  # ten times what it takes to see that Python is missing
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
            rest = waiting.communicate(timeout=30)[1]
    assert rest.startswith("kdtrain: Python 3.10 is needed")  # its turn came


UV = """#!/bin/bash
# Stands for uv, whose downloads are not under test: records its arguments, and makes what it is asked for.
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
    --version) echo 'uv 0.13.9' ;;
    'python find'*) exit 2 ;;
    'python install'*)
        if [[ ! -e $PYTHON ]]; then printf 'error: no download\\n  cause: no route to host\\n'; exit 2; fi
        mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython-3.10.1-linux/bin"
        ln -s "$PYTHON" "$UV_PYTHON_INSTALL_DIR/cpython-3.10.1-linux/bin/python3.10" ;;
    venv*) mkdir -p .venv/bin && ln -s "$PYTHON" .venv/bin/python ;;
esac
"""
ANY_PYTHON = """#!/bin/bash
# Stands for a later Python 3, behind a shim that looks for 3.10 alone where .python-version says so.
if [[ -e .python-version && $1 == -c ]]; then exit 127; fi
case "$*" in
    -c*' 3.') echo "$0" ;;
    '-m pip install --target '*) mkdir -p "$5/bin" && cp "$UV" "$5/bin/uv" ;;
esac
"""


def program(path: Path, code: str) -> Path:
    path.write_text(code)
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, bare: Path) -> dict[str, str]:
    """The environment of a machine with a later Python 3 and no uv; the variables are for the stand-ins."""
    for tool in ("cp", "ln"):
        (bare / tool).symlink_to(shutil.which(tool) or tool)
    program(bare / "python3", ANY_PYTHON)
    python = str(Path(sys.base_prefix) / "bin" / "python3.10")
    variables = {"CALLS": str(tmp_path / "calls"), "UV": str(program(tmp_path / "uv", UV)), "PYTHON": python}
    return without_python(tmp_path, bare) | variables


def calls(machine: dict[str, str]) -> list[str]:
    """Returns what uv was asked for since the last call of this function."""
    file = Path(machine["CALLS"])
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [line for line in lines if line != "--version"]


def test_where_python_3_10_is_missing_uv_is_asked_for_it(clone: Path, machine: dict[str, str]) -> None:
    ended = run(clone / "scripts" / "bootstrap", cwd=clone, **machine)
    assert ended.returncode == 0, ended.stderr
    said = ended.stderr.splitlines()
    assert [line for line in said if "Python 3.10 was not found" in line and "uv fetches it" in line]
    asked = calls(machine)
    assert "python install 3.10" in asked
    assert f"venv --quiet --python {Path(machine['PYTHON']).resolve()} .venv" in asked
    assert (clone / ".uv/python").is_dir()  # inside of the clone, as everything else
    assert run(clone / "scripts" / "bootstrap", cwd=clone, **machine).stderr == ""
    assert calls(machine) == []


def test_where_uv_cannot_fetch_python_3_10_the_message_says_what_to_do(
    clone: Path, machine: dict[str, str]
) -> None:
    ended = run(clone / "scripts" / "bootstrap", cwd=clone, **machine | {"PYTHON": "/nowhere"})
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    assert "uv fetches it" in before[-1]
    assert last.startswith("kdtrain: uv could not fetch Python 3.10 (no route to host; see ")
    for way in ("UV_PYTHON_INSTALL_MIRROR", "pyenv install 3.10", "python3.10-venv"):
        assert way in last
    assert not (clone / ".venv").exists()


def test_tools_and_cuda_are_installed_where_they_are_chosen_and_the_choice_lasts(
    clone: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    script = clone / "scripts" / "bootstrap"
    driver = tmp_path / "nvidiactl"
    script.write_text(script.read_text().replace("/dev/nvidiactl", str(driver)))

    def extras(*flags: str) -> set[str] | None:
        """Runs bootstrap twice, the second time without flags; returns what is installed, if anything is."""
        ended = run(script, *flags, cwd=clone, **machine)
        assert ended.returncode == 0, ended.stderr
        (*_, installs) = [None, *(line for line in calls(machine) if "--requirement" in line)]
        assert run(script, cwd=clone, **machine).stderr == ""
        assert calls(machine) == []
        return None if installs is None else set(re.findall(r"--extra (\w+)", installs))

    assert extras() == {"serve"}
    assert extras("--dev") == {"serve", "dev"}
    assert extras("--cuda") == {"serve", "dev", "cuda"}
    assert extras("--dev", "--cuda") is None
    (clone / ".venv/lib/python3.10/site-packages/nvidia").mkdir(parents=True)
    assert run(script, "--no-cuda", cwd=clone, **machine).returncode == 0
    assert [line for line in calls(machine) if line.startswith("pip uninstall")]
    driver.touch()
    assert extras() is None  # NVIDIA's libraries were refused
    shutil.rmtree(clone / ".venv")
    assert extras() == {"serve", "cuda"}
    driver.unlink()
    assert extras() is None  # they are there
    assert run(script, "--gpu", cwd=clone, **machine).returncode == 2


@in_the_project_environment
def test_once_set_up_it_costs_under_a_tenth_of_a_second_and_does_nothing(tmp_path: Path) -> None:
    stamp = ROOT / ".venv" / ".kdtrain-ready"
    before = stamp.stat().st_mtime_ns
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        ended = run(ROOT / "scripts" / "bootstrap", cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert min(seconds) < 0.1
    assert stamp.stat().st_mtime_ns == before


@contextlib.contextmanager
def disk_space() -> Iterator[Path]:
    """A folder beside .venv: on the same disk, packages are linked there from uv's cache, not copied."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="a path with spaces ") as folder:
        yield Path(folder)


@in_the_project_environment
def test_a_set_up_that_is_interrupted_is_finished_by_the_next_one(tmp_path: Path, bare: Path) -> None:
    with disk_space() as folder:
        clone = copy_tree(folder / "clone")
        stamp = clone / ".venv" / ".kdtrain-ready"
        first = subprocess.Popen(
            [clone / "scripts" / "kdtrain", "--version"],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while first.poll() is None and not (clone / ".venv" / "bin").exists():
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does
        out, said = first.communicate(timeout=60)
        assert (first.returncode, out) == (130, ""), said
        assert re.search("GB to download, .+ GB on disk", said.splitlines()[0])
        assert said.endswith("kdtrain: interrupted; run this again and it goes on.\n")
        assert not stamp.exists()

        second = run(clone / "scripts" / "kdtrain", "--version", cwd=tmp_path)
        assert (second.returncode, second.stdout) == (0, f"kdtrain {metadata.version('kdtrain')}\n")
        assert "removing .venv, which was not finished" in second.stderr
        assert os.access(clone / ".venv" / "bin" / "tensorboard", os.X_OK)
        assert run(clone / "scripts" / "bootstrap", cwd=tmp_path).stderr == ""

        # A change to what is installed is noticed, and does not need everything again.
        python = (clone / ".venv" / "bin" / "python").lstat()
        with (clone / "setup.cfg").open("a") as file:
            file.write("# changed\n")
        third = run(clone / "scripts" / "kdtrain", "--version", cwd=tmp_path)
        assert (third.returncode, third.stdout) == (0, second.stdout)
        assert "kdtrain: ready in" in third.stderr
        assert (clone / ".venv" / "bin" / "python").lstat() == python

        # In another place, the scripts in .venv would still run the code of the old one.
        moved = clone.rename(folder / "moved")
        shutil.rmtree(moved / ".uv" / "env", ignore_errors=True)
        fourth = run(moved / "scripts" / "bootstrap", cwd=tmp_path, **without_python(tmp_path, bare))
        assert fourth.stderr.startswith("kdtrain: Python 3.10 is needed")


def test_no_index_and_no_machine_is_named() -> None:
    for name in ("constraints.txt", "pyproject.toml", "setup.cfg", "scripts/bootstrap"):
        assert not re.search(r"https?://|index-url +|file:", (ROOT / name).read_text()), name


def test_setup_cfg_lists_the_packages_that_there_are() -> None:
    there = {str(file.parent.relative_to(ROOT)) for file in (ROOT / "kdtrain").rglob("__init__.py")}
    listed = re.findall(r"^    (kdtrain[\w.]*)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted([*(path.replace("/", ".") for path in there), "kdtrain_plugins"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree by the setuptools at hand."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    built = run(sys.executable, "-c", build, cwd=copy_tree(folder / "tree"))
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_code_the_plugins_and_the_data_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "kdtrain").rglob("*.py")}
    plugins = {f"kdtrain_plugins/{file.name}" for file in (ROOT / "plugins").glob("*.py")}
    halves = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    data = {f"kdtrain/data/mnist/{half}-ubyte.gz" for half in halves}
    pages = (ROOT / "kdtrain" / "deploy" / "serve" / "page").iterdir()
    page = {str(file.relative_to(ROOT)) for file in pages}
    stubs = {str(file.relative_to(ROOT)) for file in (ROOT / "kdtrain/runtime/cuda_stubs").iterdir()}
    templates = {
        f"kdtrain/report/page/templates/{name}"
        for name in ("charts.html", "page.css", "page.html", "tuning.html")
    }
    recipe_folder = ROOT / "kdtrain/experiment/settings/recipes"
    recipes = {str(file.relative_to(ROOT)) for file in recipe_folder.iterdir()}
    others = {"kdtrain/data/mnist/README.md", "kdtrain/py.typed", "kdtrain/__init__.pyi"}
    assert names == code | plugins | data | page | templates | recipes | stubs | others


def test_the_wheel_carries_its_licence_and_names_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name.partition(".dist-info/")[2]: archive.read(name) for name in archive.namelist()}
    assert files["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"\nLicense-Expression: Apache-2.0\n" in files["METADATA"]


def test_the_wheel_installed_by_pip_works_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    """Installs only kdtrain itself, beside the packages of this environment.

    scripts/check-wheel does the same with everything that kdtrain depends on, which takes minutes.
    """
    made = run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    if "ensurepip is not available" in made.stdout:
        pytest.skip("this Python cannot make an environment with pip")
    site = tmp_path / "venv" / "lib" / "python3.10" / "site-packages"
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    alone = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    installed = run(tmp_path / "venv" / "bin" / "python", *pip, wheel, cwd=tmp_path, **alone)
    assert installed.returncode == 0, installed.stderr

    kdtrain = tmp_path / "venv" / "bin" / "kdtrain"
    for words in (["doctor"], ["fit", "--mode=student", "--epochs=1", "--limit-train=640", "--val-size=200"]):
        ended = run(kdtrain, *words, cwd=tmp_path, **alone)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "logs" / "models" / "student.safetensors").exists()

    where = "import kdtrain, kdtrain_plugins.grad_norm as plugin; print(kdtrain.__file__, plugin.__file__)"
    found = run(tmp_path / "venv" / "bin" / "python", "-c", where, cwd=tmp_path, **alone)
    assert found.stdout.split() == [
        str(site / "kdtrain" / "__init__.py"),
        str(site / "kdtrain_plugins" / "grad_norm.py"),
    ]
