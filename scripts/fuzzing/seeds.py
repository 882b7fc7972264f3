"""The seeds of the fuzzer: small, valid files of every kind."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kdtrain.data.npz import ARRAYS
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import save_model, snapshot

SEPARATOR = b"\n--\n"
CARD = ModelCard(
    "student", "student_mlp", "tiles", (1, 2, 2), ("a", "b"), (0.5,), (0.5,), {"val/accuracy": 0.5}
)

_MODES = {
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "F", "I;16"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I", "RGBA"),
}


def idx() -> Iterator[bytes]:
    """Yields IDX files of 1 to 4 dimensions, and two that claim far more than they hold."""
    for shape in ((3,), (2, 3), (2, 4, 4), (1, 2, 2, 2), (0, 5)):
        yield struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(
            range(np.prod(shape, dtype=int))
        )
    yield struct.pack(">HBBII", 0, 8, 2, 100_000, 100_000) + bytes(188)
    yield struct.pack(">HBBI", 0, 8, 1, 700 << 20) + bytes(192)


def gzipped() -> Iterator[bytes]:
    """Yields IDX files gzipped in one and in two members, and a small bomb."""
    for content in idx():
        yield gzip.compress(content)
        yield gzip.compress(content[:5]) + gzip.compress(content[5:])
    yield gzip.compress(struct.pack(">HBBI", 0, 8, 1, 1 << 20) + bytes(1 << 20))


def checkpoints() -> Iterator[bytes]:
    """Yields a file of kdtrain's."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, {"bias": np.zeros(2, np.float32), "weight": np.ones((2, 2), np.float32)}, CARD)
        yield path.read_bytes()


def directories() -> Iterator[bytes]:
    """Yields the three kinds of files in a directory of ``oneflow.save``, one after the other."""
    meta, out = b"shape {\n  dim: 2\n  dim: 3\n}\ndata_type: kFloat\n", bytes(24)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        flow.save(flow.nn.Linear(2, 3).state_dict(), str(path))
        pickled = (path / "pickled_data").read_bytes()
    bomb = pickle.dumps({"data": {"x": print}}, 4)
    for content in (pickled, bomb, pickle.dumps({"data": {}}, 2)):
        yield SEPARATOR.join((content, meta, out))
    for kind, size in ((b"kDouble", 48), (b"kInt8", 6), (b"kBool", 6)):
        yield SEPARATOR.join((pickled, meta.replace(b"kFloat", kind), bytes(size)))


def configurations() -> Iterator[bytes]:
    """Yields TOML files, each with flags for a resumed run behind it."""
    for config in (FitConfig(), FitConfig(mode="student", plugin=("grad_norm,every=3",), lr=0.1, seed=7)):
        for flags in (b"epochs=3", b"batch_size=64", b"schedule=constant", b""):
            yield config.to_toml().encode() + SEPARATOR + flags
    yield b"schedule = 'constant'\nepochs = 2\n" + SEPARATOR + b"epochs=3"
    yield b'plugin = ["a", """b\nc"""]\nlogdir = \'x\'\n"lr" = 1e-3\n[a.b]\nc = {d = 2024-01-01T00:00:00Z}\n'


def metrics() -> Iterator[bytes]:
    """Yields rows of a run."""
    row = {"epoch": 1, "step": 8, "val/accuracy": 0.5, "val/cross_entropy": 1.5, "loss/total": float("nan")}
    line = json.dumps(row | {"train_seconds": 0.1, "eval_seconds": 1e-3}).encode() + b"\n"
    yield line
    yield line + line.replace(b'"epoch": 1', b'"epoch": 2')


def plugins() -> Iterator[bytes]:
    """Yields what may stand behind a file's name, or alone."""
    words = ("every=3", "rate=1e-3", "on=true", "name=x=y", "path=a/b", "limit=none", "mode=min", "either=3")
    yield from (f":Watch,{word}".encode() for word in words)
    yield from (
        b":Watch,every=1,every=2",
        b":Plain",
        b":number",
        b"",
        b"grad_norm,every=3",
        b"label_smoothing",
        b"hard_labels",
    )


def photos() -> Iterator[bytes]:
    """Yields pictures of every kind and mode: also animated, of one pixel, and enormous ones."""
    drawn = Image.new("RGB", (20, 16), "white")
    ImageDraw.Draw(drawn).line([(8, 2), (8, 13), (12, 13)], fill="black", width=2)
    for kind, modes in _MODES.items():
        for mode in modes:
            for image in (drawn, drawn.crop((8, 2, 9, 3))):
                yield _saved(
                    image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode), kind
                )
    yield _saved(drawn, "JPEG", progressive=True)
    yield _saved(drawn, "WEBP", lossless=True)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield _saved(drawn, "TIFF", compression=compression)
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield _saved(drawn, kind, save_all=True, append_images=[drawn.rotate(90), drawn])
    yield b"P1\n4 4\n" + b"0 1 0 1\n" * 4
    yield b"P3\n2 2\n255\n" + b"0 0 0 255 255 255\n" * 2
    png = _saved(drawn, "PNG")
    yield png[:16] + struct.pack(">II", 7000, 7000) + png[24:]


def archives_of_arrays() -> Iterator[bytes]:
    """Yields ``.npz`` files, plain and compressed."""
    for arrays in _datasets():
        for save in (np.savez, np.savez_compressed):
            stream = io.BytesIO()
            save(stream, **arrays)
            yield stream.getvalue()


def arrays() -> Iterator[bytes]:
    """Yields the ``.npy`` files that are in a ``.npz``, one after the other."""
    for arrays in _datasets():
        yield SEPARATOR.join(_npy(array) for array in arrays.values())


def single_arrays() -> Iterator[bytes]:
    """Yields ``.npz`` files with one array each."""
    for arrays in _datasets():
        stream = io.BytesIO()
        np.savez_compressed(stream, images=arrays[ARRAYS[0]])
        yield stream.getvalue()


def archived(contents: Iterable[bytes]) -> bytes:
    """Returns a ``.npz`` of such files, with the checksums of what is in them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in zip((*ARRAYS, "classes"), contents, strict=False):
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def _datasets() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    labels = np.array([0, 1, 1])
    for images in (np.zeros((3, 2, 2), np.uint8), np.asfortranarray(np.ones((3, 2, 2, 3), np.uint8))):
        for classes in (np.array(["a", "b"]), np.array([1, 2])):
            parts = (images, labels, images[:1], labels[:1, np.newaxis], classes)
            yield dict(zip((*ARRAYS, "classes"), parts, strict=True))


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def cifar_archives() -> Iterator[bytes]:
    """Yields tar files with a member of CIFAR's, and with others."""
    for names in (("cifar-10-batches-py/test_batch",), ("cifar-10-batches-py/batches.meta", "../x", "y")):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 40
                archive.addfile(member, io.BytesIO(bytes(40)))
        yield stream.getvalue()


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def small_weights() -> dict[str, Any]:
    """Returns the weights of the network that ``CARD`` describes."""
    return snapshot(build_model(CARD.arch, CARD.image_shape, len(CARD.classes)))
