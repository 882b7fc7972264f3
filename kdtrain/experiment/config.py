"""The settings of ``kdtrain fit``: one schema for its flags, its TOML file and its defaults."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from kdtrain.data.augment_spec import AUGMENT_FORMS, mixes, parse_augment
from kdtrain.errors import UsageError
from kdtrain.experiment.epochs import epochs_for_size
from kdtrain.experiment.recipe import NO_RECIPE, recipe_names, recipe_settings
from kdtrain.experiment.setting import setting
from kdtrain.runtime.limits import (
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_CLASSES,
    MOST_GENERATIONS,
    MOST_IMAGES,
    MOST_PROCESSES,
    MOST_SECONDS,
    MOST_SEEDS,
    MOST_VIEWS,
)
from kdtrain.runtime.value_checks import EPOCHS, IMAGES, MOST_NUMBER, SEED, Check, between, positive

MODE_CHOICES = ("teacher", "student_kd", "student", "compare")
DEVICES = ("auto", "cpu", "cuda")
OPTIMIZERS = {"adam": 3e-3, "adadelta": 1.0, "sgd": 0.1}
"""The default (highest) learning rate of each optimizer."""

DEFAULT_TEACHER = "teacher_cnn"
"""The architecture of a teacher that is trained here, unless --teacher-arch or the recipe names another."""

DATA_SETS = "mnist, fashion_mnist, cifar10, cifar100, folder:DIR, npz:FILE or FILE.py:FACTORY"
_NETWORKS = "a name from `kdtrain models`, flowvision:NAME, MODULE:FACTORY or FILE.py:FACTORY"

AUGMENTATION: Check = (
    lambda value: parse_augment(value) is not None,
    f"must be none, or some of {AUGMENT_FORMS}, each once",
)


@dataclass(frozen=True)
class FitConfig:
    """The settings of ``kdtrain fit``. None: the mode, or another setting, decides."""

    mode: str = setting(
        "compare",
        "network to train: a teacher, a student that a teacher teaches (student_kd), a student without a "
        "teacher, or all three, to compare them",
        choices=MODE_CHOICES,
        aliases=("--model-type",),
    )
    recipe: str | None = setting(
        None,
        "settings to start from: a name from `kdtrain recipes`, or none; flags and --config win over them "
        "[mnist, fashion_mnist or pictures, by the data set]",
        choices=(*recipe_names(), NO_RECIPE),
        metavar="NAME",
        shorthands={"--quick": "quick"},
    )
    epochs: int | None = setting(
        None, "epochs for each network [by the recipe, or the number of images]", check=EPOCHS
    )
    teacher_epochs: int | None = setting(
        None,
        "epochs for the teacher [--epochs, or else by the recipe, or the number of images]",
        check=EPOCHS,
    )
    batch_size: int = setting(128, "images per training step", check=IMAGES)
    optimizer: str = setting("adam", "optimizer; sgd has a momentum of 0.9", choices=tuple(OPTIMIZERS))
    lr: float | None = setting(
        None,
        "highest learning rate, above 0 [by the recipe, or adam 0.003, adadelta 1, sgd 0.1]",
        check=positive(MOST_NUMBER),
    )
    schedule: str = setting(
        "one_cycle", "learning rate schedule", choices=("one_cycle", "cosine", "constant")
    )
    weight_decay: float = setting(
        0.0,
        "share of each weight, times the learning rate, that a step takes away; for every network",
        check=between(0, 1),
    )
    clip_grad_norm: float | None = setting(
        None,
        "largest norm, above 0, of the gradient of all weights together [by the recipe, or no limit]",
        metavar="NORM",
        check=positive(MOST_NUMBER),
    )
    teacher_arch: str | None = setting(
        None,
        f"the teacher's network: {_NETWORKS} "
        f"[that of the teacher's checkpoint; if a teacher is trained, by the recipe, or {DEFAULT_TEACHER}]",
        metavar="ARCH",
    )
    student_arch: str = setting("student_mlp", f"the student's network: {_NETWORKS}", metavar="ARCH")
    teacher_checkpoint: Path | None = setting(
        None,
        "a trained teacher: a .safetensors file or a OneFlow checkpoint directory [a teacher that an "
        "earlier fit has kept for this data set; if there is none, one is trained]",
        metavar="FILE",
        aliases=("--load-teacher-checkpoint-dir",),
    )
    temperature: float = setting(
        4.0,
        "temperature, above 0, that softens the probabilities of teacher and student",
        metavar="T",
        check=positive(MOST_NUMBER),
    )
    alpha: float = setting(
        0.9,
        "weight of the soft-target loss, from 0 to 1; the loss on labels has the weight 1 - alpha",
        check=between(0, 1),
    )
    assistant_arch: tuple[str, ...] = setting(
        (),
        f"network of a size between teacher and student, which learns from the one and teaches the other: "
        f"{_NETWORKS} (repeatable) [none]",
        metavar="ARCH",
    )
    generations: int = setting(
        1,
        "number of students trained in a row: the teacher teaches the first, each teaches the next",
        check=between(1, MOST_GENERATIONS),
    )
    dataset: str = setting("mnist", f"data set: {DATA_SETS}", metavar="DATA")
    data_dir: Path | None = setting(
        None,
        "folder to read in place of built-in or downloaded files: four IDX files, plain or gzipped, or "
        "CIFAR's archive",
        metavar="DIR",
    )
    image_size: int | None = setting(
        None,
        "height and width, in pixels, that images of folder:DIR are resized to "
        "[no resizing: all must be equally large]",
        metavar="N",
        check=between(1, LARGEST_SIDE),
    )
    skip_corrupt: bool = setting(
        False, "leave out image files of folder:DIR that cannot be read [name them, and stop]"
    )
    val_size: int | None = setting(
        None,
        "number of training images held out for validation; with 0 the test images validate "
        "[5000, at most a sixth; the data set's validation images, if it has any]",
        metavar="N",
        check=between(0, MOST_IMAGES),
    )
    omit_class: tuple[str, ...] = setting(
        (),
        "class without whose images students are trained (repeatable) [none]",
        metavar="CLASS",
        max_values=MOST_CLASSES,
    )
    limit_train: int | None = setting(
        None, "number of training images to use [all that are not held out]", metavar="N", check=IMAGES
    )
    augment: str | None = setting(
        None,
        f"random changes of training images: none, or some of {AUGMENT_FORMS} "
        "[by the recipe, or shift=2 for a teacher, none for a student]",
        metavar="none|NAME=N,...",
        check=AUGMENTATION,
    )
    teacher_augment: str | None = setting(
        None,
        "random changes of the teacher's training images, written as for --augment "
        "[--augment, or else by the recipe, or shift=2]",
        metavar="none|NAME=N,...",
        check=AUGMENTATION,
    )
    views: int = setting(
        8,
        "with --augment: number of fixed variants of each training image of a student; the teacher answers "
        "each once. 0: new ones in each epoch, and the teacher runs at every step",
        metavar="K",
        check=between(0, MOST_VIEWS),
    )
    seed: int = setting(
        0, "seed of initial weights, held-out images, batch order, augmentation and dropout", check=SEED
    )
    views_seed: int | None = setting(
        None,
        "seed of the variants of students' training images [--seed; all seeds of a comparison share it]",
        check=SEED,
    )
    seeds: int = setting(
        1, "compare: number of seeds: --seed and those after it", metavar="N", check=between(1, MOST_SEEDS)
    )
    teacher_per_seed: bool = setting(
        False, "compare: train a teacher for each seed [the first seed's teacher teaches all students]"
    )
    with_label_smoothing: bool = setting(
        False, "compare: add student_ls, a student without teacher that learns smoothed labels"
    )
    with_hard_labels: bool = setting(
        False, "compare: add student_hard, a student that learns the teacher's class of each image"
    )
    grid: tuple[str, ...] = setting(
        (),
        "compare: choose temperature, alpha or lr by validation accuracy on the first seed, "
        "such as alpha=.5,.7,.9 (repeatable: all combinations) [no choice]",
        metavar="NAME=V,V,...",
    )
    tuned: Path | None = setting(
        None,
        "results of `kdtrain tune` (tune.json): each student is trained with the settings that were chosen "
        "for it [the settings of this command]",
        metavar="FILE",
    )
    early_stopping: int | None = setting(
        None,
        "stop after this many epochs without a better validation accuracy [never]",
        metavar="EPOCHS",
        check=EPOCHS,
    )
    plugin: tuple[str, ...] = setting(
        (),
        "callback to add: NAME or FILE.py:CLASS, with ,key=value for each argument (repeatable) [none]",
        metavar="PLUGIN",
    )
    stall_timeout: int = setting(
        300,
        "seconds without CPU time after which a fit is ended; 0 sets no limit",
        metavar="SECONDS",
        check=between(0, MOST_SECONDS),
    )
    device: str = setting("auto", "device to compute on; auto prefers cuda", choices=DEVICES)
    nproc_per_node: int = setting(
        1,
        "number of processes that train together through OneFlow; --batch-size is for each",
        check=between(1, MOST_PROCESSES),
    )
    logdir: Path = setting(Path("logs"), "folder of the run directories", metavar="DIR")
    model_save_dir: Path | None = setting(None, "folder of the best models [LOGDIR/models]", metavar="DIR")
    keep: str = setting(
        "best",
        "when to save the model in --model-save-dir: if it is the best one, always, or never",
        choices=("best", "always", "never"),
        shorthands={"--replace": "always", "--no-keep": "never"},
    )
    image_save_dir: Path | None = setting(
        None, "folder for a copy of the comparison figure [no copy]", metavar="DIR"
    )
    image_save_name: Path | None = setting(
        None, "file name of the copy of the comparison figure [compare.png]", metavar="FILE"
    )

    def __post_init__(self) -> None:
        if self.seed + self.seeds - 1 > LARGEST_SEED:
            raise UsageError(f"--seed {self.seed} with --seeds {self.seeds}: each seed {SEED[1]}.")
        if self.seeds > 1 and self.mode != "compare":
            raise UsageError(
                f"--seeds {self.seeds} is for --mode compare, not for {self.mode}; use --seed for one seed."
            )
        if self.is_chain and self.mode != "student_kd":
            flag = "--generations" if self.generations > 1 else "--assistant-arch"
            raise UsageError(f"{flag} is for --mode student_kd, not for {self.mode}.")
        for name in ("teacher_per_seed", "with_label_smoothing", "with_hard_labels", "grid"):
            if getattr(self, name) and self.mode != "compare":
                raise UsageError(f"{flag_of(name)} is for --mode compare, not for {self.mode}.")
        if self.teacher_per_seed and self.teacher_checkpoint is not None:
            raise UsageError(
                "--teacher-per-seed trains teachers, but --teacher-checkpoint names a trained one: "
                "leave one of them out."
            )
        if self.weight_decay * self.peak_lr >= 1.0:
            raise UsageError(
                f"--weight-decay {self.weight_decay:g} with the learning rate {self.peak_lr:g}: a step takes "
                "away all of a weight. Their product must be below 1."
            )
        if self.grid and self.tuned is not None:
            raise UsageError("--grid and --tuned both choose settings: leave one of them out.")
        if self.grid and self.val_size == 0:
            raise UsageError(
                "--grid chooses by held-out images, but --val-size 0 holds none out: leave one of them out."
            )
        if self.views == 1 and self.augment_for("student") != "none" and not mixes(self.augment or ""):
            raise UsageError(
                "--views 1 is each image as it is, which --augment does not change: "
                "give 2 or more, or 0 for new ones in each epoch."
            )
        if self.omit_class and self.mode == "teacher":
            raise UsageError(
                f"--omit-class {self.omit_class[0]} is for students; --mode teacher trains on all classes."
            )

    @property
    def is_chain(self) -> bool:
        """Whether several networks are trained in a row, each taught by the one before."""
        return self.generations > 1 or bool(self.assistant_arch)

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
        return dataclasses.replace(
            self,
            teacher_epochs=self.teacher_epochs or self.epochs or epochs_for_size("teacher", images),
            epochs=self.epochs or epochs_for_size("student", images),
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

        A teacher's images get new ones, because no other network answers about them.
        """
        return 0 if network == "teacher" else self.views

    @property
    def shared_views_seed(self) -> int:
        """The seed of the variants of students' images, which all seeds of a comparison share."""
        return self.seed if self.views_seed is None else self.views_seed

    def resolved(self) -> dict[str, Any]:
        """Returns all settings as plain values, with those filled in that the mode decides.

        The teacher's architecture is left out where a checkpoint may decide it, and the epochs where the
        number of images decides them and ``with_epochs`` has not been called.
        """
        may_load_teacher = self.mode == "student_kd" or self.teacher_checkpoint is not None
        filled = dataclasses.replace(
            self,
            teacher_arch=self.teacher_arch if may_load_teacher else self.architecture_for("teacher"),
            teacher_epochs=self.teacher_epochs or self.epochs,
            lr=self.peak_lr,
            teacher_augment=self.augment_for("teacher"),
            augment=self.augment_for("student"),
        )
        return {name: _plain(value) for name, value in vars(filled).items() if value is not None}

    def to_toml(self) -> str:
        """Returns the resolved configuration as a file that ``--config`` reads."""
        return tomli_w.dumps(self.resolved())


def flag_of(name: str) -> str:
    """Returns the flag of a setting: ``--batch-size`` for ``batch_size``."""
    return f"--{name.replace('_', '-')}"


@functools.cache  # to read type hints takes some milliseconds
def kind_of(name: str) -> tuple[type, bool]:
    """Returns a setting's type, without None, and whether it takes several values."""
    hint = typing.get_type_hints(FitConfig)[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
