"""The promise of every table: it fits the terminal, has the column of names, and breaks no word."""

from __future__ import annotations

import importlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import RenderableType

from kdtrain.callbacks.plugins import list_plugins
from kdtrain.cli.doctor import Check, report
from kdtrain.cli.infer import class_table
from kdtrain.cli.models import networks_table
from kdtrain.cli.output import Stdout
from kdtrain.cli.parser import parse
from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.deploy.benchmark import benchmark_table, run_benchmark
from kdtrain.deploy.predict.predictor import OneFlowModel
from kdtrain.experiment.settings.schema import RECIPE_NAMES
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.models.list_models import NetworkInfo
from kdtrain.models.registry import build_model
from kdtrain.report.comparison_table import comparison_tables
from kdtrain.report.evaluation import evaluation_report
from kdtrain.report.table import Column, Table
from kdtrain.report.tuning import tuning_table
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import load_model, save_model, snapshot
from tests.report.comparisons import compare
from tests.report.drawings import printed
from tests.report.test_comparison import with_controls
from tests.report.test_tuning import a_tuning

WIDE = 1000
CLASSES = (
    "a class whose name has forty letters, 01",
    "another_class_without_any_blank_in_it_02",
    "a class whose name has forty letters: 日本",
)
FILE = "student_kd-of-fashion_mnist-v2.safetensors"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Show = Callable[[int], str]
Action = Callable[[], object]
OnTerminal = Callable[[Action], Show]


@dataclass(frozen=True)
class Shown:
    """A table: a function that prints it in a width, and words that all widths must have."""

    text: Show
    names: Sequence[str]
    figures: Sequence[str] = ()


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> OnTerminal:
    """A function that returns what another one prints on a terminal, without colours."""

    def on_a_terminal(action: Action) -> Show:
        def show(width: int) -> str:
            stdout = Terminal()
            with monkeypatch.context() as patch:
                patch.setenv("COLUMNS", str(width))
                patch.setenv("TERM", "xterm")
                patch.setattr(sys, "stdout", stdout)
                action()
            return re.sub(r"\x1b\[[\d;]*m", "", stdout.getvalue())

        return show

    return on_a_terminal


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four pictures of each class in a folder, for training and test each."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for number, (part, name) in enumerate(itertools.product(("train", "test"), CLASSES * 4)):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return load_dataset(f"folder:{folder}")


def command(*words: str) -> Action:
    options = parse(words)
    return lambda: importlib.import_module(f"kdtrain.cli.{options.command}").run(options)


def printing(*renderables: RenderableType) -> Action:
    return lambda: Stdout().print(*renderables)


