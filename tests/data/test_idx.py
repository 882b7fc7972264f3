"""``read_idx`` returns the exact array of a valid file, and refuses any other file by name."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from kdtrain.data.idx import content_sha256, read_idx
from kdtrain.errors import DataError
from tests.refusals import damaged, refusal_by
from tests.tools import ROOT, idx_bytes

arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6))


def read_bytes(content: bytes, name: str = "file") -> NDArray[np.uint8]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return read_idx(path)


refusal = refusal_by(read_idx, DataError)


def refuse(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "file"
    path.write_bytes(content)
    return refusal(path)


@given(array=arrays, zipped=st.booleans(), name=st.sampled_from(["file", "file.gz"]))
def test_a_valid_file_gives_the_exact_array_whatever_its_name(
    array: NDArray[np.uint8], zipped: bool, name: str
) -> None:
    content = idx_bytes(array)
    result = read_bytes(gzip.compress(content) if zipped else content, name)
    assert result.dtype == np.uint8
    assert result.shape == array.shape
    assert (result == array).all()
    assert result.flags.writeable
    for order in (result, np.asfortranarray(result)):
        assert content_sha256(order) == hashlib.sha256(content).hexdigest()


@settings(max_examples=300)
@given(array=arrays, zipped=st.booleans(), data=st.data())
def test_a_damaged_file_gives_an_exact_array_or_a_data_error(
    array: NDArray[np.uint8], zipped: bool, data: st.DataObject
) -> None:
    content = idx_bytes(array)
    check_exact_or_refused(damaged(gzip.compress(content) if zipped else content, data))


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\0\0\x08\1\0\0\0" + tail))
def test_random_bytes_give_an_exact_array_or_a_data_error(content: bytes) -> None:
    check_exact_or_refused(content)
    check_exact_or_refused(gzip.compress(content))


def check_exact_or_refused(content: bytes) -> None:
    """An array is right only if writing it again gives the very content that was read."""
    try:
        result = read_bytes(content)
    except DataError:
        return
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    assert idx_bytes(result) == plain


@given(array=arrays, zipped=st.booleans(), data=st.data())
def test_every_truncation_is_refused(array: NDArray[np.uint8], zipped: bool, data: st.DataObject) -> None:
    content = gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array)
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(DataError):
        read_bytes(cut)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends inside the IDX header"),
        (b"\0\0\x08", "ends inside the IDX header"),
        (b"\0\0\x08\2\0\0\0\1\0\0", "ends inside the IDX header"),
        (b"\x89PNG....", "starts with 89 50 4e 47"),
        (b"\0\0\x0d\1\0\0\0\1abcd", "32-bit floats (type 0x0d)"),
        (b"\0\0\x77\1\0\0\0\1a", "an unknown type (type 0x77)"),
        (b"\0\0\x08\0a", "0 dimensions"),
        (b"\0\0\x08\5" + b"\0\0\0\1" * 5 + b"a", "5 dimensions"),
        (b"\0\0\x08\1\0\0\0\3ab", "truncated: its header states 3 bytes of data, it has 2"),
        (b"\0\0\x08\1\0\0\0\3abcd", "too long: its header states 3 bytes of data, it has more"),
        (b"\0\0\x08\3\0\0\0\0" + b"\xff" * 8, "0x4294967295x4294967295"),
    ],
)
def test_each_fault_of_the_content_is_named(tmp_path: Path, content: bytes, words: str, zipped: bool) -> None:
    assert words in refuse(tmp_path, gzip.compress(content) if zipped else content)


def test_each_fault_of_the_compression_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(idx_bytes(np.arange(250, dtype=np.uint8)))
    wrong_crc = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    wrong_body = b"\x1f\x8b\x08\0" + b"?" * 40
    for content in (whole[:40], whole[:-1], whole[:2], whole + b"tail", wrong_crc, wrong_body):
        assert "cannot be unzipped" in refuse(tmp_path, content)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    assert "is a folder, not a file" in refusal(tmp_path)
    assert "name too long" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to("loop")
    assert "symbolic links" in refusal(tmp_path / "loop")


def one_dimension(length: int) -> bytes:
    return b"\0\0\x08\1" + struct.pack(">I", length)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\x08\2" + struct.pack(">II", 100_000, 100_000) + bytes(188), "more than the 640 MiB"),
        (one_dimension(640 << 20) + bytes(192), "truncated"),
        (gzip.compress(one_dimension(640 << 20)), "more than the 64 MiB"),
        (gzip.compress(one_dimension(64 << 20) + bytes(192)), "truncated"),
        (gzip.compress(one_dimension(1000) + bytes(100_000_000)), "too long"),  # 100 KB
    ],
    ids=["10 GB", "640 MiB", "gzipped, 640 MiB", "gzipped, 64 MiB", "gzip bomb"],
)
def test_a_small_file_costs_no_memory_whatever_it_claims(tmp_path: Path, content: bytes, words: str) -> None:
    assert len(content) < 200_000
    tracemalloc.start()
    try:
        assert words in refuse(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_importing_the_data_side_is_light() -> None:
    code = (
        "import sys, kdtrain.data.datasets, kdtrain.data.images.digit_photo\n"
        "heavy = {'oneflow', 'flowvision', 'matplotlib', 'pooch', 'requests', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
