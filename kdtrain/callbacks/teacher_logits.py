"""A teacher's answers about the variants of the training images, and their cache on disk."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.callbacks.answer_files import AnswerFiles, Floats, Positions, Rows
from kdtrain.callbacks.answer_table import AnswerTable, TableBuilder
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import check_weights, images_at_once
from kdtrain.engine.recorder import Recorder, evaluating
from kdtrain.engine.teacher_network import GivenLogits
from kdtrain.errors import UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.console import progress_bar
from kdtrain.runtime.screen import Bar
from kdtrain.store.checkpoint import fingerprint, snapshot

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]

_LOGITS = ""  # the name of the answer that is no layer's
_LARGE = 1 << 28  # bytes of a table; a larger one stays in its files, which are mapped into memory
_SECONDS_LOST = 20.0  # of work that an interruption may cost, and between two lines about the progress


def weights_fingerprint(model: flow.nn.Module) -> str:
    """Returns the SHA-256 of a network's structure and of the bytes of all its weights, in hexadecimal."""
    return fingerprint(snapshot(model), repr(model))


class AnswerTables(NamedTuple):
    """The tables that a fit reads instead of running its teacher.

    Attributes:
        logits: the logits, (B, C) float32 for a batch.
        features: the outputs of layers by name, (B, ...) float32 for a batch.
    """

    logits: AnswerTable
    features: Mapping[str, AnswerTable]


def logit_table(teacher: flow.nn.Module, train: Loader, directory: Path | None, epochs: int) -> AnswerTable:
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
    return AnswerCache(teacher, train, directory).tables(epochs).logits


def _given_table(teacher: GivenLogits, train: Loader) -> AnswerTable:
    given, count = len(teacher.variants), 1 if train.views is None else train.views.count
    if given != count:
        own = "--augment none" if given == 1 else f"--augment with --views {given}"
        raise UsageError(
            f"--teacher-logits {teacher.path} has logits of {given} variant{'s' * (given != 1)} of each "
            f"image, and the students' images have {count} (--augment and --views): give {own}, or logits "
            f"of {count}."
        )
    source = train.source
    if len(teacher.variants[0]) != source.size:
        raise UsageError(
            f"--teacher-logits {teacher.path} has logits of {len(teacher.variants[0]):,} images, "
            f"and there are {source.size:,} training images."
        )
    builder = TableBuilder(source.numbers, given, in_memory=True)
    for variant, logits in enumerate(teacher.variants):
        positions = np.arange(len(source.numbers))
        builder.add(variant, positions, [Rows(np.arange(source.size), logits)])
    return builder.table(train.device)


