"""The configuration of a fit: its settings, the recipe they start from, and what contradicts what."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from kdtrain.data.augment_spec import mixes
from kdtrain.errors import DataError, UsageError, unknown_name_message
from kdtrain.experiment.settings.schema import (
    DEFAULT_TEACHER,
    NO_RECIPE,
    OPTIMIZERS,
    RECIPE_NAMES,
    RECIPES,
    Settings,
    flag_of,
)
from kdtrain.runtime.limits import LARGEST_SEED
from kdtrain.runtime.regular_files import read_text
from kdtrain.runtime.value_checks import SEED

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

_LARGEST = 1 << 16  # bytes of a file
_PUBLISHED = ("mnist", "fashion_mnist")

_PASSES = {"teacher": 1_100_000, "student": 3_300_000}
"""Images that a network is shown, repetitions counted: 20 and 60 epochs of 55,000 images."""

_LIMITS = {"teacher": (5, 300), "student": (20, 200)}
"""Fewest and most epochs."""

_FEW = 2400
"""With ``--labels``: epochs of either network times the square root of the number of labelled images."""


@dataclass(frozen=True, repr=False)
class FitConfig(Settings):
    """The settings of ``kdtrain fit``, checked against one another, and what follows from them."""

    def __post_init__(self) -> None:
        _check_together(self)

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        given = [field.name for field in fields if getattr(self, field.name) != field.default]
        return f"FitConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"

    @property
    def has_teacher_files(self) -> bool:
        """Whether the settings name a teacher that exists."""
        return bool(self.teacher_checkpoint) or self.teacher_logits is not None

    @property
    def has_few_labels(self) -> bool:
        """Whether images without labels join those with labels."""
        return self.labels is not None or self.transfer_data is not None

    @property
    def chosen_recipe(self) -> str:
        """The name of the recipe for the data."""
        return recipe_for(self.dataset, self.data_dir, few_labels=self.has_few_labels)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        return self.lr or OPTIMIZERS[self.optimizer]

    @property
    def models(self) -> Path:
        """The folder of the best models."""
        return self.model_save_dir or self.logdir / "models"

    def architecture_for(self, network: str) -> str:
        """Returns the architecture of a ``teacher`` or ``student`` that is trained here."""
        if network == "student":
            return self.student_arch
        return self.teacher_arch or recipe_settings(self.recipe).get("teacher_arch", DEFAULT_TEACHER)

    def with_epochs(self, images: int) -> FitConfig:
        """Returns the configuration with epochs for both networks, by size where no setting has decided.

        Args:
            images: number of training images.
        """
        few = self.has_few_labels
        return dataclasses.replace(
            self,
            teacher_epochs=self.teacher_epochs or self.epochs or epochs_for_size("teacher", images, few=few),
            epochs=self.epochs or epochs_for_size("student", images, few=few),
        )

    def epochs_for(self, network: str) -> int:
        """Returns the number of epochs for the ``teacher`` or the ``student``, after ``with_epochs``."""
        epochs = (self.teacher_epochs or self.epochs) if network == "teacher" else self.epochs
        assert epochs is not None, "a Session decides it by the number of images"
        return epochs

    def augment_for(self, network: str) -> str:
        """Returns the augmentation of the training images of the ``teacher`` or the ``student``."""
        if network == "teacher":
            return self.teacher_augment or self.augment or "shift=2"
        return self.augment or "none"

    def views_for(self, network: str) -> int:
        """Returns the number of variants of each training image; 0 for new ones in each epoch.

        A teacher's images get new ones, because no other network is run on them.
        """
        return 0 if network == "teacher" else self.views

    @property
    def shared_data_seed(self) -> int:
        """The seed of labelled images and of students' variants, which all seeds of a comparison share."""
        return self.seed if self.data_seed is None else self.data_seed

    def resolved(self) -> dict[str, Any]:
        """Returns all settings as plain values, with those filled in that the mode decides.

        The teacher's architecture is left out where a checkpoint may decide it, and the epochs where the
        number of images decides them and ``with_epochs`` has not been called.
        """
        may_load_teacher = self.mode == "student_kd" or self.has_teacher_files
        filled = dataclasses.replace(
            self,
            teacher_arch=self.teacher_arch if may_load_teacher else self.architecture_for("teacher"),
            teacher_epochs=self.teacher_epochs or self.epochs,
            lr=self.peak_lr,
            teacher_augment=self.augment_for("teacher"),
            augment=self.augment_for("student"),
        )
        values = {name: _plain(value) for name, value in vars(filled).items() if value is not None}
        paths = values.pop("teacher_checkpoint")
        if paths:  # one path as a text, as users write it
            values["teacher_checkpoint"] = paths if len(paths) > 1 else paths[0]
        return values

    def to_toml(self) -> str:
        """Returns the resolved configuration as a file that ``--config`` reads."""
        return tomli_w.dumps(self.resolved())


