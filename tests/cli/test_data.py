"""Data of one's own at the command line: docs/data.md is followed, and its promises are kept."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain.data.dataset import Normalization
from kdtrain.data.datasets import load_dataset
from kdtrain.data.images.resize import read_image
from kdtrain.experiment.settings.config import read_recipe
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import Call, Finished, assert_explained
from tests.documents import DOCS, commands, files, text_of
from tests.mirror import cifar_members, publish_cifar, serving

TEXT, FILES = text_of(DOCS / "data.md"), files(DOCS / "data.md")
COMMANDS = [shlex.join(words) for words in commands(DOCS / "data.md")]
Follow = Callable[[str], Finished]
MODEL = Path("logs/models/student.safetensors")  # of the page's first data
NETWORK = read_recipe("pictures").settings["student_arch"]
STRIPES, CIFAR = (MODEL.with_stem(f"student-{data}-{NETWORK}") for data in ("stripes.npz", "cifar10"))


def write_pets(folder: Path, count: int = 30) -> None:
    """Cats are reddish, dogs greenish, in pictures of many sizes and kinds."""
    for label, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng(2 * number + label)
            pixels = rng.integers(0, 100, (*rng.integers(12, 40, 2), 3), np.uint8)
            pixels[..., label] += 100
            Image.fromarray(pixels).save(folder / name / f"{number}.{('png', 'jpg')[number % 2]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page is followed: with its files, its pictures, and one to be asked about."""
    folder = tmp_path_factory.mktemp("data")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    write_pets(folder / "pets")
    (folder / "pets" / "cats" / "0.png").rename(folder / "my_cat.png")
    Image.open(folder / "my_cat.png").save(folder / "my_cat.jpg")
    return folder


@pytest.fixture
def follow(call: Call, folder: Path) -> Follow:
    """Runs a command of the page."""

    def follow(command: str) -> Finished:
        program, *words = shlex.split(command)
        assert program == "scripts/kdtrain"
        finished = call(*words, cwd=folder)
        return finished

    return follow


def accuracy(finished: Finished) -> float:
    found = re.search(r"test accuracy +([\d.]+)", finished.stdout)
    assert found, finished.stdout
    return float(found[1])


def test_everything_on_the_page_is_tried_here() -> None:
    assert list(FILES) == ["save_stripes.py"]
    assert len(re.findall(r"^```\w", TEXT, re.MULTILINE)) == len(FILES) + 4
    assert [command.split()[1] for command in COMMANDS] == [
        *("fit", "eval", "infer", "save_stripes.py", "fit", "fit", "fit", "fit"),
    ]


def test_a_folder_of_pictures_is_learnt_tested_and_asked(follow: Follow, folder: Path) -> None:
    assert accuracy(follow(COMMANDS[0])) >= 90
    model = load_model(folder / MODEL)
    data = load_dataset("folder:pets", image_size=16)
    assert model.card.dataset == f"folder:{folder}/pets"
    assert model.card.classes == ("cats", "dogs")
    pixels = data.train.images / 255
    assert model.card.mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert model.card.std == pytest.approx(pixels.std((0, 2, 3)))

    tested = json.loads(follow(f"{COMMANDS[1]} --json").stdout)
    result = json.loads((folder / "logs/student/version_0/result.json").read_text())
    assert (tested["dataset"], tested["accuracy_fraction"]) == (
        "folder:pets",
        result["models"][0]["test_accuracy_fraction"],
    )

    (answer,) = json.loads(follow(f"{COMMANDS[2]} --json").stdout)
    assert answer["prediction"] == "cats"
    seen = Normalization(model.card.mean, model.card.std).apply(
        read_image(folder / "my_cat.jpg", (16, 16))[np.newaxis]
    )
    logits = model.build("cpu")(flow.tensor(seen)).numpy()[0].astype(float)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert list(answer["probabilities"].values()) == pytest.approx(expected)
    assert (folder / answer["picture"]).exists()

    command = "scripts/kdtrain infer --picture-index 1 --model-type student --dataset folder:pets --json"
    (answer,) = json.loads(follow(command).stdout)
    assert (answer["truth"], answer["prediction"]) == ("cats", "cats")


