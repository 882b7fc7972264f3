"""A teacher's logits over the variants of the training images, and their cache on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.predict import batch_logits, check_weights, images_at_once
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.models.teacher_network import GivenLogits
from kdtrain.runtime import flow
from kdtrain.runtime.console import progress_bar
from kdtrain.runtime.files import make_folder
from kdtrain.store.checkpoint import fingerprint, load_tensors, save_tensors, snapshot

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]

_LARGE = 1 << 28  # bytes of a table; a larger one stays in its files, which are mapped into memory
_SECONDS_LOST = 20.0  # of work that an interruption may cost, and between two lines about the progress


def weights_fingerprint(model: flow.nn.Module) -> str:
    """Returns the SHA-256 of a network's structure and of the bytes of all its weights, in hexadecimal."""
    return fingerprint(snapshot(model), repr(model))


class LogitTable:
    """A teacher's logits for each variant of each training image.

    Args:
        variants: the logits of each variant, float32: (N, C) in memory, or (source images, C) in a file.
        device: where batches are.
        numbers: (N,) int64, the row in a file of each of the loader's images.
    """

    def __init__(self, variants: Sequence[Logits], device: str, numbers: Positions | None = None) -> None:
        self._device = device
        self._mapped = variants
        self._numbers = numbers
        self._tensor: flow.Tensor | None = None
        if not isinstance(variants[0], np.memmap):
            self._images = len(variants[0])
            self._tensor = flow.tensor(np.concatenate(variants)).to(device)
            self._mapped = ()

    def __call__(self, batch: Batch) -> flow.Tensor:
        """Returns the logits for a batch of training images, (B, C) float32."""
        if self._tensor is not None:
            rows = batch.indices
            if batch.variants is not None:
                rows = batch.variants * self._images + rows
            return self._tensor.index_select(0, rows)
        assert self._numbers is not None  # only tables in files come here,
        assert batch.variants is not None  # and only those of several variants are in files
        numbers, variants = self._numbers[batch.indices.numpy()], batch.variants.numpy()
        logits = np.empty((len(numbers), self._mapped[0].shape[1]), np.float32)
        for variant in np.unique(variants):
            chosen = variants == variant
            logits[chosen] = self._mapped[variant][numbers[chosen]]
        return flow.from_numpy(logits).to(self._device)


def logit_table(teacher: flow.nn.Module, train: Loader, directory: Path | None, epochs: int) -> LogitTable:
    """Returns the logits of one teacher for the batches of a fit: looked up in its file, or computed.

    Args:
        teacher: the network, or ``GivenLogits``; not an ensemble.
        train: the training images.
        directory: the folder of the cache; None keeps none.
        epochs: the epochs of the fit.

    Raises:
        UsageError: given logits are not of these images or variants.
    """
    if isinstance(teacher, GivenLogits):
        return _given_table(teacher, train)
    return LogitCache(teacher, train, directory).table(epochs)


def _given_table(teacher: GivenLogits, train: Loader) -> LogitTable:
    given, count = len(teacher.variants), 1 if train.views is None else train.views.count
    if given != count:
        raise UsageError(
            f"--teacher-logits {teacher.path} has logits of {given} variant{'s' * (given != 1)} of each "
            f"image, and the students' images have {count} (--augment and --views): give logits of as many."
        )
    source = train.source
    if len(teacher.variants[0]) != source.size:
        raise UsageError(
            f"--teacher-logits {teacher.path} has logits of {len(teacher.variants[0]):,} images, "
            f"and there are {source.size:,} training images."
        )
    return LogitTable([logits[source.numbers] for logits in teacher.variants], train.device)


