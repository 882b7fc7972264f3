"""A teacher's answers about the variants of the training images, and their cache on disk."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.callbacks.answer_files import AnswerFiles, Floats, Positions, Rows
from kdtrain.callbacks.answer_table import AnswerTable, TableBuilder
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import check_weights, images_at_once
from kdtrain.engine.recorder import Recorder, evaluating
from kdtrain.engine.teacher_network import GivenLogits, check_views
from kdtrain.errors import UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.bars import Bar, progress_bar
from kdtrain.runtime.regular_files import read_bytes
from kdtrain.store.checkpoint import fingerprint, snapshot

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]

_LOGITS = ""  # the name of the answer that is no layer's
PROOFS = 16
"""The number of a teacher's answers that show whether it is the same as before."""

_TOLERANCE = 1e-3  # of the largest answer: batches, threads and processors change the last bits
_LARGEST_CODE = 1 << 20  # bytes of a file of kdtrain's own
_LARGE = 1 << 28  # bytes of a table; a larger one stays in its files, which are mapped into memory
_SECONDS_LOST = 20.0  # of work that an interruption may cost


def weights_fingerprint(model: flow.nn.Module) -> str:
    """Returns the SHA-256 of a network's structure and of the bytes of all its weights, in hexadecimal."""
    return fingerprint(snapshot(model), repr(model))


@functools.cache
def code_version() -> str:
    """Returns the SHA-256 (hex) of the code of kdtrain that answers are computed by."""
    package, parts = Path(__file__).parents[1], ("data", "engine", "models", "deploy")
    code = [path for part in parts for path in (package / part).rglob("*.py")]
    code += [package / "runtime/kernels.py", package / "runtime/onednn.py"]
    return hashlib.sha256(b"".join(read_bytes(path, _LARGEST_CODE) for path in sorted(code))).hexdigest()


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
    check_views(teacher.path, given, count)
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


@dataclass
class _Variant:
    """The answers about one variant of some images.

    Attributes:
        number: the variant; None for the images as they are.
        positions: (K,) int64, the loader's positions of the images, in the order of ``numbers``.
        numbers: (K,) int64, their numbers in the source, rising.
        files: the files of each answer, by its name.
        known: (K,) bool, which images have the answer on all ranks, by its name.
    """

    number: int | None
    positions: Positions
    numbers: Positions
    files: dict[str, AnswerFiles]
    known: dict[str, npt.NDArray[np.bool_]]


