"""The decision whether the layers of a teacher are kept on disk, or computed at every step."""

from __future__ import annotations

import math
import resource
import shutil
from pathlib import Path

from kdtrain.callbacks.teacher_outputs.cache import AnswerCache
from kdtrain.engine.teacher_network import Ensemble
from kdtrain.errors import size_text

_MOST_ON_DISK = 4 << 30  # bytes of the layers that a fit reads
_MOST_IN_MEMORY = 1 << 28  # bytes, where there is no folder for files
_SHARE_OF_DISK = 0.5  # of the free disk space


def reason_to_run(cache: AnswerCache, epochs: int) -> str | None:
    """Returns why a teacher has to run at every step for its layers; None if they are kept instead.

    Args:
        cache: the teacher's answers; the training images are in fixed variants or as they are.
        epochs: the epochs of the fit.
    """
    if isinstance(cache.teacher.network, Ensemble):
        return "layers of several teachers are not kept"
    if cache.train.ranks.size > 1:
        return "several processes train one student, and layers are kept for one process"
    size, text, directory = kept_size(cache, epochs), describe_size(cache, epochs), cache.directory
    most, where = (_MOST_IN_MEMORY, "in memory") if directory is None else (_MOST_ON_DISK, "on disk")
    if size > most:
        return f"{text}, and at most {_bytes_text(most)} are kept {where}"
    if directory is None:
        return None
    missing, files = cache.cost_of_layers(epochs)
    space = int(_free(directory) * _SHARE_OF_DISK)
    if missing > space:
        return (
            f"{text}, of which {_bytes_text(missing)} would be written, and half of the free disk space of "
            f"{directory} is {_bytes_text(space)}"
        )
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
    if files > most_files:
        return f"{text}, in {files:,} files, and at most {most_files:,} are opened (half of ulimit -n)"
    return None


def kept_size(cache: AnswerCache, epochs: int) -> int:
    """Returns the size of all answers of the recorded layers that a fit asks for, in bytes."""
    answers = sum(map(len, cache.train.wanted(epochs)))
    return 4 * answers * sum(map(math.prod, cache.teacher.shapes.values()))


def describe_size(cache: AnswerCache, epochs: int) -> str:
    """Returns a text such as ``fc1 (128): 26.9 MiB for 55,000 images x 1 view``, of all recorded layers.

    The largest layer comes first. A fit of few epochs asks for fewer views of an image than there are.
    """
    shapes = sorted(cache.teacher.shapes.items(), key=lambda item: -math.prod(item[1]))
    layers = ", ".join(f"{layer} ({size_text(shape) or 1})" for layer, shape in shapes)
    images = len(cache.train.source.numbers)
    each = sum(map(len, cache.train.wanted(epochs))) / images
    views = f"{each:.3g} view{'s' * (each != 1)}"
    return f"{layers}: {_bytes_text(kept_size(cache, epochs))} for {images:,} images x {views}"


def _bytes_text(size: int) -> str:
    if size >= 1 << 30:
        return f"{size / (1 << 30):.1f} GiB"
    return f"{size / (1 << 20):.1f} MiB"


def _free(folder: Path) -> int:
    """Returns the free bytes of the disk that a folder, which need not exist yet, is on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
