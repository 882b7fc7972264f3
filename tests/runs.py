"""Comparison of two runs, in all but times and paths."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboardX.proto.event_pb2 import Event

from kdtrain.store.checkpoint import load_tensors
from tests.tools import Scalars, read_result, read_scalars

TIMES = {"images_per_second", "train_seconds", "eval_seconds"}
_COMPARED_BY_RUN = ("best.safetensors", "last.safetensors")
_EVENTS = re.compile(r"events\.out\.tfevents\.\d+\.[^.]+\.\d+")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl, without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def curves(run: Path) -> Scalars:
    """Returns TensorBoard's curves, without times."""
    return {tag: points for tag, points in read_scalars(run).items() if tag != "images_per_second"}


def assert_same_run(first: Path, second: Path) -> None:
    """Asserts that two runs differ in times and paths only."""
    assert metrics(first) == metrics(second)
    assert curves(first) == curves(second)
    throughput = [set(read_scalars(run)["images_per_second"]) for run in (first, second)]
    assert throughput[0] == throughput[1]
    for name in ("best", "last"):
        files = [run / f"checkpoints/{name}.safetensors" for run in (first, second)]
        assert_same_tensors(*files)
        header, expected = (load_tensors(file)[1] for file in files)
        for entry in ("metrics", "optimizer", "data"):
            assert header.get(entry) == expected.get(entry)
        assert _callback_states(header) == _callback_states(expected)
    result, expected = read_result(first), read_result(second)
    for entry in ("status", "reason", "epochs", "steps", "test", "best"):
        assert result.get(entry) == expected.get(entry)


def assert_same_tensors(first: Path, second: Path) -> None:
    """Asserts that two files of tensors hold the same, bit for bit."""
    (tensors, _), (expected, _) = load_tensors(first), load_tensors(second)
    assert tensors.keys() == expected.keys()
    assert [name for name, array in tensors.items() if not np.array_equal(array, expected[name])] == []


def _callback_states(header: dict[str, Any]) -> dict[str, Any]:
    return {name: state for name, state in header.get("callbacks", {}).items() if state}


def count_points(run: Path) -> dict[tuple[str, int], int]:
    """Returns how often each point of each curve, each image and each histogram is in the event files."""
    points: dict[tuple[str, int], int] = {}
    for file in run.glob("events.*"):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if any(map(value.HasField, ("simple_value", "image", "histo"))):
                    points[value.tag, event.step] = points.get((value.tag, event.step), 0) + 1
    return points


def assert_same_files(first: Path, second: Path) -> None:
    """Asserts that two folders with runs hold the same files, which differ in times and paths only."""
    assert _lasting(first) == _lasting(second)
    for name in _lasting(first):
        file, expected = first / name, second / name
        if name.name == "metrics.jsonl":
            assert_same_run(file.parent, expected.parent)
            assert set(count_points(file.parent).values()) == {1}, f"{file.parent}: a point twice"
        elif name.name == "compare.json":
            contents = [_without_times(json.loads(path.read_text())) for path in (file, expected)]
            assert contents[0] == contents[1]
        elif name.name == "metrics.csv":
            assert _table(file) == _table(expected)
        elif name.name == "config.toml":
            assert _without_place(file, first) == _without_place(expected, second), f"{name} differs"
        elif name.name not in _COMPARED_BY_RUN and name.suffix in (".png", ".safetensors"):
            assert file.read_bytes() == expected.read_bytes(), f"{name} differs"


def _without_place(config: Path, logs: Path) -> str:
    """Returns a configuration's text; its paths are absolute, and start with the folder of ``logs``."""
    return config.read_text().replace(str(logs.parent), "FOLDER")


def _without_times(value: Any) -> Any:
    """Returns a value of JSON without its durations."""
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if "seconds" not in key}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _table(file: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(file.open(newline="")))
    return [{name: text for name, text in row.items() if name not in TIMES} for row in rows]


def _lasting(folder: Path) -> list[Path]:
    """Returns the files by name; the names of TensorBoard's, which hold a time, are shortened."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(file.with_name(_EVENTS.sub("events", file.name)) for file in files)
