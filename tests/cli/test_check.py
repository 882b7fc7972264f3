"""``fit --check``, and the rehearsal before every fit: networks and plugins are tried before any training."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import CallbackError
from kdtrain.experiment.dry_run import dry_run
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import trained_here
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import Call, assert_explained, untrained_teacher
from tests.faults.limits import limited
from tests.tools import ROOT, files_in, write_tiles

TORCH = ROOT / "tests/deploy/onnx/foreign/torch.onnx"

WATCH = """
from pathlib import Path
from kdtrain import Callback

class Watch(Callback):
    def _saw(self, hook, run):
        with (Path(__file__).parent / "seen").open("a") as file:
            print(hook, run.step, run.directory, file=file)

for hook in ("on_fit_start", "on_batch", "on_eval", "on_epoch_end", "on_fit_end"):
    setattr(Watch, hook, lambda self, run, *event, hook=hook: self._saw(hook, run))
"""
CALLS = ["on_fit_start 0", "on_batch 1", "on_batch 2", "on_eval 2", "on_epoch_end 2", "on_fit_end 2"]
"""Hooks and steps of a fit that is tried."""
NETWORKS = {
    **{"teacher": ["teacher"], "student": ["student"], "student_kd": ["teacher", "student_kd"]},
    "compare": ["teacher", "student_kd", "student"],
}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def shown(stdout: str) -> list[str]:
    """The names of the networks that were tried."""
    return [line for line in stdout.splitlines()[:-1] if not line.startswith(" ")]


def network_of(directory: Path) -> str:
    """The network that a run directory is of: student_kd's teacher has a folder in the student's."""
    names = [part for part in directory.parts if part in NETWORKS and part != "compare"]
    return names[-1] if names else ""  # other ranks write elsewhere


@pytest.mark.parametrize("mode", NETWORKS)
def test_every_network_and_hook_is_tried_and_no_file_is_left(
    mode: str, tiles: Path, call: Call, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/watch.py").write_text(WATCH)
    work = tmp_path / "work"
    work.mkdir()
    words = (
        *(f"--mode={mode}", f"--data-dir={tiles}", "--batch-size=64", "--epochs=50", "--seeds=1"),
        "--recipe=none",
    )
    finished = call("fit", "--check", *words, "--plugin", f"{tmp_path}/mine/watch.py:Watch", cwd=work)
    assert finished.stderr == ""
    assert shown(finished.stdout) == NETWORKS[mode]
    assert "parameters" in finished.stdout
    assert "Watch" in finished.stdout
    assert (list(work.iterdir()), list(temporary.iterdir())) == ([], [])
    seen = (tmp_path / "mine/seen").read_text().splitlines()
    for name in NETWORKS[mode]:
        own = [line.rpartition(" ")[0] for line in seen if network_of(Path(line.split(" ", 2)[2])) == name]
        assert own == CALLS


def test_what_is_there_already_stays_as_it_is(tiles: Path, call: Call, tmp_path: Path) -> None:
    words = ("fit", "--mode=student", "--data-dir", tiles, "--limit-train=64", "--epochs=1", "--recipe=none")
    call(*words)
    before = files_in(tmp_path)
    call(*words, "--check")
    assert files_in(tmp_path) == before


def test_a_teacher_that_is_there_is_the_one_that_teaches(tiles: Path, call: Call, tmp_path: Path) -> None:
    teacher = untrained_teacher(tmp_path / "t.safetensors", load_dataset(data_dir=tiles))
    words = ("--recipe=none", "--mode", "student_kd", "--data-dir", tiles, "--teacher-checkpoint", teacher)
    assert shown(call("fit", "--check", *words).stdout) == ["student_kd"]


@pytest.mark.parametrize("mode", ["student_kd", "compare"])
def test_it_says_what_teachers_recognise(mode: str, digits: Path, call: Call, tmp_path: Path) -> None:
    outputs = np.eye(10, dtype=np.float32)[load_dataset(data_dir=digits).train.labels] * 100
    np.savez(tmp_path / "t.npz", logits=outputs[:, ::-1], test=np.zeros((300, 10), np.float32))
    words = ("--recipe=none", "--mode", mode, "--data-dir", digits, "--teacher-mean=0.1307")
    teachers = ("--teacher-checkpoint", TORCH, "--teacher-std=0.3081", "--teacher-logits=t.npz")
    orders = ("--teacher-classes=0,1,2,3,4,5,6,7,8,9", "--teacher-classes=9,8,7,6,5,4,3,2,1,0")
    done = call("fit", "--check", *words, *teachers, *orders)
    assert re.search(r"torch\.onnx recognises 9\d\.\d\d% of 250 held-out images\.\n", done.stderr)
    assert done.stderr.splitlines()[-2:] == [
        "t.npz recognises 100.00% of 250 held-out images.",
        "The mean of their probabilities recognises 100.00% of 250 held-out images.",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--plugin mine.py:Own", 1, "mine.py:Own"),
        ("--limit-train 1000000", 2, "--limit-train 1000000"),
        ("--val-size 1000000", 2, "--val-size 1000000"),
        ("--teacher-checkpoint t.st", 1, "t.st"),
        ("--resume", 2, "--check"),
    ],
)
def test_what_a_fit_would_refuse_is_refused(
    flags: str, code: int, said: str, tiles: Path, call: Call, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from kdtrain import Callback\nclass Own(Callback):\n    def configure(self, objective):\n"
        "        return objective.add('own', lambda batch, output: 1 / 0)\n"
    )
    before = files_in(tmp_path)
    mode = "student_kd" if "teacher" in flags else "student"
    words = ("--recipe=none", "--mode", mode, "--data-dir", tiles, *flags.split())
    assert_explained(call.any_code("fit", "--check", *words), code, said)
    assert files_in(tmp_path) == before
    assert list(temporary.iterdir()) == []


PLUGIN = """
from kdtrain import Callback

