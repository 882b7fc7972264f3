"""The measurement of an image folder: decoding, and the share of a step that waits for its batch."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
from bench import Bench
from PIL import Image
from tools import Row, ratio_row, side_by_side

from kdtrain.data.dataset import Dataset, Normalized
from kdtrain.data.folder import load_image_files
from kdtrain.data.images.decode_folder import decode
from kdtrain.data.loader import Loader
from kdtrain.data.views import views
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, run_jobs

COUNT = 4000  # images in the folder
SIZE = 64  # height and width of the network's images
BATCH = 32
STEPS = 8
ARCHITECTURES = ("resnet8", "resnet20")


def image_folder(bench: Bench) -> list[Row]:
    """Measures decoding with two workers against none, and the wait for batches of an image folder."""
    folder = bench.folder / "pictures"
    write_pictures(folder, COUNT, (320, 240))
    paths = sorted(folder.glob("*/*.jpg"))

    def decoding(workers: int) -> float:
        start = time.perf_counter()
        decode(paths, (SIZE, SIZE), scale=True, cache=bench.folder, workers=workers)
        return time.perf_counter() - start

    what = f"decoding {COUNT:,} JPEGs of 320x240 to {SIZE}x{SIZE}, with two workers"
    pairs = side_by_side(partial(decoding, 2), partial(decoding, 0), bench.repeats)
    dataset = load_image_files("folder", folder, bench.folder, image_size=SIZE)
    return [ratio_row(what, *pairs, 1.0, "with none"), *(_waiting(dataset, arch) for arch in ARCHITECTURES)]


def _waiting(dataset: Dataset, arch: str) -> Row:
    """Measures the share of a step that waits for its batch, cropped and flipped from uint8."""

    def work() -> list[float]:
        images = Normalized(dataset.train.images, np.arange(len(dataset.train)), dataset.normalization)
        changed = views("flip,crop=4", dataset.normalization, 0, 0)
        classes = dataset.num_classes
        loader = Loader(images, dataset.train.labels, BATCH, num_classes=classes, seed=0, views=changed)
        model = build_model(arch, dataset.image_shape, classes)
        optimizer = flow.optim.SGD(model.parameters(), lr=0.01)
        batches, shares = loader.epoch(1), []
        for _ in range(STEPS):
            start = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - start
            optimizer.zero_grad()
            flow.nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
            optimizer.step()
            next(model.parameters()).numpy()  # waits for the step
            shares.append(waited / (time.perf_counter() - start))
        return sorted(shares[1:])

    (shares,) = run_jobs([Job(arch, work)])
    share = statistics.median(shares)
    what = f"{arch}, {BATCH} images of {SIZE}x{SIZE}: the part of a step that waits for its batch"
    result = f"{share:.1%} ({shares[0]:.1%} to {shares[-1]:.1%}, n = {len(shares)})"
    return Row(what, result, "at most 5 %", share <= 0.05)


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Writes different JPEGs of two classes, smooth like photographs.

    Args:
        folder: the folder of the class folders.
        count: the number of pictures.
        size: their width and height, in pixels.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
