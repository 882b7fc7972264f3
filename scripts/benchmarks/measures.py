"""The measurements of training: one function each, which returns rows of the table."""

from __future__ import annotations

import json
import os
import statistics
import struct
import sys
import time
from pathlib import Path

import numpy as np
from bench import HERE, Bench, run_data
from tools import KDTRAIN, ROOT, PeakMemory, Row, answer, epochs_of, kdtrain, ratio_row, side_by_side

from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import trained_here
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.store.checkpoint import load_model

MNIST = ROOT / "kdtrain" / "data" / "mnist"
SHIFTED = 500_000  # images


def teacher_epoch(bench: Bench) -> list[Row]:
    """Measures a teacher's epoch on both cores against PyTorch with two threads."""

    def run_kdtrain() -> float:
        folder = bench.fresh()
        words = ("--recipe=none", "--mode", "teacher", "--epochs", "1", "--limit-train", str(bench.images))
        kdtrain("fit", *words, "--teacher-augment", "none", "--logdir", folder)
        return epochs_of(folder / "teacher" / "version_0")[0]

    what = f"teacher, an epoch of {bench.images:,} images and an evaluation of 5,000"
    pairs = side_by_side(run_kdtrain, lambda: bench.torch("teacher", bench.images, 1)[0], bench.repeats)
    return [ratio_row(what, *pairs, 0.6, "PyTorch")]


def student_epoch(bench: Bench) -> list[Row]:
    """Measures a student's epoch on one core against PyTorch with two threads, also a compiled one."""
    row = _epoch_row(bench, "student", 128, 0.8)
    compiled = _epoch_row(bench, "student", 128, None, compiled=True)
    return [row, compiled]


def distilled_epoch(bench: Bench) -> list[Row]:
    """Measures a distilled student's epoch, with the teacher's logits kept, against PyTorch's likewise."""
    return [_epoch_row(bench, "student_kd", 256, 0.7, "--teacher-checkpoint", bench.teacher())]


def _epoch_row(
    bench: Bench, mode: str, batch: int, most: float | None, *words: str | Path, compiled: bool = False
) -> Row:
    common = ("--recipe=none", "--mode", mode, "--epochs", "5", "--batch-size", str(batch))

    def run_kdtrain() -> float:
        folder = bench.fresh()
        kdtrain("fit", *common, *words, "--logdir", folder)
        return statistics.median(epochs_of(folder / mode / "version_0")[1:])

    def run_torch() -> float:
        task = "student_soft" if words else "student"
        return statistics.median(bench.torch(task, 55_000, 5, batch=batch, compiled=compiled)[1:])

    what = f"{mode}, an epoch of 55,000 images in batches of {batch} and an evaluation of 5,000"
    peer = "PyTorch, compiled," if compiled else "PyTorch"
    return ratio_row(what, *side_by_side(run_kdtrain, run_torch, bench.repeats), most, peer)


def student_kd(bench: Bench) -> list[Row]:
    """Measures ten distilled epochs with cached teacher logits against a teacher forward pass per step."""
    teacher, images = bench.teacher(), str(bench.images)

    def run_kdtrain() -> float:
        words = ("--recipe=none", "--mode", "student_kd", "--epochs", "10", "--limit-train", images)
        return kdtrain("fit", *words, "--teacher-checkpoint", teacher, "--logdir", bench.fresh())

    what = f"student_kd, 10 epochs of {bench.images:,} images, from the start of the command"
    pairs = side_by_side(run_kdtrain, lambda: sum(bench.torch("student_kd", bench.images, 10)), bench.repeats)
    return [ratio_row(what, *pairs, 0.35, "PyTorch's epochs")]


