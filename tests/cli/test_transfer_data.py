"""``--transfer-data``: images without labels for students with a teacher, and for these alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli

from kdtrain.data.datasets import load_dataset
from tests.cli.conftest import Call, Finished, Fitted
from tests.cli.test_resume import KILLER
from tests.runs import assert_same_run, metrics
from tests.tools import read_scalars

FEW = ("--limit-train", "128", "--epochs", "2", "--augment", "shift=1", "--views", "3")
LABELLED, IMAGES = 128, 400

# Writes down which images each step had, and which of them have labels.
NOTER = """
from kdtrain import Callback

class Noter(Callback):
    def on_batch(self, run, event):
        batch = event.batch
        labelled = [True] * len(batch) if batch.labelled is None else batch.labelled.numpy().tolist()
        with (run.directory / "batches").open("a") as file:
            print(batch.indices.numpy().tolist(), labelled, file=file, sep=";")
"""


def batches(run: Path) -> list[tuple[list[int], list[int]]]:
    """Returns the labelled images of each step, and the others, by position."""
    result = []
    for line in (run / "batches").read_text().splitlines():
        indices, labelled = (json.loads(part.lower()) for part in line.split(";"))
        pairs = list(zip(indices, labelled, strict=True))
        result.append(([i for i, has in pairs if has], [i for i, has in pairs if not has]))
    return result


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> Path:
    """Images of the tiles that --limit-train leaves out, without labels."""
    path = tmp_path_factory.mktemp("more") / "more.npz"
    np.savez(path, images=load_dataset(data_dir=tiles).train.images[-IMAGES:, 0])
    return path


@dataclass(frozen=True)
class Compared:
    directory: Path
    process: Finished


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, fitted: Fitted, unlabelled: Path, spawn: Call
) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    (folder / "noter.py").write_text(NOTER)
    flags = (
        *("--with-hard-labels", "--teacher-checkpoint", fitted.model("teacher"), "--plugin"),
        "noter.py:Noter",
    )
    words = (*fitted.flags, *FEW, *flags, "--transfer-data", unlabelled)
    finished = spawn("fit", "--mode", "compare", *words, cwd=folder)
    return Compared(folder / "logs/compare/version_0", finished)


def test_only_students_with_a_teacher_see_them(compared: Compared) -> None:
    seed = compared.directory / "seed_0"
    plain, distilled, hard = (batches(seed / model) for model in ("student", "student_kd", "student_hard"))
    assert all(not others for _, others in plain)
    assert [labelled for labelled, _ in distilled] == [labelled for labelled, _ in plain]
    assert hard == distilled
    for labelled, others in distilled:
        assert len(others) == len(labelled) == 64
        assert set(others) <= set(range(LABELLED, LABELLED + IMAGES))
    for model, data in (("student", None), ("student_kd", str(tomli_path(compared)))):
        settings = tomli.loads((seed / model / "config.toml").read_text())
        assert settings.get("transfer_data") == data
    throughput = [metrics(seed / model)[0] for model in ("student", "student_kd")]
    assert throughput[0]["step"] == throughput[1]["step"] == 2


def tomli_path(compared: Compared) -> Path:
    return Path(tomli.loads((compared.directory / "config.toml").read_text())["transfer_data"])


def test_the_report_says_who_saw_how_many(compared: Compared, unlabelled: Path) -> None:
    record = json.loads((compared.directory / "compare.json").read_text())
    conditions = record["conditions"]
    assert conditions["transfer"] == {
        **{"source": str(unlabelled), "images": IMAGES, "share": 0.5},
        "models": ["student_kd", "student_hard"],
    }
    sentence = (
        f"The training of student_kd and student_hard also has 400 images without labels ({unlabelled}), "
        "with the teacher's outputs alone. They are 50 % of each batch, so an epoch has 2 times as many "
        "images."
    )
    copies = conditions["copies"]["held_out_in_training"]  # some of the held-out images are among these
    assert record["sentences"][3:] == [
        sentence,
        "A student without a teacher cannot use these images.",
        f"Copies, equal in each pixel: {copies} of the 300 held-out images are also training images. "
        "A copy is not a test on a new image.",
    ]
    assert sentence in compared.process.stderr
    assert sentence in compared.process.stdout
    page = (compared.directory / "report.html").read_text().replace("&#39;", "'")
    of_page = sentence.replace(str(unlabelled), unlabelled.name)
    assert f"{of_page} A student without a teacher cannot use these images." in page
    assert "see the same labelled images in the same order" in page


def test_losses_are_means_over_the_images_that_they_are_for(compared: Compared) -> None:
    """The total is the weighted sum of a mean over labelled images and one over all images."""
    row = metrics(compared.directory / "seed_0/student_kd")[0]
    assert row["loss/total"] == pytest.approx(0.1 * row["loss/task"] + 0.9 * row["loss/kd"], rel=1e-5)
    scalars = read_scalars(compared.directory / "seed_0/student_kd")
    assert scalars["loss/task"] != scalars["loss/kd"]


def test_a_killed_run_ends_like_one_that_was_not(
    tmp_path: Path, fitted: Fitted, unlabelled: Path, call: Call
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    flags = (
        "--mode",
        "student_kd",
        *fitted.flags,
        "--limit-train=128",
        "--epochs=4",
        "--augment=mixup,shift=1",
    )
    more = ("--transfer-data", unlabelled, "--transfer-share", "0.3", "--plugin", "killer.py:Killer")
    words = (*flags, *more, "--teacher-checkpoint", fitted.model("teacher"))
    assert "SIGKILL" in call.any_code("fit", *words).stderr
    run = tmp_path / "logs/student_kd/version_0"
    call("fit", "--resume", run)
    call("fit", *words)
    assert_same_run(run, run.with_name("version_1"))


def test_two_processes_train_as_one_with_the_same_batches(
    tmp_path: Path, fitted: Fitted, unlabelled: Path, spawn: Call
) -> None:
    """Both parts of a batch are shared, and the mean over labels is over those of both processes."""
    more = ("--transfer-data", unlabelled, "--transfer-share", "0.3", "--optimizer=sgd", "--lr=0.05")
    data = fitted.flags[:4]
    words = ("--mode", "student_kd", *data, *FEW, *more, "--recipe=none", "--alpha", "0.5")
    teacher = ("--teacher-checkpoint", fitted.model("teacher"))
    for size, processes in (("--batch-size=50", ()), ("--batch-size=25", ("--nproc-per-node", "2"))):
        spawn("fit", *words, *teacher, size, *processes, cwd=tmp_path)
    alone, together = (metrics(tmp_path / f"logs/student_kd/version_{number}") for number in (0, 1))
    for row, expected in zip(together, alone, strict=True):
        for name in ("loss/task", "loss/kd", "loss/total", "val/cross_entropy"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name


def test_methods_that_need_a_label_for_each_image_are_refused_before_training(
    tmp_path: Path, fitted: Fitted, unlabelled: Path, call: Call
) -> None:
    words = ("--mode", "student_kd", *fitted.flags, *FEW, "--transfer-data", unlabelled, "--plugin", "dkd")
    finished = call.any_code("fit", *words)
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert "dkd" in last
    assert "some images of the batch have no label (--labels, --transfer-data)" in last
    assert not (tmp_path / "logs/student_kd").exists(), "no teacher was trained"


@pytest.mark.parametrize("method", ["label_smoothing", "dist", "hard_labels", "rkd", "similarity"])
def test_other_methods_work(method: str, fitted: Fitted, unlabelled: Path, call: Call) -> None:
    layers = ",student_layer=fc2,teacher_layer=fc1" if method in ("rkd", "similarity") else ""
    words = ("--mode", "student_kd", *fitted.flags, *FEW, "--views=0", "--transfer-data", unlabelled)
    teacher = ("--teacher-checkpoint", fitted.model("teacher"), "--plugin", method + layers)
    call("fit", *words, *teacher)


def test_tuning_and_checks_take_them(fitted: Fitted, unlabelled: Path, call: Call) -> None:
    teacher = ("--teacher-checkpoint", fitted.model("teacher"), "--transfer-data", unlabelled)
    words = (*fitted.flags, *FEW, *teacher)
    call("tune", *words, "--budget", "2")
    call("fit", "--check", *words)


def test_a_missing_or_wrong_file_is_named(tmp_path: Path, fitted: Fitted, call: Call) -> None:
    for name, words in (("nowhere", "does not exist"), ("wide.npz", "1x5x9")):
        if name == "wide.npz":
            np.savez(tmp_path / name, images=np.zeros((3, 5, 9), np.uint8))
        finished = call.any_code("fit", *fitted.flags, "--transfer-data", name)
        assert finished.returncode == 1
        assert name in finished.stderr
        assert words in finished.stderr
