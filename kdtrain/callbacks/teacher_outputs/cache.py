"""A teacher's outputs for the variants of the training images, and their cache on disk."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.callbacks.teacher_outputs.files import Floats, OutputFiles, Positions, Rows
from kdtrain.callbacks.teacher_outputs.table import OutputTable
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import check_weights, images_at_once
from kdtrain.engine.recorder import Recorder, evaluating
from kdtrain.engine.teacher_network import Ensemble, GivenLogits, check_views, images_for
from kdtrain.errors import UsageError, size_text
from kdtrain.runtime import flow
from kdtrain.runtime.bars import Bar, progress_bar
from kdtrain.runtime.regular_files import read_bytes
from kdtrain.store.checkpoint import fingerprint, snapshot

logger = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]

_LOGITS = ""  # the key of the logits, next to layer names
PROOFS = 16
"""The number of images by whose outputs a teacher shows whether it is the same as before."""

_TOLERANCE = 1e-3  # of the largest output: batches, threads and processors change the last bits
_LARGEST_CODE = 1 << 20  # bytes of a file of kdtrain's own
_LARGE = 1 << 28  # bytes of a table; a larger one stays in its files, which are mapped into memory
_MOST_ON_DISK = 4 << 30  # bytes of the layers that a fit reads
_MOST_IN_MEMORY = 1 << 28  # bytes, where there is no folder for files
_SHARE_OF_DISK = 0.5  # of the free disk space
_SECONDS_LOST = 20.0  # of work that an interruption may cost


def weights_fingerprint(model: flow.nn.Module) -> str:
    """Returns the SHA-256 of a network's structure and of the bytes of all its weights, in hexadecimal."""
    return fingerprint(snapshot(model), repr(model))


@functools.cache
def code_version() -> str:
    """Returns the SHA-256 (hex) of the code of kdtrain that computes outputs."""
    package, parts = Path(__file__).parents[2], ("nn", "data", "engine", "models", "deploy")
    code = [path for part in parts for path in (package / part).rglob("*.py")]
    return hashlib.sha256(b"".join(read_bytes(path, _LARGEST_CODE) for path in sorted(code))).hexdigest()


class OutputTables(NamedTuple):
    """The tables that a fit reads instead of running its teacher.

    Attributes:
        logits: the logits, (B, C) float32 for a batch.
        features: the outputs of layers by name, (B, ...) float32 for a batch.
    """

    logits: OutputTable
    features: Mapping[str, OutputTable]


def logit_table(teacher: flow.nn.Module, train: Loader, directory: Path | None, epochs: int) -> OutputTable:
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
    return OutputCache(teacher, train, directory).tables(epochs).logits


def _given_table(teacher: GivenLogits, train: Loader) -> OutputTable:
    given, count = len(teacher.variants), 1 if train.views is None else train.views.count
    check_views(teacher.path, given, count)
    source = train.source
    if len(teacher.variants[0]) != source.size:
        raise UsageError(
            f"--teacher-logits {teacher.path} has logits of {len(teacher.variants[0]):,} images, "
            f"and there are {source.size:,} training images."
        )
    table = OutputTable(source.numbers, given, train.device, in_memory=True)
    for variant, logits in enumerate(teacher.variants):
        positions = np.arange(len(source.numbers))
        table.add(variant, positions, [Rows(np.arange(source.size), logits)])
    return table


@dataclass
class _Variant:
    """The outputs for one variant of some images.

    Attributes:
        number: the variant; None for the images as they are.
        positions: (K,) int64, the loader's positions of the images, in the order of ``numbers``.
        numbers: (K,) int64, their numbers in the source, rising.
        files: the files of the logits and of each layer.
        known: (K,) bool of the logits and of each layer: which images have the output on all ranks.
    """

    number: int | None
    positions: Positions
    numbers: Positions
    files: dict[str, OutputFiles]
    known: dict[str, npt.NDArray[np.bool_]]


