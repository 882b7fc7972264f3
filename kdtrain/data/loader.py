"""Batches of images from one array, in memory or in a file."""

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
    """The input of one training step.

    With mixup, ``inputs`` are mixed images, and the loss of a step is ``mixup_lambda`` times the loss of
    this batch plus ``1 - mixup_lambda`` times the loss of ``mixup_partner``. The objective adds the two,
    so a term computes its loss from ``inputs``, ``targets`` and ``indices`` alone.

    Attributes:
        inputs: normalised images, (B, C, H, W) float32.
        targets: class labels, (B,) int64.
        indices: the position of each image in the loader's data, (B,) int64.
        mixup_lambda: the share of each image's own pixels in ``inputs``, 0 to 1; 1 without mixup.
        mixup_partner: the same ``inputs`` with the targets and indices of the images that were mixed
            in; None without mixup.
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
    """Batches of one array of images, shuffled by seed and epoch, or in order.

    An epoch is a new permutation of all images, cut into batches. The last batch may be smaller. If it is
    too small for batch normalisation, it joins the one before.

    Args:
        inputs: (N, C, H, W) float32, normalised; or images that are normalised batch by batch.
        targets: class labels, (N,) int64, each from 0 to ``num_classes`` - 1.
        batch_size: images in a batch, of all ranks together.
        num_classes: the number of classes.
        seed: determines the order and the augmentation of each epoch; None keeps the order.
        device: the device of the batches.
        augment: a random change of the images of each batch.
        mixup: mixes the images of each batch after ``augment``.
        ranks: the processes that share each batch, each of which gets its part; one process by default.
        classes: the names of the classes; their numbers by default.

    Raises:
        DataError: lengths differ, there is no image, a label is out of range, or a rank would get no
            image. OneFlow does not report the last two: the loss of a wrong label is 0, and a convolution
            of no image ends the process.
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
                f"{len(inputs)} images and {len(targets)} labels: give a label for each image, at least one."
            )
        if targets.min() < 0 or targets.max() >= num_classes:
            wrong = int(np.flatnonzero((targets < 0) | (targets >= num_classes))[0])
            raise DataError(f"label {targets[wrong]} of image {wrong} is not one of 0..{num_classes - 1}.")
        ranks = ranks or Ranks()
        if min(len(targets), batch_size) < ranks.size:
            raise DataError(
                f"{len(targets)} images in batches of {batch_size} cannot be shared by {ranks.size} "
                "processes: each needs at least one."
            )
        # OneFlow may still read a batch after the next one is requested, and a slice shares memory with
        # the whole array: so the arrays become read-only.
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
        """Whether the batches hold changed images, new ones in each epoch."""
        return self.augment is not None or self.mixup is not None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields this rank's part of each batch of an epoch; every image is in exactly one batch.

        Args:
            epoch: the number of the epoch, which the order and the augmentation depend on.
        """
        if self.seed is None:
            order = np.arange(self.num_images)
        else:
            order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.num_images)
        rng = np.random.default_rng(derive_seed(self.seed or 0, "augment", epoch, self.ranks.rank))
        for start, stop in itertools.pairwise(self._bounds):
            yield self._batch(self.ranks.shard(order[start:stop]), rng)

    def sequential(self, batch_size: int) -> Loader:
        """Returns a loader over the same images, in order and without augmentation."""
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
        """SHA-256 (hex) of shape and values of the normalised images, in order."""
        digest = hashlib.sha256(repr(self.inputs.shape).encode())
        for rows in in_slices(self.inputs.shape):
            digest.update(self.inputs[rows].data)
        return digest.hexdigest()

    @functools.cached_property
    def batch_sizes(self) -> list[int]:
        """The number of images in each batch of an epoch, of all ranks together."""
        return [stop - start for start, stop in itertools.pairwise(self._bounds)]

    @functools.cached_property
    def _bounds(self) -> list[int]:
        """The boundaries of the batches. A last batch that is too small joins the one before it.

        OneFlow's batch normalisation of a single image is NaN, because it has no variance. So every
        rank gets at least two images, unless whole batches are smaller than that.
        """
        bounds = [*range(0, self.num_images, self.batch_size), self.num_images]
        smallest = min(self.batch_size, 2 * self.ranks.size)
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < smallest:
            del bounds[-2]
        return bounds

    def _batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
        # Indexing by an array copies, so from_numpy shares memory with this batch alone.
        images = self.inputs[indices]
        if self.augment is not None:
            images = self.augment(images, rng)
        if self.mixup is None:
            return self._labelled(_to(flow.from_numpy(images), self.device), indices)
        mixed, mixup_lambda, partners = self.mixup(images, rng)
        inputs = _to(flow.from_numpy(mixed), self.device)
        return dataclasses.replace(
            self._labelled(inputs, indices),
            mixup_lambda=mixup_lambda,
            mixup_partner=self._labelled(inputs, indices[partners]),
        )

    def _labelled(self, inputs: flow.Tensor, indices: npt.NDArray[np.int64]) -> Batch:
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
