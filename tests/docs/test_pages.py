"""Pages in docs/: each command works after those before it, on less data, and each link has a target."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tomli
from PIL import Image

from kdtrain import KdtrainError, Loader, Status, Trainer, UsageError, flow
from kdtrain.callbacks.plugins import GROUP, load_plugin
from kdtrain.data.dataset import Dataset
from kdtrain.engine.callback import HOOKS, Callback
from kdtrain.models.registry import ARCHITECTURES
from tests.cli.conftest import Call, Finished, run
from tests.deploy.serve.conftest import serve
from tests.documents import DOCS, README, blocks, commands, files, text_of
from tests.runs import count_points, metrics
from tests.tools import ROOT

PAGES = sorted(DOCS.rglob("*.md"))
FOLLOWED_ELSEWHERE = DOCS / "data.md"  # by tests/cli/test_data.py, which makes its images
WITH_COMMANDS = [page for page in PAGES if commands(page) and page != FOLLOWED_ELSEWHERE]
RUN = Path("logs/student/version_0")

LESS = {
    **{"9999": "99", "--seeds 5": "--seeds 2", "--teacher-epochs 100": "--teacher-epochs 1"},
    **{"--labels 5000": "--labels 400", "--budget 27": "--budget 3", "--budget 9": "--budget 2"},
    **{"range(400)": "range(30)", "epochs = 60": "epochs = 2", "teacher_epochs = 100": "teacher_epochs = 1"},
    **{"load_data()": 'load_data(data_dir="digits")', "[:10000]": "[:1000]", "[10000:]": "[1000:]"},
}
"""Texts of the pages, and what they are replaced by to save time."""
FLAGS = {
    "writing-a-plugin.md": ("--val-size", "200", "--batch-size", "65"),
    "recipes.md": ("--val-size", "256", "--epochs", "1"),
    "serving.md": ("--val-size", "50", "--epochs", "1", "--teacher-arch", "student_mlp"),
    "transfer-data.md": ("--limit-train", "512", "--val-size", "256", "--epochs", "1"),
    "teachers.md": ("--val-size", "256", "--epochs", "1"),
    "tutorial.md": (),
}
"""Flags of the fits, by page: on few images of MNIST, or on the page's own.

On other pages, fits are for an epoch on few images of 12x12 pixels. No flag changes the recipe: it is that of
the page, which decides views and networks.
"""
BEFORE = {"infer.md": ("fit", "--mode", "compare")}
"""The command that a page expects to have been run."""
RUN_ELSEWHERE = {
    "fit --dataset folder:DIR --image-size 32": "data.md has folders",
    "launch": "two machines, as scripts/netsplit has them",
    "tune --budget 20m": "tuning.md has a number of trials",
}
"""Commands in ``bash`` blocks, which are only shown, that no ``sh`` block has; and who runs them."""
IMAGES = ("digit.png", "my_digit.jpg", "seven.jpg", "two.png", "scans/1.png", "DIR/1.png")
"""Images that a reader has."""
TEACHERS = {"teacher.onnx": "torch.onnx", "keras.onnx": "keras.onnx"}
"""Files that a reader has from other programs."""
READERS_OF_DATA = ("fit", "tune", "eval", "infer", "bench", "export")


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def with_less(text: str) -> str:
    for many, few in LESS.items():
        text = text.replace(many, few)
    return text


def on_less_data(page: Path, words: list[str], tiles: Path) -> list[str | Path]:
    """Returns a command's words with flags that save time; a run that goes on takes none."""
    if words[0] not in READERS_OF_DATA or "--resume" in words:
        return [*words]
    once = [
        flag
        for flag in ("--teacher-epochs=1", "--seeds=1")
        if words[0] == "fit" and "compare" in words and flag.partition("=")[0] not in words
    ]
    recipe = "mnist_few_labels" if "--labels" in words else "mnist"  # by name: part of MNIST is not MNIST
    named = {"--recipe", "--config", "--quick"} & {*words}
    if page.name in FLAGS:
        flags = FLAGS[page.name]
        if not flags or "--dataset" in words:
            return [*words, *(flags if words[0] == "fit" else ()), *(once if flags else ())]
        chosen = () if named else ("--recipe", recipe)
        return [*words, "--data-dir", "digits", *((*flags, *chosen) if words[0] == "fit" else ()), *once]
    few = ["--limit-train", "512", "--val-size", "256", "--epochs", "1", *once]
    few += [] if named else ["--recipe", recipe]
    return [*words, "--data-dir", tiles, *(few if words[0] in ("fit", "tune") else ())]


