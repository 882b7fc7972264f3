"""docs/api.md: every public name is there and in the site's reference, and the examples run."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from pathlib import Path

import pytest

import kdtrain
from kdtrain.cli.parser import COMMANDS
from kdtrain.data.dataset import Dataset
from kdtrain.experiment.api import OF_THE_DATA
from scripts.docs_site import public_names
from tests.cli.conftest import run, untrained_teacher
from tests.documents import DOCS, blocks, text_of

PAGE = DOCS / "api.md"
TEXT = text_of(PAGE)
(LOOP,) = (block for block in blocks(PAGE, "python") if "kdtrain.Trainer(" in block)
LESS = {
    "compare(labels=500)": (
        'compare(data_dir="digits", recipe="mnist_few_labels", labels=200, seeds=2, epochs=2, '
        "teacher_epochs=1)"
    ),
    'dataset="mnist", ': 'data_dir="digits", limit_train=1000, val_size=200, ',
    "limit_train=1000, val_size=200, augment": 'data_dir="digits", limit_train=1000, val_size=200, augment',
    '"limit_train": 1000': '"data_dir": "digits", "limit_train": 1000',
    "evaluate(student.path)": 'evaluate(student.path, data_dir="digits")',
    "picture_index=7)": 'picture_index=7, data_dir="digits")',
    'quantize="int8")': 'quantize="int8", data_dir="digits")',
    "rounds=5)": 'rounds=5, data_dir="digits")',
    'best.safetensors")': 'best.safetensors", data_dir="digits")',
    "epochs=5": "epochs=2",
}
"""Texts of the page, and what they are replaced by to save time."""
RESULTS = re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXT.partition("\n## Results\n")[2], re.MULTILINE)
NAMES = [name for names in public_names().values() for name in names]


def on_less_data(block: str) -> str:
    for many, few in LESS.items():
        block = block.replace(many, few)
    return block


def test_every_public_name_is_on_the_page_and_in_the_reference() -> None:
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    shown = words | set(re.findall(r"kdtrain\.(\w+)", TEXT)) | {"flow"}
    assert [name for name in kdtrain.__all__ if name not in shown] == []
    assert sorted([*NAMES, "flow"]) == sorted(kdtrain.__all__)


@pytest.mark.parametrize("name", [name for name in NAMES if name.islower()])
def test_reference_has_a_text_for_each_argument_of_a_function(name: str) -> None:
    function = getattr(kdtrain, name)
    text = inspect.getdoc(function) or ""
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), argument


@pytest.mark.parametrize(("name", "attributes"), RESULTS)
def test_results_have_the_attributes_of_the_page(name: str, attributes: str) -> None:
    result = getattr(kdtrain, name)
    named = {word for word in re.findall(r"`(\w+)`", attributes) if word not in NAMES or word == "config"}
    assert named
    assert named <= {*dir(result), *getattr(result, "__dataclass_fields__", ())}


def test_every_command_and_every_setting_of_the_data_is_on_the_page() -> None:
    table = re.findall(r"^\| `kdtrain (\w+)", TEXT, re.MULTILINE)
    named = {
        *table,
        "plugins",
        "recipes",
        *re.findall(r"`kdtrain (views|serve|launch|completion|doctor)`", TEXT),
    }
    assert named == set(COMMANDS)
    section = TEXT.partition("## Data\n")[2].partition("\n## ")[0]
    assert [name for name in OF_THE_DATA if f"`{name}" not in section] == []


INTERVAL = re.compile(r"[+-][\d.]+ \([+-][\d.]+ to [+-][\d.]+\)")
TESTED = r"accuracy [\d.]+%, [\d,]+ errors in 300 images"


def test_examples_run_one_after_another_and_print_what_they_ask_for_only(
    digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "digits").symlink_to(digits)
    finished = run(
        *(sys.executable, "-W", "error", "-c", "\n".join(map(on_less_data, blocks(PAGE, "python")))),
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "seven.png").is_file()
    lines = finished.stdout.splitlines()
    interval = next(at for at, line in enumerate(lines) if INTERVAL.fullmatch(line))
    assert any(" of the student's " in line or "No difference" in line for line in lines[:interval]), lines
    folder = "logs/compare/version_0"
    student = f"{folder}/seed_0/student_kd/checkpoints/best.safetensors"
    assert lines[interval + 1].split() == [student, f"{folder}/report.html"]
    # After the comparison: the evaluation, the one of the loop, the runs, a model card.
    tested = [at for at, line in enumerate(lines) if re.fullmatch(TESTED, line)]
    assert len(tested) == 2
    assert tested[0] + 1 == tested[1], lines
    card = lines.index("---")
    listed = [line.split()[:2] for line in lines[tested[1] + 1 : card]]
    assert ["compare/version_0", "finished"] in listed
    assert ["tune/version_0", "finished"] in listed
    assert lines[card + 1] == 'license: "apache-2.0"'


def test_loop_of_the_page_gives_the_same_figures_twice_and_keeps_the_outputs(
    mnist: Dataset,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").symlink_to(digits)
    Path("logs/models").mkdir(parents=True)
    untrained_teacher(Path("logs/models/teacher.safetensors"), mnist, "student_mlp")
    tries = []
    for _ in range(2):
        exec(on_less_data(LOOP), {"__name__": "page"})
        weights = Path("logs/own/checkpoints/best.safetensors").read_bytes()
        outputs = {path: path.stat().st_mtime_ns for path in Path("logs/cache").rglob("*")}
        tries.append((capsys.readouterr().out, weights, outputs))
        shutil.rmtree("logs/own")
    assert tries[0] == tries[1]
    assert outputs


def test_notebook_is_linked() -> None:
    assert (PAGE.parent / "../examples/notebook/kdtrain.ipynb").resolve().is_file()
