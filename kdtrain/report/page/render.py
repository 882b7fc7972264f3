"""``report.html``: a comparison as one self-contained page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kdtrain.data.dataset import Dataset
from kdtrain.errors import DataError, KdtrainError
from kdtrain.metrics.probabilities import BINS, reliability
from kdtrain.report.comparison_table import range_text
from kdtrain.report.page.charts import MOST_CLASSES, confusions, curves, differences, reliability_chart
from kdtrain.report.page.examples import choose_examples
from kdtrain.report.page.size_chart import ratio_text, size_chart
from kdtrain.report.style import LINES
from kdtrain.report.verdict import p_value_text
from kdtrain.runtime.files import write_text
from kdtrain.runtime.locations import short_name
from kdtrain.store.checkpoint import load_tensors
from kdtrain.store.record import FILES, Comparison, logits_key, plain, read_record

_DASHES = {"-": "none", "--": "7 4", "-.": "8 3 2 3"}
"""Matplotlib's line styles as SVG's ``stroke-dasharray``."""

MARKERS = {
    "s": "M-5-5H5V5H-5Z",
    "o": "M-5.5 0A5.5 5.5 0 1 0 5.5 0A5.5 5.5 0 1 0-5.5 0Z",
    "^": "M0-6.5L6 5H-6Z",
    "v": "M0 6.5L6-5H-6Z",
    "D": "M0-6.5L6.5 0 0 6.5-6.5 0Z",
}
"""Matplotlib's markers as SVG paths around (0, 0)."""


def write_report(directory: Path, dataset: Dataset, *, settings: str, command: str, test_chose: bool) -> Path:
    """Writes ``report.html`` from a comparison's ``compare.json`` and logits.

    Args:
        directory: the comparison's directory.
        dataset: the data set that it was tested on.
        settings: its configuration (TOML), shown as text.
        command: the command that repeats it.
        test_chose: whether the test images chose the best epochs, because no images were held out.

    Returns:
        The page's path.

    Raises:
        DataError: the data set's test labels are not those of the comparison.
        KdtrainError: a file of the comparison is missing, damaged or of another version, or the page
            cannot be written.
    """
    comparison = _read_comparison(directory / Comparison.FILE)
    figures = plain(comparison)
    logits, _ = load_tensors(directory / FILES["test_logits"])
    labels = logits.pop("labels").astype(np.int64)
    if not np.array_equal(labels, dataset.test.labels):
        raise DataError(f"the test images of {dataset.name} are not those that {directory} was tested on.")
    by_model: dict[str, list[npt.NDArray[np.float32]]] = {
        model: [
            logits[logits_key(row.model, row.seed)].astype(np.float32)
            for row in comparison.models
            if row.model == model
        ]
        for model in comparison.summaries
    }
    template = page_environment(figures).get_template("page.html")
    text = template.render(
        dataset=dataset,
        figures=figures,
        conditions=comparison.conditions.without_folders().sentences,
        uneven=comparison.conditions.uneven,
        test_chose=test_chose,
        looks={model: (LINES[model].colour, _dash(LINES[model].dashes)) for model in by_model},
        markers={model: MARKERS[LINES[model].marker] for model in by_model},
        size_chart=size_chart(figures["summaries"]),
        size=ratio_text(*(comparison.summaries[model].parameters for model in ("teacher", "student_kd"))),
        best_epochs=_best_epochs(comparison),
        charts=_charts(figures),
        differences=differences(figures["differences"]),
        rows={(row.model, row.seed): number for number, row in enumerate(comparison.models)},
        calibration=_calibration(by_model, labels),
        confusions={model: confusions(seeds, labels) for model, seeds in by_model.items()},
        most_classes=MOST_CLASSES,
        examples=choose_examples(by_model, dataset),
        settings=settings,
        command=command,
    )
    page = directory / FILES["report"]
    write_text(page, text)
    return page


def _read_comparison(file: Path) -> Comparison:
    comparison = read_record(file, Comparison)
    if comparison is None:
        raise KdtrainError(f"{file} is not there. A comparison writes it when it ends.")
    return comparison


def page_environment(figures: Mapping[str, Any]) -> Environment:
    """Returns the environment that renders the page; it escapes names of classes and files."""
    environment = Environment(
        loader=PackageLoader("kdtrain.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def figure(at: str, digits: int = 0, sign: str = "-", scale: float = 1.0) -> Markup:
        """Returns a number of compare.json as text, with its exact value and its path in the file."""
        value: Any = figures
        for key in at.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        if value is None:
            return Markup("-")
        text = f"{scale * value:{sign},.{digits}f}"
        return Markup('<data value="{}" data-of="{}">{}</data>').format(value, at, text)

    environment.globals["figure"] = figure
    environment.filters |= {"code": code, "breakable": breakable, "words": words, "short_name": short_name}
    environment.filters["p_value"] = p_value_text
    return environment


def code(text: str) -> Markup:
    """Returns a text as HTML; what stands between backticks becomes ``<code>``."""
    parts = (
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def breakable(name: str) -> Markup:
    """Returns a name as HTML whose lines are broken behind its punctuation."""
    return Markup("<wbr>").join(re.split(r"(?<=[-_/:,])", name))


def words(command: str) -> Markup:
    """Returns a command as HTML whose lines are broken between its words, without the path of kdtrain."""
    command = re.sub(r"^('?)/.*?/kdtrain\1(?= )", "kdtrain", command)
    return Markup(" ").join(Markup("<span>{}</span>").format(breakable(word)) for word in command.split(" "))


def _best_epochs(comparison: Comparison) -> dict[str, str]:
    """Returns the best epochs of each model's seeds as a text."""
    return {
        model: range_text([row.best_epoch for row in comparison.models if row.model == model])
        for model in comparison.summaries
    }


def _charts(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the two charts over the epochs. Errors stand for accuracy, because a log axis can show them."""
    histories: dict[str, list[list[dict[str, Any]]]] = {model: [] for model in figures["summaries"]}
    for row in figures["models"]:
        points = [point | {"error": 1 - point["accuracy_fraction"]} for point in row["held_out_history"]]
        histories[row["model"]].append(points)
    return {"errors": curves(histories, "error", 100), "loss": curves(histories, "cross_entropy_nats")}


def _dash(dashes: str | tuple[int, tuple[int, ...]]) -> str:
    """Returns matplotlib's dashes of a line of width 2 as SVG's ``stroke-dasharray``."""
    return _DASHES[dashes] if isinstance(dashes, str) else " ".join(str(2 * length) for length in dashes[1])


def _calibration(
    logits: Mapping[str, Sequence[npt.NDArray[np.float32]]], labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Returns each model's reliability diagram. Bins hold the images of all seeds; logits: (N, classes)."""
    return {
        model: reliability_chart(reliability(np.concatenate(seeds), np.tile(labels, len(seeds)), BINS))
        for model, seeds in logits.items()
    }
