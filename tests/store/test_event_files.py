"""Damaged and foreign event files in the directory of a resumed run."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from tensorboardX.record_writer import masked_crc32c

from kdtrain.errors import KdtrainError
from kdtrain.store.event_file import EventFile
from tests.faults.limits import limited

NAME = "events.out.tfevents.1.host.1"


def record(data: bytes, claimed: int | None = None) -> bytes:
    length = struct.pack("<Q", len(data) if claimed is None else claimed)
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checks[0] + data + checks[1]


HARMLESS = {
    "empty": b"",
    "text": b"no record" * 1000,
    "zeros": bytes(1_000_000),
    "cut off": record(b"\x0a" * 100)[:-50],
    "a record of 1 TB": record(b"", claimed=1 << 40),
    "a record of 2^64 - 1 bytes": record(b"", claimed=2**64 - 1),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_is_no_record_is_left_out(tmp_path: Path, kind: str) -> None:
    (tmp_path / NAME).write_bytes(HARMLESS[kind])
    with limited(10, 100):
        file = EventFile(tmp_path, up_to=10)
        file.close()
    assert file.earlier == set()
    assert not (tmp_path / NAME).exists()


def test_a_record_that_is_no_event_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    content = record(b"\xff" * 100)
    (tmp_path / NAME).write_bytes(content)
    with limited(10, 100), pytest.raises(KdtrainError, match=str(tmp_path / NAME)):
        EventFile(tmp_path, up_to=10)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_file_far_larger_than_any_run_writes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    os.truncate(tmp_path / NAME, 1 << 40)
    with limited(10, 100), pytest.raises(KdtrainError, match=f"{tmp_path / NAME} cannot be read: it holds"):
        EventFile(tmp_path, up_to=10)
