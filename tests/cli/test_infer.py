"""``kdtrain infer``: test images and photos, text and JSON, and the drawings."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.store.checkpoint import load_card, load_model, save_model
from tests.cli.conftest import LOGDIR, MODES, Call, Finished, Fitted, assert_explained
from tests.report.drawings import assert_is_drawing


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    """A folder with large pictures of digits, dark on light: 7.png, 2.jpg, other/2.jpg."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "other").mkdir()
    for index, name in ((0, "7.png"), (1, "2.jpg"), (35, "other/2.jpg")):
        digit = Image.fromarray(mnist.test.images[index, 0]).resize((280, 280), Image.Resampling.BICUBIC)
        ImageOps.invert(digit).convert("RGB").save(folder / name)
    return folder


def answers(finished: Finished) -> list[dict[str, Any]]:
    """Returns the JSON that was printed, after checking its probabilities."""
    assert (finished.returncode, finished.stderr) == (0, "")
    predictions: list[dict[str, Any]] = json.loads(finished.stdout)
    for prediction in predictions:
        for name in ("probabilities", "softened"):
            assert sum(prediction[name].values()) == pytest.approx(1.0)
            assert max(prediction[name], key=prediction[name].__getitem__) == prediction["prediction"]
        # Dividing logits by T takes the T-th root of ratios of probabilities.
        expected = np.array([*prediction["probabilities"].values()]) ** (1 / prediction["temperature"])
        soft = [*prediction["softened"].values()]
        np.testing.assert_allclose(soft, expected / expected.sum(), rtol=1e-3)
    return predictions


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [0, 299])
def test_image_of_the_test_set(fitted: Fitted, call: Call, tmp_path: Path, mode: str, index: int) -> None:
    data = fitted.flags[1]
    models = ("--model-type", mode, "--model-save-dir", fitted.folder / LOGDIR / "models")
    flags = ("--picture-index", str(index), "--temperature", "3", "--json")
    finished = call("infer", *flags, *models, "--data-dir", data)
    (answer,) = answers(finished)
    truth = load_dataset(data_dir=Path(data)).test.labels[index]
    assert (answer["image"], answer["truth"]) == (f"test image {index}", str(truth))
    assert answer["temperature"] == 3
    assert answer["model"] == str(fitted.model(mode))
    assert answer["picture"] == f"logs/images/{mode}_{index}.png"
    assert_is_drawing(tmp_path / answer["picture"])


def test_an_exported_file_answers_as_its_checkpoint(
    fitted: Fitted, call: Call, tmp_path: Path, photos: Path
) -> None:
    checkpoint, data = fitted.model("student"), ("--data-dir", fitted.flags[1])
    call("export", checkpoint, "--output", "net.onnx", *data)
    for image in (("--picture-index", "5"), (photos / "7.png",)):
        both = [
            answers(call("infer", *image, "--checkpoint", model, *data, "--json"))[0]
            for model in (checkpoint, "net.onnx")
        ]
        assert both[1]["model"] == "net.onnx"
        assert both[1]["probabilities"] == pytest.approx(both[0]["probabilities"], abs=1e-4)
        assert_is_drawing(tmp_path / both[1]["picture"])


def test_text_for_people(fitted: Fitted, spawn: Call) -> None:
    models = ("--model_save_dir", LOGDIR / "models", "--data-dir", fitted.flags[1])
    picture = f"{LOGDIR}/images/one.png"
    finished = spawn(
        "infer", "--picture_index", "3", *models, "--image_save_name", picture, cwd=fitted.folder
    )
    assert finished.stderr == ""
    first, heading, _, *rows, last, following = finished.stdout.splitlines()
    truth = load_dataset(data_dir=Path(fitted.flags[1])).test.labels[3]
    assert first.startswith("test image 3: ")
    assert first.endswith(f" (it is {truth})")
    assert heading.split() == ["class", "T=1", "T=4"]
    hard = [float(row.split()[1].rstrip("%")) for row in rows]
    soft = [float(row.split()[2].rstrip("%")) for row in rows]
    assert sum(hard) == pytest.approx(100, abs=0.05)
    assert sum(soft) == pytest.approx(100, abs=0.05)
    assert hard == sorted(hard, reverse=True)
    assert rows[0].split()[0] == first.split()[3]
    assert last == f"  picture: {picture}"
    model = shlex.quote(f"{LOGDIR}/models/student_kd.safetensors")
    assert following.startswith(f"Next: kdtrain eval {model} --data-dir ")
    assert_is_drawing(fitted.folder / picture)


