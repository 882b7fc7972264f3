"""A model file of either kind as a predictor, and the predictor that oneflow computes in this process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Normalization
from kdtrain.models.registry import count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.limits import IMAGES_AT_ONCE, in_slices
from kdtrain.runtime.user_code import call_network
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel

Images = npt.NDArray[np.uint8]
"""(N, C, H, W) uint8, pixels 0..255."""

Logits = npt.NDArray[np.float32]
"""(N, classes) float32."""


Clock = Callable[[Images, int], list[float]]
"""Computes images in batches of a given size; returns the seconds of each batch, in order."""


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


@dataclass(frozen=True, eq=False, repr=False)
class OneFlowModel:
    """A ``Predictor`` over a checkpoint. Its network is built at the first use.

    Attributes:
        saved: the checkpoint.
        device: ``cpu`` or ``cuda``.
    """

    saved: SavedModel
    device: str = "cpu"

    def __repr__(self) -> str:
        return f"<OneFlowModel {self.saved!r}>"

    @property
    def path(self) -> Path:
        """The file, or the directory that ``oneflow.save`` wrote."""
        return self.saved.path

    @property
    def card(self) -> ModelCard:
        """The network's images, classes and normalisation."""
        return self.saved.card

    @property
    def runtime(self) -> str:
        """The library that computes it."""
        return "oneflow"

    @property
    def parameters(self) -> int:
        """The number of trainable values."""
        return count_parameters(self.network)

    @cached_property
    def network(self) -> flow.nn.Module:
        """The network, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the architecture.
        """
        return self.saved.build(self.device)

    def logits(self, images: Images) -> Logits:
        """Returns (N, classes) float32 logits of (N, C, H, W) uint8 images, pixels 0..255.

        Raises:
            CheckpointError: the weights do not fit the architecture.
            KdtrainError: a user's network raises.
        """
        normalization = Normalization(self.card.mean, self.card.std)
        parts = []
        with flow.no_grad():
            for start in range(0, len(images), IMAGES_AT_ONCE):
                portion = images[start : start + IMAGES_AT_ONCE]
                for few in in_slices(portion.shape):  # fewer of large images
                    inputs = flow.from_numpy(normalization.apply(portion[few])).to(self.device)
                    parts.append(call_network(self.network, inputs).numpy().copy())  # see predict_logits
        return np.concatenate(parts)

    def seconds(self, images: Images, size: int) -> list[float]:
        """Returns the time in seconds that each batch of ``size`` images takes, from pixels to logits.

        Args:
            images: (N, C, H, W) uint8, pixels 0..255.
            size: images in a batch.
        """
        return stopwatch(self.logits)(images, size)

    def reloaded(self) -> OneFlowModel:
        """Returns a predictor of the same weights that builds a network of its own."""
        return dataclasses.replace(self)


def stopwatch(logits: Callable[[Images], Logits]) -> Clock:
    """Returns the clock of a function that computes (N, classes) float32 logits in this process."""

    def seconds(images: Images, size: int) -> list[float]:
        return [_seconds(logits, images[start : start + size]) for start in range(0, len(images), size)]

    return seconds


def _seconds(logits: Callable[[Images], Logits], images: Images) -> float:
    start = time.perf_counter()
    logits(images)
    return time.perf_counter() - start
