"""Batches of images that live in one array, in memory or in a file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kdtrain.data.augmentation import Augmentation, Mixup
from kdtrain.data.dataset import Normalized
from kdtrain.errors import DataError
from kdtrain.runtime import flow
from kdtrain.runtime.old_names import OldName
from kdtrain.runtime.ranks import Ranks
from kdtrain.runtime.seeds import derive_seed
from kdtrain.runtime.slices import in_slices

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        inputs: normalised images, (B, C, H, W) float32.
        targets: class labels, (B,) int64.
        indices: each image's position in the loader's data, (B,) int64.
        mixup_lambda: how much of each image the targets stand for: 1 unless images have been mixed.
        mixup_partner: with mixup, the same inputs under the targets and indices of the images that were
            mixed in. An objective gives the loss of both, weighted by lambda; a term need not know.
    """

    inputs: flow.Tensor
    targets: flow.Tensor
    indices: flow.Tensor
    mixup_lambda: float = 1.0
    mixup_partner: Batch | None = None

    share = OldName("mixup_lambda")
    other = OldName("mixup_partner")

    def __len__(self) -> int:
        return int(self.targets.shape[0])


class Loader:
    """Serves one array of images in batches, shuffled by seed and epoch, or in order.

    Args:
        inputs: images, (N, C, H, W): normalised ones, float32, or those that will be batch by batch.
        targets: class labels, (N,) int64, each from 0 to ``num_classes`` - 1.
        batch_size: images in a batch; the last one of an epoch holds what is left.
        num_classes: how many classes there are.
        seed: shuffles each epoch by a permutation of its own; None keeps the order.
        device: where the batches are put.
        augment: changes the images of each batch at random, by seed and epoch.
        mixup: mixes the images of each batch afterwards, and so their labels.
        ranks: the processes that share each batch; every one of them gets its part.
        classes: the classes' names; their numbers by default.

    Raises:
        DataError: lengths differ, there is no image, a label is out of range, or a rank would get no
            image. OneFlow would not say: a wrong label counts as loss 0 there, and a convolution of
            no image ends the process.
    """

    def __init__(
        self,
        inputs: npt.NDArray[np.float32] | Normalized,
        targets: npt.NDArray[np.int64],
        batch_size: int,
        *,
        num_classes: int,
        seed: int | None = None,
        device: str = "cpu",
        augment: Augmentation | None = None,
        mixup: Mixup | None = None,
        ranks: Ranks | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise DataError(
                f"{len(inputs)} images and {len(targets)} labels: need as many of both, and at least one."
            )
        if targets.min() < 0 or targets.max() >= num_classes:
            wrong = int(np.flatnonzero((targets < 0) | (targets >= num_classes))[0])
            raise DataError(f"label {targets[wrong]} of image {wrong} is not one of 0..{num_classes - 1}.")
        ranks = ranks or Ranks()
        if min(len(targets), batch_size) < ranks.size:
            raise DataError(
                f"{len(targets)} images in batches of {batch_size} cannot be shared by {ranks.size} "
                "processes: each needs one at least."
            )
        # OneFlow's operations may still read a batch after the next one was asked for, and a
        # slice shares memory with the whole: nobody may write here any more.
        self.inputs = inputs if isinstance(inputs, Normalized) else _frozen(inputs, np.float32)
        self.targets = _frozen(targets, np.int64)
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.seed = seed
        self.device = device
        self.augment = augment
        self.mixup = mixup
        self.ranks = ranks
        self.classes = tuple(classes or map(str, range(num_classes)))

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.batch_sizes)

    @property
    def num_images(self) -> int:
        """The number of images in an epoch."""
        return len(self.targets)

    changes_images = OldName("augments")
    in_order = OldName("sequential")

    @property
    def augments(self) -> bool:
        """Whether a network sees an image otherwise than it is, and anew in each epoch."""
        return self.augment is not None or self.mixup is not None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of epoch number ``epoch``; every image is in exactly one of them.

        Where several ranks share the batches, these are this rank's parts of them.
        """
        if self.seed is None:
            order = np.arange(self.num_images)
        else:
            order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.num_images)
        rng = np.random.default_rng(derive_seed(self.seed or 0, "augment", epoch, self.ranks.rank))
        for start, stop in itertools.pairwise(self._bounds):
            yield self._batch(self.ranks.shard(order[start:stop]), rng)

    def sequential(self, batch_size: int) -> Loader:
        """Returns a loader over the same images that neither shuffles nor changes them."""
        return Loader(
            self.inputs,
            self.targets,
            batch_size,
            num_classes=self.num_classes,
            device=self.device,
            ranks=self.ranks,
            classes=self.classes,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the images as a network sees them (normalised), in order."""
        digest = hashlib.sha256(repr(self.inputs.shape).encode())
        for few in in_slices(self.inputs.shape):
            digest.update(self.inputs[few].data)
        return digest.hexdigest()

    @functools.cached_property
    def batch_sizes(self) -> list[int]:
        """How many images each batch of an epoch has, all ranks' parts of it together."""
        return [stop - start for start, stop in itertools.pairwise(self._bounds)]

    @functools.cached_property
    def _bounds(self) -> list[int]:
        """Where batches begin and end. Too small a last batch joins the one before it.

        A batch normalisation over a single image has no variance: OneFlow makes NaN of it. So
        every rank gets two images at least, unless whole batches are smaller than that.
        """
        bounds = [*range(0, self.num_images, self.batch_size), self.num_images]
        smallest = min(self.batch_size, 2 * self.ranks.size)
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < smallest:
            del bounds[-2]
        return bounds

    def _batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
        # Indexing by an array copies, so from_numpy shares memory that no one else ever sees.
        images = self.inputs[indices]
        if self.augment is not None:
            images = self.augment(images, rng)
        if self.mixup is None:
            return self._under_labels(_to(flow.from_numpy(images), self.device), indices)
        mixed, share, others = self.mixup(images, rng)
        inputs = _to(flow.from_numpy(mixed), self.device)
        other = self._under_labels(inputs, indices[others])
        return dataclasses.replace(
            self._under_labels(inputs, indices), mixup_lambda=share, mixup_partner=other
        )

    def _under_labels(self, inputs: flow.Tensor, indices: npt.NDArray[np.int64]) -> Batch:
        return Batch(
            inputs=inputs,
            targets=_to(flow.from_numpy(self.targets[indices]), self.device),
            indices=_to(flow.tensor(indices), self.device),
        )


def _frozen(array: npt.NDArray[_Value], dtype: type[_Value]) -> npt.NDArray[_Value]:
    array = np.ascontiguousarray(array, dtype=dtype).view()
    array.setflags(write=False)
    return array


def _to(tensor: flow.Tensor, device: str) -> flow.Tensor:
    return tensor if device == "cpu" else tensor.to(device)
