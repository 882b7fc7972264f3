"""One schema for the flags of ``kdtrain fit``, its TOML file and its defaults."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from kdtrain.data.augment_spec import AUGMENT_FORMS, parse_augment
from kdtrain.errors import UsageError
from kdtrain.runtime.limits import (
    LARGEST_SEED,
    LARGEST_SIDE,
    MOST_CLASSES,
    MOST_GENERATIONS,
    MOST_IMAGES,
    MOST_PROCESSES,
    MOST_SECONDS,
    MOST_SEEDS,
)
from kdtrain.runtime.value_checks import EPOCHS, IMAGES, MOST_NUMBER, SEED, Check, between, positive

MODES = ("teacher", "student_kd", "student", "compare")
OPTIMIZERS = {"adam": 3e-3, "adadelta": 1.0, "sgd": 0.1}
"""Each optimizer's default for the (highest) learning rate."""

DEFAULT_TEACHER = "teacher_cnn"
"""What a teacher is that is trained here, unless --teacher-arch says otherwise."""

AUGMENTATION: Check = (
    lambda value: parse_augment(value) is not None,
    f"must be none, or some of {AUGMENT_FORMS}, each once",
)


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    check: Check | None = None,
    metavar: str | None = None,
    also: tuple[str, ...] = (),
    short: Mapping[str, str] | None = None,
    most: int = 100,
) -> Any:
    """Declares one setting: its default, what is allowed, further spellings and short forms of its flag.

    One that can be repeated has at most ``most`` values.
    """
    allowed = {"choices": choices, "check": check, "most": most}
    flag = {"help": help, "metavar": metavar, "also": also, "short": short}
    return dataclasses.field(default=default, metadata=allowed | flag)


