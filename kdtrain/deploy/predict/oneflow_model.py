"""A checkpoint as a predictor: its network, computed by oneflow in this process."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kdtrain.data.dataset import Normalization
from kdtrain.deploy.latency import stopwatch
from kdtrain.deploy.predict.predictor import Images, Logits
from kdtrain.models.registry import count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.slices import in_slices
from kdtrain.runtime.user_code import call_network
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import SavedModel


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
