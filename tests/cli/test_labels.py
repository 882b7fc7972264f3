"""``--labels``: few labelled images in every mode and command, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from tests.cli.conftest import Call, Fitted, assert_explained
from tests.runs import metrics

FEW = ("--labels", "60", "--recipe", "none", "--epochs", "2", "--batch-size", "16")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, fitted: Fitted, spawn: Call) -> Path:
    folder = tmp_path_factory.mktemp("few")
    more = ("--transfer-share=0.75", "--seeds=2", "--augment=shift=1", "--views=2")
    words = (*fitted.flags[:2], *FEW, *more)
    finished = spawn("fit", "--mode", "compare", *words, cwd=folder)
    (folder / "stdout").write_text(finished.stdout)
    (folder / "stderr").write_text(finished.stderr)
    return folder


def test_a_comparison_says_how_many_images_have_labels(compared: Path) -> None:
    directory = compared / "logs/compare/version_0"
    conditions = json.loads((directory / "compare.json").read_text())["conditions"]
    labels = conditions["labels"]
    assert (labels["kept"], labels["held_out"]) == (60, 12)
    assert conditions["transfer"]["images"] == labels["images"] - 60
    assert conditions["transfer"]["source"] is None
    sentence = f"60 of {labels['images']:,} training images have labels, and 12 of these are held out."
    page = (directory / "report.html").read_text()
    for text in ((compared / "stdout").read_text(), (compared / "stderr").read_text(), page):
        assert sentence in text
        assert "A student without a teacher cannot use these images." in text


def test_every_student_of_every_seed_has_the_same_labels(compared: Path) -> None:
    seeds = compared / "logs/compare/version_0"
    for seed in ("seed_0", "seed_1"):
        settings = tomli.loads((seeds / seed / "student_kd" / "config.toml").read_text())
        assert (settings["labels"], settings["data_seed"]) == ("60", 0)
    files = list((compared / "logs/cache").rglob("*"))
    assert files, "the teacher's outputs are kept"
    steps = [metrics(seeds / "seed_1" / model)[0]["step"] for model in ("student", "student_kd")]
    assert steps == [3, 3], "48 images in batches of 16, whatever joins them"


def test_a_student_of_the_comparison_is_repeated_alone(compared: Path, call: Call) -> None:
    """The config.toml of a part gives the same weights in another log directory."""
    part = compared / "logs/compare/version_0/seed_1/student_kd"
    call("fit", "--config", part / "config.toml", "--logdir", "again", cwd=compared)
    again = compared / "again/student_kd/version_0"
    best = Path("checkpoints/best.safetensors")
    assert metrics(again)[-1]["loss/total"] == metrics(part)[-1]["loss/total"]
    assert (again / best).read_bytes()[-400_000:] == (part / best).read_bytes()[-400_000:]


def test_a_fit_of_each_mode_and_what_follows(compared: Path, call: Call, fitted: Fitted) -> None:
    for mode in ("teacher", "student", "student_kd"):
        words = (*fitted.flags[:2], *FEW, "--mode", mode, "--logdir", "single", "--json")
        finished = call("fit", *words, cwd=compared)
        assert "60 of " in finished.stderr
        document = json.loads(finished.stdout)
        assert (document["labels"], document["models"][0]["model"]) == ("60", mode)
    printed = call("fit", "--resume", "single/teacher/version_0", cwd=compared)
    assert "--labels 60" in printed.stdout.splitlines()[-1], "the next command has the same labels"
    listed = call("runs", "--logdir", "single", cwd=compared)
    assert "60 labels" in listed.stdout
    card = call("card", "single/models/student_kd.safetensors", cwd=compared)
    assert "labels" in card.stdout
    resumed = call.any_code("fit", "--resume", "single/student_kd/version_0", "--labels", "50", cwd=compared)
    assert_explained(resumed, 2, "--labels 50: the run in", "was begun with 60")


def test_the_card_says_how_many_images_have_labels(compared: Path, call: Call) -> None:
    card = call("card", "logs/compare/version_0/seed_0/student_kd/checkpoints/best.safetensors", cwd=compared)
    assert "training images have labels" in " ".join(card.stdout.split())


def test_a_teacher_of_all_labels_is_not_taken_in_silence(compared: Path, call: Call, fitted: Fitted) -> None:
    """A kept teacher of other labels is no teacher for these; one that is named is taken, and described."""
    words = (*fitted.flags[:2], *FEW, "--mode", "student_kd", "--logdir", "other")
    model_dir = ("--model-save-dir", fitted.model("teacher").parent)
    finished = call("fit", *words, *model_dir, "--no-keep", cwd=compared)
    assert "There is no teacher for" in finished.stderr
    finished = call("fit", *words, "--teacher-checkpoint", fitted.model("teacher"), cwd=compared)
    assert "(other images)" in finished.stderr


def test_check_tries_all_networks(call: Call, fitted: Fitted, tmp_path: Path) -> None:
    finished = call("fit", "--check", "--mode", "compare", *fitted.flags[:2], *FEW)
    assert "student_kd" in finished.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (("--labels", "0"), ("--labels is 0", "whole number above 0")),
        (("--labels", "100%"), ("--labels is 100%", "percentage below 100")),
        (("--labels", "many"), ("--labels is many",)),
        (("--labels", "999999"), ("--labels 999999", "all have labels")),
        (("--labels", "3"), ("--labels 3", "two images with labels")),
        (("--labels", "60", "--alpha", "0"), ("--alpha 0", "--labels 60")),
        (("--labels", "60", "--omit-class", "3"), ("--omit-class 3", "--labels 60")),
        (("--transfer-share", "0.6"), ("--transfer-share 0.6", "add --labels or")),
    ],
)
def test_flags_that_do_not_fit_are_explained(
    flags: tuple[str, ...], texts: tuple[str, ...], call: Call, fitted: Fitted
) -> None:
    finished = call.any_code("fit", "--mode", "compare", *fitted.flags[:2], "--recipe", "none", *flags)
    assert_explained(finished, 2, *texts)
