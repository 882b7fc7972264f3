"""Recipes: each is a file that --config reads; the data choose one; flags and files win over it."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli

from kdtrain import load_data
from kdtrain.data import datasets
from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import DATASETS, FILES
from kdtrain.data.idx import content_sha256, read_idx
from kdtrain.errors import UsageError
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import (
    RECIPE_SETTINGS,
    FitConfig,
    describe_recipe,
    epochs_for_size,
    read_recipe,
    recipe_for,
)
from kdtrain.experiment.settings.load import absolute_paths, new_config, resumed_config
from kdtrain.experiment.settings.schema import RECIPE_NAMES
from kdtrain.models.registry import check_architecture
from tests.tools import write_digits

NAMES = RECIPE_NAMES
MNIST = Path(datasets.__file__).parent / "mnist"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_the_recipes_are_there() -> None:
    assert set(NAMES) == {
        *("mnist", "fashion_mnist", "pictures", "patient", "sample", "hinton2015", "quick"),
        *("mnist_few_labels", "fashion_mnist_few_labels", "pictures_few_labels"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_file_of_settings_of_the_training(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    file = write(tmp_path / "mine.toml", recipe.text)
    assert tomli.loads(recipe.text).keys() - {"recipe"} <= RECIPE_SETTINGS
    given = {"labels": "100"} if name.endswith("few_labels") else {}
    config = new_config(given, file)
    assert config.recipe == name
    for setting, value in recipe.settings.items():
        assert getattr(config, setting) == value
    check_architecture(config.architecture_for("teacher"))
    check_architecture(config.student_arch)
    assert config.to_toml() == new_config({"recipe": name, **given}).to_toml()
    assert recipe.title
    assert recipe.measured
    assert recipe.text.startswith(f"# {recipe.title}.\n#\n# Measured: ")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({}, "mnist"),
        ({"dataset": "fashion_mnist"}, "fashion_mnist"),
        ({"dataset": "cifar10"}, "pictures"),
        ({"dataset": "folder:pets"}, "pictures"),
        ({"dataset": "npz:x.npz"}, "pictures"),
        ({"dataset": "my.py:data"}, "pictures"),
        ({"data_dir": MNIST}, "mnist"),
        ({"dataset": "fashion_mnist", "data_dir": MNIST}, "mnist"),
        ({"data_dir": Path("none")}, "pictures"),
    ],
)
def test_the_data_choose_the_recipe(data: dict[str, Any], name: str) -> None:
    config = new_config(data)
    assert config.recipe == name
    assert tomli.loads(config.to_toml())["recipe"] == name
    assert (config.temperature, config.augment) == tuple(
        read_recipe(name).settings[setting] for setting in ("temperature", "augment")
    )
    assert "chosen for these data" in describe_recipe(name, config.chosen_recipe)
    assert "chosen" not in describe_recipe("sample", config.chosen_recipe)
    for few_labels in ({"labels": 1000}, {"transfer_data": Path("more")}):
        few = new_config(data | few_labels)
        assert few.recipe == few.chosen_recipe == f"{name}_few_labels"


def test_the_recipes_share_and_seeds_are_for_fits_that_have_them() -> None:
    assert (new_config({"labels": "100"}).seeds, new_config({"labels": "100"}).transfer_share) == (5, 0.75)
    assert new_config({"labels": "100", "mode": "student_kd"}).seeds == 1
    assert new_config({"recipe": "mnist_few_labels"}).transfer_share == 0.5


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_recognised_by_their_labels(
    suffix: str, tmp_path: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for file in (f"{name}.gz" for name in FILES if "labels" in name):
        if suffix:
            shutil.copy(MNIST / file, folder)
        else:
            (folder / file[:-3]).write_bytes(gzip.decompress((MNIST / file).read_bytes()))
    assert recipe_for("mnist", folder) == "mnist"
    digits = write_digits(tmp_path / "digits", mnist, train=20)
    assert recipe_for("mnist", digits) == "pictures"
    # Fashion-MNIST's files are not at hand: these few labels are published in their place.
    published = tuple(content_sha256(read_idx(digits / file)) for file in FILES)
    fashion_mnist = DATASETS["fashion_mnist"]._replace(sha256=published)
    monkeypatch.setitem(DATASETS, "fashion_mnist", fashion_mnist)
    assert recipe_for("mnist", digits) == "fashion_mnist"
    (digits / FILES[1]).write_bytes((digits / FILES[3]).read_bytes())
    assert recipe_for("mnist", digits) == "pictures", "both files of labels count"


def test_flags_win_over_the_file_the_file_over_the_recipe_the_recipe_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", "alpha = 0.5\nbatch_size = 64\n")
    config = new_config({"batch_size": 32, "recipe": "sample"}, file)
    assert (config.batch_size, config.alpha, config.temperature, config.seed) == (32, 0.5, 5.0, 0)
    write(file, 'recipe = "sample"\n')
    assert new_config({}, file).temperature == 5.0
    assert new_config({"recipe": "hinton2015"}, file).temperature == 20.0


def test_without_a_recipe_the_defaults_are_left() -> None:
    config = new_config({"recipe": "none"})
    assert config == FitConfig(recipe="none")
    assert config.epochs is None


@pytest.mark.parametrize(
    ("given", "setting", "value"),
    [
        ({"epochs": 2}, "teacher_epochs", 2),
        ({"epochs": 2, "teacher_epochs": 3}, "teacher_epochs", 3),
        ({"teacher_epochs": 3}, "epochs", 24),
        ({"augment": "flip"}, "teacher_augment", "flip"),
        ({"augment": "none"}, "teacher_augment", "none"),
        ({"augment": "flip", "teacher_augment": "shift=3"}, "teacher_augment", "shift=3"),
        ({"teacher_augment": "none"}, "augment", "shift=2"),
        ({"recipe": "sample", "optimizer": "adam"}, "lr", 0.003),
        ({"recipe": "sample", "batch_size": 9}, "lr", 1.0),
    ],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_a_setting_for_all_networks_replaces_what_the_recipe_says_of_one(
    given: dict[str, Any], setting: str, value: object, by_file: bool, tmp_path: Path
) -> None:
    lines = (f"{name} = {f'{text!r}' if isinstance(text, str) else text}\n" for name, text in given.items())
    file = write(tmp_path / "mine.toml", "".join(lines))
    config = new_config({}, file) if by_file else new_config(given)
    assert config.with_epochs(55_000).resolved()[setting] == value


def test_the_recipes_teacher_is_trained_where_there_is_none_and_refuses_no_other() -> None:
    for given in ({}, {"mode": "student_kd"}, {"teacher_checkpoint": Path("t")}):
        config = new_config({"recipe": "hinton2015", **given})
        assert config.teacher_arch is None, "a kept teacher or a checkpoint may have any architecture"
        assert config.architecture_for("teacher") == "hinton_1200"
    assert new_config({"recipe": "hinton2015"}).resolved()["teacher_arch"] == "hinton_1200"
    named = new_config({"recipe": "hinton2015", "teacher_arch": "resnet8"})
    assert named.architecture_for("teacher") == "resnet8"


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--recipe: .*'mnits' .*did you mean 'mnist'.*none"):
        new_config({"recipe": "mnits"})
    file = write(tmp_path / "mine.toml", "recipe = 'mnits'\n")
    with pytest.raises(UsageError, match=f"^recipe in {file}: .*'mnits'"):
        new_config({}, file)


def test_a_resumed_run_keeps_its_recipe(tmp_path: Path) -> None:
    config = new_config({"recipe": "sample", "epochs": 3}).with_epochs(500)
    write(tmp_path / "config.toml", config.to_toml())
    assert (
        resumed_config({}, tmp_path)
        .with_epochs(9)
        .to_toml()
        .startswith('mode = "compare"\nrecipe = "sample"')
    )
    with pytest.raises(UsageError, match=r"--recipe mnist: .* was begun with sample"):
        resumed_config({"recipe": "mnist"}, tmp_path)


def test_epochs_follow_the_number_of_images() -> None:
    assert (epochs_for_size("student", 55_000), epochs_for_size("teacher", 55_000)) == (60, 20)
    assert (epochs_for_size("student", 33_000), epochs_for_size("teacher", 11_000)) == (100, 100)
    for images, student, teacher in ((1, 200, 300), (10**8, 20, 5)):
        assert (epochs_for_size("student", images), epochs_for_size("teacher", images)) == (student, teacher)
    config = new_config({"dataset": "folder:pets"})
    assert not {"epochs", "teacher_epochs"} & config.resolved().keys()
    sized = config.with_epochs(11_000)
    assert (sized.epochs_for("student"), sized.epochs_for("teacher")) == (200, 100)
    assert config.with_epochs(11_000).resolved() == sized.with_epochs(50).resolved()
    for given in ({"epochs": 7}, {"epochs": 7, "teacher_epochs": 7}):
        named = new_config({"dataset": "folder:pets", **given}).with_epochs(11_000)
        assert (named.epochs, named.teacher_epochs) == (7, 7)


def test_a_session_decides_the_epochs_by_its_training_images(tiles: Path, tmp_path: Path) -> None:
    given = {"recipe": "none", "data_dir": tiles, "logdir": tmp_path, "val_size": 100, "batch_size": 32}
    session = Session.open(new_config(given))
    images = len(session.dataset.train) - 100
    assert session.config.epochs == epochs_for_size("student", images)
    limited = Session.open(new_config(given | {"limit_train": 300}))
    assert limited.config.teacher_epochs == epochs_for_size("teacher", 300)


def test_data_for_a_notebook_have_no_recipe() -> None:
    data = load_data(limit_train=64)
    assert (data.train.views, data.train.num_images) == (None, 64)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"recipe": "patient"},
        {"recipe": "sample", "optimizer": "adam"},
        {"data_dir": MNIST, "epochs": 3},
        {"dataset": "cifar10", "augment": "none"},
        {"recipe": "none"},
    ],
)
def test_the_config_of_a_run_repeats_it_exactly(given: dict[str, Any], tmp_path: Path) -> None:
    """As the page of a comparison says."""
    config = absolute_paths(new_config(given).with_epochs(5000))
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert new_config({}, file).resolved() == config.resolved()


@pytest.mark.parametrize("mode", ["compare", "student_kd"])
def test_a_comparison_says_beforehand_what_can_be_seen(
    mode: str, tiles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"recipe": "mnist_few_labels", "labels": "100", "data_dir": tiles, "logdir": tmp_path}
    with caplog.at_level("INFO", logger="kdtrain"):
        Session.open(new_config(given | {"mode": mode}))
    expected = read_recipe("mnist_few_labels").expected
    assert expected.endswith(".")
    assert (expected in caplog.messages) == (mode == "compare")
