"""Atomic writes: a reader gets the whole old content or the whole new one, whatever happens to the writer."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdtrain.errors import KdtrainError
from kdtrain.runtime.files import ensure_writable, make_folder, temporary_folder, write_bytes, write_text
from tests.tools import ROOT, wait_until

SIZE = 2_000_000

WRITE_FOR_EVER = f"""
import itertools, sys
from pathlib import Path
from kdtrain.runtime.files import write_bytes
for number in itertools.count():
    write_bytes(Path(sys.argv[1]), bytes([number % 256]) * {SIZE})
"""

WRITE_ONCE = """
import os, resource, sys
from pathlib import Path
from kdtrain.errors import KdtrainError
from kdtrain.runtime.files import ensure_writable, write_bytes
path, how = Path(sys.argv[1]), sys.argv[2]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
elif os.getuid() == 0:
    os.setuid(65534)  # the superuser may write anywhere
for attempt in (lambda: write_bytes(path, b"new" * 1000), lambda: ensure_writable(path.parent)):
    try:
        attempt()
        print("written")
    except KdtrainError as error:
        print(error)
"""


def python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def is_whole(content: bytes) -> bool:
    return len(content) == SIZE and content == content[:1] * SIZE


def test_content_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    make_folder(path.parent)
    write_bytes(path, b"first, and longer")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    write_text(path, "dritter Inhalt: äöü\n")
    assert path.read_bytes() == "dritter Inhalt: äöü\n".encode()
    assert os.listdir(path.parent) == ["file"]


def test_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(KdtrainError, match=r"file: the folder .*gone does not exist"):
        write_bytes(tmp_path / "gone" / "file", b"content")
    assert os.listdir(tmp_path) == []


def test_reader_sees_a_whole_file_while_it_is_written_over_and_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = python(WRITE_FOR_EVER, path)
    try:
        wait_until(path.exists)
        contents = [path.read_bytes() for _ in range(200)]
    finally:
        writer.kill()
        writer.communicate()
    assert all(is_whole(content) for content in contents)
    assert len({content[0] for content in contents}) > 1, "nothing was written meanwhile"


def test_killed_writer_leaves_the_previous_content_or_the_new_one(tmp_path: Path) -> None:
    for attempt in range(4):
        path = tmp_path / f"file{attempt}"
        writer = python(WRITE_FOR_EVER, path)
        try:
            wait_until(path.exists)
            time.sleep(0.003 * attempt)
        finally:
            writer.kill()
            writer.communicate()
        assert is_whole(path.read_bytes())


# Does nothing but die: after its file is written, before it gets its name.
DIE_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from kdtrain.runtime.files import temporary_folder, write_bytes
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
with temporary_folder(Path(sys.argv[1]).parent):
    write_bytes(Path(sys.argv[1]), b"new")
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"previous")
    writer = python(DIE_BEFORE_THE_RENAME, path)
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"previous"
    assert len(os.listdir(tmp_path)) == 3, "the killed writer left a file and a folder"
    write_bytes(tmp_path / "another", b"content")
    assert sorted(os.listdir(tmp_path)) == ["another", "file"]


HOLD_A_FOLDER = """
import sys, time
from pathlib import Path
from kdtrain.runtime.files import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    print(folder.name, flush=True)
    time.sleep(600)
"""
UNSHARE = ("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc")
PID_NAMESPACES = shutil.which("unshare") is not None and (
    subprocess.run([*UNSHARE, "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0
)


@contextlib.contextmanager
def held_folder(parent: Path) -> Iterator[Path]:
    """Yields the temporary folder of another process; kills that process at the end."""
    holder = python(HOLD_A_FOLDER, parent)
    assert holder.stdout is not None
    try:
        yield parent / holder.stdout.readline().strip()
    finally:
        holder.kill()
        holder.communicate()


def test_what_belongs_to_a_living_process_stays_until_it_has_ended(tmp_path: Path) -> None:
    with held_folder(tmp_path) as folder:
        write_bytes(tmp_path / "file", b"content")
        assert folder.is_dir()
    write_bytes(tmp_path / "file", b"content")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not PID_NAMESPACES, reason="making a PID namespace is not allowed here")
@pytest.mark.parametrize("proc", [(), ("--mount-proc",)], ids=["the other's /proc", "a /proc of its own"])
def test_a_process_in_another_pid_namespace_removes_nothing_of_a_living_one(
    tmp_path: Path, proc: tuple[str, ...]
) -> None:
    code = "import sys; from pathlib import Path; from kdtrain.runtime.files import write_bytes\n"
    code += "write_bytes(Path(sys.argv[1]), b'content')"
    with held_folder(tmp_path) as folder:
        for _ in range(2):
            command = [*UNSHARE[:-1], *proc, sys.executable, "-c", code, str(tmp_path / "file")]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
        assert folder.is_dir()
        assert sorted(os.listdir(tmp_path)) == sorted(["file", folder.name])


def test_what_a_foreign_process_left_is_removed_after_a_day_without_a_change(tmp_path: Path) -> None:
    hour, now = 3600, time.time()
    names = [f".file.12345678.{host}-0b1d-4026531836-17-1.tmp" for host in (socket.gethostname(), "another")]
    for name, hours in ((names[0], 23), (names[1], 25), (".file.tmp", 99)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now, now - hours * hour))
    for name, hours in (("new", 23), ("old", 25)):
        folder = tmp_path / f".{name}.12345678.another-0b1d-4026531836-17-1.tmp"
        (folder / "inside").mkdir(parents=True)
        (folder / "inside" / "file").touch()
        os.utime(folder / "inside" / "file", (now, now - hours * hour))
        for path in (folder / "inside", folder):
            os.utime(path, (now, now - 99 * hour))
        names.append(folder.name)
    write_bytes(tmp_path / "file", b"content")
    assert sorted(os.listdir(tmp_path)) == sorted(["file", ".file.tmp", names[0], names[2]])


def test_temporary_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "file").touch()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with temporary_folder(tmp_path) as another:
            assert another != folder
        assert folder.is_dir()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("how", "reason"), [("full", "File too large"), ("denied", "Permission denied")])
def test_failed_write_keeps_the_previous_content_and_leaves_nothing_behind(
    tmp_path: Path, how: str, reason: str
) -> None:
    folder = tmp_path / "folder"
    path = folder / "file"
    make_folder(folder)
    write_bytes(path, b"previous")
    if how == "denied":
        folder.chmod(0o555)
    said, _ = python(WRITE_ONCE, path, how).communicate(timeout=60)
    folder.chmod(0o755)
    assert len(said.splitlines()) == 2
    assert all(str(folder) in line and line.endswith(f": {reason}.") for line in said.splitlines())
    assert path.read_bytes() == b"previous"
    assert os.listdir(folder) == ["file"]


def test_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"previous")
    for folder, reason in (("file", "there is a file of that name"), ("file/deeper", "Not a directory")):
        expected = f"cannot make the directory {tmp_path / folder}: {reason}."
        for attempt in (make_folder, ensure_writable):
            with pytest.raises(KdtrainError) as caught:
                attempt(tmp_path / folder)
            assert str(caught.value) == expected
    assert (tmp_path / "file").read_bytes() == b"previous"


def test_folder_in_the_place_of_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "name"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(KdtrainError, match=r"cannot write .*name: Is a directory"):
        write_bytes(path, b"new")
    assert os.listdir(tmp_path) == ["name"]
    assert os.listdir(path) == ["inside"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"content")
        left = os.umask(mask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert left == mask, "the umask belongs to the whole process"


def test_ensure_writable_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a" / "b")
    ensure_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
