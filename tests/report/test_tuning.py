"""The table and the sentence of `kdtrain tune`."""

from __future__ import annotations

import io

from rich.console import Console

from kdtrain.report.tuning import SHOWN, tuning_table, verdict
from kdtrain.store.search_record import RungScore, TunedModel, TunedTrial, Tuning

VALUES: dict[str, int | float | str] = {
    "temperature": 2.01,
    "alpha": 0.739,
    "lr": 0.00846,
    "weight_decay": 0.00893,
    "views": "off",
    "dkd.beta": 3.5,
    "dkd.warmup": 12,
}


def trial(number: int, *accuracies: float) -> TunedTrial:
    ends = (7, 20, 60)
    rungs = tuple(
        RungScore(ends[i], accuracy, 0.0432, (accuracy,), 9.0) for i, accuracy in enumerate(accuracies)
    )
    return TunedTrial(number, VALUES, rungs)


def a_tuning() -> Tuning:
    trials = (
        trial(0, 0.9),
        trial(1, 0.95, 0.97, 0.981),
        trial(2, 0.96, 0.98),
        trial(3),
        trial(4, 0.94, 0.96),
    )
    students = (trial(0, 0.99), trial(1, 0.9, 0.98, 0.98))
    return Tuning(
        budget="5",
        seeds=1,
        students={"student_kd": TunedModel(trials, {}), "student": TunedModel(students, {})},
    )


def test_the_best_of_the_last_rung_is_chosen_even_if_an_earlier_score_was_higher() -> None:
    models = a_tuning().students
    assert [trial.number for trial in models["student_kd"].ranking] == [1, 2, 4, 0]
    assert models["student"].best.number == 1


def test_the_table_fits_80_columns_and_shows_all_values_of_the_best() -> None:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    console.print(tuning_table(a_tuning()))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    assert text.count("dkd.warmup=12") == SHOWN + 2
    assert "98.10" in text


def test_the_sentence_names_each_students_best_and_the_number_of_trials() -> None:
    text = verdict(a_tuning())
    assert text.startswith("Best held-out accuracy after 2 to 5 trials of each model: student_kd 98.10%, ")
    assert "student 98.00%" in text
