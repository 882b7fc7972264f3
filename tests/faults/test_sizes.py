"""Files that ask for far more memory than is allowed: they are refused before any work."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtrain.data.cifar import _BoundedGzip
from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import CheckpointError, DataError
from kdtrain.models.registry import build_model, fewest_values
from kdtrain.models.zoo import LARGE
from kdtrain.runtime import flow
from kdtrain.runtime.limits import LONGEST_NAME, MOST_CLASSES, MOST_LOGITS, MOST_TENSORS
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, fingerprint, load_model, load_tensors, save_model, snapshot
from tests.cli.conftest import Call, assert_explained
from tests.faults.limits import limited
from tests.tools import write_digits

# Networks


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 256, 256)])
@pytest.mark.parametrize("arch", ["teacher_cnn", "hinton_1200", *(f"flowvision:{name}" for name in LARGE)])
def test_no_network_is_built_for_weights_that_are_not_there(
    tmp_path: Path, card: ModelCard, arch: str, shape: tuple[int, int, int]
) -> None:
    normal = (0.5,) * shape[0]
    claim = dataclasses.replace(card, arch=arch, image_shape=shape, mean=normal, std=normal)
    path = tmp_path / "model.safetensors"
    save_model(path, {"x": np.zeros(3, np.float32)}, claim)
    assert path.stat().st_size < 1000
    with limited(10, 50), pytest.raises(CheckpointError, match=r"model\.safetensors") as caught:
        load_model(path).build()
    assert str(path) in str(caught.value)


def test_a_command_refuses_such_a_file(tmp_path: Path, card: ModelCard, call: Call) -> None:
    claim = dataclasses.replace(card, arch="flowvision:vgg19")
    save_model(tmp_path / "model.safetensors", {"x": np.zeros(3, np.float32)}, claim)
    with limited(10, 300):
        done = call.any_code("infer", "--picture-index=0", "--checkpoint=model.safetensors")
    assert_explained(done, 1, "model.safetensors", "flowvision:vgg19", "139,577,282")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks with whatever was in their memory: to draw a gigabyte of weights takes seconds."""
    for name in [name for name in vars(flow.nn.init) if name.endswith("_") and name[0] != "_"]:
        monkeypatch.setattr(flow.nn.init, name, lambda tensor, *arguments, **options: tensor)
    yield
    flow.ones(1).numpy()  # waits for oneflow, so that no later test does


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.usefixtures("undrawn")
def test_the_large_networks_have_as_many_weights_as_is_said(name: str) -> None:
    model = build_model(f"flowvision:{name}", (1, 28, 28), 2)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == LARGE[name]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 31, 17), (3, 120, 110)])
@pytest.mark.parametrize(
    "arch", ["teacher_cnn", "student_mlp", "hinton_800", "hinton_1200", "resnet8", "student_cnn"]
)
@pytest.mark.usefixtures("undrawn")
def test_no_network_has_fewer_weights_than_is_said(arch: str, shape: tuple[int, int, int]) -> None:
    values = sum(tensor.numel() for tensor in build_model(arch, shape, 2).state_dict().values())
    fewest = fewest_values(arch, shape)
    assert fewest <= values < (1.1 * fewest if fewest else 40_000_000)


def test_of_weights_that_do_not_fit_some_are_listed(tmp_path: Path, card: ModelCard) -> None:
    names = [f"{number}-" + "x" * 100 for number in range(5000)]
    tensors: Weights = {name: np.zeros(30, np.float32) for name in names}
    save_model(tmp_path / "model.safetensors", tensors, card)
    with limited(10, 100), pytest.raises(CheckpointError, match="4996") as caught:
        load_model(tmp_path / "model.safetensors").build()
    assert len(str(caught.value)) < len(str(tmp_path)) + 1500


# Headers