class AnswerCache:
    """The answers of one teacher, logits and layers' outputs, about the images that a loader's are a part of.

    Each answer about a variant has files of its own, named by a key that is made of the teacher's weights, of
    the source's images and of all that the variant is drawn from. Loaders of one source share the files:
    where others of its images are held out, only the missing ones are computed. One pass of the teacher
    computes all answers that an image lacks.

    Args:
        teacher: the network; or a recorder of it, whose layers are answers too.
        train: the training images. Its ranks share the work, and all of them have all logits. Layers are
            for one rank only.
        directory: the folder of the files; None keeps none.

    Attributes:
        teacher: the recorder of the teacher.
        train: the training images.
        directory: the folder of the files, if any.
    """

    def __init__(self, teacher: flow.nn.Module | Recorder, train: Loader, directory: Path | None) -> None:
        self.teacher = teacher if isinstance(teacher, Recorder) else Recorder(teacher, "teacher")
        check_weights(self.teacher.network)
        self.train = train
        self.directory = directory
        self._fingerprint = weights_fingerprint(self.teacher.network)
        self._source = train.source

    def plain(self) -> Logits:
        """Returns the logits of the loader's images as they are, (N, C) float32."""
        positions = np.arange(len(self.train.inputs))
        with _Progress(len(positions)) as progress:
            [rows] = self._variant(None, positions, progress)[_LOGITS].rows()
        of_loader: Logits = rows.values[np.searchsorted(rows.numbers, self._source.numbers)]
        return of_loader

    def tables(self, epochs: int) -> AnswerTables:
        """Returns the answers about the variants that a fit needs.

        Args:
            epochs: the epochs of the fit. Each takes one variant of each image, so a fit with fewer epochs
                than variants does not need all of them.
        """
        wanted, builders = self.train.wanted(epochs), dict[str, TableBuilder]()
        images = sum(map(len, wanted))
        has_files = self.directory is not None and self.train.ranks.size == 1
        with _Progress(images) as progress:
            for variant, positions in enumerate(wanted):
                if not len(positions):
                    continue
                number = None if self.train.views is None else variant
                for name, files in self._variant(number, positions, progress).items():
                    answers = files.rows()
                    if name not in builders:
                        size = 4 * images * math.prod(answers[0].values.shape[1:])
                        in_memory = not has_files or size <= _LARGE
                        builders[name] = TableBuilder(self._source.numbers, len(wanted), in_memory=in_memory)
                    builders[name].add(variant, positions, answers)
        tables = {name: builder.table(self.train.device) for name, builder in builders.items()}
        return AnswerTables(tables.pop(_LOGITS), tables)

    def cost_of_layers(self, epochs: int) -> tuple[int, int]:
        """Returns the bytes that the layers' files lack, about, and the number of their files."""
        missing = number_of_files = 0
        for variant, positions in enumerate(self.train.wanted(epochs)):
            number = None if self.train.views is None else variant
            for layer, shape in self.teacher.shapes.items():
                files = self._files(number, layer)
                missing += max(0, 4 * len(positions) * math.prod(shape) - files.stored_bytes())
                number_of_files += files.number_of_files
        return missing, number_of_files

    def _variant(self, variant: int | None, wanted: Positions, progress: _Progress) -> dict[str, AnswerFiles]:
        """Returns the answers about a variant by name; those about ``wanted`` images are among them."""
        numbers = self._source.numbers[wanted]
        wanted = wanted[np.argsort(numbers)]  # so that one file is full before the next
        numbers = np.sort(numbers)
        answers = {name: self._files(variant, name) for name in (_LOGITS, *self.teacher.layers)}
        lacking = {name: ~self._everywhere(files.known(numbers)) for name, files in answers.items()}
        missing = np.flatnonzero(np.any(list(lacking.values()), axis=0))
        progress.found(len(wanted) - len(missing))
        at_once, saved = images_at_once(self.train), time.monotonic()
        for start in range(0, len(missing), at_once):
            chosen = missing[start : start + at_once]
            computed = self._compute(variant, wanted[chosen])
            for name, values in computed.items():
                new = lacking[name][chosen]
                answers[name].add(Rows(numbers[chosen][new], values[new]))
            progress.computed(len(chosen))
            is_late = time.monotonic() > saved + _SECONDS_LOST
            for files in answers.values():
                files.save(None if is_late else int(numbers[chosen[-1]]))
            saved = time.monotonic() if is_late else saved
        for files in answers.values():
            files.save()
        return answers

    def _everywhere(self, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Returns which images have an answer on all ranks, which may have other files."""
        of_ranks = self.train.ranks.all_gather(known[None].astype(np.float32))
        everywhere: npt.NDArray[np.bool_] = of_ranks.all(axis=0)
        return everywhere

    def _compute(self, variant: int | None, positions: Positions) -> dict[str, Floats]:
        """Returns the answers about a variant of some images by name, (B, ...) float32 each."""
        ranks = self.train.ranks
        share = ranks.shard(positions)
        own = share if len(share) else positions[:1]  # a convolution of no image ends the process
        batch = self.train.batch(own, None if variant is None else np.full(len(own), variant))
        with evaluating(self.teacher.network):
            output = self.teacher(batch.inputs)
        computed = {_LOGITS: output.logits, **output.features}
        # Copied, because .numpy() is a view of memory that OneFlow reuses.
        return {
            name: ranks.all_gather(tensor.numpy().astype(np.float32)[: len(share)])
            for name, tensor in computed.items()
        }

    def _files(self, variant: int | None, name: str) -> AnswerFiles:
        """Returns the files of an answer: the same for the images as they are, with and without variants."""
        views = self.train.views
        text = "" if views is None or variant is None else views.describe(variant)
        key = [self._fingerprint, self._source.fingerprint, text]
        if text and views is not None and views.mixing is not None:
            key.append(hashlib.sha256(self._source.numbers.tobytes()).hexdigest())  # partners are among them
        if name != _LOGITS:
            key.append(f"layer {name}")
        shape = self.teacher.shapes.get(name)
        writes = self.train.ranks.rank == 0
        return AnswerFiles(self.directory, key, shape, self._source.size, writes=writes)


class _Progress:
    """The progress of the teacher over all images: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._done = 0
        self._bar: Bar = progress_bar("teacher's soft labels", images, "image")
        self._started = self._told = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def found(self, images: int) -> None:
        """Counts images whose answers are known already."""
        self._images -= images
        self._bar.total = self._images
        self._bar.refresh()

    def computed(self, images: int) -> None:
        """Counts images whose answers have been computed."""
        self._done += images
        self._bar.update(images)
        now = time.monotonic()
        if self._bar.disable and now > self._told + _SECONDS_LOST:
            left = (now - self._started) * (self._images - self._done) / self._done
            logger.info(
                f"Teacher's soft labels: {self._done:,} of {self._images:,} images, about {left:.0f} s left."
            )
            self._told = now