def seeds_side_by_side(bench: Bench) -> list[Row]:
    """Measures the students of two seeds on all cores against one after another on one core."""
    session = Session.open(FitConfig(seeds=2, epochs=10, limit_train=20_000, logdir=bench.fresh()))
    teacher = trained_here(load_model(bench.teacher()))
    session.run(session.soft_label_jobs({0: teacher, 1: teacher}))
    weights: list[list[bytes]] = []

    def run(cores: list[int]) -> float:
        folder, all_cores = bench.fresh(), available_cores()
        jobs = [
            session.fit_and_test_job(FitSpec(MODES[mode].fit, seed, folder / f"{mode}{seed}", with_teacher))
            for seed in (0, 1)
            for mode, with_teacher in (("student_kd", teacher), ("student", None))
        ]
        os.sched_setaffinity(0, cores)
        began = time.perf_counter()
        trained = session.run(jobs)
        seconds = time.perf_counter() - began
        os.sched_setaffinity(0, all_cores)
        weights.append([array.tobytes() for model in trained for array in model.saved.weights.values()])
        return seconds

    cores = available_cores()
    parallel, serial = side_by_side(lambda: run(cores), lambda: run(cores[:1]), bench.repeats)
    ratios = sorted(b / a for a, b in zip(parallel, serial, strict=True))
    ratio, identical = statistics.median(ratios), all(run_weights == weights[0] for run_weights in weights)
    result = (
        f"{statistics.median(parallel):.3g} s and {statistics.median(serial):.3g} s: {ratio:.2f} x faster "
    )
    result += f"({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)}), weights "
    result += "identical" if identical else "NOT identical"
    what = "the students of two seeds, 10 epochs of 20,000 images, on all cores and on one"
    return [Row(what, result, "at least 1.8 x, identical", ratio >= 1.8 and identical)]


def loader(bench: Bench) -> list[Row]:
    """Measures the loader alone, images per second."""

    def work() -> list[float]:
        train = run_data().train
        rates = []
        for epoch in range(bench.repeats + 1):
            start = time.perf_counter()
            for _ in train.epoch(epoch):
                pass
            rates.append(train.num_images / (time.perf_counter() - start))
        return sorted(rates[1:])

    (rates,) = run_jobs([Job("loader", work)])
    rate = statistics.median(rates)
    result = f"{rate:,.0f} images/s ({rates[0]:,.0f} to {rates[-1]:,.0f}, n = {len(rates)})"
    return [Row("the loader alone", result, "at least 300,000 images/s", rate >= 300_000)]


def growth(bench: Bench) -> list[Row]:
    """Measures time per image and memory, from few to many images and from few to many steps."""
    seconds: list[dict[int, float]] = []
    memory: list[dict[int, float]] = []
    data = _shifted_mnist(bench.fresh())
    for _ in range(bench.repeats):
        seconds.append({})
        memory.append({})
        for images in (5_000, 20_000, 60_000, 500_000):
            folder = bench.fresh()
            size = ("--epochs", "4", "--val-size", "0", "--limit-train", str(images))
            words = ("--recipe=none", "--mode", "student", *size, "--data-dir", data, "--logdir", folder)
            peak = PeakMemory([*KDTRAIN, "fit", *words]).wait()
            epochs = _training_seconds(folder / "student" / "version_0")[1:]
            whole = 28 * 28 * (images * 4 + SHIFTED) / 1e6  # float32 and the uint8 source, MB
            seconds[-1][images] = statistics.median(epochs) / images * 1e6
            memory[-1][images] = peak - whole
    return [
        _flat("student, microseconds per image", seconds),
        _flat("student, peak megabytes beyond the training images", memory),
        _no_leak(bench),
    ]


def _shifted_mnist(folder: Path) -> Path:
    """Returns a folder with MNIST, whose training images are there several times, each time shifted."""
    folder.mkdir()
    dataset = load_dataset()
    copies = -(-SHIFTED // len(dataset.train))
    moves = [divmod(copy, 3) for copy in range(copies)]
    pixels, labels = dataset.train.images[:, 0], dataset.train.labels
    shifted = np.concatenate([np.roll(pixels, move, axis=(1, 2)) for move in moves])[:SHIFTED]
    splits = {"train": (shifted, np.tile(labels, copies)[:SHIFTED])}
    splits["t10k"] = dataset.test.images[:, 0], dataset.test.labels
    for split, arrays in splits.items():
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays, strict=True):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


