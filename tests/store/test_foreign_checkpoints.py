"""A checkpoint that names code or absurd sizes runs no code and allocates little memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kdtrain.errors import CheckpointError
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model, save_model, snapshot
from tests.refusals import refusal_by

NET = """
from pathlib import Path
Path({witness!r}).touch()
from kdtrain.models.networks import StudentMlp as make
"""


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that is there once the code in net.py has run."""
    return tmp_path / "it ran"


@pytest.fixture
def names_code(tmp_path: Path, card: ModelCard, witness: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that is for net.py:make."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.format(witness=str(witness)))
    return save(card, "net.py:make")


def save(card: ModelCard, arch: str) -> Path:
    flow.manual_seed(0)
    model = build_model("student_mlp", (1, 28, 28), 10)
    save_model(Path("model.safetensors"), snapshot(model), dataclasses.replace(card, arch=arch))
    return Path("model.safetensors")


def load(path: Path, arch: str | None = None, flag: str = "--arch") -> None:
    load_model(path, arch=arch, flag=flag)


refusal = refusal_by(load, CheckpointError)


def test_code_is_refused_with_how_to_allow_it(names_code: Path, witness: Path) -> None:
    text = refusal(names_code)
    assert text.endswith("--arch net.py:make.")
    assert "no code is run" in text
    assert refusal(names_code, None, "--teacher-arch").endswith("--teacher-arch net.py:make.")
    assert not witness.exists()


def test_code_that_is_allowed_by_name_is_run_to_build(names_code: Path, witness: Path) -> None:
    saved = load_model(names_code, arch="net.py:make")
    assert not witness.exists(), "reading needs no code"
    model = saved.build("cpu")
    assert witness.exists()
    weights = snapshot(model)
    assert all(np.array_equal(weights[name], array) for name, array in saved.weights.items())


def test_other_code_than_what_the_card_names_is_refused(names_code: Path, witness: Path) -> None:
    Path("other.py").write_text(NET.format(witness=str(witness)))
    for arch in ("other.py:make", "student_mlp", "net.py:other"):
        text = refusal(names_code, arch)
        assert "net.py:make" in text
        assert f"--arch is {arch}" in text
    assert not witness.exists()


@pytest.mark.parametrize("arch", ["os:getcwd", "net:make", "net.py", "/tmp/net.py:make", "a b.py:make"])
def test_every_spelling_of_code_is_refused(names_code: Path, card: ModelCard, arch: str) -> None:
    text = refusal(save(card, arch))
    assert "no code is run" in text
    assert text.endswith(("'a b.py:make'.", f" {arch}."))


@pytest.mark.parametrize(
    "arch", ["", "nonsense", "flowvision:", "flowvision:ModelCreator", "flowvision:vit_gigantic_patch14_224"]
)
def test_what_is_no_classifier_is_refused(names_code: Path, card: ModelCard, arch: str) -> None:
    assert repr(arch) in refusal(save(card, arch))


def test_names_that_would_garble_a_terminal_are_refused(names_code: Path, card: ModelCard) -> None:
    assert "its header contradicts itself" in refusal(save(card, "net.py:make\n\x1b[2J"))


def test_images_of_absurd_size_are_refused(names_code: Path, card: ModelCard) -> None:
    huge = dataclasses.replace(card, image_shape=(64, 64, 64), mean=(0.1,) * 64, std=(0.3,) * 64)
    assert "its header contradicts itself" in refusal(save(huge, "hinton_1200"))
    assert "its header contradicts itself" in refusal(save(huge, "flowvision:resnet18"))


def test_a_classifier_of_flowvisions_comes_back(card: ModelCard, tmp_path: Path) -> None:
    flow.manual_seed(0)
    arch = "flowvision:shufflenet_v2_x0_5"
    model = build_model(arch, (1, 28, 28), 10)
    model(flow.randn(4, 1, 28, 28))  # moves its running means
    save_model(tmp_path / "m.safetensors", snapshot(model), dataclasses.replace(card, arch=arch))
    images = flow.randn(3, 1, 28, 28)
    again = load_model(tmp_path / "m.safetensors").build("cpu")
    assert np.array_equal(again(images).numpy(), model.eval()(images).numpy())


def test_directory_is_taken_for_what_the_user_says(card: ModelCard, tmp_path: Path) -> None:
    flow.save(build_model("student_mlp", (1, 28, 28), 10).state_dict(), str(tmp_path / "saved"))
    assert load_model(tmp_path / "saved", card).card.arch == "student_mlp"
    taken = load_model(tmp_path / "saved", card, arch="hinton_800")
    with pytest.raises(CheckpointError, match="do not fit the network"):
        taken.build("cpu")
