"""When two runs are the same but for times and places."""

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
from tests.tools import Scalars, read_scalars

TIMES = {"images_per_second", "train_seconds", "eval_seconds"}
_COMPARED_BY_RUN = ("best.safetensors", "last.safetensors")
_EVENTS = re.compile(r"events\.out\.tfevents\.\d+\.[^.]+\.\d+")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def curves(run: Path) -> Scalars:
    """What TensorBoard draws, without times."""
    return {tag: points for tag, points in read_scalars(run).items() if tag != "images_per_second"}


def assert_same_run(first: Path, second: Path) -> None:
    """Asserts that nothing tells two runs apart but times and places."""
    assert metrics(first) == metrics(second)
    assert curves(first) == curves(second)
    throughput = [set(read_scalars(run)["images_per_second"]) for run in (first, second)]
    assert throughput[0] == throughput[1]
    for name in ("best", "last"):
        (ours, header), (theirs, expected) = (
            load_tensors(run / f"checkpoints/{name}.safetensors") for run in (first, second)
        )
        assert ours.keys() == theirs.keys()
        assert [key for key, array in ours.items() if not np.array_equal(array, theirs[key])] == []
        for entry in ("metrics", "optimizer", "data"):
            assert header.get(entry) == expected.get(entry)
        states = [one.get("callbacks", {}) for one in (header, expected)]
        states = [{name: state for name, state in one.items() if state} for one in states]
        assert states[0] == states[1]
    results = [json.loads((run / "result.json").read_text()) for run in (first, second)]
    for entry in ("status", "reason", "epochs", "steps"):
        assert results[0][entry] == results[1][entry]
    for entry in ("test", "best"):  # those of a grid that lost are not tested
        assert results[0].get(entry) == results[1].get(entry)


def count_points(run: Path) -> dict[tuple[str, int], int]:
    """How often each point of each curve, and each picture, is in the event files."""
    points: dict[tuple[str, int], int] = {}
    for file in run.glob("events.*"):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("simple_value") or value.HasField("image"):
                    points[value.tag, event.step] = points.get((value.tag, event.step), 0) + 1
    return points


def assert_same_files(first: Path, second: Path) -> None:
    """Asserts that two folders with runs hold the same files, the same but for times and places."""
    assert _lasting(first) == _lasting(second)
    for name in _lasting(first):
        ours, theirs = first / name, second / name
        if name.name == "metrics.jsonl":
            assert_same_run(ours.parent, theirs.parent)
            assert set(count_points(ours.parent).values()) == {1}, f"{ours.parent}: a point twice"
        elif name.name == "compare.json":
            assert _without_times(json.loads(ours.read_text())) == _without_times(
                json.loads(theirs.read_text())
            )
        elif name.name == "metrics.csv":
            assert _table(ours) == _table(theirs)
        elif name.name == "config.toml":
            assert _without_place(ours, first) == _without_place(theirs, second), f"{name} differs"
        elif name.name not in _COMPARED_BY_RUN and name.suffix in (".png", ".safetensors"):
            assert ours.read_bytes() == theirs.read_bytes(), f"{name} differs"


def _without_place(config: Path, logs: Path) -> str:
    """Returns a configuration's text; its paths are absolute, and start with the folder of ``logs``."""
    return config.read_text().replace(str(logs.parent), "FOLDER")


def _without_times(value: Any) -> Any:
    """Returns a value of JSON without what tells how long something took."""
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if "seconds" not in key}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _table(file: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(file.open(newline="")))
    return [{name: text for name, text in row.items() if name not in TIMES} for row in rows]


def _lasting(folder: Path) -> list[Path]:
    """The files by name; those of TensorBoard, whose names tell when they were written, by their suffix."""
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(file.with_name(_EVENTS.sub("events", file.name)) for file in files)