def _no_leak(bench: Bench) -> Row:
    def peak(epochs: int) -> float:
        words = ("--recipe=none", "--mode", "student", "--epochs", str(epochs), "--limit-train", "12800")
        return PeakMemory([*KDTRAIN, "fit", *words, "--logdir", bench.fresh()]).wait()

    few, many = side_by_side(lambda: peak(5), lambda: peak(25), bench.repeats)
    grown = statistics.median(b - a for a, b in zip(few, many, strict=True))
    spread = sorted(b - a for a, b in zip(few, many, strict=True))
    result = f"{grown:+.0f} MB ({spread[0]:+.0f} to {spread[-1]:+.0f}, n = {len(spread)})"
    return Row("student, memory after 2,500 steps against 500", result, "no growth (20 MB)", grown < 20)


def _flat(what: str, rounds: list[dict[int, float]]) -> Row:
    """Compares sizes within each round, so that a drift of the machine's speed has no effect."""
    most = max(rounds[0])
    medians = {images: statistics.median(values[images] for values in rounds) for images in rounds[0]}
    ratios = {images: sorted(values[images] / values[most] for values in rounds) for images in rounds[0]}
    middles = {images: statistics.median(ratios[images]) for images in ratios}
    apart = max(middles.values()) / min(middles.values()) - 1
    result = ", ".join(
        f"{images:,}: {medians[images]:.3g}"
        + (f" ({middles[images]:.2f} x, {spread[0]:.2f} to {spread[-1]:.2f})" if images < most else "")
        for images, spread in ratios.items()
    )
    return Row(what, f"{result}: {apart:.0%} apart, n = {len(rounds)}", "within 10 %", apart <= 0.1)


def start(bench: Bench) -> list[Row]:
    """Measures the short commands from the start of the process."""
    model = bench.teacher()

    def row(what: str, most: float, *words: str | Path) -> Row:
        times = sorted(kdtrain(*words) for _ in range(bench.repeats))
        median = statistics.median(times)
        result = f"{median:.2f} s ({times[0]:.2f} to {times[-1]:.2f}, n = {len(times)})"
        return Row(what, result, f"under {most:g} s", median < most)

    picture = bench.folder / "infer.png"
    infer = ("infer", "--checkpoint", model, "--picture-index", "9999", "--image-save-name", picture)
    return [row("kdtrain --help", 0.5, "--help"), row("kdtrain infer", 3.0, *infer)]


def compare(bench: Bench) -> list[Row]:
    """Measures the default comparison from start to chart, and 10 epochs in the sample's way."""
    began = time.perf_counter()
    peak = PeakMemory([*KDTRAIN, "fit", "--mode", "compare", "--logdir", bench.fresh()]).wait()
    seconds = time.perf_counter() - began
    steps = answer([sys.executable, HERE / "sample.py", MNIST, bench.folder / "sample", "100"])
    sample = 10 * sum(469 * step + 79 * test for step, test in steps.values())
    by_mode = ", ".join(
        f"{mode} {1000 * step:.0f} and {1000 * test:.0f} ms" for mode, (step, test) in steps.items()
    )
    return [
        Row("compare, from start to picture", f"{seconds:.0f} s (once)", "at most 240 s", seconds <= 240),
        Row(
            "compare, peak memory of all processes",
            f"{peak:,.0f} MB (once)",
            "at most 2,048 MB",
            peak <= 2048,
        ),
        Row(
            "the sample's way, 10 epochs of its compare",
            f"{sample:,.0f} s by its median steps in training and test ({by_mode}): {sample / seconds:.1f} x",
            "at least 20 x",
            sample / seconds >= 20,
        ),
    ]


def _training_seconds(run: Path) -> list[float]:
    """Returns the training seconds of each epoch."""
    return [json.loads(line)["train_seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