@pytest.fixture
def shown(
    request: pytest.FixtureRequest,
    on_terminal: OnTerminal,
    pictures: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Shown:
    (tmp_path / "data").symlink_to(pictures.name.removeprefix("folder:"))  # a short path
    action, names, figures = _table(request.param, pictures, tmp_path / FILE)
    monkeypatch.chdir(tmp_path)
    return Shown(on_terminal(action), names, figures)


def _table(name: str, pictures: Dataset, file: Path) -> tuple[Action, Sequence[str], Sequence[str]]:
    """Returns a function that prints a table, the names of its rows, and other words that it must have."""
    if name in ("bench", "eval"):
        network = build_model("student_mlp", pictures.image_shape, len(CLASSES))
        save_model(file, snapshot(network), model_card("student", "student_mlp", pictures))
    data = ("--dataset", "folder:data")
    if name == "bench":
        results = run_benchmark([OneFlowModel(load_model(file))], pictures.test, batch_size=5, rounds=1)
        return printing(benchmark_table(results)), [FILE], [f"{100 * results[0].test.accuracy:.2f}"]
    if name == "eval":
        return command("eval", FILE, *data), CLASSES, ["accuracy,", "right"]
    if name == "infer":
        even = dict.fromkeys(CLASSES, 1 / len(CLASSES))
        prediction = {"temperature": 4.0, "probabilities": even, "softened": even}
        return printing(class_table(prediction)), CLASSES, ["T=1", "T=4", "33.33%"]
    if name == "eval of many classes":
        classes = [f"{text}{number:02}" for number in range(6) for text in CLASSES]
        labels = np.repeat(np.arange(18), 4)
        logits = np.eye(18, dtype=np.float32)[np.where(labels % 4, labels, (labels + 1) % 18)]
        table = evaluation_report(Evaluation.from_logits(logits, labels), classes)
        return printing(table), classes, ["100.00", "0.00"]
    if name == "compare":
        comparison = compare(with_controls())
        accuracies = [f"{summary.accuracy.mean:.2f}" for summary in comparison.summaries.values()]
        return printing(*comparison_tables(comparison)), list(comparison.summaries), accuracies
    if name == "tune":
        return printing(tuning_table(a_tuning())), ["student", "student_kd"], ["98.10"]
    if name == "doctor":
        checks = [Check("train-images-idx3-ubyte", True, "fine"), Check("memory", False, "low", "Buy some.")]
        return lambda: report(checks), [check.name for check in checks], ["BAD", "Buy"]
    if name == "models":
        archs = (
            "student_mlp",
            "flowvision:efficientnet_b0",
            "networks/of-mine/with_attention.py:make",
        )
        rows = [NetworkInfo(arch, 26_799_978, 4_000_000_000, None) for arch in archs]
        return printing(networks_table(rows, "Images of 3x32x32 in 10 classes")), archs, ["26,799,978"]
    names = [plugin.name for plugin in list_plugins()] if name == "plugins" else RECIPE_NAMES
    return command(name), names, []


def is_shown(word: str, tokens: set[str]) -> bool:
    """Returns whether a word is among the tokens, or one that has both of its ends and "…" between them."""
    halves = [token.split("…") for token in tokens if re.fullmatch("[^…]+…[^…]+", token)]
    return word in tokens or any(word.startswith(head) and word.endswith(tail) for head, tail in halves)


@pytest.mark.parametrize(
    "shown",
    [
        *("bench", "eval", "eval of many classes", "infer", "plugins"),
        *("models", "recipes", "tune", "compare", "doctor"),
    ],
    indirect=True,
)
def test_a_table_fits_with_its_names_and_breaks_no_word(shown: Shown) -> None:
    whole = {token.rstrip(":") for token in shown.text(WIDE).split()}
    for width in (60, 80, 120):
        text = shown.text(width)
        lines_of_text = [line for line in text.splitlines() if not line.startswith("Next: ")]  # a command
        assert max(map(cell_len, lines_of_text)) <= width
        tokens = {token for line in text.splitlines() if "Not shown in" not in line for token in line.split()}
        assert [word for name in shown.names for word in name.split() if not is_shown(word, tokens)] == []
        assert set(shown.figures) <= tokens
        lines = {"─" * width for width in range(1, width + 1)}
        assert [
            word for word in tokens - lines if not {word, word.rstrip(":")} & whole and "…" not in word
        ] == []


def test_what_does_not_fit_is_left_out_by_turns_and_named() -> None:
    table = Table(
        Column("model", words=True), Column("accuracy"), Column("errors", drop=2), Column("p", drop=1)
    )
    table.row("student_kd", "98.50", "150", "0.01")
    assert printed(table, width=40).splitlines()[0].split() == ["model", "accuracy", "errors", "p"]
    narrow = printed(table, width=28)
    assert narrow.splitlines()[0].split() == ["model", "accuracy", "errors"]
    assert narrow.splitlines()[-1] == "Not shown in 28 columns: p."
    lines = printed(table, width=15)
    assert [line.split() for line in lines.splitlines()] == [
        *(["student_kd"], ["accuracy:"], ["98.50"], ["errors:", "150"], ["p:", "0.01"]),
    ]
