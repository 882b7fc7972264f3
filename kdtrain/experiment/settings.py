"""The settings of ``kdtrain fit``: one schema for its flags, its TOML file and its defaults."""

from __future__ import annotations

import functools
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from kdtrain.data.augment_spec import AUGMENT_FORMS, parse_augment
from kdtrain.experiment.recipe import NO_RECIPE, recipe_names
from kdtrain.experiment.setting import setting
from kdtrain.runtime.limits import (
    LARGEST_SIDE,
    MOST_CLASSES,
    MOST_GENERATIONS,
    MOST_IMAGES,
    MOST_PROCESSES,
    MOST_SECONDS,
    MOST_SEEDS,
    MOST_TEACHERS,
    MOST_VIEWS,
)
from kdtrain.runtime.value_checks import (
    DEFAULT_TEMPERATURE,
    DEVICES,
    EPOCHS,
    IMAGES,
    MEANS,
    MOST_NUMBER,
    SEED,
    SHARE,
    STDS,
    Check,
    between,
    positive,
)

MODE_CHOICES = ("teacher", "student_kd", "student", "compare")
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

LABELS: Check = (
    lambda value: (
        re.fullmatch(r"[1-9]\d{0,8}|(?:[1-9]\d?|0)(?:\.\d{1,6})?%", value) is not None
        and value.strip("0.%") != ""
    ),
    "must be a whole number above 0, such as 1000, or a percentage below 100, such as 1%",
)
"""The check of a number of labels."""

RUN_NAME: Check = (
    lambda value: re.fullmatch(r"(?!version_\d)[^\W_][\w.+=,@-]{0,59}", value) is not None,
    "must begin with a letter or digit, go on with these or . _ - + = , @, have at most 60 characters, and "
    "not be a version_N",
)
"""The check of a run's name, which is one part of a path."""


@dataclass(frozen=True)
class Settings:
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
    teacher_checkpoint: tuple[Path, ...] = setting(
        (),
        "a trained teacher: a .safetensors file, a OneFlow checkpoint directory, or an .onnx file of any "
        "program (repeatable: the mean probabilities of several teach) [a teacher that an earlier fit has "
        "kept for this data set; if there is none, one is trained]",
        metavar="FILE",
        aliases=("--load-teacher-checkpoint-dir",),
        max_values=MOST_TEACHERS,
    )
    teacher_weight: tuple[float, ...] = setting(
        (),
        "weight, above 0, of a teacher in the mean; one for each --teacher-checkpoint, in their order "
        "(repeatable) [equal weights]",
        metavar="W",
        check=positive(MOST_NUMBER),
        max_values=MOST_TEACHERS,
    )
    teacher_mean: str | None = setting(
        None,
        "mean per channel that an .onnx teacher subtracts from pixels scaled to 0..1, such as "
        "0.485,0.456,0.406 [as kdtrain noted it in the file, or 0]",
        metavar="M,...",
        check=MEANS,
    )
    teacher_std: str | None = setting(
        None,
        "number per channel that an .onnx teacher divides by after that; with the mean 0 and 0.00392 (1/255) "
        "it takes pixels 0..255 [as kdtrain noted it in the file, or 1]",
        metavar="S,...",
        check=STDS,
    )
    teacher_input_size: int | None = setting(
        None,
        "height and width, in pixels, of the images that an .onnx teacher takes "
        "[as the file says, or those of the data]",
        metavar="N",
        check=between(1, LARGEST_SIDE),
    )
    teacher_layout: str | None = setting(
        None,
        "whether channels come first or last in an .onnx teacher's images [as the file says]",
        choices=("nchw", "nhwc"),
    )
    teacher_logits: Path | None = setting(
        None,
        "a teacher's logits that were computed elsewhere: an .npz file with `logits`, (images, classes) or "
        "(views, images, classes), of all training images in the data's order [none]",
        metavar="FILE",
    )
    teacher_classes: str | None = setting(
        None,
        "the teacher's class for each class of the data, in their order: names or numbers, such as "
        "cat,dog,7, or a .json file that maps the data's names to the teacher's [matched by name, or by "
        "position where one side has no names]",
        metavar="CLASS,...|FILE",
    )
    allow_poor_teacher: bool = setting(
        False,
        "take a teacher whose accuracy on held-out images is near chance [refuse an .onnx file or a table]",
    )
    teachers: int = setting(
        1,
        "compare: number of teachers to train, with different seeds; their mean probabilities teach",
        metavar="N",
        check=between(1, MOST_TEACHERS),
    )
    student_checkpoint: Path | None = setting(
        None,
        "weights that every student begins from: a .safetensors file or a OneFlow checkpoint directory of "
        "its architecture [weights that are drawn by the seed]",
        metavar="FILE",
    )
    temperature: float = setting(
        DEFAULT_TEMPERATURE,
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
    labels: str | None = setting(
        None,
        "number of training images that keep their labels, equally from each class, such as 1000 or 1%; a "
        "fifth of them, at most 1000, is held out; the other images join as images without labels [all]",
        metavar="N",
        check=LABELS,
    )
    transfer_data: Path | None = setting(
        None,
        "images without labels that students with a teacher see as well: a folder of image files, an IDX "
        "file, or an .npz file with one array of images [none]",
        metavar="DIR|FILE",
    )
    transfer_share: float = setting(
        0.5,
        "share, above 0 and below 1, of images without labels in each batch",
        metavar="SHARE",
        check=SHARE,
    )
    val_size: int | None = setting(
        None,
        "number of training images held out for validation; with 0 the test images validate "
        "[5000, at most a sixth; with --labels a fifth of these, at most 1000; the data set's validation "
        "images, if it has any]",
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
        None,
        "number of training images to use, those without labels included [all that are not held out]",
        metavar="N",
        check=IMAGES,
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
    data_seed: int | None = setting(
        None,
        "seed of the images that keep their labels, and of the variants of students' training images "
        "[--seed; all seeds of a comparison share it]",
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
    name: str | None = setting(
        None,
        "name of the run, and of its folder in LOGDIR/MODE [version_0, version_1, ...]",
        check=RUN_NAME,
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


def flag_of(name: str) -> str:
    """Returns the flag of a setting: ``--batch-size`` for ``batch_size``."""
    return f"--{name.replace('_', '-')}"


@functools.cache  # to read type hints takes some milliseconds
def kind_of(name: str) -> tuple[type, bool]:
    """Returns a setting's type, without None, and whether it takes several values."""
    hint = typing.get_type_hints(Settings)[name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False
