"""How large things may be: the same for what is read, for what is trained and for what is written."""

from __future__ import annotations

CHANNELS = (1, 3)
"""Of an image: grey, or red, green and blue."""

LARGEST_SIDE = 256
"""Pixels of an image's height and width."""

MOST_PIXELS = 1 << 28
"""Pixel values of a data set that is kept in memory: 1 GiB as floats."""

MOST_CLASSES = 4096
"""A matrix of confusions takes 128 MiB then; the 3,832 characters of Kuzushiji-Kanji are within."""

MOST_LOGITS = 1 << 26
"""Images of a split times classes: 256 MiB, and a few times that while the table is made and saved."""

LONGEST_NAME = 255
"""Characters of a class's name, as of a folder's."""

MOST_IMAGES = 100_000_000
"""In a batch, or in a data set."""

IMAGES_AT_ONCE = 250
"""That a network computes together when it is not trained: bounds the memory that a convolution needs."""

MOST_EPOCHS = 100_000
"""Each has a line in ``metrics.jsonl``, which is written anew after it."""

MOST_SEEDS = 1000
"""Of a comparison: so many times three networks."""

MOST_GENERATIONS = 1000
MOST_COMBINATIONS = 1000
"""Of a grid's values: so many networks."""

MOST_PROCESSES = 256
"""Of one command on one machine, or threads of onnxruntime."""

MOST_SECONDS = 31_536_000
"""Of a limit of time: a year."""

LARGEST_SEED = 2**63 - 1
"""What TOML can hold."""

MOST_HEADER = 16 << 20
"""Bytes of a checkpoint's header: several times what 4,096 names and the state of a fit need."""

MOST_TENSORS = 20_000
"""In a checkpoint: five times as many as densenet201 has with Adam's state."""