class OutputCache:
    """The outputs of one teacher, logits and layers, for the images that a loader's are a part of.

    Each output for a variant has files of its own, named by a key that is made of the teacher's weights, of
    kdtrain's code, of the source's images and of all that the variant is drawn from. Loaders of one source
    share the files: where others of its images are held out, only the missing ones are computed. One pass of
    the teacher computes all outputs that an image lacks.

    The key does not hold the code of a user's network. So some outputs of the files are computed anew: where
    they differ, the files are removed, and all outputs are computed.

    Args:
        teacher: the network; or a recorder of it, whose layers are outputs too.
        train: the training images. Its ranks share the work, and all of them have all logits. Layers are
            for one rank only.
        directory: the folder of the files; None keeps none.

    Attributes:
        teacher: the recorder of the teacher.
        train: the training images, as the teacher takes them.
        directory: the folder of the files, if any.
    """

    def __init__(self, teacher: flow.nn.Module | Recorder, train: Loader, directory: Path | None) -> None:
        self.teacher = teacher if isinstance(teacher, Recorder) else Recorder(teacher, "teacher")
        check_weights(self.teacher.network)
        self.train = images_for(self.teacher.network, train)
        self.directory = directory
        self._fingerprint = weights_fingerprint(self.teacher.network)
        self._source = self.train.source

    def plain(self) -> Logits:
        """Returns the logits of the loader's images as they are, (N, C) float32."""
        positions = np.arange(len(self.train.inputs))
        with _progress(len(positions)) as progress:
            [variant] = self._outputs([(None, positions)], progress)
        [rows] = variant.files[_LOGITS].rows()
        of_loader: Logits = rows.values[np.searchsorted(rows.numbers, self._source.numbers)]
        return of_loader

    def tables(self, epochs: int) -> OutputTables:
        """Returns the outputs for the variants that a fit needs.

        Args:
            epochs: the epochs of the fit. Each takes one variant of each image, so a fit with fewer epochs
                than variants does not need all of them.
        """
        wanted, tables = self.train.wanted(epochs), dict[str, OutputTable]()
        images = sum(map(len, wanted))
        has_files = self.directory is not None and self.train.ranks.size == 1
        with _progress(images) as progress:
            numbers = [None] if self.train.views is None else range(len(wanted))
            pairs = [pair for pair in zip(numbers, wanted, strict=True) if len(pair[1])]
            for variant in self._outputs(pairs, progress):
                for name, files in variant.files.items():
                    rows = files.rows()
                    if name not in tables:
                        size = 4 * images * math.prod(rows[0].values.shape[1:])
                        in_memory = not has_files or size <= _LARGE
                        tables[name] = OutputTable(
                            self._source.numbers, len(wanted), self.train.device, in_memory=in_memory
                        )
                    tables[name].add(variant.number or 0, variant.positions, rows)
        return OutputTables(tables.pop(_LOGITS), tables)

    def reason_to_run(self, epochs: int) -> str | None:
        """Returns why the teacher has to run at every step of a fit for its layers; None if they are kept.

        Args:
            epochs: the epochs of the fit, whose images are in fixed variants or as they are.
        """
        if isinstance(self.teacher.network, Ensemble):
            return "layers of several teachers are not kept"
        if self.train.ranks.size > 1:
            return "several processes train one student, and layers are kept for one process"
        size, text, directory = self._size_of_layers(epochs), self.describe_layers(epochs), self.directory
        most, where = (_MOST_IN_MEMORY, "in memory") if directory is None else (_MOST_ON_DISK, "on disk")
        if size > most:
            return f"{text}, and at most {_bytes_text(most)} are kept {where}"
        if directory is None:
            return None
        missing, files = self.cost_of_layers(epochs)
        space = int(_free(directory) * _SHARE_OF_DISK)
        if missing > space:
            return (
                f"{text}, of which {_bytes_text(missing)} would be written, and half of the free disk space "
                f"of {directory} is {_bytes_text(space)}"
            )
        most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        if files > most_files:
            return f"{text}, in {files:,} files, and at most {most_files:,} are opened (half of ulimit -n)"
        return None

    def describe_layers(self, epochs: int) -> str:
        """Returns a text such as ``fc1 (128): 26.9 MiB for 55,000 images x 1 view``, of all recorded layers.

        The largest layer comes first. A fit of few epochs takes fewer views of an image than there are.
        """
        shapes = sorted(self.teacher.shapes.items(), key=lambda item: -math.prod(item[1]))
        layers = ", ".join(f"{layer} ({size_text(shape) or 1})" for layer, shape in shapes)
        images = len(self._source.numbers)
        views = sum(map(len, self.train.wanted(epochs))) / images
        size = _bytes_text(self._size_of_layers(epochs))
        return f"{layers}: {size} for {images:,} images x {views:.3g} view{'s' * (views != 1)}"

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

    def _size_of_layers(self, epochs: int) -> int:
        """Returns the bytes of all recorded layers that a fit takes."""
        return (
            4 * sum(map(len, self.train.wanted(epochs))) * sum(map(math.prod, self.teacher.shapes.values()))
        )

    def _outputs(self, wanted: Sequence[tuple[int | None, Positions]], progress: Bar) -> Iterator[_Variant]:
        """Yields the outputs for some variants of some images, after the proof of those in the files."""
        variants = [self._open(*pair) for pair in wanted]
        is_stale = any(self._is_stale(variant, -(-PROOFS // len(variants))) for variant in variants)
        if is_stale:
            logger.warning(
                f"The teacher's outputs in {self.directory} are not those that it computes now, with the "
                "same weights: the code of its network has changed. They are computed again."
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
        """Returns the outputs that the files have for a variant."""
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
        """Returns whether the teacher's outputs are not those of the files, by ``most`` of each kind."""
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
        """Computes the outputs that a variant lacks, and writes them."""
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
        """Returns the outputs for a variant of some images by name, (B, ...) float32 each."""
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

    def _files(self, variant: int | None, name: str) -> OutputFiles:
        """Returns the files of an output: the same for the images as they are, with and without variants."""
        key = self._key(variant)
        if name != _LOGITS:
            key.append(f"layer {name}")
        shape = self.teacher.shapes.get(name)
        writes = self.train.ranks.rank == 0
        return OutputFiles(self.directory, key, shape, self._source.size, writes=writes)

    def _key(self, variant: int | None) -> list[str]:
        views = self.train.views
        text = "" if views is None or variant is None else views.describe(variant)
        key = [self._fingerprint, code_version(), self._source.fingerprint, text]
        if text and views is not None and views.mixing is not None:
            key.append(hashlib.sha256(self._source.numbers.tobytes()).hexdigest())  # partners are among them
        return key


def outputs_agree(computed: Floats, kept: Floats) -> bool:
    """Returns whether outputs of a network, (K, ...) each, are those that it computed before."""
    if computed.shape != kept.shape:
        return False
    return np.allclose(computed, kept, rtol=0.0, atol=_TOLERANCE * float(np.abs(kept).max()) + 1e-30)


def _bytes_text(size: int) -> str:
    if size >= 1 << 30:
        return f"{size / (1 << 30):.1f} GiB"
    return f"{size / (1 << 20):.1f} MiB"


def _free(folder: Path) -> int:
    """Returns the free bytes of the disk that a folder, which need not exist yet, is on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _progress(images: int) -> Bar:
    return progress_bar("teacher's soft labels", images, "image")
