"""Image files decoded into one array, in several processes."""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.images.resize import is_grey, read_image, to_channels
from kdtrain.errors import DataError, KdtrainError, os_reason, size_text
from kdtrain.runtime.limits import MOST_PIXELS

logger = logging.getLogger(__name__)

_WORTH_A_PROCESS = 200  # images; fewer take less time than starting a process
_MANY = 5000  # images; from here on a note says that they are being read

Failures = dict[int, KdtrainError]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded images, in the order of their paths.

    Attributes:
        pixels: (N, 3, H, W) uint8, in memory, or in a file that is deleted when the process ends.
        grey: (N,) bool, whether an image has no colour.
        failures: the error of each image that could not be read, by index.
    """

    pixels: NDArray[np.uint8]
    grey: NDArray[np.bool_]
    failures: Failures

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) bool, whether an image could be read."""
        readable = np.ones(len(self.pixels), np.bool_)
        readable[list(self.failures)] = False
        return readable

    def in_channels(self, channels: int) -> NDArray[np.uint8]:
        """Returns the images in 1 or 3 channels, (N, C, H, W) uint8; overwrites ``pixels``."""
        if channels == 3:
            return self.pixels
        for index in np.flatnonzero(~self.grey & self.readable):
            self.pixels[index, :1] = to_channels(self.pixels[index], 1)
        first = self.pixels[:, :1]
        return first if self.pixels.size > MOST_PIXELS else np.ascontiguousarray(first)


def decode(
    paths: Sequence[Path], size: tuple[int, int], scale: bool, cache: Path, workers: int | None = None
) -> Decoded:
    """Reads image files, each once.

    Pixels that take more than 1 GiB as floats go to an unnamed file in ``cache``. The system keeps in
    memory what fits, and deletes the file when the process ends. Each worker writes its own images
    into the same pages, so the result does not depend on the number of workers.

    Args:
        paths: the files.
        size: height and width of the result, in pixels.
        scale: whether images of other sizes are scaled to ``size``.
        cache: a folder for the pixels.
        workers: the number of processes; 0 reads in this process; by default one for each core.

    Raises:
        DataError: the disk cannot hold the pixels.
    """
    from kdtrain.runtime.processes import Job, available_cores, run_jobs  # here: it imports oneflow

    pixels = _shared((len(paths), 3, *size), cache)
    grey = _shared((len(paths),), cache)
    if len(paths) >= _MANY:
        logger.info(f"Reading {len(paths)} images.")
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

    jobs = [Job("reading images", partial(work, first, workers)) for first in range(workers)]
    failures: Failures = {}
    for worker_failures in run_jobs(jobs):
        failures |= worker_failures
    return Decoded(pixels, grey.view(np.bool_), failures)


def _shared(shape: tuple[int, ...], cache: Path) -> NDArray[np.uint8]:
    """Returns a uint8 array of zeros that forked processes share."""
    size = math.prod(shape)
    if size <= MOST_PIXELS:
        return np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(shape)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that is too small fails here, not later
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8).reshape(shape)
    except OSError as error:
        raise DataError(
            f"{shape[0]} images of {size_text(shape[2:])} take {size >> 20} MiB on the disk, and {cache} "
            f"cannot hold them: {os_reason(error)}. Choose a smaller --image-size, or set "
            "XDG_CACHE_HOME to another folder."
        ) from error