def test_photos_are_recognised(fitted: Fitted, photos: Path, call: Call, tmp_path: Path) -> None:
    words = ("2.jpg", "other/2.jpg", "--checkpoint", fitted.model("teacher"), "--image-save-dir", tmp_path)
    predictions = answers(call("infer", *words, "--json", cwd=photos))
    assert [(prediction["image"], prediction["prediction"]) for prediction in predictions] == [
        ("2.jpg", "2"),
        ("other/2.jpg", "2"),
    ]
    assert all(prediction["truth"] is None for prediction in predictions)
    # Two images of one name get two drawings.
    assert [prediction["picture"] for prediction in predictions] == [
        f"{tmp_path}/teacher_2_{n}.png" for n in (1, 2)
    ]
    for prediction in predictions:
        assert_is_drawing(Path(prediction["picture"]))


def test_drawing_is_named_after_its_photo(fitted: Fitted, photos: Path, call: Call, tmp_path: Path) -> None:
    words = ("infer", photos / "2.jpg", "--checkpoint", fitted.model("teacher"))
    assert answers(call(*words, "--json"))[0]["picture"] == "logs/images/teacher_2.png"
    both = ("--image-save-dir", "out", "--image-save-name", "two.png")
    assert answers(call(*words, *both, "--json"))[0]["picture"] == "out/two.png"
    assert_is_drawing(tmp_path / "out/two.png")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("--picture-index 300", 2, "--picture-index 300: "),
        ("--picture-index -1", 2, "--picture-index -1: "),
        ("--picture-index one", 2, "--picture-index is 'one'"),
        ("--picture-index 0 --temperature 0", 2, "--temperature is 0.0"),
        ("--picture-index 0 --temperature nan", 2, "--temperature is nan"),
        ("", 2, "--picture-index N"),
        ("--picture-index 0 7.png", 2, "--picture-index N"),
        ("7.png 2.jpg --image-save-name x.png", 2, "--image-save-name"),
        ("--picture-index 0 --model-type techer", 2, "'teacher'"),
        ("nowhere.png", 1, "/nowhere.png"),
        ("empty", 1, "empty"),
        ("7.png --no-picture --image-save-dir out", 2, "--no-picture"),
        ("other --image-save-name x.png", 2, "--image-save-name"),
        ("notes.txt", 1, "notes.txt"),
        ("half.png", 1, "half.png"),
        ("blank.png", 1, "blank.png"),
        ("--picture-index 0 --image-save-name notes.txt/x.png", 1, "notes.txt"),
    ],
)
def test_bad_input_is_explained(
    fitted: Fitted, photos: Path, call: Call, words: str, code: int, reason: str
) -> None:
    (photos / "empty").mkdir(exist_ok=True)
    (photos / "notes.txt").write_text("a seven")
    (photos / "half.png").write_bytes((photos / "7.png").read_bytes()[:2000])
    Image.new("L", (50, 50), 255).save(photos / "blank.png")
    model = ("--checkpoint", fitted.model("teacher"), "--data-dir", fitted.flags[1])
    assert_explained(call.any_code("infer", *words.split(), *model, cwd=photos), code, reason)
    assert not (photos / "logs").exists()


