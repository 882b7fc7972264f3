"""The file of a search that is resumed: each value is checked before anything is trained."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from kdtrain.errors import KdtrainError
from kdtrain.experiment.tune.search import begun_search
from kdtrain.store.record import SEARCH, plain, write_record
from kdtrain.store.search_record import Tuning

BEGUN = Tuning(
    budget="27",
    searches=("lr=1e-3..1e-2",),
    seeds=2,
    sizes=(27, 9, 3),
    seconds=12.5,
    seconds_per_epoch=0.25,
    last_epoch=13,
)


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path, BEGUN)
    assert begun_search(tmp_path) == BEGUN


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
    text = json.dumps(plain(BEGUN) | {name: value})
    (tmp_path / SEARCH).write_text(text)
    with pytest.raises(KdtrainError) as caught:
        begun_search(tmp_path)
    message = str(caught.value)
    named = "JSON is malformed" if re.search(r"\b(Infinity|NaN)\b", text) else name  # JSON has no such number
    assert message.startswith(f"{tmp_path / SEARCH} is damaged: {named}")
    assert message.endswith("Start a new search.")
    assert len(message) < 500


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    content = plain(BEGUN)
    del content["seeds"]
    (tmp_path / SEARCH).write_text(json.dumps(content))
    with pytest.raises(KdtrainError, match="is damaged: it has no seeds"):
        begun_search(tmp_path)
