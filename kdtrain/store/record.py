"""The names that runs have on disk: modes of a fit, and models of a comparison."""

from __future__ import annotations

from typing import Literal

Model = Literal["teacher", "student_kd", "student", "student_ls", "student_hard"]

SINGLE_MODES: tuple[Model, ...] = ("teacher", "student_kd", "student")
"""The modes that train one network; a comparison has a model of each."""

FIT_MODES = (*SINGLE_MODES, "compare")
"""The values of ``--mode``."""

CONTROLS: tuple[Model, ...] = ("student_ls", "student_hard")
"""Further students of a comparison, which need not take part."""

MODELS = SINGLE_MODES + CONTROLS
"""The models of a comparison, in its order."""
