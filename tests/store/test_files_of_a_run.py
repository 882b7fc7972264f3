"""The rows and events of a run are read back; damage in them is left out, or an error names the place."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboardX.record_writer import masked_crc32c

from kdtrain.errors import KdtrainError
from kdtrain.runtime.limits import MOST_EPOCHS
from kdtrain.store.event_file import EventFile
from kdtrain.store.metrics_file import NAME, read_metrics
from tests.faults.limits import limited

EVENTS = "events.out.tfevents.1.host.1"
ROW = {"epoch": 1, "step": 8, "val/accuracy": 0.5, "val/cross_entropy": 1, "loss/kd": float("nan")}
ROW |= {"train_seconds": 0.1, "eval_seconds": 0.0}


def line(**changes: object) -> str:
    return json.dumps({**ROW, **changes})


def test_rows_come_back(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / NAME).write_text(line() + "\n" + line(epoch=2) + "\n")
    rows = read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert json.dumps(rows[0]) == line()


WRONG = {
    "no JSON": "epoch 2",
    "a part": line()[:40],
    "blank": "",
    "a list": "[1]",
    "a number": "7",
    "null": "null",
    "empty": "{}",
    "no step": json.dumps({name: value for name, value in ROW.items() if name != "step"}),
    "no seconds": json.dumps({name: value for name, value in ROW.items() if name != "eval_seconds"}),
    "epoch a text": line(epoch="2"),
    "epoch a half": line(epoch=1.5),
    "epoch true": line(epoch=True),
    "epoch null": line(epoch=None),
    "epoch negative": line(epoch=-1),
    "epoch enormous": line(epoch=10**40),
    "epoch of 5,000 digits": line(epoch=1).replace("1", "1" * 5000, 1),
    "accuracy NaN": line(**{"val/accuracy": float("nan")}),
    "accuracy infinite": line(**{"val/accuracy": float("inf")}),
    "accuracy a list": line(**{"val/accuracy": [[]] * 1000}),
    "seconds negative": line(train_seconds=-1.0),
    "seconds enormous": line(train_seconds=10**400),
    "nested": "[" * 50_000,
    "long": line(x="x" * 100_000),
    "escapes": line(epoch="\x1b[2J"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_file_and_line_are_named(tmp_path: Path, fault: str) -> None:
    (tmp_path / NAME).write_text(f"{line()}\n{WRONG[fault]}\n{line(epoch=3)}\n")
    with limited(10, 100), pytest.raises(KdtrainError) as caught:
        read_metrics(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / NAME} is damaged, line 2: ")
    assert "move it away" in text
    assert len(text) < len(str(tmp_path)) + 250
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"\xff" * 100),
        lambda file: file.write_text("{}\n" * (MOST_EPOCHS + 1)),
        lambda file: os.truncate(file, 1 << 40),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    (tmp_path / NAME).touch()
    spoil(tmp_path / NAME)
    with limited(10, 100), pytest.raises(KdtrainError, match="cannot be read"):
        read_metrics(tmp_path)


# Event files


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
    (tmp_path / EVENTS).write_bytes(HARMLESS[kind])
    with limited(10, 100):
        file = EventFile(tmp_path, up_to=10)
        file.close()
    assert file.earlier == set()
    assert not (tmp_path / EVENTS).exists()


def test_a_record_that_is_no_event_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    content = record(b"\xff" * 100)
    (tmp_path / EVENTS).write_bytes(content)
    with limited(10, 100), pytest.raises(KdtrainError, match=str(tmp_path / EVENTS)):
        EventFile(tmp_path, up_to=10)
    assert (tmp_path / EVENTS).read_bytes() == content


def test_a_file_far_larger_than_any_run_writes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / EVENTS).touch()
    os.truncate(tmp_path / EVENTS, 1 << 40)
    with limited(10, 100), pytest.raises(KdtrainError, match=f"{tmp_path / EVENTS} cannot be read: it holds"):
        EventFile(tmp_path, up_to=10)
