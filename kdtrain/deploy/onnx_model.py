"""An ONNX file that kdtrain exported: what it is for, and how it is asked. Needs no oneflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.onnx_process import Answer, OnnxProcess
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard, read_card


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A network in an ONNX file, ready to be asked; made by ``OnnxModel.load``.

    It is computed by a process of its own, within limits of memory and time, which ends with this object.

    Attributes:
        path: where it was read from.
        card: what it is for.
        about: all that the file says about itself: the card's entries, and ``precision`` (float32 or
            int8), ``checkpoint_sha256`` and more.
        process: what computes it.
    """

    path: Path
    card: ModelCard
    about: dict[str, Any]
    process: OnnxProcess

    @classmethod
    def load(cls, path: Path | str, threads: int = 1) -> OnnxModel:
        """Reads a file.

        Args:
            path: the file.
            threads: how many onnxruntime computes with.

        Raises:
            CheckpointError: it is missing, damaged, not one of kdtrain's, refers to other files, or takes
                more memory or time than is allowed; or onnxruntime is not installed.
        """
        path = Path(path)
        process = OnnxProcess(path, threads)
        return cls(path, read_card(process.about, path), process.about, process)

    @property
    def precision(self) -> str:
        """What its weights are: float32 or int8."""
        return str(self.about["precision"])

    @property
    def parameters(self) -> int:
        """How many trainable values the network has."""
        return int(self.about["parameters"])

    def logits(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns logits (N, classes) of images (N, C, H, W): pixels 0..255, of any type.

        Raises:
            CheckpointError: onnxruntime cannot compute them; only a file made by others gets here.
        """
        return np.concatenate([logits for logits, _ in self._answers(images, IMAGES_AT_ONCE)])

    def seconds(self, images: npt.NDArray[Any], size: int) -> list[float]:
        """Returns how long portions of ``size`` images take to be computed, in order, from pixels to logits.

        What takes much memory or time is computed in smaller portions.

        Raises:
            CheckpointError: as ``logits``.
        """
        return [time for _, seconds in self._answers(images, size) for time in seconds]

    def _answers(self, images: npt.NDArray[Any], size: int) -> Iterator[Answer]:
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
        for start in range(0, max(len(images), 1), IMAGES_AT_ONCE):
            yield self.process.ask(images[start : start + IMAGES_AT_ONCE], size)