def test_a_folder_is_answered_in_order_of_name_but_for_what_cannot_be_read(
    fitted: Fitted, photos: Path, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(photos / "other", folder)
    (folder / "1.png").write_bytes((photos / "7.png").read_bytes()[:2000])
    shutil.copy(photos / "7.png", folder / "3.png")
    Image.new("L", (5, 5), 255).save(folder / "5.png")
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(folder / "4.png")
    words = ("infer", "digits", "--checkpoint", fitted.model("teacher"), "--csv", "out/table.csv")
    finished = call.any_code(*words, "--no-picture")
    assert finished.returncode == 1
    lines = [line for line in finished.stdout.splitlines() if not line.startswith("  ")]
    assert [line.split()[0] for line in lines] == ["digits/2.jpg:", "digits/3.png:", "digits/4.png:"]
    damaged, blank, total = finished.stderr.splitlines()
    assert damaged.startswith("kdtrain: digits/1.png cannot be read")
    assert blank.startswith("kdtrain: digits/5.png: no digit found")
    assert total == "kdtrain: 2 of 5 images could not be read."
    assert not (tmp_path / "logs").exists()

    with (tmp_path / "out/table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [
        f"digits/{name}" for name in ("1.png", "2.jpg", "3.png", "4.png", "5.png")
    ]
    assert [bool(row["error"]) for row in rows] == [True, False, False, False, True]
    assert rows[3]["warning"].startswith("Probably too small")
    assert finished.stdout.splitlines()[-1] == f"  {rows[3]['warning']}"
    for row in rows[1:4]:
        classes = {name: float(value) for name, value in row.items() if name.startswith("p(")}
        assert sum(classes.values()) == pytest.approx(1)
        assert float(row["probability"]) == classes[f"p({row['prediction']})"] == max(classes.values())

    finished = call.any_code(*words[:4], "--json")
    assert finished.returncode == 1
    entries = json.loads(finished.stdout)
    assert [entry["image"] for entry in entries] == [row["path"] for row in rows]
    assert [entry.get("error", "") for entry in entries] == [row["error"] for row in rows]
    assert_is_drawing(tmp_path / entries[1]["picture"])


def test_models_temperature_is_the_default(fitted: Fitted, photos: Path, call: Call, tmp_path: Path) -> None:
    saved = load_model(fitted.model("student_kd"))
    assert saved.card.temperature == FitConfig.temperature, "the one of its distillation"
    assert load_card(fitted.model("student")).temperature == 0, "none"
    save_model(tmp_path / "hot.safetensors", saved.weights, dataclasses.replace(saved.card, temperature=7.5))
    for model, temperature in (("hot.safetensors", 7.5), (fitted.model("student"), FitConfig.temperature)):
        words = ("infer", photos / "7.png", "--checkpoint", model, "--no-picture", "--json")
        assert answers(call(*words))[0]["temperature"] == temperature


def test_folder_of_models_has_one_of_the_type(
    fitted: Fitted, photos: Path, call: Call, tmp_path: Path
) -> None:
    """OneFlow's sample spells it this way."""
    words = ("infer", photos / "7.png", "--no-picture", "--json", "--model_load_dir")
    for mode in MODES:
        flags = (fitted.model(mode).parent, "--model_type", mode)
        assert answers(call(*words, *flags))[0]["model"] == str(fitted.model(mode))
    (tmp_path / "few").mkdir()
    shutil.copy(fitted.model("student"), tmp_path / "few/student.safetensors")
    shutil.copy(fitted.model("teacher"), tmp_path / "few/large.safetensors")
    finished = call.any_code(*words, "few", "--model_type", "teacher")
    assert answers(finished)[0]["model"] == "few/large.safetensors", "its card has the type"
    finished = call.any_code(*words, "few")
    listed = "The folder has large.safetensors (teacher), student.safetensors (student)"
    assert_explained(finished, 1, "no student_kd model in few", listed, "--model-type")


def test_missing_model_says_how_to_train_one(call: Call) -> None:
    finished = call.any_code("infer", "--picture-index", "0")
    assert_explained(finished, 1, "no student_kd model in logs/models", "kdtrain fit --mode student_kd")
    finished = call.any_code("infer", "--picture-index", "0", "--checkpoint", "mine")
    assert_explained(finished, 1, "there is no checkpoint mine (looked for at")


def test_images_are_sorted_into_folders_and_no_file_is_replaced(
    fitted: Fitted, call: Call, tmp_path: Path, photos: Path
) -> None:
    for name in ("7.png", "2.jpg"):
        shutil.copy(photos / name, tmp_path)
    flags = ("infer", "7.png", "2.jpg", "--checkpoint", fitted.model("student"), "--sort-into", "out")
    plain = answers(call("infer", "7.png", "2.jpg", *flags[3:5], "--json", "--no-picture"))
    best = {entry["image"]: max(entry["probabilities"].values()) for entry in plain}
    least = sum(best.values()) / 2
    assert min(best.values()) < least < max(best.values())

    sure = max(best, key=best.__getitem__)
    sorted_ = answers(call(*flags, "--at-least", str(least), "--json"))
    copies = {entry["image"]: entry["copy"] for entry in sorted_}
    (copied,) = (tmp_path / "out").rglob("*.*")
    assert copied == tmp_path / "out" / sorted_[list(best).index(sure)]["prediction"] / sure
    assert copies == {name: f"out/{copied.parent.name}/{sure}" if name == sure else None for name in best}
    assert copied.read_bytes() == (photos / sure).read_bytes()
    assert not (tmp_path / "logs").exists(), "sorting draws no charts"

    again = call(*flags)
    assert again.returncode == 0
    assert "copied: 2 of 2 images into out\n" in again.stdout
    copied.write_bytes(b"mine")
    refused = call.any_code(*flags)
    assert (refused.returncode, copied.read_bytes()) == (1, b"mine")
    assert f"{sure} is not copied: out/{copied.parent.name}/{sure} exists" in refused.stderr
    assert "copied: 1 of 2 images into out\n" in refused.stdout
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("x.png", "--at-least", "0.5"), "--at-least is for --sort-into DIR"),
        (("x.png", "--at-least", "90", "--sort-into", "out"), "--at-least is 90.0: it must be from 0 to 1"),
        (("--picture-index", "5", "--sort-into", "out"), "leave out --picture-index"),
    ],
)
def test_flags_of_sorting_contradict_each_other(call: Call, flags: tuple[str, ...], words: str) -> None:
    assert_explained(call.any_code("infer", *flags), 2, words)
