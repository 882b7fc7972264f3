"""``npz:FILE``: arrays that fit together are a data set; anything else is refused before it costs memory."""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdtrain.data.datasets import load_dataset
from kdtrain.data.npz import load_npz, load_only_array
from kdtrain.errors import DataError, UsageError
from tests.faults.limits import limited
from tests.refusals import Bomb, damaged, refusal_by

Arrays = dict[str, NDArray[Any]]


def four_arrays(channels: int = 3) -> Arrays:
    random = np.random.default_rng(0)
    shape = (5, 4, channels) if channels else (5, 4)
    return {
        "x_train": random.integers(0, 256, (9, *shape), np.uint8),
        "y_train": np.arange(9) % 3,
        "x_test": random.integers(0, 256, (6, *shape), np.uint8),
        "y_test": np.arange(6) % 3,
    }


def write(folder: Path, arrays: Arrays, compressed: bool = False) -> Path:
    path = folder / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


refusal = refusal_by(load_npz, DataError)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_arrays_become_a_data_set(tmp_path: Path, channels: int, compressed: bool) -> None:
    arrays = four_arrays(channels)
    path = write(tmp_path, arrays, compressed)
    dataset = load_dataset(f"npz:{path}")
    assert dataset.name == f"npz:{path}"
    assert dataset.image_shape == (channels or 1, 5, 4)
    assert dataset.classes == ("0", "1", "2")
    for split, name in ((dataset.train, "train"), (dataset.test, "test")):
        planes = arrays[f"x_{name}"].reshape(len(split), 5, 4, -1)
        assert (split.images == np.moveaxis(planes, 3, 1)).all()
        assert (split.labels == arrays[f"y_{name}"]).all()
        assert split.labels.dtype == np.int64


def test_fortran_order_columns_of_labels_and_names_are_understood(tmp_path: Path) -> None:
    arrays = four_arrays()
    other = arrays | {"x_train": np.asfortranarray(arrays["x_train"])}
    other["y_train"] = arrays["y_train"].astype(np.uint8)[:, np.newaxis]
    other["classes"] = np.array(["cat", "dog", "Größe"])
    plain = load_dataset(f"npz:{write(tmp_path, arrays)}")
    dataset = load_dataset(f"npz:{write(tmp_path, other)}")
    assert dataset.fingerprint == plain.fingerprint
    assert dataset.classes == ("cat", "dog", "Größe")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("x_train", np.zeros((9, 5, 4, 3), np.float32), "x_train in FILE is float32 of shape (9, 5, 4, 3)"),
        ("x_train", np.zeros((9, 20), np.uint8), "uint8 of shape (N, H, W) or (N, H, W, C)"),
        ("x_train", np.zeros((9, 3, 5, 4), np.uint8), "x_train in FILE has 4 channels"),
        ("x_train", np.zeros((9, 257, 4, 3), np.uint8), "257x4; kdtrain takes 1x1 to 256x256"),
        ("x_train", np.zeros((0, 5, 4, 3), np.uint8), "holds 0 images, but y_train in FILE 9 labels"),
        ("x_test", np.zeros((6, 5, 4), np.uint8), "5x4 in 3 channels in x_train in FILE, 5x4 in x_test"),
        ("y_train", np.zeros((9, 3), np.int64), "y_train in FILE is int64 of shape (9, 3)"),
        ("y_train", np.zeros(9), "y_train in FILE is float64 of shape (9,)"),
        ("y_train", np.zeros(9, np.int64), "y_train in FILE has one class only"),
        ("y_train", np.arange(9) - 1, "label -1 of image 0 is not one of 0 to 4095"),
        ("y_train", np.arange(9) * 5000, "label 5000 of image 1 is not one of 0 to 4095"),
        ("y_test", np.array([0, 1, 2, 3, 0, 0]), "label 3 of image 3 is out of range"),
        ("classes", np.array(["a", "b"]), "labels up to 2, but only 2 classes"),
        ("classes", np.array(["a", "b", "a"]), "classes in FILE has the same name"),
        ("classes", np.arange(3), "classes in FILE must be a list"),
        ("classes", np.array(["a", "b", "\x1b[31mc"]), "the name '\\x1b[31mc' cannot be shown"),
        ("classes", np.array(["a", "b", "\ud800"]), "the name '\\ud800' cannot be shown"),
        ("classes", np.full(3, 0x110000, np.uint32).view("<U1"), "classes in FILE is damaged"),
        ("x_train", np.zeros((9, 5, 4)), "Scale them to 0..255, then use astype('uint8')."),
        ("x_train", np.zeros((9, 3, 5, 4), np.uint8), "Use transpose(0, 2, 3, 1)."),
        ("y_train", np.zeros((9, 3)), "argmax(1)"),
        ("y_train", np.zeros(9, bool), "Use astype('int64')."),
        ("y_train", np.array(["cat"] * 9), "classes, labels = numpy.unique(labels, return_inverse=True)."),
    ],
)
def test_each_inconsistency_is_named(tmp_path: Path, name: str, array: NDArray[Any], words: str) -> None:
    path = write(tmp_path, four_arrays() | {name: array})
    assert words.replace("FILE", str(path)) in refusal(path)