def header_of(path: Path, header: dict[str, object]) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize("number", [MOST_TENSORS + 1, 200_000, 1_000_000])
def test_tensors_are_counted_before_they_are_read(tmp_path: Path, number: int) -> None:
    tensors = [f'"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for name in range(number)]
    text = ('{"__metadata__":{"kdtrain":"{}"},' + ",".join(tensors) + "}").encode()
    (tmp_path / "many.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    del tensors, text
    with limited(10, 400), pytest.raises(CheckpointError, match=str(tmp_path / "many.safetensors")):
        load_tensors(tmp_path / "many.safetensors")


@pytest.mark.parametrize("number", [MOST_CLASSES + 1, 1_000_000])
def test_classes_are_counted_before_they_are_looked_at(tmp_path: Path, card: ModelCard, number: int) -> None:
    path = tmp_path / "model.safetensors"
    header = dataclasses.asdict(card) | {"classes": list(map(str, range(number)))}
    header["sha256"] = fingerprint({}, json.loads(json.dumps(header)))
    header_of(path, {"__metadata__": {"kdtrain": json.dumps(header)}})
    with limited(10, 300), pytest.raises(CheckpointError, match=f"{number:,}") as caught:
        load_model(path)
    assert f"{MOST_CLASSES:,}" in str(caught.value)


def test_what_could_not_be_read_is_not_written(tmp_path: Path, card: ModelCard) -> None:
    long = dataclasses.replace(card, classes=tuple("x" * 6_000_000 + str(n) for n in range(3)))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        save_model(tmp_path / "model.safetensors", {}, long)
    assert list(tmp_path.iterdir()) == []


def test_all_classes_that_are_allowed_come_back(tmp_path: Path, card: ModelCard) -> None:
    names = tuple(("\U0001f600" * LONGEST_NAME)[:-4] + f"{n:04}" for n in range(MOST_CLASSES))
    save_model(tmp_path / "model.safetensors", {}, dataclasses.replace(card, classes=names))
    with limited(10, 400):
        assert load_model(tmp_path / "model.safetensors").card.classes == names


def test_half_a_character_in_a_name_is_spelt_out(
    tmp_path: Path, card: ModelCard, student: flow.nn.Module, mnist: Dataset, call: Call
) -> None:
    write_digits(tmp_path / "digits", mnist)
    odd = dataclasses.replace(card, classes=("\ud800", *card.classes[1:]), mode="\udfff", dataset="\ud800")
    save_model(tmp_path / "model.safetensors", snapshot(student), odd)
    assert load_model(tmp_path / "model.safetensors").card.classes[0] == "\\ud800"
    for words in (("eval", "model.safetensors"), ("eval", "model.safetensors", "--json")):
        done = call(*words, "--data-dir", "digits")
        assert "ud800" in done.stdout
    asked = ("infer", "--picture-index=0", "--checkpoint=model.safetensors", "--data-dir=digits")
    call(*asked)
    assert_explained(call.any_code("eval", "model.safetensors"), 2, "\\ud800")


# Data


def arrays(images: int, classes: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    labels = np.arange(images) % classes
    pixels = np.zeros((images, 1, 1), np.uint8)
    return {"x_train": pixels, "y_train": labels, "x_test": pixels[:2], "y_test": labels[:2]}


def test_labels_are_bounded_as_classes_are(tmp_path: Path) -> None:
    for classes, said in ((10_000, "4096.*4095"), (4096, "")):
        np.savez(tmp_path / "data.npz", **arrays(classes, classes))
        with limited(10, 200):
            if said:
                with pytest.raises(DataError, match=said):
                    load_dataset(f"npz:{tmp_path / 'data.npz'}")
            else:
                assert load_dataset(f"npz:{tmp_path / 'data.npz'}").num_classes == classes


def test_names_of_classes_are_bounded_too(tmp_path: Path) -> None:
    few = arrays(8, 4)
    names = np.array([str(number) for number in range(MOST_CLASSES + 1)])
    for classes, said in ((names, "4,097"), (np.array(["a" * 256, "b", "c", "d"]), "255")):
        np.savez(tmp_path / "data.npz", **few, classes=classes)
        with limited(10, 200), pytest.raises(DataError, match=said):
            load_dataset(f"npz:{tmp_path / 'data.npz'}")


def test_images_times_classes_are_bounded(tmp_path: Path) -> None:
    images = MOST_LOGITS // MOST_CLASSES + 1
    np.savez(tmp_path / "data.npz", **arrays(images, MOST_CLASSES))
    with limited(10, 200), pytest.raises(DataError, match=f"{images:,}.*4,096"):
        load_dataset(f"npz:{tmp_path / 'data.npz'}")


def test_class_folders_are_counted_before_any_picture_is_read(tmp_path: Path) -> None:
    for number in range(MOST_CLASSES + 1):
        (tmp_path / "pets" / str(number)).mkdir(parents=True)
        (tmp_path / "pets" / str(number) / "1.png").touch()  # no picture, which nobody finds out
    with limited(10, 100), pytest.raises(DataError, match="4,097"):
        load_dataset(f"folder:{tmp_path / 'pets'}", image_size=4)


def test_a_folder_of_many_files_is_listed_in_time(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "pets" / name / "0.png")
        for number in range(15_000):
            (tmp_path / "pets" / name / f"{number}.txt").touch()
            (tmp_path / "pets" / name / f"{number}-.gif").touch()
    with limited(10, 100), pytest.raises(DataError, match="--skip-corrupt"):
        load_dataset(f"folder:{tmp_path / 'pets'}")


def test_an_archive_that_unzips_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    header = tarfile.TarInfo("cifar-10-batches-py/pax")
    header.size, header.type = 7 << 30, tarfile.XHDTYPE  # is read as a whole
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(
        gzip.compress(header.tobuf(tarfile.USTAR_FORMAT)) + gzip.compress(bytes(1 << 24)) * 640
    )
    assert archive.stat().st_size < 12_000_000
    with limited(10, 900), pytest.raises(DataError, match=str(archive)):
        load_dataset("cifar10", tmp_path)


def test_what_unzips_to_as_much_as_is_allowed_is_read() -> None:
    zipped = _BoundedGzip(fileobj=io.BytesIO(gzip.compress(bytes(10))))
    zipped.left = 10
    assert zipped.read() == bytes(10)