def epochs_for_size(network: str, images: int, *, few: bool = False) -> int:
    """Returns the number of epochs for a network that neither a setting nor a recipe gives one.

    The number of steps makes a network good more than the number of epochs does, so few images are shown
    more often: a teacher sees 1,100,000 images, a student 3,300,000, as many as in 20 and in 60 epochs of
    55,000 images. A student is small and copies a function that is given at every image, so that it needs,
    and can use, more steps than its teacher. Decision 0040 has the figures for teachers.

    The limits keep both ends sensible. With hundreds of thousands of images, each has to be seen some times
    all the same, so that the learning rate can rise and fall. A few hundred images are learned by heart.

    With ``--labels`` the number falls with the square root of the number of labelled images: 400 of them take
    120 epochs, 4,000 take 38. A student's batches hold images without labels too, so an epoch
    shows several times as many. Decision 0050 has the figures.

    Args:
        network: ``teacher`` or ``student``.
        images: number of training images with labels, without those held out.
        few: the other images have no labels (``--labels``).
    """
    fewest, most = _LIMITS[network]
    epochs = _FEW / math.sqrt(images) if few else _PASSES[network] / images
    return min(max(round(epochs), fewest), most)


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


def list_recipes() -> list[Recipe]:
    """Returns all recipes, sorted by name."""
    return [read_recipe(name) for name in RECIPE_NAMES]


@functools.cache
def read_recipe(name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        UsageError: there is no recipe of that name.
    """
    if name not in RECIPE_NAMES:
        raise UsageError(unknown_name_message("recipe", name, RECIPE_NAMES))
    text = read_text(RECIPES / f"{name}.toml", _LARGEST)
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


def _check_together(config: FitConfig) -> None:
    """Checks that the settings of a fit go together.

    Raises:
        UsageError: two settings contradict each other.
    """
    for name in ("seeds", "teachers"):
        number = getattr(config, name)
        if config.seed + number - 1 > LARGEST_SEED:
            raise UsageError(f"--seed {config.seed} with --{name} {number}: each seed {SEED[1]}.")
    if config.seeds > 1 and config.mode != "compare":
        raise UsageError(
            f"--seeds {config.seeds} is for --mode compare, not for {config.mode}; use --seed for one seed."
        )
    for name in ("with_label_smoothing", "with_hard_labels"):
        if getattr(config, name) and config.mode != "compare":
            raise UsageError(f"{flag_of(name)} is for --mode compare, not for {config.mode}.")
    if config.weight_decay * config.peak_lr >= 1.0:
        raise UsageError(
            f"--weight-decay {config.weight_decay:g} with the learning rate {config.peak_lr:g}: a step takes "
            "away all of a weight. Their product must be below 1."
        )
    _check_teachers(config)
    _check_images(config)
    _check_transfer(config)


def _check_images(config: FitConfig) -> None:
    """Raises UsageError if settings of the training images do not go together."""
    if config.views == 1 and config.augment_for("student") != "none" and not mixes(config.augment or ""):
        raise UsageError(
            "--views 1 is each image as it is, which --augment does not change: "
            "give 2 or more, or 0 for new ones in each epoch."
        )
    if config.omit_class and config.mode == "teacher":
        raise UsageError(
            f"--omit-class {config.omit_class[0]} is for students; --mode teacher trains on all classes."
        )
    if config.student_checkpoint is not None and config.mode == "teacher":
        raise UsageError(
            f"--student-checkpoint {config.student_checkpoint} is for students, not for --mode teacher: "
            "leave it out."
        )


def _check_transfer(config: FitConfig) -> None:
    """Raises UsageError for images without labels that no teacher is run on."""
    share, data = f"--transfer-share {config.transfer_share:g}", f"--transfer-data {config.transfer_data}"
    if config.labels is not None:
        data = f"--labels {config.labels}" if config.transfer_data is None else data
        if config.omit_class:
            raise UsageError(
                f"--omit-class {config.omit_class[0]} does not know the class of images without labels "
                f"(--labels {config.labels}): leave one of them out."
            )
    if config.transfer_data is None and config.labels is None:
        if config.transfer_share != Settings.transfer_share:
            raise UsageError(
                f"{share} is a share of images without labels, and there are none: add --labels or "
                "--transfer-data."
            )
    elif config.transfer_data is not None and config.mode in ("teacher", "student"):
        raise UsageError(
            f"{data} has no labels, and --mode {config.mode} has no teacher to give it soft labels: "
            "choose student_kd or compare."
        )
    elif config.alpha == 0.0 and config.mode in ("student_kd", "compare"):
        raise UsageError(
            f"--alpha 0 leaves the teacher's outputs out, and images without labels ({data}) have nothing "
            "else to teach: leave one of them out."
        )


def _check_teachers(config: FitConfig) -> None:
    """Raises UsageError if settings of the teacher do not go together."""
    existing = "--teacher-checkpoint" if config.teacher_checkpoint else "--teacher-logits"
    for name in ("teacher_per_seed", "teachers"):
        if getattr(config, name) > 1 or getattr(config, name) is True:
            if config.mode != "compare":
                raise UsageError(f"{flag_of(name)} is for --mode compare, not for {config.mode}.")
            if config.has_teacher_files:
                raise UsageError(
                    f"{flag_of(name)} trains teachers, but {existing} names a trained one: "
                    "leave one of them out."
                )
    if config.teacher_per_seed and config.teachers > 1:
        raise UsageError(
            "--teacher-per-seed trains one teacher for each seed, and --teachers several for all seeds: "
            "leave one of them out."
        )
    number = len(config.teacher_checkpoint) + (config.teacher_logits is not None)
    if config.teacher_weight and len(config.teacher_weight) != number:
        raise UsageError(
            f"--teacher-weight is given {len(config.teacher_weight)} times, and there are {number} teachers: "
            "give one for each --teacher-checkpoint, then one for --teacher-logits."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(map(_plain, value)) if isinstance(value, tuple) else value
