"""Copies of images: test images are no transfer images unless that is meant, and copies are counted."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdtrain
from kdtrain.data.dataset import Dataset
from kdtrain.errors import DataError
from tests.cli.conftest import Call, assert_explained
from tests.tools import read_result

TINY = ("--recipe", "none", "--epochs", "1", "--val-size", "20", "--augment", "none")
ALLOWED = "--allow-test-images"


def draw(folder: Path, count: int, seed: int) -> None:
    """Writes ``count`` pictures of noise into each of two class folders."""
    for label, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([seed, label, number]).integers(0, 256, (12, 12), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    draw(tmp_path / "pets" / "train", 40, 0)
    draw(tmp_path / "pets" / "test", 10, 1)
    return tmp_path / "pets"


@pytest.fixture
def more(pets: Path) -> Path:
    """Transfer images, three of which are test images: one a copy of the file, one in another format."""
    draw(pets.parent / "drawn", 6, 2)
    folder = Path(shutil.move(pets.parent / "drawn" / "dogs", pets.parent / "more"))
    shutil.copy(pets / "test/cats/004.png", folder / "x.png")
    for number in (2, 3):
        Image.open(pets / f"test/dogs/00{number}.png").convert("RGB").save(folder / f"y{number}.bmp")
    return folder


def test_transfer_images_that_are_test_images_are_refused(pets: Path, more: Path, call: Call) -> None:
    words = ("--mode", "student_kd", "--dataset", f"folder:{pets}", "--transfer-data", more, *TINY)
    assert_explained(
        call.any_code("fit", *words, cwd=pets.parent), 1,
        f"--transfer-data {more}: 3 of its 9 images are test images (the first is test/cats/004.png)",
        f"leave them out, or allow them with {ALLOWED}.",
    )  # fmt: skip
    assert not (pets.parent / "logs" / "student_kd").exists()
    with pytest.raises(DataError, match="3 of its 9 images are test images"):
        kdtrain.load_data(dataset=f"folder:{pets}", transfer_data=more)


def test_transfer_images_of_an_array_are_named_by_their_number(
    tmp_path: Path, mnist: Dataset, call: Call
) -> None:
    np.savez(
        tmp_path / "more.npz", images=np.concatenate([mnist.train.images[:3], mnist.test.images[7:9]])[:, 0]
    )
    finished = call.any_code(
        "fit", "--mode", "student_kd", "--transfer-data", "more.npz", "--limit-train=60", *TINY
    )
    assert_explained(finished, 1, "2 of its 5 images are test images (the first is test image 7)")


def test_transfer_images_that_are_training_images_are_allowed(pets: Path) -> None:
    data = kdtrain.load_data(dataset=f"folder:{pets}", transfer_data=pets / "train" / "cats")
    assert data.train.num_images > 0


def test_copies_are_counted_in_one_warning_and_in_the_files_of_a_comparison(
    pets: Path, more: Path, call: Call
) -> None:
    """Held-out images are drawn by the seed; 18 copies of one picture are in both parts."""
    for number in range(18):
        shutil.copy(pets / "train/dogs/030.png", pets / f"train/dogs/copy{number}.png")
    for number in range(5):
        shutil.copy(pets / f"train/cats/{number:03}.png", pets / f"test/cats/9{number}.png")
    words = ("--dataset", f"folder:{pets}", "--transfer-data", more, ALLOWED, *TINY)
    finished = call("fit", "--mode", "compare", *words, cwd=pets.parent)
    run = pets.parent / "logs/compare/version_0"
    record = json.loads((run / "compare.json").read_text())
    copies = record["conditions"]["copies"]
    held_out = kdtrain.load_data(dataset=f"folder:{pets}", mode="student", val_size=20).validation.inputs
    assert copies["test_images"] == 25
    assert copies["held_out_images"] == len(held_out) == 20
    # Five test images are training or held-out images, three are images without labels.
    assert copies["test_in_training"] + copies["test_in_held_out"] == 8
    assert 0 < copies["held_out_in_training"] < 20
    sentence = next(text for text in record["sentences"] if "pixel" in text)
    assert f"{copies['test_in_training']} of the 25 test images are also training images" in sentence
    joined = " ".join(finished.stderr.split())
    assert joined.count("test images are also training images") == 1
    assert sentence in joined
    assert sentence in html.unescape((run / "report.html").read_text())
    student = run / "seed_0/student_kd/checkpoints/best.safetensors"
    assert sentence in kdtrain.card(student)
    # A student without a teacher has not seen the transfer images.
    plain = kdtrain.card(run / "seed_0/student/checkpoints/best.safetensors")
    assert f"{copies['test_in_training'] - 3} of the 25 test images are also training images" in plain


def test_data_without_copies_get_no_warning(pets: Path, call: Call) -> None:
    words = ("--mode", "student", "--dataset", f"folder:{pets}", *TINY)
    finished = call("fit", *words, cwd=pets.parent)
    assert "pixel" not in finished.stderr
    assert read_result(pets.parent / "logs/student/version_0")["conditions"]["copies"] is None


def test_a_run_of_one_network_has_its_copies_in_its_card(pets: Path, call: Call) -> None:
    shutil.rmtree(pets / "test")
    shutil.copytree(pets / "train", pets / "test")
    words = ("--mode", "student", "--dataset", f"folder:{pets}", "--recipe", "none", "--epochs", "1")
    finished = call("fit", *words, "--val-size", "0", cwd=pets.parent)
    sentence = "80 of the 80 test images are also training images."
    assert finished.stderr.count(sentence) == 1
    card = kdtrain.card(pets.parent / "logs/student/version_0/checkpoints/best.safetensors")
    assert sentence in card
