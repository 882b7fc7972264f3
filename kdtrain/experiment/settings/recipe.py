"""Recipes: files of settings, each for a kind of data or a purpose, that a fit starts from."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from kdtrain.errors import DataError, UsageError, unknown_name_message
from kdtrain.runtime.regular_files import read_text

NO_RECIPE = "none"
"""The value of ``--recipe`` that leaves the defaults of ``FitConfig`` as they are."""

RECIPE_SETTINGS = frozenset(
    {
        *("epochs", "teacher_epochs", "batch_size", "optimizer", "lr", "schedule"),
        *("weight_decay", "clip_grad_norm", "early_stopping"),
        *("teacher_arch", "student_arch", "temperature", "alpha"),
        *("augment", "teacher_augment", "views", "val_size", "limit_train"),
        *("labels", "transfer_share", "seeds"),
    }
)
"""The settings that a recipe may have: those of the training, whatever the data and the machine are."""

_FEW_LABELS = "_few_labels"  # ends the name of a recipe for images without labels

_FOLDER = Path(__file__).with_name("recipes")
_LARGEST = 1 << 16  # bytes of a file
_PUBLISHED = ("mnist", "fashion_mnist")


@dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
        name: its name for ``--recipe``.
        title: its first comment line, a noun phrase.
        measured: the paragraph of its comments that begins with "Measured: ", without that word.
        expected: the paragraph that begins with "Expect: ", which says before a comparison what it can show;
            "" without one.
        text: the whole file, as ``--config`` reads it.
    """

    name: str
    title: str
    measured: str
    expected: str
    text: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as in the file, without the name."""
        settings = tomli.loads(self.text)
        settings.pop("recipe", None)
        return settings


def recipe_names() -> list[str]:
    """Returns the names of all recipes, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.toml"))


def list_recipes() -> list[Recipe]:
    """Returns all recipes, sorted by name."""
    return [read_recipe(name) for name in recipe_names()]


@functools.cache
def read_recipe(name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        UsageError: there is no recipe of that name.
    """
    names = recipe_names()
    if name not in names:
        raise UsageError(unknown_name_message("recipe", name, names))
    text = read_text(_FOLDER / f"{name}.toml", _LARGEST)
    comments = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    paragraphs = [" ".join(part.split()) for part in "\n".join(comments).split("\n\n")]

    def paragraph(begin: str) -> str:
        return next((part.removeprefix(begin) for part in paragraphs if part.startswith(begin)), "")

    return Recipe(name, comments[0].rstrip("."), paragraph("Measured: "), paragraph("Expect: "), text)


def named_recipe(name: str | None) -> str | None:
    """Returns the name of a recipe; None for ``NO_RECIPE``."""
    return None if name == NO_RECIPE else name


def recipe_settings(name: str | None) -> dict[str, Any]:
    """Returns the settings of a recipe; none for None and ``NO_RECIPE``.

    Raises:
        UsageError: there is no recipe of that name.
    """
    return {} if name is None or name == NO_RECIPE else read_recipe(name).settings


def recipe_for(dataset: str, data_dir: Path | None, *, few_labels: bool = False) -> str:
    """Returns the name of the recipe for a data set: ``mnist``, ``fashion_mnist`` or ``pictures``.

    Where images without labels join, the name ends on ``_few_labels``.

    IDX files in a folder are MNIST or Fashion-MNIST if both of their files of labels are. These are small,
    so that the choice takes milliseconds. Files that cannot be read get ``pictures`` too: the fit reads
    them again and reports the fault.

    Args:
        dataset: value of ``--dataset``.
        data_dir: value of ``--data-dir``.
        few_labels: whether ``--labels`` or ``--transfer-data`` is given.
    """
    if dataset not in _PUBLISHED:
        name = "pictures"
    else:
        name = dataset if data_dir is None else _recipe_of_labels(data_dir)
    return f"{name}{_FEW_LABELS}" if few_labels else name


def describe_recipe(name: str, chosen: str) -> str:
    """Returns a sentence that names a fit's recipe, and whether it is the one for its data.

    Args:
        name: value of ``--recipe``.
        chosen: what ``recipe_for`` returns.
    """
    reason = ", chosen for these data" if name == chosen else ""
    return f"Recipe: {name}{reason} ({read_recipe(name).title}). `kdtrain recipes {name}` prints it."


def _recipe_of_labels(folder: Path) -> str:
    # They import NumPy, which the refusal of a flag does without.
    from kdtrain.data.datasets import DATASETS, FILES
    from kdtrain.data.idx import content_sha256, read_idx

    labels = {index: file for index, file in enumerate(FILES) if "labels" in file}
    try:
        digests = {
            index: content_sha256(
                read_idx(path if (path := folder / file).exists() else folder / f"{file}.gz")
            )
            for index, file in labels.items()
        }
    except (DataError, OSError):
        return "pictures"
    for name in _PUBLISHED:
        if all(DATASETS[name].sha256[index] == digest for index, digest in digests.items()):
            return name
    return "pictures"
