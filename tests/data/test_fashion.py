"""Fashion-MNIST is downloaded once and checked; a local mirror serves small files in its place."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data import datasets, fashion
from kdtrain.data.datasets import FILES, IdxDataset, load_dataset
from kdtrain.errors import DataError
from tests.mirror import Mirror, serving


def idx_file(name: str) -> bytes:
    lengths = (30 if "train" in name else 20, *(28, 28) * ("images" in name))
    header = bytes([0, 0, 8, len(lengths)]) + b"".join(length.to_bytes(4, "big") for length in lengths)
    return header + (np.arange(np.prod(lengths)) % 10).astype(np.uint8).tobytes()


CONTENTS = {name: idx_file(name) for name in FILES}
GZIPPED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror whose files have the checksums that are taken for the published ones."""
    with serving(GZIPPED) as mirror:
        content_sha256 = tuple(hashlib.sha256(content).hexdigest() for content in CONTENTS.values())
        sha256 = {name: hashlib.sha256(body).hexdigest() for name, body in GZIPPED.items()}
        monkeypatch.setitem(datasets.DATASETS, "fashion_mnist", IdxDataset(fashion.CLASSES, content_sha256))
        monkeypatch.setattr(fashion, "SHA256", sha256)
        monkeypatch.setattr(fashion, "MIRRORS", (mirror.address,))
        yield mirror


def test_a_download_is_read_kept_and_not_repeated(mirror: Mirror, tmp_path: Path) -> None:
    first = load_dataset("fashion_mnist", cache_dir=tmp_path)
    assert (first.name, first.classes[9], first.image_shape) == ("fashion_mnist", "Ankle boot", (1, 28, 28))
    assert (first.train.images.ravel() == np.arange(30 * 28 * 28) % 10).all()
    assert (first.test.labels == np.arange(20) % 10).all()
    assert {path.name: path.read_bytes() for path in (tmp_path / "fashion_mnist").iterdir()} == GZIPPED
    mirror.requested.clear()
    assert load_dataset("fashion_mnist", cache_dir=tmp_path).fingerprint == first.fingerprint
    assert mirror.requested == []


def test_a_damaged_cache_is_named_with_its_remedy(mirror: Mirror, tmp_path: Path) -> None:
    load_dataset("fashion_mnist", cache_dir=tmp_path)
    file = tmp_path / "fashion_mnist" / "train-labels-idx1-ubyte.gz"
    other_label = CONTENTS["train-labels-idx1-ubyte"][:-1] + b"\0"
    for content in (gzip.compress(other_label), GZIPPED[file.name][:-9]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"{file}.* Delete {file.parent} and run again"):
            load_dataset("fashion_mnist", cache_dir=tmp_path)