def check_plugins(folder: Path, finished: list[Finished]) -> None:
    lines = (folder / RUN / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,loss"
    assert [int(line.split(",")[0]) for line in lines[1:]] == [10, 20]
    losses = [float(line.split(",")[1]) for line in lines[1:]]
    assert losses[1] < losses[0] < 2.4, "the network learns"

    rows = metrics(folder / "logs/student/version_1")
    assert len(rows) == 2
    for row in rows:
        assert -2.31 < row["loss/confidence"] < 0
        assert row["loss/total"] == pytest.approx(row["loss/task"] + 0.2 * row["loss/confidence"], abs=1e-5)

    rows = metrics(folder / "logs/student_kd/version_0")
    for row in rows:
        expected = 0.1 * row["loss/task"] + 0.9 * row["loss/logit_l1"] + row["loss/hint_fc2"]
        assert row["loss/total"] == pytest.approx(expected, abs=1e-5)
    assert rows[1]["loss/hint_fc2"] < rows[0]["loss/hint_fc2"] < 1.0
    assert rows[1]["loss/logit_l1"] < rows[0]["loss/logit_l1"]
    assert "1 passed" in finished[-1].stdout


def check_tutorial(folder: Path, finished: list[Finished]) -> None:
    _, teacher, student, comparison, infer, evaluation, watched, own = finished
    assert len(list((folder / "shapes").glob("*/*.png"))) == 6 * 30
    for fit in (teacher, student, watched):
        assert fit.stdout.startswith("test accuracy")
    assert "logs/models/teacher.safetensors" in student.stderr
    for number, fit in enumerate((comparison, own)):
        assert "student_kd" in fit.stdout
        results = json.loads((folder / f"logs/compare/version_{number}/compare.json").read_text())
        controls = {"student_hard"} if number == 0 else set()
        assert {row["model"] for row in results["models"]} == {"teacher", "student_kd", "student", *controls}
        assert results["conditions"]["labels"]["kept"] == 120
    assert [Path(line.split()[-1]).is_file() for line in infer.stdout.splitlines() if "picture:" in line]
    assert "star" in evaluation.stdout
    tags = {tag for tag, _ in count_points(folder / "logs/student_kd/version_1")}
    assert {"confusion/matrix", "calibration/reliability", "calibration/ece"} <= tags
    _, row = metrics(folder / "logs/compare/version_1/seed_0/student_kd")
    half = 0.5 ** (1 / 5)  # the weight of the soft targets falls by this factor each epoch
    low, high = (0.1 * row["loss/task"] + 0.9 * part * row["loss/kd"] for part in (half**2, half))
    assert low < row["loss/total"] < high
    assert "loss/kd" not in metrics(folder / "logs/compare/version_1/seed_0/student")[0]


def check_service(folder: Path, finished: list[Finished]) -> None:
    page = DOCS / "serving.md"
    predicted, refused, model, health = (json.loads(answer.stdout) for answer in finished[-4:])
    (shown,) = map(json.loads, blocks(page, "json"))
    assert set(predicted) == set(shown)
    assert set(predicted["predictions"][0]) == set(shown["predictions"][0])
    assert predicted["predictions"][0]["temperature"] == 4
    assert f"`{json.dumps(refused)}`" in text_of(page)
    assert (model["model"], model["teacher"]["arch"]) == ("student_kd", "student_mlp")
    assert health == {"status": "ok"}


def check_networks(folder: Path, finished: list[Finished]) -> None:
    assert "resnet20" in finished[0].stdout
    assert "accuracy" in finished[-1].stdout


CHECKS: dict[str, Callable[[Path, list[Finished]], None]] = {
    **{"writing-a-plugin.md": check_plugins, "tutorial.md": check_tutorial, "serving.md": check_service},
    "models.md": check_networks,
}


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_work_one_after_another(
    page: Path, tmp_path: Path, mnist: Dataset, digits: Path, tiles: Path, call: Call
) -> None:
    (tmp_path / "digits").symlink_to(digits)
    for name, content in files(page).items():
        (tmp_path / name).write_text(with_less(content))
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(mnist.test.images[0, 0]).save(tmp_path / name)
    for name, teacher in TEACHERS.items():
        shutil.copy(ROOT / "tests" / "deploy" / "onnx" / "foreign" / teacher, tmp_path / name)
    finished, address = [], ""
    with contextlib.ExitStack() as services:
        before = [("scripts/kdtrain", *BEFORE[page.name])] if page.name in BEFORE else []
        for program, *words in (*before, *commands(page)):
            words = shlex.split(with_less(shlex.join(words)))
            words, target = (words[:-2], words[-1]) if ">" in words else (words, None)
            if words[0] == "serve":
                address = services.enter_context(serve(*words[1:])).address
            elif program == "scripts/kdtrain":
                finished.append(call.any_code(*on_less_data(page, words, tiles)))
            elif program == "curl":
                words = [word.replace("http://127.0.0.1:8000/", address) for word in words]
                finished.append(run("curl", "--silent", *words, cwd=tmp_path))
            elif program == "sha256sum":
                finished.append(run(program, *words, cwd=tmp_path))
            elif program == ".venv/bin/python":
                finished.append(
                    run(sys.executable, *words, cwd=tmp_path, PYTEST_ADDOPTS="-p no:cacheprovider")
                )
            else:
                assert program == ".venv/bin/tensorboard", "serves until it is ended"
                continue
            assert finished[-1].returncode == 0, finished[-1].stderr
            if target is not None:
                (tmp_path / target).write_text(finished[-1].stdout)
            assert finished[-1].stdout or program != "scripts/kdtrain"
            assert "Traceback" not in finished[-1].stderr
    if check := CHECKS.get(page.name):
        check(tmp_path, finished)


def test_each_command_that_is_shown_is_run() -> None:
    followed = {tuple(words) for page in PAGES for words in commands(page)}
    shown = [words for page in (README, *PAGES) for words in commands(page, "bash")]
    own = [words for words in shown if words[:1] == ["scripts/kdtrain"] and tuple(words) not in followed]
    missing = [" ".join(words[1:]) for words in own]
    assert [text for text in missing if not text.startswith(tuple(RUN_ELSEWHERE))] == []


def test_each_replaced_text_is_on_a_page() -> None:
    pages = "".join(map(text_of, WITH_COMMANDS))
    assert [text for text in LESS if text not in pages] == []


def test_page_of_networks_names_them_all() -> None:
    assert all(f"`{arch}`" in text_of(DOCS / "models.md") for arch in ARCHITECTURES)


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text_of(page)):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(target), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{link}#{anchor}"


