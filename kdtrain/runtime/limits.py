"""Limits of sizes and numbers, for input, training and output alike."""

from __future__ import annotations

import math
from collections.abc import Iterator

CHANNELS = (1, 3)
"""Allowed numbers of image channels: grey, or red, green and blue."""

LARGEST_SIDE = 256
"""Largest height and width of an image, in pixels."""

MOST_PIXELS = 1 << 28
"""Pixel values of a data set in memory: 1 GiB as float32."""

MOST_CLASSES = 4096
"""Classes. The confusion matrix then takes 128 MiB. Kuzushiji-Kanji has 3,832 classes."""

MOST_LOGITS = 1 << 26
"""Images of a split times classes: 256 MiB, and a few times that while the logits are computed and saved."""

LONGEST_NAME = 255
"""Characters of a class name, as of a folder name."""

LARGEST_TABLE = 64 << 20
"""Bytes of a table of images: over half a million rows of 100 bytes."""

MOST_IMAGES = 100_000_000
"""Images in a batch or in a data set."""

IMAGES_AT_ONCE = 250
"""Images per batch outside of training: bounds the memory of a convolution."""

VALUES_AT_ONCE = 1 << 22
"""Values of an array that are counted, hashed or normalised together."""

MOST_EPOCHS = 100_000
"""Epochs of a fit. ``metrics.jsonl`` has a line for each, and is rewritten after each."""

MOST_SEEDS = 1000
"""Seeds of a comparison, which trains three networks for each."""

MOST_VIEWS = 1000
"""Fixed variants of each training image. The cache has the teacher's logits for each."""

MOST_TEACHERS = 100
"""Teachers of one student."""

MOST_TRIALS = 1000
"""Trials of each student in a search, and values of a setting."""

MOST_PROCESSES = 256
"""Processes of a command on one machine, or threads of onnxruntime."""

MOST_SECONDS = 31_536_000
"""Seconds of a time limit: a year."""

LARGEST_SEED = 2**63 - 1
"""Largest seed: TOML's largest integer."""

MOST_HEADER = 16 << 20
"""Bytes of a checkpoint's header: several times the size for 4,096 class names and the state of a fit."""

MOST_TENSORS = 20_000
"""Tensors in a checkpoint: five times as many as densenet201 has with Adam's state."""


def in_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yields slices along the first axis that are small enough to be worked on in memory."""
    step = max(1, VALUES_AT_ONCE // max(1, math.prod(shape[1:])))
    return (slice(start, start + step) for start in range(0, shape[0], step))
