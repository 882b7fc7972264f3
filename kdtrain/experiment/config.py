"""The configuration of ``kdtrain fit``: its settings, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from kdtrain.experiment.config_checks import check_together
from kdtrain.experiment.epochs import epochs_for_size
from kdtrain.experiment.recipe import recipe_for, recipe_settings
from kdtrain.experiment.settings import DEFAULT_TEACHER, OPTIMIZERS, Settings


@dataclass(frozen=True, repr=False)
class FitConfig(Settings):
    """The settings of ``kdtrain fit``, checked against one another, and what follows from them."""

    def __post_init__(self) -> None:
        check_together(self)

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
        if paths:  # one path as a text, as files of earlier versions have it
            values["teacher_checkpoint"] = paths if len(paths) > 1 else paths[0]
        return values

    def to_toml(self) -> str:
        """Returns the resolved configuration as a file that ``--config`` reads."""
        return tomli_w.dumps(self.resolved())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(map(_plain, value)) if isinstance(value, tuple) else value
