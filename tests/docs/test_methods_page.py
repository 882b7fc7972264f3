"""The tables of methods: their rows, the raw results beside the script, and the figures in cards."""

from __future__ import annotations

import importlib
import json
import re
from statistics import mean

import pytest

from kdtrain.callbacks.plugins import list_plugins
from tests.documents import DOCS, text_of
from tests.plugins.test_contract import METHODS
from tests.tools import ROOT

PAGE = text_of(DOCS / "methods.md")
TABLES = dict(re.findall(r"^### (.+)\n\n((?:.+\n+)+?)(?=###|<!--)", PAGE, re.MULTILINE))
RESULTS = ROOT / "scripts" / "benchmarks" / "methods_results"


def gains(table: str) -> dict[str, str]:
    """Returns the points beyond the plain student, by method."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    column = rows[0].index("to plain, points")
    return {row[0].split(",")[0].strip("`"): row[column].strip("*").split(" ")[0] for row in rows[1:]}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_computed_from_the_results_of_its_file(name: str) -> None:
    results = json.loads((RESULTS / f"{name}.json").read_text())["test"]
    plain = results["plain student"]
    shown = gains(TABLES[name])
    assert len(shown) == len(results)
    for method, figures in results.items():
        differences = [100 * (figures[seed]["accuracy"] - plain[seed]["accuracy"]) for seed in plain]
        if figures is not plain:
            assert shown[method.split(",")[0].strip("`")] == f"{mean(differences):+.2f}", method


@pytest.mark.parametrize("name", [*METHODS, "label_smoothing"])
def test_a_card_has_the_figures_of_the_tables(name: str) -> None:
    assert TABLES
    module = importlib.import_module(f"plugins.{name}")
    [cls] = [
        key
        for key, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
        and "Card:" in (getattr(value, "__doc__", None) or "")
    ]
    [plugin] = list_plugins(f"{ROOT}/plugins/{name}.py:{cls}")
    assert re.findall(r"([^.;]+): ([-+]\d\.\d\d) points, [\d.]+ x", plugin.card["Measured"]) == [
        (f" {table}", gains(text)[name]) for table, text in TABLES.items() if name in gains(text)
    ]
    assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE), "a row in the list of methods"
