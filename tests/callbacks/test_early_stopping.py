"""Early stopping and the monitor that it shares with Checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kdtrain import EarlyStopping, EvalEnd, UsageError
from kdtrain.callbacks.early_stopping import Monitor


def _epochs_until_stop(callback: EarlyStopping, values: Sequence[float]) -> int | None:
    reasons: list[str] = []
    run: Any = SimpleNamespace(stop=reasons.append)
    for epoch, value in enumerate(values, start=1):
        callback.on_eval(run, EvalEnd(epoch, epoch, {"val/accuracy": value}, 0.0))
        if reasons:
            return epoch
    return None


@pytest.mark.parametrize(
    ("options", "values", "stops_after"),
    [
        ({"patience": 1}, [0.5, 0.6, 0.6], 3),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.6, 0.5], 5),
        ({"patience": 2}, [0.1, 0.2, 0.3, 0.4], None),
        ({"patience": 2, "min_delta": 0.2}, [0.5, 0.6, 0.65], 3),
        ({"patience": 2, "min_delta": 0.2}, [0.5, 0.6, 0.75, 0.8], None),
        ({"patience": 1, "mode": "min"}, [3.0, 2.0, 2.5], 3),
        ({"patience": 2}, [math.nan, math.nan, 0.5], 2),
        ({"patience": 2}, [math.nan, 0.5, 0.6], None),
    ],
)
def test_it_stops_after_patience_epochs_without_improvement(
    options: dict[str, Any], values: list[float], stops_after: int | None
) -> None:
    assert _epochs_until_stop(EarlyStopping(**options), values) == stops_after


def test_its_state_goes_on_in_another_instance() -> None:
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    assert _epochs_until_stop(first, [0.5, 0.4]) is None
    second.load_state_dict(first.state_dict())
    assert _epochs_until_stop(second, [0.5, 0.5]) == 2


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="patience 0"):
        EarlyStopping(patience=0)
    with pytest.raises(UsageError, match="min_delta -1"):
        EarlyStopping(min_delta=-1)
    with pytest.raises(UsageError, match="'maximum'"):
        Monitor("val/accuracy", "maximum")  # type: ignore[arg-type]