class LogitCache:
    """The logits of one teacher over the images that a loader's are a part of.

    Each variant has a file, named by a key that is made of the teacher's weights, of the source's images and
    of all that the variant is drawn from. Loaders of one source share the files: where others of its images
    are held out, only the missing ones are computed. A file is written whole and has a checksum; a damaged
    one is made anew.

    Args:
        teacher: the network.
        train: the training images. Its ranks share the work, and all of them have all logits.
        directory: the folder of the files; None keeps none.
    """

    def __init__(self, teacher: flow.nn.Module, train: Loader, directory: Path | None) -> None:
        check_weights(teacher)
        self._teacher = teacher
        self._train = train
        self._directory = directory
        self._fingerprint = weights_fingerprint(teacher)
        self._source = train.source

    def plain(self) -> Logits:
        """Returns the logits of the loader's images as they are, (N, C) float32."""
        return self._plain(np.arange(len(self._train.inputs)))

    def _plain(self, wanted: Positions) -> Logits:
        """Returns the logits of the loader's images as they are, (N, C) float32; only ``wanted`` count."""
        with _Progress(len(wanted)) as progress:
            logits = self._variant(None, wanted, progress)
        of_loader: Logits = logits[self._source.numbers]
        return of_loader

    def table(self, epochs: int) -> LogitTable:
        """Returns the logits of the variants that a fit needs.

        Args:
            epochs: the epochs of the fit. Each takes one variant of each image, so a fit with fewer epochs
                than variants does not need all of them.
        """
        views, numbers, wanted = self._train.views, self._source.numbers, self._train.wanted(epochs)
        if views is None:
            return LogitTable([self._plain(wanted[0])], self._train.device)
        # Only rank 0 writes files, and a variant that no image takes has none.
        has_files = self._directory is not None and self._train.ranks.size == 1 and all(map(len, wanted))
        tables: list[Logits] = []
        with _Progress(sum(map(len, wanted))) as progress:
            for variant, positions in enumerate(wanted):
                logits = self._variant(variant, positions, progress)
                if has_files and views.count * len(numbers) * logits.shape[1] * 4 > _LARGE:
                    tables.append(_mapped(self._path(variant)))
                else:
                    tables.append(logits[numbers])
        classes = max(rows.shape[1] for rows in tables)
        tables = [rows if rows.shape[1] else np.zeros((len(rows), classes), np.float32) for rows in tables]
        return LogitTable(tables, self._train.device, numbers)

    def _variant(self, variant: int | None, wanted: Positions, progress: _Progress) -> Logits:
        """Returns the logits of a variant, (source images, C) float32; only those of ``wanted`` count."""
        logits, known = self._read(variant)
        ranks, numbers = self._train.ranks, self._source.numbers
        unknown = ~ranks.all_gather(known[None].astype(np.float32)).all(axis=0)
        missing = wanted[unknown[numbers[wanted]]]
        progress.found(len(wanted) - len(missing))
        at_once, saved = images_at_once(self._train), time.monotonic()
        for start in range(0, len(missing), at_once):
            positions = missing[start : start + at_once]
            rows = self._compute(variant, positions)
            if logits.shape[1] != rows.shape[1]:
                logits = np.zeros((self._source.size, rows.shape[1]), np.float32)
            logits[numbers[positions]], known[numbers[positions]] = rows, True
            progress.computed(len(positions))
            if time.monotonic() > saved + _SECONDS_LOST:
                self._save(variant, logits, known)
                saved = time.monotonic()
        if len(missing):
            self._save(variant, logits, known)
        return logits

    def _compute(self, variant: int | None, positions: Positions) -> Logits:
        """Returns the logits of a variant of some images, (B, C) float32, computed by all ranks together."""
        ranks = self._train.ranks
        share = ranks.shard(positions)
        own = share if len(share) else positions[:1]  # a convolution of no image ends the process
        rows = batch_logits(self._teacher, self._train.batch(own, self._numbers(variant, own)))
        return ranks.all_gather(rows[: len(share)])

    def _numbers(self, variant: int | None, positions: Positions) -> Positions | None:
        return None if variant is None else np.full(len(positions), variant)

    def _read(self, variant: int | None) -> tuple[Logits, npt.NDArray[np.bool_]]:
        """Returns what the file of a variant holds: logits, and for which images; nothing without a file."""
        size = self._source.size
        nothing = np.zeros((size, 0), np.float32), np.zeros(size, bool)
        path = self._path(variant)
        if path is None or not path.exists():
            return nothing
        try:
            tensors, _ = load_tensors(path)
            logits, known = tensors["logits"], tensors["known"]
        except (CheckpointError, KeyError):
            return nothing
        return logits.astype(np.float32, copy=False), known.astype(bool)

    def _save(self, variant: int | None, logits: Logits, known: npt.NDArray[np.bool_]) -> None:
        path = self._path(variant)
        if path is not None and self._train.ranks.rank == 0:
            make_folder(path.parent)
            save_tensors(path, {"logits": logits, "known": known}, {"teacher": self._fingerprint})

    def _path(self, variant: int | None) -> Path | None:
        """Returns the file of a variant: one file for the images as they are, with and without variants."""
        if self._directory is None:
            return None
        views = self._train.views
        text = "" if views is None or variant is None else views.describe(variant)
        parts = [self._fingerprint, self._source.fingerprint, text]
        if text and views is not None and views.mixing is not None:
            parts.append(
                hashlib.sha256(self._source.numbers.tobytes()).hexdigest()
            )  # partners are among them
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return self._directory / f"{key}.safetensors"


class _Progress:
    """The progress of the teacher over all images: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._done = 0
        self._bar: tqdm[None] = progress_bar("teacher's soft labels", images, "image")
        self._started = self._told = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def found(self, images: int) -> None:
        """Counts images whose logits are known already."""
        self._images -= images
        self._bar.total = self._images
        self._bar.refresh()

    def computed(self, images: int) -> None:
        """Counts images whose logits have been computed."""
        self._done += images
        self._bar.update(images)
        now = time.monotonic()
        if self._bar.disable and now > self._told + _SECONDS_LOST:
            left = (now - self._started) * (self._images - self._done) / self._done
            logger.info(
                f"Teacher's soft labels: {self._done:,} of {self._images:,} images, about {left:.0f} s left."
            )
            self._told = now


def _mapped(path: Path | None) -> Logits:
    """Returns the logits in a file that was just written, (source images, C) float32, mapped into memory."""
    assert path is not None  # without a folder, logits stay in memory
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))["logits"]
    start, _ = entry["data_offsets"]
    return np.memmap(path, np.dtype("<f4"), "r", 8 + length + start, tuple(entry["shape"]))
