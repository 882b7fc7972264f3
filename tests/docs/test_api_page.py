"""docs/api.md: the signatures are the code's, every public name is there, and the examples run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import kdtrain
from kdtrain.cli.parser import COMMANDS
from kdtrain.experiment.python_settings import ALL_SETTINGS
from scripts.api_page import PAGE, names_in, with_signatures
from tests.cli.conftest import run
from tests.documents import blocks, text_of

TEXT = text_of(PAGE)


def test_signatures_are_those_of_the_code() -> None:
    assert with_signatures(TEXT) == TEXT, "scripts/api-page writes them again"
    assert {"fit", "compare", "tune", "load_data", "load_teacher", "TestedModel"} <= set(names_in(TEXT))


def test_another_signature_would_be_noticed() -> None:
    wrong = TEXT.replace("quantize: str | None = None", "quantize: bool = False")
    assert wrong != TEXT
    assert with_signatures(wrong) == TEXT


def test_every_public_name_is_on_the_page() -> None:
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose) + blocks(PAGE, "py"))))
    shown = words | set(re.findall(r"kdtrain\.(\w+)", TEXT)) | {"flow"}
    assert [name for name in kdtrain.__all__ if name not in shown] == []


def test_every_setting_and_every_command_is_on_the_page() -> None:
    (block,) = (block for block in blocks(PAGE, "py") if block.startswith("FitConfig("))
    assert re.findall(r"^    (\w+):", block, re.MULTILINE) == list(ALL_SETTINGS)
    table = re.findall(r"^\| `kdtrain (\w+)", TEXT, re.MULTILINE)
    named = {*table, "plugins", "recipes", *re.findall(r"`kdtrain (serve|completion|doctor)`", TEXT)}
    assert named == set(COMMANDS)


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the examples print, one after another, in a new process."""
    folder = tmp_path_factory.mktemp("page")
    finished = run(sys.executable, "-W", "error", "-c", "\n".join(blocks(PAGE, "python")), cwd=folder)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert (folder / "seven.png").is_file()
    assert (folder / "logs/own/result.json").is_file()
    return finished.stdout


def test_examples_run_one_after_another_and_print_what_they_ask_for_only(printed: str) -> None:
    first, *_, last = printed.splitlines()
    assert re.fullmatch(
        r"<ComparisonRun student_kd - student: [+-][\d.]+ points, \w+, 2 seeds \(logs/compare/version_0\)>",
        first,
    )
    assert re.fullmatch(r"accuracy [\d.]+%, [\d,]+ errors in 10,000 images", last)


def test_notebook_is_linked() -> None:
    assert (Path(PAGE).parent / "../examples/notebook/kdtrain.ipynb").resolve().is_file()
