"""The record of a search of settings on disk, ``tune.json``: its trials, and the settings that it chose."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, field

from kdtrain.runtime.limits import MOST_EPOCHS, MOST_TRIALS
from kdtrain.store.conditions import Count
from kdtrain.store.record import SEARCH, Model, RunRecord, Seconds

Value = int | float | str
"""A value in a trial: a number, or ``on`` or ``off``."""


class RungScore(msgspec.Struct, frozen=True):
    """A trial at the end of a rung, on the held-out images.

    Attributes:
        epochs: epochs trained so far.
        accuracy: accuracy after the last of them, fraction 0..1; mean over the seeds.
        cross_entropy: cross-entropy after the last of them, nats per image; mean over the seeds.
        accuracies: the accuracy of each seed.
        seconds: seconds of all epochs so far, summed over the seeds.
    """

    epochs: Count
    accuracy: float = field(name="held_out_accuracy_fraction")
    cross_entropy: float = field(name="held_out_cross_entropy_nats")
    accuracies: tuple[float, ...] = field(name="held_out_accuracy_fractions_of_seeds")
    seconds: float


class TunedTrial(msgspec.Struct, frozen=True):
    """One trial: its values by name, and its scores, rung by rung."""

    number: Count
    values: dict[str, Value]
    rungs: tuple[RungScore, ...] = ()


class TunedModel(msgspec.Struct, frozen=True):
    """The trials of one model.

    Attributes:
        trials: by number.
        settings: the settings of a fit with the values of the best one.
        chosen: the number of the best one.
    """

    trials: tuple[TunedTrial, ...]
    settings: dict[str, Any] = {}
    chosen: Count = 0

    @property
    def best(self) -> TunedTrial:
        """The trial that is chosen."""
        return self.ranking[0]

    @property
    def ranking(self) -> list[TunedTrial]:
        """The trials with the most epochs first, and of equal ones the best. Failed ones are left out."""
        return sorted(
            (trial for trial in self.trials if trial.rungs),
            key=lambda trial: (
                -trial.rungs[-1].epochs,
                -trial.rungs[-1].accuracy,
                trial.rungs[-1].cross_entropy,
                trial.number,
            ),
        )


class Tuning(RunRecord, frozen=True, kw_only=True, tag="search"):
    """The record of a search, finished or under way.

    Attributes:
        budget: the text of --budget.
        searches: the texts of --search.
        seeds: number of seeds of each trial.
        sizes: number of trials of each model that were begun in each rung.
        seconds: seconds that the search has taken.
        seconds_per_epoch: seconds that an epoch of a fit took in the last rung.
        last_epoch: the epoch at which the last rung ends, if not all of them end in time; None otherwise.
        note: sentences about an early end, and about a teacher behind the plain student; empty otherwise.
        finished: whether the choice is final.
        students: the trials by model; empty before the first rung has ended.
    """

    FILE: ClassVar[str] = SEARCH

    budget: str
    searches: Annotated[tuple[str, ...], Meta(max_length=MOST_TRIALS)] = ()
    seeds: Annotated[int, Meta(ge=1, le=100)]
    sizes: Annotated[tuple[Annotated[int, Meta(ge=1, le=MOST_TRIALS)], ...], Meta(max_length=3)] = field(
        name="trials_of_rungs", default=()
    )
    seconds: Seconds = 0.0
    seconds_per_epoch: Seconds = 0.0
    last_epoch: Annotated[int, Meta(ge=1, le=MOST_EPOCHS)] | None = None
    note: str = ""
    finished: bool = False
    students: dict[Model, TunedModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if list(self.sizes) != sorted(self.sizes, reverse=True):
            raise ValueError(f"trials_of_rungs is {list(self.sizes)}: it must not rise")

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"<Tuning of {', '.join(self.students) or 'no model yet'}, budget {self.budget}, {state}>"