class Twice(Callback):
    def configure(self, objective):
        return objective.add("mine", lambda batch, output: output.logits.sum())

class Kd(Callback):
    def configure(self, objective):
        return objective.add("kd", lambda batch, output: output.logits.sum())
"""
SILENT = """
from kdtrain import NeedsTeacher

class Silent(NeedsTeacher):
    def configure(self, objective):
        return objective.replace("kd", lambda batch, output: output.logits.sum())

class Reads(NeedsTeacher):
    def configure(self, objective):
        self.temperature = objective.temperature
        return objective.replace("kd", lambda batch, output: output.logits.sum() / self.temperature)

class Calls(NeedsTeacher):
    def configure(self, objective):
        soft_targets = objective.terms["kd"].term
        return objective.replace("kd", lambda batch, output: soft_targets(batch, output) / 2)
"""
REFUSED = {
    "an average twice": ("student", "ema", "ema"),
    "an average twice, differently": ("teacher", "ema", "ema,decay=0.9"),
    "one's own twice": ("compare", "mine.py:Twice", "mine.py:Twice"),
    "the name of a built-in term": ("student_kd", "mine.py:Kd"),
    "the name of a built-in term, in a comparison": ("compare", "mine.py:Kd"),
    "a layer that the student lacks": ("compare", "fitnet,teacher_layer=conv2,student_layer=conv2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fit_that_cannot_be_configured_is_not_begun(
    call: Call, mnist: Dataset, tmp_path: Path, case: str
) -> None:
    mode, *plugins = REFUSED[case]
    write_tiles(tmp_path / "tiles", mnist)
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = [word for plugin in plugins for word in ("--plugin", plugin)]
    with limited(10):
        done = call.any_code("fit", "--mode", mode, "--data-dir", "tiles", "--recipe=none", *words)
    assert done.returncode in (1, 2), done.stderr
    assert ".configure" in done.stderr
    assert "1/" not in done.stderr  # no epoch was trained
    assert files_in(tmp_path / "logs") == {}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--plugin dkd --plugin fitnet --plugin nkd,gamma=1", "--plugin dkd and --plugin nkd,gamma=1"),
        ("--plugin dkd --plugin dkd", "--plugin dkd and --plugin dkd"),
        ("--plugin mine.py:Silent --plugin dist", "--plugin mine.py:Silent and --plugin dist"),
        ("--mode compare --with-hard-labels --plugin dkd", "--with-hard-labels and --plugin dkd"),
    ],
)
def test_two_methods_in_the_place_of_the_soft_targets_are_refused_before_data_are_read(
    flags: str, said: str, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(SILENT)
    words = ("fit", "--mode", "student_kd", "--data-dir", "missing", "--recipe=none", *flags.split())
    place = "take one place, that of the soft targets (the term kd): give one of them."
    assert_explained(call.any_code(*words), 2, f"{said} {place}")


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("dkd,temperature=3", "--temperature 7 has no effect: no loss reads it. dkd has temperature=3."),
        ("hard_labels", "--temperature 7 has no effect: no loss reads it."),
        ("mine.py:Silent", "--temperature 7 has no effect: no loss reads it."),
        ("mine.py:Reads", ""),
        ("mine.py:Calls", ""),
        ("fitnet", ""),
    ],
)
def test_a_temperature_that_nothing_reads_is_said(
    plugin: str,
    said: str,
    mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SILENT)
    for mode in ("student_kd", "compare"):
        config = FitConfig(mode, temperature=7.0, plugin=(plugin,), student_arch="hinton_800")
        caplog.clear()
        with caplog.at_level("INFO", "kdtrain"):
            dry_run(config, mnist, None)
        assert [record.getMessage() for record in caplog.records] == [said] * bool(said)


def test_the_teacher_that_is_there_counts_and_not_the_one_that_would_be_trained(
    mnist: Dataset, tmp_path: Path
) -> None:
    path = untrained_teacher(tmp_path / "teacher.safetensors", mnist, "hinton_800")
    teacher = trained_here(load_model(path))
    layers = ("fitnet,teacher_layer=fc2,student_layer=fc2", "fitnet,teacher_layer=conv2,student_layer=fc2")
    good, bad = (FitConfig(mode="student_kd", plugin=(layer,)) for layer in layers)
    dry_run(good, mnist, teacher)
    with pytest.raises(CallbackError, match="conv2"):
        dry_run(bad, mnist, teacher)
    dry_run(bad, mnist, None)


def test_a_table_of_logits_is_checked_against_all_pictures_of_a_folder(call: Call, tmp_path: Path) -> None:
    """Without a table, 2,000 pictures are read."""
    for place in range(2102):
        split, label = ("train" if place < 2002 else "test"), place % 2
        (tmp_path / split / str(label)).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 200 * label).save(tmp_path / split / str(label) / f"{place}.bmp")
    logits = np.repeat(np.eye(2, dtype=np.float32), 1001, axis=0)
    np.savez(tmp_path / "logits.npz", logits=5 * logits)
    flags = ("--mode", "student_kd", "--dataset", f"folder:{tmp_path}", "--student-arch", "student_mlp")
    table = ("--teacher-arch", "student_mlp", "--teacher-logits", tmp_path / "logits.npz")
    done = call("fit", "--check", "--recipe=none", *flags, *table)
    assert "student_kd" in done.stdout
