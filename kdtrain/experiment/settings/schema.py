"""The settings of ``kdtrain fit``: one schema for flags, TOML files, Python and defaults."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdtrain.data.augment_spec import AUGMENT_FORMS, parse_augment
from kdtrain.runtime import limits
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
    above_0,
    between,
)
from kdtrain.store.record import FIT_MODES

RECIPES = Path(__file__).with_name("recipes")
RECIPE_NAMES = sorted(file.stem for file in RECIPES.glob("*.toml"))
"""The names of the recipes: files of settings, each for some data or a purpose, that a fit starts from."""

NO_RECIPE = "none"
"""The value of ``--recipe`` that leaves the defaults of ``FitConfig`` as they are."""

GROUPS = ("what to train", "teacher", "data", "augmentation", "training", "comparison", "output")
"""The headings of the help, in their order."""

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

CLASSES: Check = (
    lambda value: value.endswith(".json") or max(map(len, value.split(","))) <= limits.LONGEST_NAME,
    f"must have names of at most {limits.LONGEST_NAME} characters, or numbers",
)
"""The check of a teacher's classes."""

RUN_NAME: Check = (
    lambda value: re.fullmatch(r"(?!version_\d)[^\W_][\w.+=,@-]{0,59}", value) is not None,
    "must begin with a letter or digit, go on with these or . _ - + = , @, have at most 60 characters, and "
    "not be a version_N",
)
"""The check of a run's name, which is one part of a path."""


def _setting(
    default: Any,
    help: str,
    *,
    group: str,
    is_common: bool = False,
    choices: tuple[str, ...] = (),
    check: Check | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    shorthands: Mapping[str, str] | None = None,
    max_values: int = 100,
) -> Any:
    """Declares one setting.

    Args:
        default: its default.
        help: the help text of its flag. Its parts are divided by semicolons: the short help has the first.
            Where no value is a default, the text ends with what is done instead, in brackets.
        group: the heading that the help shows its flag under.
        is_common: whether the short help shows it.
        choices: the values that are allowed; any by default.
        check: the check of its value.
        metavar: the name of its value in the help.
        aliases: further spellings of its flag, hidden in the help.
        shorthands: flags that stand for one value each, with that value.
        max_values: how many values a setting that can be repeated may have.
    """
    allowed = {"choices": choices, "check": check, "max_values": max_values}
    flag = {"metavar": metavar, "aliases": aliases, "shorthands": shorthands}
    shown = {"help": help, "group": group, "is_common": is_common}
    return dataclasses.field(default=default, metadata=allowed | flag | shown)


_network_setting = partial(_setting, group="what to train")
_teacher_setting = partial(_setting, group="teacher")
_data_setting = partial(_setting, group="data")
_augmentation_setting = partial(_setting, group="augmentation")
_training_setting = partial(_setting, group="training")
_comparison_setting = partial(_setting, group="comparison")
_output_setting = partial(_setting, group="output")

OPTIMIZERS = {"adam": 3e-3, "adadelta": 1.0, "sgd": 0.1}
"""The default (highest) learning rate of each optimizer."""

DEFAULT_TEACHER = "teacher_cnn"
"""The architecture of a teacher that is trained here, unless --teacher-arch or the recipe names another."""

DATA_SETS = "mnist, fashion_mnist, cifar10, cifar100, folder:DIR, csv:FILE, npz:FILE or FILE.py:FACTORY"
_NETWORKS = "a name from `kdtrain models`, flowvision:NAME, MODULE:FACTORY or FILE.py:FACTORY"


