"""What one fit is to be: which network, from which seed, with which settings, and where it goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain.experiment.config import FitConfig
from kdtrain.store.checkpoint import SavedModel


@dataclass(frozen=True)
class FitSpec:
    """One fit.

    Attributes:
        mode: teacher, student or student_kd.
        seed: of the first weights, the held-out images, the order and dropout.
        directory: the run directory; a run that has been begun there is gone on with.
        teacher: of a student_kd.
        label: what progress calls the run; the mode by default.
        settings: those that are not as the session's configuration has them.
        draw: which of a seed's first weights.
    """

    mode: str
    seed: int
    directory: Path
    teacher: SavedModel | None = None
    label: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: int = 0

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.label or self.mode

    def config(self, session: FitConfig) -> FitConfig:
        """Returns the configuration of this fit alone, as ``kdtrain fit`` would repeat it."""
        alone: dict[str, Any] = {
            "seeds": 1,
            "generations": 1,
            "assistant_arch": (),
            "teacher_per_seed": False,
            "with_label_smoothing": False,
            "grid": (),
            "omit_class": () if self.mode == "teacher" else session.omit_class,
        }
        taught: dict[str, Any] = {
            "teacher_checkpoint": self.teacher.path if self.teacher else None,
            "teacher_arch": self.teacher.card.arch if self.teacher else session.teacher_arch,
        }
        own = {"mode": self.mode, "seed": self.seed, **self.settings}
        return dataclasses.replace(session, **alone, **taught, **own)
