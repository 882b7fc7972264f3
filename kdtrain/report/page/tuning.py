"""``report.html`` of a search: every trial of every student as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtrain.report.page.charts import Curves, curves
from kdtrain.report.page.render import page_environment
from kdtrain.report.tuning import CAVEAT, value_text, verdict
from kdtrain.runtime.files import write_text
from kdtrain.store.record import plain
from kdtrain.store.search_record import Tuning


def write_tuning_page(directory: Path, tuning: Tuning, *, dataset: str, settings: str, command: str) -> None:
    """Writes ``report.html`` of a search.

    Args:
        directory: the search's directory.
        tuning: its result.
        dataset: name of the data set.
        settings: the settings that were chosen (TOML), shown as text.
        command: the command that uses them.

    Raises:
        KdtrainError: the page cannot be written.
    """
    figures = plain(tuning)
    template = page_environment(figures).get_template("tuning.html")
    text = template.render(
        figures=figures,
        verdict=verdict(tuning),
        caveat=CAVEAT,
        dataset=dataset,
        charts={model: _chart(model, result["trials"]) for model, result in figures["students"].items()},
        ends=sorted({rung["epochs"] for trial in _trials(figures) for rung in trial["rungs"]}),
        value_text=value_text,
        settings=settings,
        command=command,
    )
    write_text(directory / "report.html", text)


def _trials(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial for result in figures["students"].values() for trial in result["trials"]]


def _chart(model: str, trials: list[dict[str, Any]]) -> Curves | None:
    """Returns the chart of the errors at the end of each rung, a line for each trial."""
    histories = {
        f"{model}-{trial['number']}": [
            [
                {"epoch": rung["epochs"], "error": 1 - rung["held_out_accuracy_fraction"]}
                for rung in trial["rungs"]
            ]
        ]
        for trial in trials
    }
    return curves(histories, "error", 100)
