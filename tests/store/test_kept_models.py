"""The folder of kept models: which models are replaced, which stay, and that none is lost."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pytest

from kdtrain.errors import KdtrainError
from kdtrain.store import kept_models as module
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel, load_card, save_model
from kdtrain.store.kept_models import keep_model, kept_models

FORK = multiprocessing.get_context("fork")


def saved(card: ModelCard, run: Path, accuracy: float = 0.9, held_out: str = "a", **more: Any) -> SavedModel:
    """A model in a run directory, as a fit leaves it."""
    card = dataclasses.replace(card, metrics={"val/accuracy": accuracy}, held_out=held_out, **more)
    path = run / "checkpoints" / "best.safetensors"
    path.parent.mkdir(parents=True)
    save_model(path, {}, card)
    return SavedModel(path, card, {})


def keep(model: SavedModel, folder: Path, *, always: bool = False) -> str | None:
    return keep_model(model, "student", folder / "models", always=always)


def kept(folder: Path) -> dict[str, tuple[str, str, float]]:
    """Data set, architecture and accuracy of each model in the folder."""
    cards = {path.name: load_card(path) for path in (folder / "models").iterdir()}
    return {name: (card.dataset, card.arch, card.accuracy) for name, card in cards.items()}


def test_the_first_model_has_the_name_of_its_mode(card: ModelCard, tmp_path: Path) -> None:
    model = saved(card, tmp_path / "run")
    assert keep(model, tmp_path) is None
    assert (tmp_path / "models/student.safetensors").read_bytes() == model.path.read_bytes()
    assert keep(model, tmp_path) is None, "it is there already"
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"student.safetensors"}


@pytest.mark.parametrize(
    ("before", "now", "always", "left"),
    [
        ((0.8, "a"), (0.9, "a"), False, 0.9),
        ((0.9, "a"), (0.8, "a"), False, 0.9),
        ((0.9, "a"), (0.9, "a"), False, 0.9),
        ((0.9, "a"), (0.8, "a"), True, 0.8),
        ((0.8, "a"), (0.9, "b"), False, 0.8),
        ((0.8, "a"), (0.9, "b"), True, 0.9),
        ((0.8, ""), (0.9, "a"), False, 0.8),  # images unknown
        ((0.8, ""), (0.9, ""), False, 0.8),
        ((0.8, ""), (0.9, "a"), True, 0.9),
    ],
)
def test_only_a_better_one_by_the_same_images_replaces_a_model_unasked(
    card: ModelCard,
    tmp_path: Path,
    before: tuple[float, str],
    now: tuple[float, str],
    always: bool,
    left: float,
) -> None:
    keep(saved(card, tmp_path / "before", *before), tmp_path)
    note = keep(saved(card, tmp_path / "now", *now, epochs=2), tmp_path, always=always)
    assert note is not None
    path = tmp_path / "models/student.safetensors"
    assert f"{path} " in note
    assert re.findall(r"[\d.]+%", note) == [f"{before[0]:.2%}", f"{now[0]:.2%}"]
    assert load_card(path).accuracy == left
    comparable = before[1] == now[1] != ""
    assert (f"--resume {tmp_path / 'now'} --replace" in note) == (not comparable and not always)


@pytest.mark.parametrize(
    ("before", "left"),
    [
        ((0.80, "a"), 0.93),  # beaten by its own rival
        ((0.90, "a"), 0.93),  # the rival is as good, and its sibling better
        ((0.91, "a"), 0.91),
        ((0.92, "b"), 0.93),
        ((0.93, "b"), 0.93),
        ((0.80, "c"), 0.80),
    ],
)
def test_the_best_of_several_seeds_replaces_what_the_seed_of_the_same_images_beats(
    card: ModelCard, tmp_path: Path, before: tuple[float, str], left: float
) -> None:
    keep(saved(card, tmp_path / "before", *before, epochs=2), tmp_path)
    rival = saved(card, tmp_path / "0", 0.9, "a")
    best = saved(card, tmp_path / "1", 0.93, "b")
    note = keep_model(best, "student", tmp_path / "models", always=False, siblings=[rival.card, best.card])
    path = tmp_path / "models/student.safetensors"
    assert load_card(path).accuracy == left
    assert note is not None
    assert (path.read_bytes() == best.path.read_bytes()) == ("is replaced" in note)
    assert ("--replace" in note) == (before[1] == "c")


def test_other_data_and_other_networks_are_kept_apart(card: ModelCard, tmp_path: Path) -> None:
    other: dict[str, Any] = {"dataset": "folder:/home/me/pets", "mean": (0.5,)}
    same_name: dict[str, Any] = {"dataset": "npz:other/pets", "mean": (0.6,)}
    network: dict[str, Any] = {"arch": "my nets/net.py:make"}
    for number, accuracy in enumerate((0.7, 0.8, 0.6)):
        for kind, changes in (("", {}), ("data", other), ("name", same_name), ("net", network)):
            keep(saved(card, tmp_path / f"{kind}{number}", accuracy, **changes), tmp_path)
    models = kept(tmp_path)
    third = next(name for name in models if name.startswith("student-pets-student_mlp-"))
    assert models == {
        "student.safetensors": ("mnist", "student_mlp", 0.8),
        "student-pets-student_mlp.safetensors": ("folder:/home/me/pets", "student_mlp", 0.8),
        third: ("npz:other/pets", "student_mlp", 0.8),
        "student-mnist-make.safetensors": ("mnist", "my nets/net.py:make", 0.8),
    }
    first, *others = kept_models(tmp_path / "models", "student")
    assert first.name == "student.safetensors"
    assert {path.name for path in others} == models.keys() - {first.name}
    assert kept_models(tmp_path / "models", "student_kd") == []


@pytest.mark.parametrize("first", ["pets", "others"])
def test_the_same_data_under_another_name_are_the_same(card: ModelCard, tmp_path: Path, first: str) -> None:
    if first == "others":
        keep(saved(card, tmp_path / "first"), tmp_path)
    pets: dict[str, Any] = {"mean": (0.5,)}
    keep(saved(card, tmp_path / "here", 0.7, dataset="folder:pets", **pets), tmp_path)
    keep(saved(card, tmp_path / "there", 0.8, dataset="folder:/home/me/animals", **pets), tmp_path)
    models = kept(tmp_path)
    name = "student.safetensors" if first == "pets" else "student-pets-student_mlp.safetensors"
    assert models[name] == ("folder:/home/me/animals", "student_mlp", 0.8)
    assert len(models) == (1 if first == "pets" else 2)


@pytest.mark.parametrize("name", ["../../escaped", "folder:..", "npz:" + "ä" * 300, "a\nb", "", "x" * 300])
def test_a_name_of_data_stays_a_name_of_a_file_in_the_folder(
    card: ModelCard, tmp_path: Path, name: str
) -> None:
    keep(saved(card, tmp_path / "first"), tmp_path)
    keep(saved(card, tmp_path / "second", dataset=name, mean=(0.5,)), tmp_path)
    assert len(kept(tmp_path)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "models"}


@pytest.mark.parametrize("content", [b"", b"mine", b"\xff" * 100])
def test_a_file_that_is_no_model_is_not_written_over(card: ModelCard, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/student.safetensors").write_bytes(content)
    note = keep(saved(card, tmp_path / "run"), tmp_path, always=True)
    assert note is not None
    assert "student-mnist-student_mlp.safetensors" in note
    assert (tmp_path / "models/student.safetensors").read_bytes() == content
    assert load_card(tmp_path / "models/student-mnist-student_mlp.safetensors").dataset == "mnist"


def test_models_that_are_kept_at_the_same_moment_leave_the_best(card: ModelCard, tmp_path: Path) -> None:
    models = [saved(card, tmp_path / str(n), accuracy=(n * 7 % 12) / 12) for n in range(12)]
    start = FORK.Event()

    def work(model: SavedModel) -> None:
        start.wait(30)
        keep(model, tmp_path)

    processes = [FORK.Process(target=work, args=(model,)) for model in models]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 12
    assert kept(tmp_path) == {"student.safetensors": ("mnist", "student_mlp", 11 / 12)}


def test_a_folder_that_is_locked_too_long_is_an_error_with_the_command_that_resumes(
    card: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_TIMEOUT", 0.2)
    (tmp_path / "models").mkdir()
    holder = os.open(tmp_path / "models", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with pytest.raises(KdtrainError, match=f"--resume {tmp_path / 'run'}"):
            keep(saved(card, tmp_path / "run"), tmp_path)
    finally:
        os.close(holder)
    assert keep(saved(card, tmp_path / "again"), tmp_path) is None
