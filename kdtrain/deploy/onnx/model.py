"""An ONNX file that kdtrain exported, as a predictor. Needs no oneflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.onnx.process import OnnxProcess, Reply
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard, read_card


@dataclass(frozen=True, eq=False, repr=False)
class OnnxModel:
    """A network in an ONNX file, ready to compute; made by ``OnnxModel.load``.

    A separate process computes it, within limits of memory and time. The process ends with this object.

    Attributes:
        path: the file.
        card: the network's images, classes and normalisation.
        about: the file's metadata: the card's entries, and ``precision`` (float32 or int8),
            ``checkpoint_sha256`` and more.
        process: the process that computes it.
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
            threads: threads of onnxruntime.

        Raises:
            CheckpointError: the file is missing, damaged or not one of kdtrain's, refers to other files,
                or needs more memory or time than the limits; or onnxruntime is not installed.
        """
        path = Path(path)
        process = OnnxProcess(path, threads)
        return cls(path, read_card(process.about, path), process.about, process)

    def __repr__(self) -> str:
        network = f"{self.precision}, {self.parameters:,} parameters, for {self.card.dataset}"
        return f"<OnnxModel {network} ({self.path})>"

    @property
    def runtime(self) -> str:
        """The library that computes it, and the precision: onnx float32 or onnx int8."""
        return f"onnx {self.precision}"

    @property
    def precision(self) -> str:
        """The type of its weights: float32 or int8."""
        return str(self.about["precision"])

    @property
    def parameters(self) -> int:
        """The number of trainable values."""
        return int(self.about["parameters"])

    def logits(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns (N, classes) float32 logits of (N, C, H, W) images, pixels 0..255 of any dtype.

        Raises:
            CheckpointError: onnxruntime cannot compute them. Files that kdtrain wrote do not cause this.
        """
        return np.concatenate([logits for logits, _ in self._replies(images, IMAGES_AT_ONCE)])

    def seconds(self, images: npt.NDArray[Any], size: int) -> list[float]:
        """Returns the time in seconds that each batch of ``size`` images takes, from pixels to logits.

        Batches are smaller where a network needs much memory or time.

        Args:
            images: (N, C, H, W), pixels 0..255 of any dtype.
            size: images in a batch.

        Raises:
            CheckpointError: as ``logits``.
        """
        return [time for _, seconds in self._replies(images, size) for time in seconds]

    def reloaded(self) -> OnnxModel:
        """Returns the file read again, with a process of its own and as many threads."""
        return OnnxModel.load(self.path, self.process.threads)

    def _replies(self, images: npt.NDArray[Any], size: int) -> Iterator[Reply]:
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
        for start in range(0, max(len(images), 1), IMAGES_AT_ONCE):
            yield self.process.compute(images[start : start + IMAGES_AT_ONCE], size)
