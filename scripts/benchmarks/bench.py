"""The means of a measurement: folders, a trained teacher, the loaders of a run, and PyTorch's times."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tools import answer, kdtrain

from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.loaders import RunData, prepare
from kdtrain.experiment.settings.config import FitConfig

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bench:
    """Settings of the measurements.

    Attributes:
        folder: folder for all files.
        repeats: pairs of measurements.
        images: training images in an epoch of the slow measurements.
        steps: timed steps of a network in one process.
        peer: Python of an environment with PyTorch; None leaves PyTorch out.
    """

    folder: Path
    repeats: int
    images: int
    steps: int
    peer: Path | None

    def fresh(self) -> Path:
        """Returns the path of a folder that does not exist yet."""
        return self.folder / f"{time.time_ns()}"

    def teacher(self) -> Path:
        """Returns a teacher of one short epoch; its weights do not matter for speed."""
        path = self.folder / "models" / "teacher.safetensors"
        if not path.exists():
            words = ("--mode", "teacher", "--epochs", "1", "--limit-train", "2000")
            kdtrain("fit", *words, "--logdir", self.fresh(), "--model-save-dir", path.parent)
        return path

    def torch(
        self, task: str, images: int, epochs: int, *, batch: int = 128, compiled: bool = False
    ) -> list[float]:
        """Returns PyTorch's seconds per epoch; a teacher's in the faster memory format."""
        data = self.folder / "mnist.npz"
        if not data.exists():
            run = run_data()
            np.savez(
                data,
                images=np.asarray(run.train.inputs),
                labels=run.train.targets,
                held_images=np.asarray(run.validation.inputs),
                held_labels=run.validation.targets,
            )
        work = {
            **{"task": task, "images": images, "epochs": epochs, "batch": batch},
            **{"compiled": compiled, "data": str(data)},
        }
        assert self.peer is not None
        seconds: list[float] = answer([self.peer, HERE / "torch_peer.py", json.dumps(work)])
        return seconds


def run_data() -> RunData:
    """Returns the loaders of a student's run on MNIST."""
    return prepare(load_dataset(), FitConfig(mode="student"), "student", 0, "cpu")
