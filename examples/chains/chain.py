"""A chain of distillations: each network has the previous one as its teacher.

Teacher assistants are networks of intermediate size (Mirzadeh et al. 2020, "Improved Knowledge Distillation
via Teacher Assistant", section 3). Generations are students of one architecture (Furlanello et al. 2018,
"Born Again Neural Networks", section 3).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import kdtrain


def train_chain(networks: list[str], seed: int = 0, **settings: Any) -> kdtrain.TestedModel:
    """Trains the networks of a chain one after another, and returns the last.

    Args:
        networks: their architectures; the first has the kept teacher, or one that is trained first.
        seed: the first network's seed. Each has another one, and so initial weights of its own.
        settings: further settings of ``kdtrain fit``.
    """
    teacher: Path | None = None
    for number, arch in enumerate(networks):
        model = kdtrain.fit(
            "student_kd", student_arch=arch, teacher_checkpoint=teacher, seed=seed + number, **settings
        )
        print(f"{arch}: test accuracy {model.test.accuracy:.2%} ({model.path})")
        teacher = model.path
    return model


if __name__ == "__main__":
    train_chain(sys.argv[1:] or ["student_cnn", "student_mlp", "student_mlp"])