class AnswerCache:
    """The answers of one teacher, logits and layers' outputs, about the images that a loader's are a part of.

    Each answer about a variant has files of its own, named by a key that is made of the teacher's weights, of
    kdtrain's code, of the source's images and of all that the variant is drawn from. Loaders of one source
    share the files: where others of its images are held out, only the missing ones are computed. One pass of
    the teacher computes all answers that an image lacks.

    The key does not hold the code of a user's network. So some answers of the files are computed anew: where
    they differ, the files are removed, and all answers are computed.

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
        with _progress(len(positions)) as progress:
            [variant] = self._answers([(None, positions)], progress)
        [rows] = variant.files[_LOGITS].rows()
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
        with _progress(images) as progress:
            numbers = [None] if self.train.views is None else range(len(wanted))
            pairs = [pair for pair in zip(numbers, wanted, strict=True) if len(pair[1])]
            for variant in self._answers(pairs, progress):
                for name, files in variant.files.items():
                    rows = files.rows()
                    if name not in builders:
                        size = 4 * images * math.prod(rows[0].values.shape[1:])
                        in_memory = not has_files or size <= _LARGE
                        builders[name] = TableBuilder(self._source.numbers, len(wanted), in_memory=in_memory)
                    builders[name].add(variant.number or 0, variant.positions, rows)
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

    def _answers(self, wanted: Sequence[tuple[int | None, Positions]], progress: Bar) -> Iterator[_Variant]:
        """Yields the answers about some variants of some images, after the proof of those in the files."""
        variants = [self._open(*pair) for pair in wanted]
        is_stale = any(self._is_stale(variant, -(-PROOFS // len(variants))) for variant in variants)
        if is_stale:
            logger.warning(
                f"The teacher's answers in {self.directory} are not those that it gives now, with the same "
                "weights: the code of its network has changed. They are computed again."
            )
        for variant in variants:
            for name, files in variant.files.items():
                if is_stale:
                    files.forget()
                    variant.known[name][:] = False
        while variants:  # removed one by one, because they may be large
            variant = variants.pop(0)
            self._complete(variant, progress, believed=not is_stale)
            yield variant

    def _open(self, number: int | None, positions: Positions) -> _Variant:
        """Returns the answers that the files have about a variant."""
        numbers = self._source.numbers[positions]
        order = np.argsort(numbers)  # so that one file is full before the next
        files = {name: self._files(number, name) for name in (_LOGITS, *self.teacher.layers)}
        variant = _Variant(number, positions[order], numbers[order], files, {})
        self._read(variant)
        return variant

    def _read(self, variant: _Variant) -> None:
        for name, files in variant.files.items():
            known = files.known(variant.numbers)
            of_ranks = self.train.ranks.all_gather(known[None].astype(np.float32))  # may have other files
            variant.known[name] = of_ranks.all(axis=0)

    def _is_stale(self, variant: _Variant, most: int) -> bool:
        """Returns whether the teacher's answers are not those of the files, by ``most`` of each kind."""
        draws = np.random.default_rng(int(self._key(variant.number)[0][:16], 16) + (variant.number or 0))
        order = draws.permutation(len(variant.numbers))
        kinds = np.sum(list(variant.known.values()), axis=0)
        order = order[np.argsort(-kinds[order], kind="stable")]  # so that few images prove all kinds
        chosen = np.unique(np.concatenate([order[known[order]][:most] for known in variant.known.values()]))
        if not len(chosen):
            return False
        differ = False
        for name, values in self._compute(variant.number, variant.positions[chosen]).items():
            known = variant.known[name][chosen]
            if known.any():
                kept = variant.files[name].values(variant.numbers[chosen[known]])
                differ |= not outputs_agree(values[known], kept)
        return self.train.ranks.any_rank(differ)

    def _complete(self, variant: _Variant, progress: Bar, *, believed: bool) -> None:
        """Computes the answers that a variant lacks, and writes them."""
        if believed and not all(known.all() for known in variant.known.values()):
            self._read(variant)  # another fit may have written some meanwhile
        lacking = {name: ~known for name, known in variant.known.items()}
        missing = np.flatnonzero(np.any(list(lacking.values()), axis=0))
        progress.total -= len(variant.positions) - len(missing)
        at_once, saved = images_at_once(self.train), time.monotonic()
        for start in range(0, len(missing), at_once):
            chosen = missing[start : start + at_once]
            numbers = variant.numbers[chosen]
            for name, values in self._compute(variant.number, variant.positions[chosen]).items():
                new = lacking[name][chosen]
                variant.files[name].add(Rows(numbers[new], values[new]))
            progress.update(len(chosen))
            is_late = time.monotonic() > saved + _SECONDS_LOST
            for files in variant.files.values():
                files.save(None if is_late else int(numbers[-1]))
            saved = time.monotonic() if is_late else saved
        for files in variant.files.values():
            files.save()

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
        key = self._key(variant)
        if name != _LOGITS:
            key.append(f"layer {name}")
        shape = self.teacher.shapes.get(name)
        writes = self.train.ranks.rank == 0
        return AnswerFiles(self.directory, key, shape, self._source.size, writes=writes)

    def _key(self, variant: int | None) -> list[str]:
        views = self.train.views
        text = "" if views is None or variant is None else views.describe(variant)
        key = [self._fingerprint, code_version(), self._source.fingerprint, text]
        if text and views is not None and views.mixing is not None:
            key.append(hashlib.sha256(self._source.numbers.tobytes()).hexdigest())  # partners are among them
        return key


def outputs_agree(computed: Floats, kept: Floats) -> bool:
    """Returns whether outputs of a network, (K, ...) each, are those that it gave before."""
    if computed.shape != kept.shape:
        return False
    return np.allclose(computed, kept, rtol=0.0, atol=_TOLERANCE * float(np.abs(kept).max()) + 1e-30)


def _progress(images: int) -> Bar:
    return progress_bar("teacher's soft labels", images, "image")
