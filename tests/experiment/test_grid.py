"""The grid of --grid: its values, their combinations, and the choice of the best."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.errors import UsageError
from kdtrain.experiment.grid import choose, combinations, parse_grid
from kdtrain.report.grid_result import Candidate, settings_text

VALUES = st.lists(st.floats(0.001, 100), min_size=1, max_size=4)
GRIDS = st.dictionaries(st.sampled_from(["temperature", "alpha", "lr"]), VALUES)


@given(GRIDS)
def test_a_grid_is_parsed_to_its_values(grid: dict[str, list[float]]) -> None:
    specs = [f"{name}={','.join(map(repr, values))}" for name, values in grid.items()]
    assert parse_grid(specs) == {name: tuple(dict.fromkeys(values)) for name, values in grid.items()}


@given(GRIDS)
def test_each_combination_occurs_once(grid: dict[str, list[float]]) -> None:
    distinct = {name: list(dict.fromkeys(values)) for name, values in grid.items()}
    values = [tuple(settings.values()) for settings in combinations(distinct)]
    assert values == list(itertools.product(*distinct.values()))
    texts = [settings_text(settings) for settings in combinations(distinct)]
    assert len(set(texts)) == len(texts)


def test_settings_are_spelt_as_on_the_command_line() -> None:
    settings = {"temperature": 2.0, "alpha": 0.5, "lr": 1e-05}
    assert settings_text(settings) == "temperature=2,alpha=0.5,lr=1e-05"


@given(st.text())
def test_any_text_is_parsed_or_refused(spec: str) -> None:
    with contextlib.suppress(UsageError):
        assert all(map(all, parse_grid([spec])))


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.90, 0.1), (0.95, 0.9), (0.94, 0.0)], 1),
        ([(0.95, 0.3), (0.95, 0.2), (0.90, 0.1)], 1),
        ([(0.95, 0.2), (0.95, 0.2)], 0),
    ],
)
def test_accuracy_decides_then_cross_entropy_then_order(
    figures: list[tuple[float, float]], best: int
) -> None:
    candidates = [Candidate({"alpha": 0.5}, *pair, "") for pair in figures]
    assert choose(candidates).best is candidates[best]
