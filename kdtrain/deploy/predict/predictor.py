"""The interface of a model file of either kind, a checkpoint or an ONNX file: logits of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdtrain.store.card import ModelCard

Images = npt.NDArray[np.uint8]
"""(N, C, H, W) uint8, pixels 0..255."""

Logits = npt.NDArray[np.float32]
"""(N, classes) float32."""


class Predictor(Protocol):
    """A network that has been read from a file: an ``OneFlowModel`` or an ``OnnxModel``."""

    @property
    def path(self) -> Path:
        """The file, or the directory that ``oneflow.save`` wrote."""

    @property
    def card(self) -> ModelCard:
        """The network's images, classes and normalisation."""

    @property
    def runtime(self) -> str:
        """The library that computes it, and the precision: oneflow, onnx float32 or onnx int8."""

    @property
    def parameters(self) -> int:
        """The number of trainable values."""

    def logits(self, images: Images) -> Logits:
        """Returns (N, classes) float32 logits of (N, C, H, W) uint8 images, pixels 0..255."""

    def seconds(self, images: Images, size: int) -> list[float]:
        """Returns the time in seconds that each batch of ``size`` images takes, from pixels to logits."""

    def reloaded(self) -> Predictor:
        """Returns a new predictor of the same file, which shares no process and no network with this one."""
