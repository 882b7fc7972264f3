"""The report of ``kdtrain tune``: the table of the best trials, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdtrain.report.table import Column, Table
from kdtrain.store.search_record import Tuning, Value

CAVEAT = (
    "These images have chosen the settings, so the figures are optimistic. The test set was not read: the "
    "comparison reads it."
)
"""What the figures of a search do not show."""

SHOWN = 3
"""Number of trials of each model in the table."""


def values_text(values: Mapping[str, Value]) -> str:
    """Returns ``"temperature=2, alpha=0.5, views=on"``."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in values.items()) or "no choice"


def tuning_table(tuning: Tuning) -> Table:
    """Returns the best trials of each model, and their values."""
    seeds = tuning.seeds
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
    for position, (model, result) in enumerate(tuning.students.items()):
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
    parts = [f"{model} {result.best.rungs[-1].accuracy:.2%}" for model, result in tuning.students.items()]
    trials = {len(result.trials) for result in tuning.students.values()}
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
    return f"{epochs} would not end within {tuning.budget}: the best trials {rest}."


def behind_text(tuning: Tuning, accuracy: float | None) -> str:
    """Returns sentences about a teacher that is behind a plain student; empty if it is not known to be.

    Args:
        tuning: the search.
        accuracy: that of the teacher on held-out images, 0..1; None if it is unknown.
    """
    plain = tuning.students.get("student")
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
