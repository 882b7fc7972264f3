"""The results of ``kdtrain tune``: trials, rungs, the best of each model, and their table and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdtrain.report.table import Column, Table
from kdtrain.store.record import Model

Value = int | float | str
"""A value in a trial: a number, or ``on`` or ``off``."""

VERSION = 1
FILE = "tune.json"
CAVEAT = (
    "These images have chosen the settings, so the figures are optimistic. The test set was not read: the "
    "comparison reads it."
)
"""What the figures of a search do not show."""

SHOWN = 3
"""Number of trials of each model in the table."""


@dataclass(frozen=True)
class RungScore:
    """A trial at the end of a rung, on the held-out images.

    Attributes:
        epochs: epochs trained so far.
        accuracy: accuracy after the last of them, fraction 0..1; mean over the seeds.
        cross_entropy: cross-entropy after the last of them, nats per image; mean over the seeds.
        accuracies: the accuracy of each seed.
        seconds: seconds of all epochs so far, summed over the seeds.
    """

    epochs: int
    accuracy: float
    cross_entropy: float
    accuracies: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class TunedTrial:
    """One trial: its values by name, and its scores, rung by rung."""

    number: int
    values: Mapping[str, Value]
    rungs: tuple[RungScore, ...] = ()


@dataclass(frozen=True, repr=False)
class TunedModel:
    """The trials of one model.

    Attributes:
        trials: by number.
        settings: the settings of a fit with the values of the best one.
    """

    trials: tuple[TunedTrial, ...]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<TunedModel {values_text(self.best.values)}, the best of {len(self.trials)} trials>"

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


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search.

    Attributes:
        budget: the text of --budget.
        searches: the texts of --search.
        seeds: number of seeds of each trial.
    """

    budget: str
    searches: tuple[str, ...] = ()
    seeds: int = 1


@dataclass(frozen=True, repr=False)
class Tuning:
    """A search, finished or under way.

    Attributes:
        settings: its settings.
        sizes: number of trials of each model that were begun in each rung.
        seconds: seconds that the search has taken.
        seconds_per_epoch: seconds that an epoch of a fit took in the last rung.
        last_epoch: the epoch at which the last rung ends, if not all of them end in time; None otherwise.
        note: sentences about an early end, and about a teacher behind the plain student; empty otherwise.
        models: the trials by model; empty before the first rung has ended.
        finished: whether the choice is final.
    """

    settings: SearchSettings
    sizes: tuple[int, ...] = ()
    seconds: float = 0.0
    seconds_per_epoch: float = 0.0
    last_epoch: int | None = None
    note: str = ""
    models: Mapping[Model, TunedModel] = field(default_factory=dict)
    finished: bool = False

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return (
            f"<Tuning of {', '.join(self.models) or 'no model yet'}, budget {self.settings.budget}, {state}>"
        )


def to_json(tuning: Tuning) -> dict[str, Any]:
    """Returns plain values for ``tune.json``, with units in the key names."""
    return {
        "version": VERSION,
        "finished": tuning.finished,
        "budget": tuning.settings.budget,
        "searches": list(tuning.settings.searches),
        "seeds": tuning.settings.seeds,
        "trials_of_rungs": list(tuning.sizes),
        "seconds": tuning.seconds,
        "seconds_per_epoch": tuning.seconds_per_epoch,
        "last_epoch": tuning.last_epoch,
        "note": tuning.note,
        "models": {model: _model(result) for model, result in tuning.models.items()},
    }


def _model(result: TunedModel) -> dict[str, Any]:
    return {
        "chosen": result.best.number,
        "settings": {name: _plain(value) for name, value in result.settings.items()},
        "trials": [
            {
                "number": trial.number,
                "values": dict(trial.values),
                "rungs": [
                    {
                        "epochs": rung.epochs,
                        "held_out_accuracy_fraction": rung.accuracy,
                        "held_out_cross_entropy_nats": rung.cross_entropy,
                        "held_out_accuracy_fractions_of_seeds": list(rung.accuracies),
                        "seconds": rung.seconds,
                    }
                    for rung in trial.rungs
                ],
            }
            for trial in result.trials
        ],
    }


def values_text(values: Mapping[str, Value]) -> str:
    """Returns ``"temperature=2, alpha=0.5, views=on"``."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in values.items()) or "no choice"


def tuning_table(tuning: Tuning) -> Table:
    """Returns the best trials of each model, and their values."""
    seeds = tuning.settings.seeds
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    table = Table(
        Column("model", words=True),
        Column("trial", drop=2),
        Column("values", words=True),
        Column("epochs", drop=3),
        Column("held-out\naccuracy %"),
        Column("cross-\nentropy", drop=1),
        title=f"Best trials, by held-out images{over}",
    )
    for position, (model, result) in enumerate(tuning.models.items()):
        if position:
            table.section()
        for trial in result.ranking[:SHOWN]:
            score = trial.rungs[-1]
            table.row(
                model,
                f"{trial.number}",
                values_text(trial.values),
                f"{score.epochs}",
                f"{100 * score.accuracy:.2f}",
                f"{score.cross_entropy:.4f}",
            )
    return table


def verdict(tuning: Tuning) -> str:
    """Returns a sentence with the best held-out accuracy of each model."""
    parts = [f"{model} {result.best.rungs[-1].accuracy:.2%}" for model, result in tuning.models.items()]
    trials = {len(result.trials) for result in tuning.models.values()}
    count = f"{min(trials)}" if len(trials) == 1 else f"{min(trials)} to {max(trials)}"
    return (
        f"Best held-out accuracy after {count} trial{'s' * (count != '1')} of each model: {', '.join(parts)}."
    )


def early_end_text(tuning: Tuning, ends: Sequence[int]) -> str:
    """Returns a sentence about the epochs that would not end in time; empty if all rungs do.

    Args:
        tuning: the search.
        ends: epochs at which the rungs of a search without a limit of time end.
    """
    last = tuning.last_epoch
    if last is None or last >= ends[-1]:
        return ""
    done = max((end for end in ends if end <= last), default=0)
    goal = min(end for end in ends if end > last)
    epochs = f"Epoch {goal}" if goal == done + 1 else f"Epochs {done + 1} to {goal}"
    rest = f"after epoch {last} are chosen" if last == done else f"are trained to epoch {last}"
    return f"{epochs} would not end within {tuning.settings.budget}: the best trials {rest}."


def behind_text(tuning: Tuning, accuracy: float | None) -> str:
    """Returns sentences about a teacher that is behind a plain student; empty if it is not known to be.

    Args:
        tuning: the search.
        accuracy: that of the teacher on held-out images, 0..1; None if it is unknown.
    """
    plain = tuning.models.get("student")
    if accuracy is None or plain is None:
        return ""
    best = max((trial.rungs[-1] for trial in plain.trials if trial.rungs), key=lambda rung: rung.accuracy)
    if best.accuracy <= accuracy:
        return ""
    epochs = f"{best.epochs} epoch{'s' * (best.epochs != 1)}"
    return (
        f"The teacher has {100 * accuracy:.2f} % of the held-out images, a plain student "
        f"{100 * best.accuracy:.2f} % after {epochs}: there is nothing to copy. Give a better teacher, by "
        "--teacher-epochs, --teacher-arch or --teacher-checkpoint."
    )


def value_text(value: Value) -> str:
    """Returns a value of a trial as text."""
    return value if isinstance(value, str) else f"{value:g}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
