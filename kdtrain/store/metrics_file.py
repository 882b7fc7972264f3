"""``metrics.jsonl``: a line of JSON with the figures of each epoch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdtrain.errors import KdtrainError, os_reason
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime.limits import MOST_EPOCHS
from kdtrain.runtime.regular_files import read_text

NAME = "metrics.jsonl"

_LARGEST = 256 << 20  # bytes; a line has 300 to 1000
_LONGEST = 1 << 16  # characters of a line
_WHOLE = ("epoch", "step")
_NUMBERS = (ACCURACY, CROSS_ENTROPY, "train_seconds", "eval_seconds")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's file; none if there is no file. Old names are replaced by current ones.

    Raises:
        KdtrainError: the file cannot be read, or a line is no such row; the text names file and line.
    """
    file = directory / NAME
    remedy = "Fix it, or move it away."
    try:
        lines = read_text(file, _LARGEST).splitlines()
        if len(lines) > MOST_EPOCHS:
            raise ValueError(f"it has {len(lines):,} lines, and should have at most {MOST_EPOCHS:,}")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise KdtrainError(f"{file} cannot be read: {os_reason(error)}. {remedy}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(line))
        except (ValueError, RecursionError) as error:
            raise KdtrainError(f"{file} is damaged, line {number}: {error}. {remedy}") from error
    return rows


def training_seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    """Returns the training time of a run: the seconds of its epochs, to a thousandth.

    An epoch is its training steps and the evaluation of the held-out images. Callbacks, the reading of
    data, the teacher's outputs and the test are not part of it. Epochs before a resumption are.
    """
    return float(round(sum(row["train_seconds"] + row["eval_seconds"] for row in rows), 3))


def _row(line: str) -> dict[str, Any]:
    """Returns the figures in a line.

    Raises:
        ValueError: the line is no JSON object with the figures of an epoch.
    """
    if len(line) > _LONGEST:
        raise ValueError(f"it has {len(line):,} characters, and should have at most {_LONGEST:,}")
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    for name in (*_WHOLE, *_NUMBERS):
        if name not in row:
            raise ValueError(f"it has no {name}")
        kinds, most = ((int,), 2**63 - 1) if name in _WHOLE else ((int, float), sys.float_info.max)
        if type(row[name]) not in kinds or not 0 <= row[name] <= most:
            raise ValueError(f"{name} is {json.dumps(row[name])[:40]}")
    return row