def anchor_of(heading: str) -> str:
    """Returns the anchor that MkDocs gives to a heading."""
    letters = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", letters).strip().lower())


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    decisions = {name_of(page) for page in PAGES if page.parent.name == "decisions"}
    assert {name_of(page) for page in PAGES} - decisions == listed - {"decisions/README.md"}


PLUGIN_PAGE = DOCS / "writing-a-plugin.md"
PLUGIN_FILES = files(PLUGIN_PAGE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all files of the page."""
    for name, content in PLUGIN_FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_stop_at_ends_a_fit_that_is_good_enough(
    folder: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    for accuracy, status, epochs in ((0.0, Status.STOPPED, 1), (1.0, Status.COMPLETED, 2)):
        callback = load_plugin(f"{folder}/stop_at.py:StopAt,accuracy={accuracy}")
        trainer = Trainer(student, partial(flow.optim.SGD, lr=0.01), [callback])
        end = trainer.fit(train, validation, epochs=2, directory=folder)
        assert (end.status, end.epoch) == (status, epochs)
        assert ("0.00%" in str(end.reason)) == (accuracy == 0)
    with pytest.raises(UsageError, match=r"accuracy=2\.0"):
        load_plugin(f"{folder}/stop_at.py:StopAt,accuracy=2")


def test_published_plugin_is_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomli.loads(PLUGIN_FILES["pyproject.toml"])
    offered = project["project"]["entry-points"]
    assert list(offered) == [GROUP]
    information = folder / "kdtrain_loss_csv-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kdtrain-loss-csv\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in offered[GROUP].items()]
    (information / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    assert project["tool"]["setuptools"]["py-modules"] == ["loss_csv"]
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    importlib.invalidate_caches()
    assert type(load_plugin("loss_csv,every=10")).__name__ == "LossCsv"
    monkeypatch.delitem(sys.modules, "loss_csv")


def test_table_of_hooks_is_complete() -> None:
    listed = re.findall(r"^\| `(\w+)\(", text_of(PLUGIN_PAGE), re.MULTILINE)
    assert listed == ["configure", *HOOKS, "state_dict", "load_state_dict"]
    assert [name for name, value in vars(Callback).items() if callable(value) and name[0] != "_"] == listed


def test_mistyped_hook_is_refused_with_the_name_that_was_meant(folder: Path) -> None:
    (folder / "typo.py").write_text(PLUGIN_FILES["loss_csv.py"].replace("on_batch", "on_bach"))
    with pytest.raises(KdtrainError, match=r"'on_bach'.*'on_batch'"):
        load_plugin(f"{folder}/typo.py:LossCsv")