@dataclass(frozen=True)
class FitConfig:
    """What ``kdtrain fit`` is to do. None means: the mode, or another setting, decides."""

    mode: str = setting("compare", "what to train", choices=MODES, also=("--model-type",))
    epochs: int | None = setting(
        None, "epochs for every network [3 for the teacher, 60 for students]", check=EPOCHS
    )
    teacher_epochs: int | None = setting(None, "epochs for the teacher alone", check=EPOCHS)
    batch_size: int = setting(128, "images in a training step", check=IMAGES)
    optimizer: str = setting("adam", "how weights are updated", choices=tuple(OPTIMIZERS))
    lr: float | None = setting(
        None, "highest learning rate [adam 0.003, adadelta 1, sgd 0.1]", check=positive(MOST_NUMBER)
    )
    schedule: str = setting(
        "one_cycle", "how the learning rate changes", choices=("one_cycle", "cosine", "constant")
    )
    teacher_arch: str | None = setting(
        None,
        "the large network, likewise [that of the teacher's checkpoint; teacher_cnn where one is trained]",
        metavar="ARCH",
    )
    student_arch: str = setting(
        "student_mlp",
        "the small network: a name (see `kdtrain models`), flowvision:NAME, MODULE:FACTORY or "
        "FILE.py:FACTORY",
        metavar="ARCH",
    )
    teacher_checkpoint: Path | None = setting(
        None,
        "a trained teacher [the one of these data in --model-save-dir]",
        metavar="FILE",
        also=("--load-teacher-checkpoint-dir",),
    )
    temperature: float = setting(
        4.0, "how soft the teacher's labels are made", metavar="T", check=positive(MOST_NUMBER)
    )
    alpha: float = setting(0.9, "weight of the soft labels, 0 to 1", check=between(0, 1))
    assistant_arch: tuple[str, ...] = setting(
        (),
        "a network of a size in between: taught by the teacher, it teaches the student (repeatable)",
        metavar="NAME",
    )
    generations: int = setting(
        1,
        "students, each taught by the one before, the first by the teacher",
        check=between(1, MOST_GENERATIONS),
    )
    dataset: str = setting(
        "mnist",
        "mnist, fashion_mnist, cifar10, cifar100, folder:DIR, npz:FILE or FILE.py:FACTORY",
        metavar="DATA",
    )
    data_dir: Path | None = setting(
        None, "read the four IDX files, plain or gzipped, from here", metavar="DIR"
    )
    image_size: int | None = setting(
        None,
        "height and width that the pictures of folder:DIR are brought to",
        metavar="N",
        check=between(1, LARGEST_SIDE),
    )
    skip_corrupt: bool = setting(False, "leave out pictures of folder:DIR that cannot be read")
    val_size: int | None = setting(
        None,
        "training images held out to choose by; 0 chooses on the test set [5000, at most a sixth]",
        metavar="N",
        check=between(0, MOST_IMAGES),
    )
    omit_class: tuple[str, ...] = setting(
        (), "train students without this class's images (repeatable)", metavar="CLASS", most=MOST_CLASSES
    )
    limit_train: int | None = setting(None, "train on this many images only", metavar="N", check=IMAGES)
    augment: str | None = setting(
        None,
        f"change training images at random: {AUGMENT_FORMS} [shift=2 for the teacher, none for students]",
        metavar="none|NAME=N,...",
        check=AUGMENTATION,
    )
    teacher_augment: str | None = setting(
        None, "the same for the teacher alone", metavar="none|NAME=N,...", check=AUGMENTATION
    )
    seed: int = setting(0, "decides initial weights, held-out images, order and dropout", check=SEED)
    seeds: int = setting(
        1, "compare over this many seeds, from --seed on", metavar="N", check=between(1, MOST_SEEDS)
    )
    teacher_per_seed: bool = setting(
        False, "compare: train a teacher for each seed [the first seed's teaches all students]"
    )
    with_label_smoothing: bool = setting(
        False, "compare: also a student without teacher that learns smoothed labels, student_ls"
    )
    grid: tuple[str, ...] = setting(
        (),
        "compare: choose temperature, alpha or lr by validation accuracy on the first seed, "
        "such as alpha=.5,.7,.9 (repeatable: all combinations)",
        metavar="NAME=V,V,...",
    )
    early_stopping: int | None = setting(
        None, "stop after this many epochs without a better accuracy", metavar="EPOCHS", check=EPOCHS
    )
    plugin: tuple[str, ...] = setting(
        (), "a callback: NAME or FILE.py:CLASS, with ,key=value arguments (repeatable)", metavar="PLUGIN"
    )
    stall_timeout: int = setting(
        300,
        "end a fit whose processes use no CPU time for this many seconds; 0 sets no limit",
        metavar="SECONDS",
        check=between(0, MOST_SECONDS),
    )
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    nproc_per_node: int = setting(
        1,
        "processes that train together through OneFlow; --batch-size is for each",
        check=between(1, MOST_PROCESSES),
    )
    logdir: Path = setting(Path("logs"), "where run directories go", metavar="DIR")
    model_save_dir: Path | None = setting(None, "where the best models go [LOGDIR/models]", metavar="DIR")
    keep: str = setting(
        "best",
        "whether the model goes to --model-save-dir: if no better one is there, always, or never",
        choices=("best", "always", "never"),
        short={"--replace": "always", "--no-keep": "never"},
    )
    image_save_dir: Path | None = setting(None, "put a copy of the comparison picture here", metavar="DIR")
    image_save_name: Path | None = setting(None, "name of that copy [compare.png]", metavar="FILE")

    def __post_init__(self) -> None:
        if self.seed + self.seeds - 1 > LARGEST_SEED:
            raise UsageError(f"--seed {self.seed}: {self.seeds} seeds from there on {SEED[1]}.")
        if self.seeds > 1 and self.mode != "compare":
            raise UsageError(
                f"--seeds {self.seeds} is for --mode compare; use --seed to choose one for {self.mode}."
            )
        if self.is_chain and self.mode != "student_kd":
            flag = "--generations" if self.generations > 1 else "--assistant-arch"
            raise UsageError(f"{flag} is for --mode student_kd, not for {self.mode}.")
        for name in ("teacher_per_seed", "with_label_smoothing", "grid"):
            if getattr(self, name) and self.mode != "compare":
                raise UsageError(f"{flag_of(name)} is for --mode compare, not for {self.mode}.")
        if self.teacher_per_seed and self.teacher_checkpoint is not None:
            raise UsageError(
                "--teacher-per-seed trains teachers, and --teacher-checkpoint names one that is there: "
                "leave one of them out."
            )
        if self.grid and self.val_size == 0:
            raise UsageError(
                "--grid chooses by held-out images, and --val-size 0 holds none out: leave one of them out."
            )
        if self.omit_class and self.mode == "teacher":
            raise UsageError(
                f"--omit-class {self.omit_class[0]} is for students; a teacher is trained on all classes."
            )

    @property
    def is_chain(self) -> bool:
        """Whether several networks are trained one after another, each with the one before as its teacher."""
        return self.generations > 1 or bool(self.assistant_arch)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate."""
        return self.lr or OPTIMIZERS[self.optimizer]

    @property
    def models(self) -> Path:
        """Where the best models go."""
        return self.model_save_dir or self.logdir / "models"

    def architecture_for(self, network: str) -> str:
        """Returns what a ``teacher`` or ``student`` is that is trained here."""
        return self.teacher_arch or DEFAULT_TEACHER if network == "teacher" else self.student_arch

    def epochs_for(self, network: str) -> int:
        """Returns how many epochs the ``teacher`` or the ``student`` is trained for."""
        if network == "teacher":
            return self.teacher_epochs or self.epochs or 3
        return self.epochs or 60

    def augment_for(self, network: str) -> str:
        """Returns how the training images of the ``teacher`` or the ``student`` are changed."""
        if network == "teacher":
            return self.teacher_augment or self.augment or "shift=2"
        return self.augment or "none"

    def resolved(self) -> dict[str, Any]:
        """Returns all settings as plain values, with nothing left for the mode to decide.

        Only what a teacher's checkpoint may decide, its architecture, is left out.
        """
        taught = self.mode == "student_kd" or self.teacher_checkpoint is not None
        decided = dataclasses.replace(
            self,
            teacher_arch=self.teacher_arch or (None if taught else DEFAULT_TEACHER),
            teacher_epochs=self.epochs_for("teacher"),
            epochs=self.epochs_for("student"),
            lr=self.peak_lr,
            teacher_augment=self.augment_for("teacher"),
            augment=self.augment_for("student"),
        )
        return {name: _plain(value) for name, value in vars(decided).items() if value is not None}

    def to_toml(self) -> str:
        """Returns the resolved configuration as a file that ``--config`` reads."""
        return tomli_w.dumps(self.resolved())


def flag_of(name: str) -> str:
    """Returns how a setting is spelt on the command line."""
    return f"--{name.replace('_', '-')}"


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
