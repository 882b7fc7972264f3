"""The grid of --grid: its values, their combinations, and the choice of the best."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.report.grid_result import Candidate, GridResult, Settings

EXAMPLES = {
    "temperature": "temperature=2,4,8",
    "alpha": "alpha=0.5,0.9",
    "lr": "lr=0.001,0.003",
}
"""An example for each setting of a grid. None of them changes a student's size or its budget."""


def parse_grid(specs: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Returns the values to try, by setting, from texts such as ``alpha=.5,.7,.9``.

    Raises:
        UsageError: a setting is unknown or given twice, or has no values or one that is not a number.
    """
    grid: dict[str, tuple[float, ...]] = {}
    for spec in specs:
        name, _, values = spec.partition("=")
        if name not in EXAMPLES:
            raise UsageError(f"--grid {spec}: {unknown_name_message('setting to choose', name, EXAMPLES)}")
        if name in grid:
            raise UsageError(f"--grid {spec}: {name} has its values already.")
        if not values:
            raise UsageError(f"--grid {spec}: give values, such as {EXAMPLES[name]}.")
        grid[name] = tuple(dict.fromkeys(_number(word, spec) for word in values.split(",")))
    return grid


def combinations(grid: Mapping[str, Sequence[float]]) -> list[Settings]:
    """Returns all combinations of a grid's values; an empty grid has one, without settings."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def choose(candidates: Sequence[Candidate]) -> GridResult:
    """Chooses the highest held-out accuracy, then the lowest cross-entropy, then the first candidate."""
    best = min(candidates, key=lambda candidate: (-candidate.accuracy, candidate.cross_entropy))
    return GridResult(tuple(candidates), best)


def _number(word: str, spec: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"--grid {spec}: {word!r} is not a number.") from None