@dataclass(frozen=True)
class Settings:
    """The settings of ``kdtrain fit``. None: the mode, or another setting, decides."""

    mode: str = _network_setting(
        "compare",
        "student_kd: a student that a teacher teaches; student: one without; compare: all three networks",
        choices=FIT_MODES,
        aliases=("--model-type",),
        is_common=True,
    )
    recipe: str | None = _network_setting(
        None,
        "tested settings, from `kdtrain recipes`; none: kdtrain's own; other flags win over them "
        "[by the data]",
        choices=(*RECIPE_NAMES, NO_RECIPE),
        metavar="NAME",
        shorthands={"--quick": "quick"},
        is_common=True,
    )
    epochs: int | None = _network_setting(
        None, "epochs of each network [by the number of images]", check=EPOCHS, is_common=True
    )
    teacher_epochs: int | None = _teacher_setting(
        None,
        "epochs of the teacher; --epochs alone sets these too [by the number of images]",
        check=EPOCHS,
        is_common=True,
    )
    batch_size: int = _training_setting(
        128, "images per training step", metavar="N", check=IMAGES, is_common=True
    )
    optimizer: str = _training_setting(
        "adam", "optimizer; sgd has a momentum of 0.9", choices=tuple(OPTIMIZERS)
    )
    lr: float | None = _training_setting(
        None,
        "highest learning rate; above 0; --optimizer alone brings its own [adam 0.003, adadelta 1, sgd 0.1]",
        check=above_0(MOST_NUMBER),
        is_common=True,
    )
    schedule: str = _training_setting(
        "one_cycle", "learning rate schedule", choices=("one_cycle", "cosine", "constant")
    )
    weight_decay: float = _training_setting(
        0.0,
        "pull of weights to zero, 0 to 1; a step takes away this share of each weight, times the learning "
        "rate; it is for teacher and students",
        check=between(0, 1),
        is_common=True,
    )
    clip_grad_norm: float | None = _training_setting(
        None,
        "largest norm of the gradient, above 0; longer gradients are shortened to it [no limit]",
        metavar="NORM",
        check=above_0(MOST_NUMBER),
    )
    teacher_arch: str | None = _teacher_setting(
        None,
        f"the teacher's network; {_NETWORKS}; a trained teacher brings its own [{DEFAULT_TEACHER}]",
        metavar="ARCH",
        is_common=True,
    )
    student_arch: str = _network_setting(
        "student_mlp", f"the student's network; {_NETWORKS}", metavar="ARCH", is_common=True
    )
    teacher_checkpoint: tuple[Path, ...] = _teacher_setting(
        (),
        "a trained teacher; a .safetensors file, an .onnx file of any program, or a OneFlow checkpoint "
        "directory; the mean of several teaches (repeatable) [one kept for these data, or trained]",
        metavar="FILE",
        aliases=("--load-teacher-checkpoint-dir",),
        max_values=limits.MOST_TEACHERS,
        is_common=True,
    )
    teacher_weight: tuple[float, ...] = _teacher_setting(
        (),
        "weight, above 0, of a teacher in the mean; one for each --teacher-checkpoint, in their order "
        "(repeatable) [equal weights]",
        metavar="W",
        check=above_0(MOST_NUMBER),
        max_values=limits.MOST_TEACHERS,
    )
    teacher_mean: tuple[str, ...] = _teacher_setting(
        (),
        "mean per channel that an .onnx teacher subtracts from pixels scaled to 0..1, such as "
        "0.485,0.456,0.406 (repeatable: the n-th for the n-th that needs it; one for all) [0]",
        metavar="M,...",
        check=MEANS,
    )
    teacher_std: tuple[str, ...] = _teacher_setting(
        (),
        "number per channel that an .onnx teacher divides by after that; with the mean 0 and 0.00392 (1/255) "
        "it takes pixels 0..255 (repeatable, as --teacher-mean) [1]",
        metavar="S,...",
        check=STDS,
    )
    teacher_input_size: tuple[int, ...] = _teacher_setting(
        (),
        "height and width, in pixels, of the images that an .onnx teacher takes whose file leaves them open "
        "(repeatable, as --teacher-mean) [those of the data]",
        check=between(1, limits.LARGEST_SIDE),
    )
    teacher_layout: tuple[str, ...] = _teacher_setting(
        (),
        "whether channels come first or last in the images of an .onnx teacher whose file leaves it open "
        "(repeatable, as --teacher-mean) [as the file says]",
        choices=("nchw", "nhwc"),
    )
    teacher_logits: Path | None = _teacher_setting(
        None,
        "a teacher's logits that were computed elsewhere; an .npz file with `logits`, (images, classes) or "
        "(views, images, classes), of all training images in the data's order [none]",
        metavar="FILE",
    )
    teacher_classes: tuple[str, ...] = _teacher_setting(
        (),
        "the teacher's class for each class of the data, in their order; names or numbers, such as "
        "cat,dog,7, or a .json file with all its names or a map from the data's to them; for a teacher whose "
        "own names do not decide (repeatable, as --teacher-mean) [by name, or by position without names]",
        metavar="CLASS,...|FILE",
        check=CLASSES,
    )
    allow_poor_teacher: bool = _teacher_setting(
        False,
        "take a teacher that is near chance on held-out images, or a mean far below its best member [refuse]",
    )
    teachers: int = _comparison_setting(
        1,
        "number of teachers to train, with different seeds; their mean probabilities teach",
        check=between(1, limits.MOST_TEACHERS),
    )
    student_checkpoint: Path | None = _network_setting(
        None,
        "weights that every student begins from; a .safetensors file or a OneFlow checkpoint directory of "
        "its architecture [weights that are drawn by the seed]",
        metavar="FILE",
    )
    temperature: float = _teacher_setting(
        DEFAULT_TEMPERATURE,
        "temperature of the soft targets; above 0; it divides the logits of teacher and student",
        metavar="T",
        check=above_0(MOST_NUMBER),
        is_common=True,
    )
    alpha: float = _teacher_setting(
        0.9,
        "weight of soft targets, 0 to 1; the labels have the weight 1 - alpha",
        check=between(0, 1),
        is_common=True,
    )
    dataset: str = _data_setting("mnist", DATA_SETS, metavar="DATA", is_common=True)
    data_dir: Path | None = _data_setting(
        None,
        "folder to read in place of built-in or downloaded files; four IDX files, plain or gzipped, or "
        "CIFAR's archive",
        metavar="DIR",
    )
    image_size: int | None = _data_setting(
        None,
        "pixels a side of image files; they are resized [as they are; all must be equally large]",
        check=between(1, limits.LARGEST_SIDE),
        is_common=True,
    )
    skip_corrupt: bool = _data_setting(
        False, "leave out image files that cannot be read [name them, and stop]"
    )
    labels: str | None = _data_setting(
        None,
        "training images with labels, such as 1000 or 1%; each class has equally many; a fifth of them, at "
        "most 1000, is held out; the other training images are used without their labels [all]",
        metavar="N",
        check=LABELS,
        is_common=True,
    )
    transfer_data: Path | None = _data_setting(
        None,
        "more images, without labels; only students with a teacher see them; a folder of image files, an "
        "IDX file, or an .npz file with one array of images [none]",
        metavar="DIR|FILE",
    )
    transfer_share: float = _data_setting(
        0.5, "share of images without labels in each batch, up to 0.95", metavar="SHARE", check=SHARE
    )
    allow_test_images: bool = _data_setting(
        False, "take images of --transfer-data that are test images [refuse them]"
    )
    val_size: int | None = _data_setting(
        None,
        "images held out; they choose the best epoch; they come from the training images; with 0 the test "
        "images choose "
        "[5000, at most a sixth; with --labels a fifth of these, at most 1000; the data set's own, if it "
        "has validation images]",
        check=between(0, limits.MOST_IMAGES),
        is_common=True,
    )
    omit_class: tuple[str, ...] = _data_setting(
        (),
        "class without whose images students are trained (repeatable) [none]",
        metavar="CLASS",
        max_values=limits.MOST_CLASSES,
    )
    limit_train: int | None = _data_setting(
        None,
        "training images to use; images without labels count, held-out ones do not [all]",
        check=IMAGES,
        is_common=True,
    )
    augment: str | None = _augmentation_setting(
        None,
        f"changes such as shift=2,flip; training images are changed at random; none, or {AUGMENT_FORMS} "
        "[none; for a teacher shift=2]",
        metavar="CHANGES",
        check=AUGMENTATION,
        is_common=True,
    )
    teacher_augment: str | None = _augmentation_setting(
        None,
        "the teacher's changes, written as for --augment; --augment alone sets them too [shift=2]",
        metavar="CHANGES",
        check=AUGMENTATION,
    )
    views: int = _augmentation_setting(
        8,
        "variants of each image; --augment makes them once for all epochs of a student, and the teacher "
        "runs over each once; with 0 every epoch has new ones, and the teacher runs at every step",
        metavar="K",
        check=between(0, limits.MOST_VIEWS),
        is_common=True,
    )
    seed: int = _training_setting(
        0,
        "seed of all that is random; initial weights, held-out images, batch order, augmentation, dropout",
        check=SEED,
        is_common=True,
    )
    data_seed: int | None = _training_setting(
        None,
        "seed of the data; it draws the images that keep their labels, and students' variants of images; all "
        "seeds of a comparison share it [--seed]",
        check=SEED,
    )
    seeds: int = _comparison_setting(
        1,
        "repetitions; each has a seed of its own, --seed and those after it; two or more give an interval",
        check=between(1, limits.MOST_SEEDS),
        is_common=True,
    )
    teacher_per_seed: bool = _comparison_setting(
        False, "train a teacher for each seed [the first seed's teacher teaches all students]"
    )
    with_label_smoothing: bool = _comparison_setting(
        False, "add student_ls, a student without a teacher that learns smoothed labels"
    )
    with_hard_labels: bool = _comparison_setting(
        False,
        "add a student that learns the teacher's classes only; its name is student_hard",
        is_common=True,
    )
    tuned: Path | None = _comparison_setting(
        None,
        "results of `kdtrain tune` (tune.json); each student is trained with what was chosen for it "
        "[the settings of this command]",
        metavar="FILE",
    )
    balance: str = _training_setting(
        "none",
        "how classes of different sizes count equally; sample: each is drawn equally often in an epoch; "
        "loss: labels of small classes have more weight",
        choices=("none", "sample", "loss"),
    )
    monitor: str = _training_setting(
        "accuracy",
        "figure on held-out images; it chooses the best epoch and stops early",
        choices=("accuracy", "balanced_accuracy", "macro_f1", "cross_entropy"),
    )
    early_stopping: int | None = _training_setting(
        None,
        "stop after so many epochs without a better figure of --monitor [never]",
        metavar="EPOCHS",
        check=EPOCHS,
    )
    plugin: tuple[str, ...] = _training_setting(
        (),
        "callback, from `kdtrain plugins`; NAME or FILE.py:CLASS, with ,key=value for each argument "
        "(repeatable) [none]",
        metavar="PLUGIN",
        is_common=True,
    )
    stall_timeout: int = _training_setting(
        300,
        "seconds without CPU time after which a fit is ended; 0 sets no limit",
        metavar="SECONDS",
        check=between(0, limits.MOST_SECONDS),
    )
    device: str = _training_setting("auto", "device to compute on; auto prefers cuda", choices=DEVICES)
    nproc_per_node: int = _training_setting(
        1,
        "number of processes that train together through OneFlow; --batch-size is for each",
        check=between(1, limits.MOST_PROCESSES),
    )
    name: str | None = _output_setting(
        None,
        "name of the run; its folder in LOGDIR/MODE has it too [version_0, version_1, ...]",
        metavar="NAME",
        check=RUN_NAME,
        is_common=True,
    )
    logdir: Path = _output_setting(
        Path("logs"), "folder of the run directories", metavar="DIR", is_common=True
    )
    model_save_dir: Path | None = _output_setting(
        None, "folder of the best models [LOGDIR/models]", metavar="DIR"
    )
    keep: str = _output_setting(
        "best",
        "when to save the model in --model-save-dir; if it is the best one, always, or never",
        choices=("best", "always", "never"),
        shorthands={"--replace": "always", "--no-keep": "never"},
    )
    image_save_dir: Path | None = _output_setting(
        None, "folder for a copy of the comparison figure [no copy]", metavar="DIR"
    )
    image_save_name: Path | None = _output_setting(
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
