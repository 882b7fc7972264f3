"""Successive halving: rungs of epochs, the trials that go on, and the budget in trials or minutes.

Karnin, Koren, Somekh, "Almost Optimal Exploration in Multi-Armed Bandits" (2013); Jamieson, Talwalkar,
"Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016). A third of the trials goes
on here, as in Li et al., "Hyperband" (2018).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtrain.errors import UsageError, clipped
from kdtrain.runtime.limits import MOST_SECONDS, MOST_TRIALS
from kdtrain.store.search_record import RungScore

ETA = 3
"""The share of trials that goes on is 1 / ETA, and the next rung ends at ETA times as many epochs."""

DEFAULT_BUDGET = "27"


@dataclass(frozen=True)
class Budget:
    """The limit of a search.

    Attributes:
        trials: number of trials of each model; None if the time decides.
        seconds: time for everything, training of a teacher included; None without a limit.
    """

    trials: int | None = None
    seconds: float | None = None


def parse_budget(text: Any, name: str = "--budget") -> Budget:
    """Returns the budget that ``27`` (trials of each model) or ``20m`` (minutes) spells.

    Args:
        text: the text; a file may have another value in its place.
        name: beginning of the message of an error.

    Raises:
        UsageError: the text is neither, or out of range.
    """
    demand = f"it must be minutes, such as 20m, or a number of trials from 1 to {MOST_TRIALS:,}, such as 27"
    spelt = text if isinstance(text, str) else ""
    minutes = spelt.endswith("m")
    try:
        value = float(spelt[:-1]) if minutes else int(spelt)
    except ValueError:
        value = 0
    if not 0 < value <= (MOST_SECONDS / 60 if minutes else MOST_TRIALS):
        raise UsageError(f"{name} is {clipped(text, repr)}: {demand}.")
    return Budget(seconds=60.0 * value) if minutes else Budget(trials=int(value))


def rung_epochs(epochs: int) -> tuple[int, ...]:
    """Returns the epochs at which the rungs end: a ninth, a third and all of ``epochs``, each once."""
    ends = {max(1, round(epochs / ETA**2)), max(1, round(epochs / ETA)), epochs}
    return tuple(sorted(ends))


def rung_sizes(trials: int, rungs: int) -> list[int]:
    """Returns the number of trials of each rung: a third of those before, one at least."""
    sizes = [trials]
    while len(sizes) < rungs:
        sizes.append(max(1, sizes[-1] // ETA))
    return sizes


def best_first(scores: Mapping[int, RungScore]) -> list[int]:
    """Returns the numbers of trials, the best first.

    The highest accuracy is best, then the lowest cross-entropy, then the lowest number.
    """
    return sorted(scores, key=lambda number: (-scores[number].accuracy, scores[number].cross_entropy, number))


@dataclass(frozen=True)
class Pace:
    """The speed of fits that run side by side.

    Attributes:
        seconds: seconds that an epoch of one fit takes; 0 if it is not known yet.
        fits: number of fits of one trial: one of each model and seed.
        slots: number of fits that run at the same time.
    """

    seconds: float
    fits: int
    slots: int

    def rung_seconds(self, trials: int, epochs: int) -> float:
        """Returns the seconds that so many trials of every model take for so many epochs."""
        return math.ceil(trials * self.fits / self.slots) * epochs * self.seconds

    def measured(self, seconds: float, fits: int, epochs: int) -> Pace:
        """Returns the pace at which so many fits took so many seconds for so many epochs each."""
        turns = math.ceil(fits / self.slots) * epochs
        return dataclasses.replace(self, seconds=seconds / turns) if turns else self


def affordable_trials(most: int, ends: Sequence[int], begun: int, seconds: float, pace: Pace) -> int:
    """Returns the largest number of trials for the next rung with which all rungs fit into the time.

    Args:
        most: the number that is wanted.
        ends: epochs at which the remaining rungs end.
        begun: epochs that these trials have behind them.
        seconds: time that is left.
        pace: the speed.

    Returns:
        0 if a single trial cannot finish the next rung.
    """
    steps = [end - start for start, end in itertools.pairwise((begun, *ends))]
    if pace.rung_seconds(1, steps[0]) > seconds:
        return 0

    def fits(trials: int) -> bool:
        sizes = rung_sizes(trials, len(steps))
        return sum(map(pace.rung_seconds, sizes, steps)) <= seconds

    return next((trials for trials in range(most, 1, -1) if fits(trials)), 1)
