"""Files are downloaded once, whole and checked; errors name mirror, file, reason and remedy."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdtrain.data import download as download_module
from kdtrain.data.download import default_cache_dir, download
from kdtrain.errors import DataError
from kdtrain.runtime.console import log_to_stderr
from tests.mirror import Mirror, closed_address, serving, try_once

FILES = {"first.gz": bytes(range(256)) * 300, "second.gz": b"short"}
SHA256 = {name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    try_once(monkeypatch)
    with serving(FILES) as mirror:
        yield mirror


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder"


def fetch(folder: Path, *mirrors: str) -> None:
    download("stripes", SHA256, mirrors, folder)


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_missing_files_are_downloaded_and_others_stay(
    mirror: Mirror, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(folder, mirror.address)
    assert stored(folder) == FILES
    assert (folder / "first.gz").stat().st_mode & 0o777 == 0o644
    assert capsys.readouterr() == ("", "")  # stdout is for answers; without a handler there are no notes
    (folder / "first.gz").write_bytes(b"of an earlier version")
    (folder / "second.gz").unlink()
    mirror.requested.clear()
    fetch(folder, mirror.address)
    assert mirror.requested == ["second.gz"]
    assert stored(folder) == FILES | {"first.gz": b"of an earlier version"}


FAULTS: dict[str, tuple[Callable[[Mirror], object], str]] = {
    "cut": (lambda mirror: mirror.cut.add("second.gz"), "incomplete or damaged"),
    "wrong": (lambda mirror: mirror.files.update({"second.gz": b"other"}), "incomplete or damaged"),
    "absent": (lambda mirror: mirror.files.pop("second.gz"), "404"),
    "silent": (lambda mirror: setattr(mirror, "halfway", mirror.ended.wait), "timed out"),
    "closed": (lambda mirror: None, "Connection refused"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_next_mirror_is_tried_where_one_fails(fault: str, mirror: Mirror, folder: Path) -> None:
    spoil, reason = FAULTS[fault]
    spoil(mirror)
    address = closed_address() if fault == "closed" else mirror.address
    with pytest.raises(DataError) as caught:
        fetch(folder, address)
    for part in ("stripes", address, reason, *FILES, "--data-dir"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    arrived = stored(folder)
    assert arrived.items() <= FILES.items()  # whole files only
    with serving(FILES) as second:
        fetch(folder, address, second.address)
        assert second.requested == [name for name in FILES if name not in arrived]
    assert stored(folder) == FILES


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_address_and_a_bar(
    mirror: Mirror, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with log_to_stderr():
        fetch(folder, mirror.address)
    assert f"{mirror.address}first.gz\n" in terminal.getvalue()
    assert "/76.8k" in terminal.getvalue()


def test_a_file_that_arrives_damaged_is_fetched_again(
    mirror: Mirror, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_RETRIES", 1)
    mirror.cut.add("first.gz")
    mirror.halfway = lambda: mirror.cut.clear() if len(mirror.requested) > 1 else None
    fetch(folder, mirror.address)
    assert mirror.requested == ["first.gz", "first.gz", "second.gz"]


def test_an_interrupted_download_leaves_no_part_of_a_file(mirror: Mirror, folder: Path) -> None:
    mirror.halfway = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fetch(folder, mirror.address)
    assert stored(folder) == {}


def test_two_downloads_at_once_both_succeed(mirror: Mirror, folder: Path) -> None:
    mirror.halfway = lambda: [(folder / name).write_bytes(body) for name, body in FILES.items()]
    fetch(folder, mirror.address)
    assert stored(folder) == FILES


def test_a_folder_that_cannot_be_written_is_named(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=rf"{tmp_path}/file.*XDG_CACHE_HOME"):
        fetch(tmp_path / "file", mirror.address)


def test_downloads_go_to_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/elsewhere")
    assert default_cache_dir() == Path("/var/elsewhere/kdtrain")
    for unusable in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert default_cache_dir() == Path("/home/somebody/.cache/kdtrain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path("/home/somebody/.cache/kdtrain")
