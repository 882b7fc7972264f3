"""Decodes many pictures into one array, in several processes."""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.images.resize import is_grey, read_image, to_channels
from kdtrain.errors import DataError, KdtrainError
from kdtrain.runtime.limits import MOST_PIXELS

logger = logging.getLogger(__name__)

_WORTH_A_PROCESS = 200  # pictures; fewer take less time than starting one
_MANY = 5000

Failures = dict[int, KdtrainError]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pictures in the order in which they were asked for.

    Attributes:
        pixels: uint8 (N, 3, H, W); in memory, or in a file that goes with the process.
        grey: (N,) whether a picture has no colour.
        failures: why a picture could not be read, by index.
    """

    pixels: NDArray[np.uint8]
    grey: NDArray[np.bool_]
    failures: Failures

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) whether a picture could be read."""
        readable = np.ones(len(self.pixels), np.bool_)
        readable[list(self.failures)] = False
        return readable

    def in_channels(self, channels: int) -> NDArray[np.uint8]:
        """Returns the pictures in 1 or 3 channels, (N, C, H, W), in the same memory."""
        if channels == 3:
            return self.pixels
        for index in np.flatnonzero(~self.grey & self.readable):
            self.pixels[index, :1] = to_channels(self.pixels[index], 1)
        first = self.pixels[:, :1]
        return first if self.pixels.size > MOST_PIXELS else np.ascontiguousarray(first)


def decode(
    paths: Sequence[Path], size: tuple[int, int], scale: bool, cache: Path, workers: int | None = None
) -> Decoded:
    """Reads pictures, each once.

    What takes more than 1 GiB as floats goes into a file without a name in ``cache``: the system keeps
    in memory what fits, and the file is gone with the process. The processes write into the same
    pages, each its own pictures, so the result does not depend on how many they are.

    Args:
        paths: the files.
        size: height and width of the result.
        scale: whether pictures of other sizes are scaled to it.
        cache: a folder for the pixels.
        workers: how many processes; 0 for this one alone; by default one for each core.

    Raises:
        DataError: there is no room for the pixels.
    """
    from kdtrain.runtime.processes import Job, available_cores, run_jobs  # it loads oneflow

    pixels = _shared((len(paths), 3, *size), cache)
    grey = _shared((len(paths),), cache)
    if len(paths) >= _MANY:
        logger.info(f"Reading {len(paths)} pictures.")
    if workers is None:
        workers = min(len(available_cores()), len(paths) // _WORTH_A_PROCESS)

    def work(first: int, step: int) -> Failures:
        failures: Failures = {}
        for index in range(first, len(paths), step):
            try:
                pixels[index] = read_image(paths[index], size, scale)
                grey[index] = is_grey(pixels[index])
            except KdtrainError as error:
                failures[index] = error
        return failures

    if workers < 2:
        return Decoded(pixels, grey.view(np.bool_), work(0, 1))

    def job(first: int, step: int = workers) -> Job[Failures]:
        return Job("reading pictures", lambda ranks: work(first, step))

    failures: Failures = {}
    for found in run_jobs([job(first) for first in range(workers)]):
        failures |= found
    return Decoded(pixels, grey.view(np.bool_), failures)


def _shared(shape: tuple[int, ...], cache: Path) -> NDArray[np.uint8]:
    """Returns an array of zeros that forked processes write into together."""
    size = math.prod(shape)
    if size <= MOST_PIXELS:
        return np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(shape)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # now, and not in the middle, if the disk is too small
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8).reshape(shape)
    except OSError as error:
        raise DataError(
            f"{shape[0]} pictures of {shape[2]}x{shape[3]} take {size >> 20} MiB on the disk, and {cache} "
            f"cannot hold them: {error.strerror or error}. Choose a smaller --image-size, or another folder "
            "with XDG_CACHE_HOME."
        ) from error
