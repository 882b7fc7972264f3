"""The file of a search that is resumed: each value is checked before anything is trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdtrain.errors import KdtrainError
from kdtrain.experiment.tuned import begun_tuning
from kdtrain.report.tuning import FILE, SearchSettings, Tuning, to_json

BEGUN = Tuning(SearchSettings("27", ("lr=1e-3..1e-2",), 2), (27, 9, 3), 12.5, 0.25, last_epoch=13)


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(to_json(BEGUN)))
    assert begun_tuning(tmp_path) == BEGUN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seeds", value) for value in (10**12, 101, 0, -3, math.inf, 2.5, True, "2", None, 10**400)),
        *(("trials_of_rungs", [value]) for value in (10**9, 1001, 0, -5, math.inf, 2.5, "4", True)),
        *(("trials_of_rungs", value) for value in ([1, 4], [4] * 4, [4] * 100_000, "44", 4, {"4": 4})),
        *(("seconds", value) for value in (-1.0, math.inf, math.nan, 10**400, "3", 1e300)),
        *(("seconds_per_epoch", value) for value in (-5.0, math.inf, math.nan, None)),
        *(("last_epoch", value) for value in (0, -1, 10**9, 2.5)),
        *(("budget", value) for value in ("1000000000", "infm", 27, [27])),
        *(("searches", value) for value in ("lr=1", [["lr=1"]], [1], ["lr=1"] * 1001)),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_value_that_no_search_has_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(to_json(BEGUN) | {name: value}))
    with pytest.raises(KdtrainError) as caught:
        begun_tuning(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / FILE} is damaged: {name}")
    assert message.endswith("Start a new search.")
    assert len(message) < 500


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    content = to_json(BEGUN)
    del content["seeds"]
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(KdtrainError, match="is damaged: it has no seeds"):
        begun_tuning(tmp_path)