def test_missing_arrays_and_files_are_named(tmp_path: Path) -> None:
    arrays = four_arrays()
    del arrays["y_test"], arrays["x_test"]
    assert "lacks x_test, y_test; it holds x_train, y_train" in refusal(write(tmp_path, arrays))
    path = tmp_path / "x.npz"
    assert "does not exist" in refusal(path)
    path.write_bytes(b"not a zip")
    assert "cannot be read as .npz" in refusal(path)
    path.unlink()
    path.mkdir()
    assert "is a folder, not a file" in refusal(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"y_test.npy", b"y_test\xa4npy"),  # no text, in the index and at the file itself
        (b"x_test.npy", b"x_test_npy"),  # another name
        (b"PK\x01\x02", b"PK\x01\x03"),
    ],
)
def test_archives_with_damaged_names_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    """Found by scripts/fuzz: zipfile raises UnicodeDecodeError and KeyError."""
    path = write(tmp_path, four_arrays())
    content = path.read_bytes().replace(old, new)
    utf8 = re.compile(rb"(PK\x01\x02.{4}|PK\x03\x04.{2})..", re.DOTALL)
    flagged = utf8.sub(lambda match: match[1] + b"\x00\x08", content)
    for archive in (content, flagged):
        path.write_bytes(archive)
        assert str(path) in refusal(path)


def test_a_class_without_an_image_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdtrain")
    arrays = four_arrays()
    path = write(tmp_path, arrays | {"y_train": arrays["y_train"] + 1})
    assert load_dataset(f"npz:{path}").classes == ("0", "1", "2", "3")
    load_dataset(f"npz:{write(tmp_path, arrays)}")
    (note,) = caplog.messages
    assert f"y_train in {path}: no training image has the label 0" in note


def test_pickled_objects_are_never_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = write(tmp_path, four_arrays() | {"x_test": np.array([Bomb(os.mkdir, str(sprung))], object)})
    assert "x_test in" in refusal(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Bomb(os.mkdir, str(sprung))))
    assert sprung.exists()  # the trap works


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})  # type: ignore[no-untyped-call]
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header((1 << 40, 5, 4)), "holds more than 256 million pixel values"),
        (header((1 << 24, 5, 4)), "holds more than 256 million pixel values"),
        (header((1 << 20, 5, 4)), "20971520 bytes"),
        (header((9, 5, 4)) + bytes(181), "180 bytes"),
        (header((-9, 5, -4)) + bytes(180), "its shape is (-9, 5, -4)"),
        (header((9, 5, 4), "|O") + bytes(180), "of type object"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(100), "2.0 instead of 1.0"),
        (header((1,) * 4000), "not be safe to load securely."),
        (b"\x93NUMPY\x01\x00\x08\x00(((((((\n", "is not an array that can be read"),
        (b"GIF89a", "is not an array that can be read"),
        (b"", "is not an array that can be read"),
    ],
)
def test_sizes_are_checked_before_memory_is_asked_for(tmp_path: Path, content: bytes, words: str) -> None:
    path = write(tmp_path, {"y_train": np.arange(9), "x_test": np.zeros(1), "y_test": np.zeros(1)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_what_unzips_to_over_100_times_its_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    many = np.zeros((65 << 20, 1, 1), np.uint8)
    images, data = tmp_path / "images.npz", write(tmp_path, {"y_train": np.arange(9), "y_test": np.zeros(1)})
    np.savez_compressed(images, images=many)
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("x_train.npy", header(many.shape))
        archive.writestr("x_test.npy", header((1, 1, 1)))
    for path, load in ((images, load_only_array), (data, load_npz)):
        with limited(seconds=1.0, megabytes=20.0):
            text = refusal_by(load, DataError)(path)
        assert f"more than the 64 MiB that kdtrain unzips from {path.stat().st_size:,} bytes" in text
        assert "numpy.savez" in text
    np.savez(images, images=many)
    with limited(megabytes=120.0):
        assert load_only_array(images).shape == many.shape


def test_all_arrays_of_a_file_have_one_limit_together(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(bytes(6 << 20))  # in front of the archive: the limit of ratio is above the one of size
    shapes = {"x_train": ((1 << 26) + 1, 1, 1), "y_train": (1 << 27,), "x_test": (1 << 26, 1, 1)}
    with zipfile.ZipFile(path, "a") as archive:
        for name, shape in (shapes | {"y_test": (1 << 28,)}).items():
            archive.writestr(f"{name}.npy", header(shape))
    assert "536,870,913 bytes, more than the 512 MiB that kdtrain reads" in refusal(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """The archive's own checksums find most of it; what they do not cover changes names and sizes."""
    path = write(tmp_path, four_arrays(), compressed=True)
    whole = load_dataset(f"npz:{path}").fingerprint
    path.write_bytes(damaged(path.read_bytes(), data))
    try:
        fingerprint = load_dataset(f"npz:{path}").fingerprint
    except DataError:
        return
    assert fingerprint == whole


def test_flags_for_other_data_sets_are_refused(tmp_path: Path) -> None:
    name = f"npz:{write(tmp_path, four_arrays())}"
    with pytest.raises(UsageError, match=r"--data-dir .* --dataset npz:"):
        load_dataset(name, data_dir=tmp_path)
    with pytest.raises(UsageError, match="--image-size"):
        load_dataset(name, image_size=8)
    with pytest.raises(UsageError, match="--skip-corrupt"):
        load_dataset("mnist", skip_corrupt=True)
