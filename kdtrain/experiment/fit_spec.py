"""The specification of one fit: its network, seed, settings and run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import TrainedTeacher


@dataclass(frozen=True)
class FitSpec:
    """One fit.

    Attributes:
        mode: teacher, student or student_kd.
        seed: seed of initial weights, held-out images, order and dropout.
        directory: the run directory. A run that has begun there is resumed.
        teacher: teacher of a student_kd, which exists already.
        label: name in progress lines and errors; the mode by default.
        settings: settings that differ from the command's configuration.
        init_index: index of the weight initialisation under this seed.
        restarts: numbers of epochs after which the schedule of the learning rate begins anew.
    """

    mode: str
    seed: int
    directory: Path
    teacher: TrainedTeacher | None = None
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    init_index: int = 0
    restarts: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the fit in progress lines and errors."""
        return self.label or self.mode

    def config(self, command: FitConfig) -> FitConfig:
        """Returns the configuration with which ``kdtrain fit`` repeats this fit alone.

        Args:
            command: configuration of the command that the fit is a part of.
        """
        single: dict[str, Any] = {
            "seeds": 1,
            "data_seed": command.shared_data_seed,
            "teacher_per_seed": False,
            "teachers": 1,
            "with_label_smoothing": False,
            "with_hard_labels": False,
            "name": command.name if self.directory.name == command.name else None,
            "tuned": None,
            "omit_class": () if self.mode == "teacher" else command.omit_class,
            **self._transfer(command),
            "student_checkpoint": None if self.mode == "teacher" else command.student_checkpoint,
        }
        if self.teacher is None:
            single |= {"teacher_checkpoint": (), "teacher_weight": (), "teacher_logits": None}
        else:
            command = self.teacher.named_in(command)
        of_fit = {"mode": self.mode, "seed": self.seed, **self.settings}
        return dataclasses.replace(command, **single, **of_fit)

    def _transfer(self, command: FitConfig) -> dict[str, Any]:
        """Returns the settings of images without labels: none of a fit that has no teacher."""
        if self.mode == "student_kd":
            return {"transfer_data": command.transfer_data, "transfer_share": command.transfer_share}
        return {"transfer_data": None, "transfer_share": FitConfig.transfer_share}