def test_arrays_are_learnt_from_a_file_and_from_a_function(follow: Follow, call: Call, folder: Path) -> None:
    _, *words = shlex.split(COMMANDS[3])
    subprocess.run([sys.executable, *words], cwd=folder, check=True)
    from_file = accuracy(follow(COMMANDS[4]))
    assert from_file > 90
    assert_explained(call.any_code("eval", STRIPES, cwd=folder), 2, "stripes.npz", "--dataset")
    tested = call("eval", STRIPES, "--dataset", "npz:stripes.npz", "--json", cwd=folder)
    assert json.loads(tested.stdout)["dataset"] == "npz:stripes.npz"
    asked = follow(f"{COMMANDS[2]} --dataset npz:stripes.npz --json")  # a colour picture, for a grey model
    (answer,) = json.loads(asked.stdout)
    assert set(answer["probabilities"]) == {"rows", "columns"}

    from_function = follow(COMMANDS[5])
    assert accuracy(from_function) == from_file
    assert f"{STRIPES} stays" in from_function.stderr, "the same data, the same network"
    # A checkpoint cannot make us call a function.
    best = from_function.stdout.partition("best weights")[2].split()[0]
    finished = call.any_code("eval", best, cwd=folder)
    assert_explained(finished, 2, "was trained on", f"--dataset {folder}/save_stripes.py:stripes.")
    finished = call("eval", best, "--dataset", "save_stripes.py:stripes", "--json", cwd=folder)
    assert 100 * json.loads(finished.stdout)["accuracy_fraction"] == pytest.approx(from_file, abs=0.01)


def test_cifar_is_learnt(follow: Follow, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    with serving({}) as mirror:
        publish_cifar(mirror, monkeypatch, "cifar10", cifar_members("cifar10"))
        accuracy(follow(COMMANDS[6]))
    assert load_model(folder / CIFAR).card.image_shape == (3, 32, 32)
    assert (folder / "cache" / "kdtrain" / "cifar-10-python.tar.gz").exists()
    assert json.loads(follow(f"scripts/kdtrain eval {CIFAR} --json").stdout)["dataset"] == "cifar10"


def test_mixed_images_are_trained_on(follow: Follow, folder: Path) -> None:
    before = set(folder.glob("logs/student/*"))
    assert accuracy(follow(COMMANDS[7])) >= 90
    (run,) = set(folder.glob("logs/student/*")) - before
    assert 'augment = "flip,mixup=0.2"' in (run / "config.toml").read_text()


def test_a_distilled_student_learns_from_changed_pictures(call: Call, tmp_path: Path) -> None:
    write_pets(tmp_path / "pets", 15)
    (tmp_path / "pets" / "dogs" / "7.jpg").write_bytes(b"")
    words = "--image-size 8 --epochs 2 --batch-size 8 --augment rotate=15,flip --dataset folder:pets"
    finished = call.any_code("fit", "--mode", "compare", *words.split())
    assert_explained(finished, 1, "dogs/7.jpg", "--skip-corrupt")
    finished = call("fit", "--mode", "compare", *words.split(), "--skip-corrupt")
    assert "1 of 30 images in pets cannot be read, and are left out: pets/dogs/7.jpg" in finished.stderr
    run = next((tmp_path / "logs").glob("**/student_kd*/**/config.toml"))
    assert "skip_corrupt = true\n" in run.read_text()
    assert "image_size = 8\n" in run.read_text()


def test_a_model_is_not_tested_on_other_classes(call: Call, folder: Path) -> None:
    finished = call.any_code("eval", MODEL, "--dataset", "mnist", cwd=folder)
    assert_explained(finished, 1, "is for images of", "mnist has images of 1x28x28 in 10 classes")


def test_the_page_is_short_and_its_table_of_spellings_complete() -> None:
    assert len(TEXT.splitlines()) <= 100
    spellings = "mnist fashion_mnist cifar10 cifar100 folder:DIR csv:FILE npz:FILE FILE.py:FACTORY"
    assert [name for name in spellings.split() if f"`{name}`" not in TEXT] == []
