"""Batches of images from one array, in memory or in a file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import LazyImages, array_digest
from kdtrain.data.draws import derive_seed
from kdtrain.data.images.originals import Originals, Reread
from kdtrain.data.images.resize import InputForm
from kdtrain.data.sampling import BalancedDraw, TransferDraw
from kdtrain.data.views import Views
from kdtrain.errors import DataError, size_text
from kdtrain.runtime import flow
from kdtrain.runtime.ranks import Ranks

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True, repr=False)
class Batch:
    """The input of one training step.

    Images of ``--transfer-data`` have no label. ``label_loss`` leaves them out.

    A mixed image (``--augment mixup`` or ``cutmix``) has two labels. ``targets`` holds the image's
    own. Losses on labels take both by ``label_loss``.

    Attributes:
        inputs: normalised images, (B, C, H, W) float32.
        labels: class labels, (B,) int64, with 0 for an image without one: read ``targets`` instead.
        indices: the position of each image in the loader's data, (B,) int64.
        variants: the variant of each image, (B,) int64; None if the images are as they are.
        mixup_targets: the labels of the images that were mixed in, (B,) int64; None without mixing.
        mixup_lambda: each image's own share of ``inputs``, (B,) float32, 0.5 to 1, or a little less where
            CutMix rounds to pixels; None without mixing.
        labelled: whether an image has a label, (B,) bool; None if all have one.
        label_count: the number of labelled images. Where processes share the batch, it is the number in the
            whole batch times this process's share of all images, so that averages over processes are exact.
        class_weights: the factor of the loss on a label of each class, (C,) float32, with the mean 1 over the
            training images; None if all count as they are.
    """

    inputs: flow.Tensor
    labels: flow.Tensor
    indices: flow.Tensor
    variants: flow.Tensor | None = None
    mixup_targets: flow.Tensor | None = None
    mixup_lambda: flow.Tensor | None = None
    labelled: flow.Tensor | None = None
    label_count: float | None = None
    class_weights: flow.Tensor | None = None

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} images of {size_text(tuple(self.inputs.shape[1:]))}>"

    @property
    def targets(self) -> flow.Tensor:
        """Class labels, (B,) int64.

        Raises:
            ValueError: some images have none. A loss would take them for images of class 0.
        """
        if self.labelled is None:
            return self.labels
        raise ValueError(
            "some images of the batch have no label (--labels, --transfer-data), and this needs one for "
            "each; batch.label_loss leaves such images out"
        )

    def label_loss(self, losses: Callable[[flow.Tensor], flow.Tensor]) -> flow.Tensor:
        """Returns the mean of a loss on labels over the images that have one: a scalar tensor.

        The loss of a mixed image is the mean of its losses under either label, weighted by the shares
        (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018, section 2). With ``--balance loss``
        each loss is multiplied by the weight of its label's class.

        Args:
            losses: returns the loss of each image, (B,), under the labels that it gets, (B,) int64. An image
                without a label gets the label 0, and its loss counts for nothing.
        """

        def weighted(labels: flow.Tensor) -> flow.Tensor:
            of_images = losses(labels)
            if self.class_weights is None:
                return of_images
            return of_images * self.class_weights.to(of_images.dtype)[labels]

        result = weighted(self.labels)
        if self.mixup_targets is not None and self.mixup_lambda is not None:
            result = result * self.mixup_lambda + weighted(self.mixup_targets) * (1.0 - self.mixup_lambda)
        if self.labelled is None:
            return result.mean()
        return (result * self.labelled.to(result.dtype)).sum() / self.label_count


@dataclass(frozen=True)
class Source:
    """The images that a loader's are a part of.

    The teacher's outputs for them are kept for all loaders of the same source.

    Attributes:
        fingerprint: names the source's images as the network sees them, normalised.
        numbers: (N,) int64, the number of each of the loader's images in the source.
        size: the number of images in the source.
    """

    fingerprint: str
    numbers: npt.NDArray[np.int64]
    size: int


class Loader:
    """Batches of one array of images, shuffled by seed and epoch, or in order.

    An epoch is a new permutation of all labelled images, cut into batches. The last batch may be smaller. If
    it is too small for batch normalisation, it joins the one before. With ``transfer`` images without labels
    join each batch, which changes neither the number of batches nor the labelled images in them.

    Args:
        inputs: (N, C, H, W) float32, normalised; or images that are normalised batch by batch. Images without
            labels follow those with labels.
        targets: class labels, (N,) int64, each from 0 to ``num_classes`` - 1; those of the labelled images.
        batch_size: labelled images in a batch, of all ranks together.
        num_classes: the number of classes.
        seed: determines the order of each epoch; None keeps the order.
        device: the device of the batches.
        views: variants of the images; the images as they are by default.
        source: the images that these are a part of; these themselves by default.
        ranks: the processes that share each batch, each of which gets its part; one process by default.
        classes: the names of the classes; their numbers by default.
        transfer: how the images without labels are drawn; None if all images have labels.
        originals: the files of the images, for networks of another input size; None if they were no files.
        balance: how classes of different sizes count equally: ``sample`` draws each equally often in an
            epoch, ``loss`` gives labels of small classes more weight (see ``Batch``), ``none`` does nothing.

    Raises:
        DataError: lengths differ, there is no image, a label is out of range, or a rank would get no
            image. OneFlow does not report the last two: the loss of a wrong label is 0, and a convolution
            of no image ends the process.
    """

    def __init__(
        self,
        inputs: npt.NDArray[np.float32] | LazyImages,
        targets: npt.NDArray[np.int64],
        batch_size: int,
        *,
        num_classes: int,
        seed: int | None = None,
        device: str = "cpu",
        views: Views | None = None,
        source: Source | None = None,
        ranks: Ranks | None = None,
        classes: Sequence[str] = (),
        transfer: TransferDraw | None = None,
        originals: Originals | None = None,
        balance: str = "none",
    ) -> None:
        labelled = len(inputs) - (transfer.images if transfer else 0)
        if labelled != len(targets) or labelled == 0:
            raise DataError(
                f"{labelled} images and {len(targets)} labels: give a label for each image, at least one."
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
        self.inputs = inputs if isinstance(inputs, LazyImages) else _frozen(inputs, np.float32)
        self.targets = _frozen(targets, np.int64)
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.seed = seed
        self.device = device
        self.views = views
        self.ranks = ranks
        self.part = ranks.rank  # of each batch
        self.transfer = transfer
        self.originals = originals
        self.balance = balance
        self._balanced = None
        if balance == "sample" and seed is not None:
            self._balanced = BalancedDraw(self.targets, seed)
        self._class_weights = None
        if balance == "loss":
            counts = np.bincount(self.targets, minlength=num_classes)
            weights = len(self.targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
            self._class_weights = self._tensor(weights.astype(np.float32))
        self.classes = tuple(classes or map(str, range(num_classes)))
        self._source = source

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.batch_sizes)

    def __repr__(self) -> str:
        images = f"{self.num_images:,} images of {size_text(self.inputs.shape[1:])}"
        transfer = "" if self.transfer is None else f" and {self.transfer.images:,} without labels"
        return f"<Loader {images}{transfer}, {len(self):,} batches of {max(self.batch_sizes):,}>"

    @property
    def num_images(self) -> int:
        """The number of images with labels, each of which is in an epoch once."""
        return len(self.targets)

    @property
    def augments(self) -> bool:
        """Whether the batches hold changed images."""
        return self.views is not None

    @property
    def is_endless(self) -> bool:
        """Whether each epoch has new variants of the images."""
        return self.views is not None and self.views.count == 0

    @property
    def source(self) -> Source:
        """The images that these are a part of."""
        return self._source or Source(self.fingerprint, self._numbers, len(self.inputs))

    @functools.cached_property
    def _numbers(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self.inputs)) if self._source is None else self._source.numbers

    @functools.cached_property
    def _labels(self) -> npt.NDArray[np.int64]:
        """The labels of all images; 0 for those without one."""
        return np.concatenate([self.targets, np.zeros(len(self.inputs) - self.num_images, np.int64)])

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields this rank's part of each batch of an epoch.

        Every labelled image is in exactly one batch, unless classes are drawn equally often.

        Args:
            epoch: the number of the epoch, which decides the order and the variant of each image.
        """
        order, rounds = self._order(epoch)
        variants = None if self.views is None else self.views.numbers(self._numbers[order], rounds)
        without_labels = self._drawn(epoch)
        for start, stop in itertools.pairwise(self._bounds):
            indices, label_count = self.ranks.shard(order[start:stop]), None
            shown = None if variants is None else self.ranks.shard(variants[start:stop])
            if self.transfer is not None:
                joining = next(without_labels)
                own = self.ranks.shard(joining)
                indices = np.concatenate([indices, own])
                if self.views is not None and shown is not None:
                    shown = np.concatenate([shown, self.views.numbers(self._numbers[own], epoch)])
                label_count = (stop - start) * len(indices) / (stop - start + len(joining))
            yield self.batch(indices, shown, label_count)

    def _order(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Returns the labelled images of an epoch in order, and how often each was drawn, now included."""
        images, rounds = np.arange(self.num_images), np.full(self.num_images, epoch)
        if self.seed is None:
            return images, rounds
        if self._balanced is not None:
            images, rounds = self._balanced.epoch(epoch)
        order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.num_images)
        return images[order], rounds[order]

    def _drawn(self, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yields the positions of the images without labels that join each batch."""
        if self.transfer is not None:
            for images in self.transfer.epoch(epoch, self._transfer_sizes):
                yield self.num_images + images

    def wanted(self, epochs: int) -> list[npt.NDArray[np.int64]]:
        """Returns the positions of the images that some epochs take in each variant.

        Args:
            epochs: the number of epochs, from the first on.

        Returns:
            The positions for each variant, in order; for images as they are, those alone.
        """
        count = 1 if self.views is None else self.views.count
        place = np.zeros(len(self.inputs), np.int64)
        if self.views is not None:
            place = self.views.numbers(self._numbers, 1)
        wanted = np.zeros((count, len(self.inputs)), bool)
        rounds = epochs if self._balanced is None else self._balanced.rounds(epochs)
        for variant, row in enumerate(wanted):
            row[: self.num_images] = (variant - place[: self.num_images]) % count < rounds
        if self.transfer is not None:
            for epoch in range(1, epochs + 1):
                drawn = self.num_images + self.transfer.drawn(epoch, sum(self._transfer_sizes))
                wanted[(place[drawn] + epoch - 1) % count, drawn] = True
                if epoch % count == 0 and wanted[:, self.num_images :].all():
                    break
        return [np.flatnonzero(row) for row in wanted]

    def sequential(self, batch_size: int) -> Loader:
        """Returns a loader over the same labelled images, in order and as they are."""
        count, files = self.num_images, self.originals
        return Loader(
            self.inputs.first(count) if isinstance(self.inputs, LazyImages) else self.inputs[:count],
            self.targets,
            batch_size,
            num_classes=self.num_classes,
            device=self.device,
            ranks=self.ranks,
            classes=self.classes,
            originals=None if files is None else dataclasses.replace(files, files=files.files[:count]),
        )

    def in_form(self, form: InputForm) -> Loader:
        """Returns a loader of the same images in the form of a network of another input size.

        They are read again from their files, each at the network's own size, and their views show the same
        parts of the pictures. Images that were no files stay as they are.

        Args:
            form: the form that the network takes.
        """
        if self.originals is None:
            return self
        source, views = self._source, self.views
        if source is not None:
            name = hashlib.sha256(f"{source.fingerprint} {self.originals.digest} {form}".encode()).hexdigest()
            source = dataclasses.replace(source, fingerprint=name)
        return Loader(
            Reread(self.inputs, self.originals.files, self.originals.form, form),
            self.targets,
            self.batch_size,
            num_classes=self.num_classes,
            seed=self.seed,
            device=self.device,
            views=None if views is None else views.in_form(self.originals.form, form),
            source=source,
            ranks=self.ranks,
            classes=self.classes,
            transfer=self.transfer,
            balance=self.balance,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape and values of the normalised images, in order."""
        return array_digest([self.inputs])

    @functools.cached_property
    def batch_sizes(self) -> list[int]:
        """The number of images in each batch of an epoch, of all ranks together."""
        if self.transfer is None:
            return self._labelled_sizes
        return [sum(sizes) for sizes in zip(self._labelled_sizes, self._transfer_sizes, strict=True)]

    @functools.cached_property
    def _labelled_sizes(self) -> list[int]:
        return [stop - start for start, stop in itertools.pairwise(self._bounds)]

    @functools.cached_property
    def _transfer_sizes(self) -> list[int]:
        return [] if self.transfer is None else self.transfer.sizes(self._labelled_sizes)

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

    def batch(
        self,
        indices: npt.NDArray[np.int64],
        variants: npt.NDArray[np.int64] | None = None,
        label_count: float | None = None,
    ) -> Batch:
        """Returns a batch of some images.

        Args:
            indices: (B,) int64, their positions.
            variants: (B,) int64, the variant of each; None for the images as they are.
            label_count: see ``Batch``; the number of labelled images by default.
        """
        if self.views is None or variants is None:
            # Indexing by an array copies, so from_numpy shares memory with this batch alone.
            images, mixed = self.inputs[indices], None
        else:
            images, mixed = self.views.apply(self.inputs, self._numbers, indices, variants, self.num_images)
        labelled = None if self.transfer is None else indices < self.num_images
        if labelled is not None and label_count is None:
            label_count = float(labelled.sum())
        return Batch(
            inputs=self._tensor(images),
            labels=self._tensor(self._labels[indices]),
            indices=_to(flow.tensor(indices), self.device),
            variants=None if variants is None else _to(flow.tensor(variants), self.device),
            mixup_targets=None if mixed is None else self._tensor(self._labels[mixed.partners]),
            mixup_lambda=None if mixed is None else self._tensor(mixed.share),
            labelled=None if labelled is None else self._tensor(labelled),
            label_count=label_count,
            class_weights=self._class_weights,
        )

    def _tensor(self, array: npt.NDArray[_Value]) -> flow.Tensor:
        return _to(flow.from_numpy(array), self.device)


def _frozen(array: npt.NDArray[_Value], dtype: type[_Value]) -> npt.NDArray[_Value]:
    array = np.ascontiguousarray(array, dtype=dtype).view()
    array.setflags(write=False)
    return array


def _to(tensor: flow.Tensor, device: str) -> flow.Tensor:
    return tensor if device == "cpu" else tensor.to(device)
