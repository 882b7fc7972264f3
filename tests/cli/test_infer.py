"""``kdtrain infer``: test images and photos, answers for people and for programs, and the pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from tests.cli.conftest import LOGDIR, MODES, CallKdtrain, Finished, Fitted, assert_explained
from tests.conftest import RunKdtrain


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
    assert (finished.returncode, finished.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(finished.stdout)
    for answer in found:
        for name in ("probabilities", "softened"):
            assert sum(answer[name].values()) == pytest.approx(1.0)
            assert max(answer[name], key=answer[name].__getitem__) == answer["prediction"]
        # Softening divides the logits by T: ratios of probabilities get their T-th root.
        hard, soft = (np.array(list(answer[name].values())) for name in ("probabilities", "softened"))
        expected = hard ** (1 / answer["temperature"])
        np.testing.assert_allclose(soft, expected / expected.sum(), rtol=1e-3)
    return found


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [0, 299])
def test_image_of_the_test_set(
    fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path, mode: str, index: int
) -> None:
    data = fitted.flags[1]
    models = ("--model-type", mode, "--model-save-dir", fitted.folder / LOGDIR / "models")
    asked = ("--picture-index", str(index), "--temperature", "3", "--json")
    finished = call_kdtrain("infer", *asked, *models, "--data-dir", data, cwd=tmp_path)
    (answer,) = answers(finished)
    truth = load_dataset(data_dir=Path(data)).test.labels[index]
    assert (answer["image"], answer["truth"]) == (f"test image {index}", str(truth))
    assert answer["temperature"] == 3
    assert answer["model"] == str(fitted.model(mode))
    assert answer["picture"] == f"logs/images/{mode}_{index}.png"
    assert_is_picture(tmp_path / answer["picture"])


def test_an_exported_file_answers_as_its_checkpoint(
    fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path, photos: Path
) -> None:
    checkpoint, data = fitted.model("student"), ("--data-dir", fitted.flags[1])
    assert call_kdtrain("export", checkpoint, "--output", "net.onnx", *data, cwd=tmp_path).returncode == 0
    for asked in (("--picture-index", "5"), (photos / "7.png",)):
        both = [
            answers(call_kdtrain("infer", *asked, "--checkpoint", model, *data, "--json", cwd=tmp_path))[0]
            for model in (checkpoint, "net.onnx")
        ]
        assert both[1]["model"] == "net.onnx"
        assert both[1]["probabilities"] == pytest.approx(both[0]["probabilities"], abs=1e-4)
        assert_is_picture(tmp_path / both[1]["picture"])


def test_text_for_people(fitted: Fitted, run_kdtrain: RunKdtrain) -> None:
    models = ("--model_save_dir", LOGDIR / "models", "--data-dir", fitted.flags[1])
    picture = f"{LOGDIR}/images/one.png"
    finished = run_kdtrain(
        "infer", "--picture_index", "3", *models, "--image_save_name", picture, cwd=fitted.folder
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    first, heading, *rows, last = finished.stdout.splitlines()
    truth = load_dataset(data_dir=Path(fitted.flags[1])).test.labels[3]
    assert first.startswith("test image 3: ")
    assert first.endswith(f" (it is {truth})")
    assert heading.split() == ["class", "T=1", "T=10"]
    hard, soft = ([float(row.split()[column].rstrip("%")) for row in rows] for column in (1, 2))
    assert sum(hard) == pytest.approx(100, abs=0.05)
    assert sum(soft) == pytest.approx(100, abs=0.05)
    assert hard == sorted(hard, reverse=True)
    assert rows[0].split()[0] == first.split()[3]
    assert last == f"  picture: {picture}"
    assert_is_picture(fitted.folder / picture)


def test_photos_are_recognised(
    fitted: Fitted, photos: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    words = ("2.jpg", "other/2.jpg", "--checkpoint", fitted.model("teacher"), "--image-save-dir", tmp_path)
    found = answers(call_kdtrain("infer", *words, "--json", cwd=photos))
    assert [(answer["image"], answer["prediction"]) for answer in found] == [
        ("2.jpg", "2"),
        ("other/2.jpg", "2"),
    ]
    assert all(answer["truth"] is None for answer in found)
    # Two images of one name get two pictures.
    assert [answer["picture"] for answer in found] == [f"{tmp_path}/teacher_2_{n}.png" for n in (1, 2)]
    for answer in found:
        assert_is_picture(Path(answer["picture"]))


def test_photo_alone_gives_its_name_to_the_picture(
    fitted: Fitted, photos: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    words = ("infer", photos / "2.jpg", "--checkpoint", fitted.model("teacher"))
    assert answers(call_kdtrain(*words, "--json", cwd=tmp_path))[0]["picture"] == "logs/images/teacher_2.png"
    both = ("--image-save-dir", "out", "--image-save-name", "two.png")
    assert answers(call_kdtrain(*words, *both, "--json", cwd=tmp_path))[0]["picture"] == "out/two.png"
    assert_is_picture(tmp_path / "out/two.png")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("--picture-index 300", 2, "--picture-index 300: the test set has images 0 to 299."),
        ("--picture-index -1", 2, "--picture-index -1: the test set has images 0 to 299."),
        ("--picture-index one", 2, "--picture-index is 'one': it must be a whole number."),
        (
            "--picture-index 0 --temperature 0",
            2,
            "--temperature is 0.0: it must be above 0, and at most 1,000,000.",
        ),
        (
            "--picture-index 0 --temperature nan",
            2,
            "--temperature is nan: it must be above 0, and at most 1,000,000.",
        ),
        ("", 2, "name image files, or one image of the test set with --picture-index N."),
        ("--picture-index 0 7.png", 2, "name image files, or one image of the test set"),
        ("7.png 2.jpg --image-save-name x.png", 2, "--image-save-name names one picture"),
        ("--picture-index 0 --model-type techer", 2, "did you mean 'teacher'?"),
        ("nowhere.png", 1, "nowhere.png (looked for at"),
        ("other", 1, "other cannot be read as an image: it is a folder"),
        ("notes.txt", 1, "notes.txt is not an image"),
        ("half.png", 1, "half.png cannot be read as an image"),
        ("blank.png", 1, "blank.png"),
        ("--picture-index 0 --image-save-name notes.txt/x.png", 1, "notes.txt"),
    ],
)
def test_bad_input_is_explained(
    fitted: Fitted, photos: Path, call_kdtrain: CallKdtrain, words: str, code: int, reason: str
) -> None:
    (photos / "notes.txt").write_text("a seven")
    (photos / "half.png").write_bytes((photos / "7.png").read_bytes()[:2000])
    Image.new("L", (50, 50), 255).save(photos / "blank.png")
    model = ("--checkpoint", fitted.model("teacher"), "--data-dir", fitted.flags[1])
    assert_explained(call_kdtrain("infer", *words.split(), *model, cwd=photos), code, reason)
    assert not (photos / "logs").exists()


def test_missing_model_says_how_to_train_one(call_kdtrain: CallKdtrain, tmp_path: Path) -> None:
    finished = call_kdtrain("infer", "--picture-index", "0", cwd=tmp_path)
    assert_explained(finished, 1, "no student_kd model in logs/models", "kdtrain fit --mode student_kd")
    finished = call_kdtrain("infer", "--picture-index", "0", "--checkpoint", "mine", cwd=tmp_path)
    assert_explained(finished, 1, "there is no checkpoint mine (looked for at")
