"""The configuration of a fit: its settings, which of them go together, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from kdtrain.data.augment_spec import mixes
from kdtrain.errors import UsageError
from kdtrain.experiment.epochs import epochs_for_size
from kdtrain.experiment.recipe import recipe_settings
from kdtrain.experiment.settings import DEFAULT_TEACHER, OPTIMIZERS, Settings, flag_of
from kdtrain.runtime.limits import LARGEST_SEED
from kdtrain.runtime.value_checks import SEED


@dataclass(frozen=True)
class FitConfig(Settings):
    """The settings of ``kdtrain fit``, checked against one another."""

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
        self._check_students()

    def _check_students(self) -> None:
        """Raises UsageError for settings of students that the mode does not have."""
        if self.omit_class and self.mode == "teacher":
            raise UsageError(
                f"--omit-class {self.omit_class[0]} is for students; --mode teacher trains on all classes."
            )
        self._check_transfer()
        if self.student_checkpoint is not None and (self.mode == "teacher" or self.is_chain):
            fits = (
                f"--mode {self.mode}" if self.mode == "teacher" else "a chain, whose networks all begin anew"
            )
            raise UsageError(
                f"--student-checkpoint {self.student_checkpoint} is for students, not for {fits}: "
                "leave it out."
            )

    def _check_transfer(self) -> None:
        """Raises UsageError for images without labels that no teacher answers about."""
        share, data = f"--transfer-share {self.transfer_share:g}", f"--transfer-data {self.transfer_data}"
        if self.transfer_data is None:
            if self.transfer_share != FitConfig.transfer_share:
                raise UsageError(f"{share} is a share of --transfer-data, which is missing: add it.")
        elif self.mode in ("teacher", "student"):
            raise UsageError(
                f"{data} has no labels, and --mode {self.mode} has no teacher to answer about it: "
                "choose student_kd or compare."
            )
        elif self.alpha == 0.0:
            raise UsageError(
                f"--alpha 0 leaves the teacher's answers out, and {data} has nothing else to teach: "
                "leave one of them out."
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


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
