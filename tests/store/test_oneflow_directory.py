"""Directories that ``oneflow.save`` wrote are read exactly; malicious ones run no code."""

from __future__ import annotations

import dataclasses
import os
import pickle
import resource
import shutil
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtrain.errors import CheckpointError
from kdtrain.models.registry import ARCHITECTURES, build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model, snapshot
from kdtrain.store.oneflow_directory import read_oneflow_directory
from tests.refusals import Bomb, damaged, refusal_by

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
META = "shape {\n  dim: 2\n  dim: 3\n}\ndata_type: kFloat\n"


class Parameter:
    """Pickles to what a oneflow tensor pickles to."""

    def __init__(self, path: object = "tensor_0") -> None:
        self.path = path


def dumps(data: object, protocol: int = 2) -> bytes:
    """Pickles ``{"data": data}`` the way oneflow does, with Parameter under oneflow's name."""
    content = pickle.dumps({"protocol_version": 1, "data": data}, protocol)
    ours = f"c{Parameter.__module__}\nParameter\n".encode()
    return content.replace(ours, b"coneflow.nn\nParameter\n")


def directory(folder: Path, pickled: bytes | None = None) -> Path:
    """Makes a valid directory with one tensor ``x`` of 2x3."""
    (folder / "tensor_0").mkdir(parents=True)
    (folder / "pickled_data").write_bytes(pickled or dumps(OrderedDict(x=Parameter())))
    (folder / "tensor_0" / "meta").write_text(META)
    (folder / "tensor_0" / "out").write_bytes(VALUES.tobytes())
    return folder


refusal = refusal_by(read_oneflow_directory, CheckpointError)


@pytest.fixture(autouse=True)
def modest() -> Iterator[None]:
    """No test here may take much memory, whatever a file claims."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return directory(tmp_path / "saved")


@pytest.fixture
def fallback(card: ModelCard) -> ModelCard:
    return dataclasses.replace(card, mode="teacher", arch="teacher_cnn")


# Real ones


@pytest.mark.parametrize("arch", ["teacher_cnn", "student_mlp", "hinton_800"])
def test_saved_network_is_recognised_and_comes_back_bit_for_bit(
    tmp_path: Path, fallback: ModelCard, arch: str
) -> None:
    model = build_model(arch, (1, 28, 28), 10).eval()
    flow.save(model.state_dict(), str(tmp_path / "saved"))
    loaded = load_model(tmp_path / "saved", fallback)
    assert loaded.card == dataclasses.replace(fallback, arch=arch)
    expected = snapshot(model)
    rebuilt = snapshot(loaded.build("cpu"))
    assert list(loaded.weights) == list(expected)
    for name, array in expected.items():
        assert array.tobytes() == loaded.weights[name].tobytes() == rebuilt[name].tobytes()
        assert array.dtype == loaded.weights[name].dtype


def test_number_of_classes_must_agree(tmp_path: Path, fallback: ModelCard) -> None:
    flow.save(build_model("student_mlp", (1, 28, 28), 7).state_dict(), str(tmp_path / "saved"))
    with pytest.raises(CheckpointError, match=r"do not fit the network"):
        load_model(tmp_path / "saved", fallback).build("cpu")
    with pytest.raises(CheckpointError, match=r"fc3\.bias is 7 instead of 10"):
        load_model(tmp_path / "saved", dataclasses.replace(fallback, arch="student_mlp")).build("cpu")


def test_images_too_small_for_one_network_do_not_hide_the_others(tmp_path: Path, fallback: ModelCard) -> None:
    flow.save(build_model("student_mlp", (1, 5, 5), 10).state_dict(), str(tmp_path / "saved"))
    loaded = load_model(tmp_path / "saved", dataclasses.replace(fallback, image_shape=(1, 5, 5)))
    assert loaded.card.arch == "student_mlp"


def test_directory_without_a_card_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{folder} holds weights without a card"):
        load_model(folder)


def test_every_type_that_weights_have_comes_back(tmp_path: Path) -> None:
    arrays = {
        name: np.array([1, 0, 3]).astype(name)
        for name in ("float32", "float64", "int8", "int32", "int64", "uint8", "bool")
    }
    arrays["scalar"] = np.array(2.5, np.float32)
    flow.save({name: flow.tensor(array) for name, array in arrays.items()}, str(tmp_path / "saved"))
    loaded = read_oneflow_directory(tmp_path / "saved")
    for name, array in arrays.items():
        assert (loaded[name].dtype, loaded[name].tolist()) == (array.dtype, array.tolist())


@pytest.mark.parametrize("protocol", [2, 3])
def test_pickles_of_older_pythons_are_read(tmp_path: Path, protocol: int) -> None:
    state = OrderedDict((f"layer{number}.weight", Parameter()) for number in range(300))
    state._metadata = OrderedDict()  # type: ignore[attr-defined]  # as oneflow's have
    folder = directory(tmp_path / "saved", dumps(state, protocol))
    loaded = read_oneflow_directory(folder)
    assert list(loaded) == list(state)
    assert all(np.array_equal(array, VALUES) for array in loaded.values())


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    flow.save(build_model("student_mlp", (1, 28, 28), 10), str(tmp_path / "module"))
    assert "was refused: it holds more than a state dict" in refusal(tmp_path / "module")
    contents: list[object] = [OrderedDict(x={}), {"x": 1}, {"model": {"x": Parameter()}}, {1: Parameter()}]
    pickles = [dumps(content) for content in contents]
    pickles += [pickle.dumps(content, 2) for content in ({"data": 5}, {}, "text")]
    pickles.append(b"\x80\x02}X\x04\0\0\0dataq\x00}X\x01\0\0\0xconeflow.nn\nParameter\n)\x81ss.")  # no folder
    for number, pickled in enumerate(pickles):
        folder = directory(tmp_path / str(number), pickled)
        assert "does not hold a model's state dict" in refusal(folder)


# Malicious pickles


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle of protocol 4 that calls ``module.name(argument)`` by tuple and REDUCE."""
    return b"\x80\x04" + short(module) + short(name) + b"\x93" + short(argument) + b"\x85R."


def nested(bomb: object) -> list[object]:
    return [bomb, {"x": bomb}, OrderedDict(x=bomb), OrderedDict(x=Parameter(bomb)), {bomb: Parameter()}]


exploded: list[str] = []


def explode() -> None:
    exploded.append("called")


class ExplodeWhenMade:
    def __new__(cls) -> ExplodeWhenMade:
        explode()
        return super().__new__(cls)


class ExplodeWhenFilled:
    def __setstate__(self, state: object) -> None:
        explode()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("explode", b")R"),
        ("ExplodeWhenMade", b")\x81"),
        ("ExplodeWhenMade", b")R"),
        ("ExplodeWhenFilled", b")\x81}b"),
    ],
)
def test_not_even_a_call_in_the_language_of_state_dicts_is_made(
    tmp_path: Path, name: str, steps: bytes
) -> None:
    bomb = b"\x80\x02c" + f"{explode.__module__}\n{name}\n".encode() + steps + b"."
    exploded.clear()
    pickle.loads(bomb)
    assert exploded, "the bomb works"
    exploded.clear()
    folder = directory(tmp_path / "saved", bomb)
    assert f"{explode.__module__}.{name}, which no state dict needs" in refusal(folder)
    assert not exploded


def test_no_call_is_ever_made(tmp_path: Path) -> None:
    target = tmp_path / "exploded"
    touch = f"touch '{target}'"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    bombs: list[bytes] = [call("os", "system", touch), call("posix", "system", touch)]
    bombs += [call("builtins", name, code) for name in ("eval", "exec")]
    bombs.append(b"cos\nsystem\n(S" + repr(touch).encode() + b"\ntR.")
    bombs.append(b"(S" + repr(touch).encode() + b"\nios\nsystem\n.")
    for bomb in bombs:
        pickle.loads(bomb)
        assert target.exists(), "the bomb works"
        target.unlink()
    for function, argument in ((os.system, touch), (eval, code), (exec, code)):
        for protocol in (2, 3, 4, 5):
            bombs += [dumps(content, protocol) for content in nested(Bomb(function, argument))]
    for number, bomb in enumerate(bombs):
        folder = directory(tmp_path / str(number), bomb)
        assert "was refused" in refusal(folder)
    assert not target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        call("collections", "OrderedDict.fromkeys", "x"),
        call("oneflow.nn", "Parameter.__init__.__globals__", "x"),
        call("oneflow", "load", "x"),
        call("numpy.core.multiarray", "_reconstruct", "x"),
        b"\x80\x04\x82\x01.",  # an extension code
        b"Pidentifier\n.",  # a persistent id
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",  # a frame of an exabyte
        b"\x80\x04}r" + struct.pack("<I", 2**26) + b".",  # a memo of 1 GB
        b"\x80\x05\x96" + struct.pack("<Q", 10**10) + b".",  # a byte array of 10 GB
        b"\x80\x04\x8d" + struct.pack("<Q", 10**10) + b"x.",  # a text of 10 GB
        b"\x80\x04" + b")" + b"2\x86" * 60 + b"}s.",  # a tuple that takes for ever to hash
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04" + b"]" * 1000 + b"a" * 999 + b".",
        b"",
        b"\x80\x04",
        b"\x80\x77.",
        b"not a pickle",
    ],
)
def test_hostile_and_damaged_pickles_are_refused(folder: Path, pickled: bytes) -> None:
    (folder / "pickled_data").write_bytes(pickled)
    assert "was refused" in refusal(folder)


def test_far_too_large_pickle_is_not_even_read(folder: Path) -> None:
    os.truncate(folder / "pickled_data", 10**11)  # sparse: takes no room
    assert "holds 100,000,000,000 bytes, and should hold at most 1,048,576" in refusal(folder)


@pytest.mark.parametrize(
    "path",
    ["../elsewhere/tensor_0", "tensor_0/../../elsewhere", "/etc", "", ".", "..", "tensor_0\n", "tensor_", 7],
)
def test_tensors_are_read_from_their_own_folders_only(tmp_path: Path, path: object) -> None:
    directory(tmp_path / "elsewhere")
    folder = directory(tmp_path / "saved", dumps(OrderedDict(x=Parameter(path))))
    assert "a tensor without a folder of its own" in refusal(folder)


class Shadowed:
    """Pickles to an ordered dict with attributes in the place of its methods."""

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = {"items": 1, "values": 2, "keys": 3, "get": 4}
        return OrderedDict, (), attributes, None, iter([("x", Parameter())])


def test_attributes_in_the_pickle_hide_no_method(tmp_path: Path) -> None:
    loaded = read_oneflow_directory(directory(tmp_path / "saved", dumps(Shadowed())))
    assert np.array_equal(loaded["x"], VALUES)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_names_lead_to_tensors_or_to_an_error(folder: Path, data: st.DataObject) -> None:
    content = dumps(OrderedDict(x=Parameter(), y=Parameter()), data.draw(st.sampled_from([2, 3])))
    (folder / "pickled_data").write_bytes(damaged(content, data))
    try:
        loaded = read_oneflow_directory(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017 (raising or not, both are right)
    else:
        assert all(isinstance(name, str) and np.array_equal(array, VALUES) for name, array in loaded.items())


# Damaged tensors


Damage = Callable[[Path], object]


def without(name: str) -> Damage:
    return lambda tensor: (tensor / name).unlink()


def replaced(name: str, make: Damage) -> Damage:
    def replace(tensor: Path) -> None:
        (tensor / name).unlink()
        make(tensor / name)

    return replace


def of_size(name: str, size: int) -> Damage:
    return lambda tensor: os.truncate(tensor / name, size)


def with_meta(text: str) -> Damage:
    return lambda tensor: (tensor / "meta").write_text(text, "latin-1")


def dims(*sizes: int, dtype: str = "kFloat") -> str:
    return "shape {" + "".join(f" dim: {size}" for size in sizes) + "} data_type: " + dtype


DAMAGE: list[tuple[Damage, str]] = [
    (shutil.rmtree, "meta cannot be read: No such file"),
    (without("meta"), "meta cannot be read: No such file"),
    (without("out"), "out cannot be read: No such file"),
    (replaced("out", os.mkdir), "out cannot be read: it is a folder"),
    (replaced("out", os.mkfifo), "out cannot be read: it is a pipe"),
    (replaced("meta", os.mkfifo), "meta cannot be read: it is a pipe"),
    (replaced("out", lambda file: file.symlink_to("/dev/zero")), "out cannot be read: it is a device"),
    (replaced("out", lambda file: file.symlink_to("out")), "out cannot be read: Too many levels"),
    (of_size("out", 23), "out holds 23 bytes, which does not fit the shape (2, 3)"),
    (of_size("out", 0), "out holds 0 bytes, which does not fit the shape (2, 3)"),
    (of_size("out", 25), "out cannot be read: it holds 25 bytes, and should hold at most 24"),
    (of_size("out", 10**12), "bytes, and should hold at most 24"),
    (of_size("meta", 10**12), "bytes, and should hold at most 4,096"),
    (with_meta(dims(3, 3)), "which does not fit the shape (3, 3)"),
    (with_meta(dims(10**12, 10**12)), "which does not fit the shape (1000000000000, 1000000000000)"),
    (with_meta(dims(2**70)), "which does not fit the shape"),
    (with_meta(dims(*[1] * 40, 6)), "which does not fit the shape"),
    (with_meta("dim: " + "9" * 3900 + " data_type: kFloat"), "which does not fit the shape"),
    (with_meta(dims(2, 3, dtype="kDouble")), "which does not fit the shape (2, 3)"),
    (with_meta(dims(2, 3, dtype="kOFRecord")), "names no data type that weights can have"),
    (with_meta(""), "names no data type that weights can have"),
    (with_meta(bytes(range(256)).decode("latin-1")), "names no data type that weights can have"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE)
def test_damaged_tensors_are_refused(folder: Path, damage: Damage, expected: str) -> None:
    damage(folder / "tensor_0")
    assert expected in refusal(folder)


def test_empty_shape_with_content_is_refused(folder: Path) -> None:
    for text in (dims(0), dims(0, 2**70)):
        (folder / "tensor_0" / "meta").write_text(text)
        refusal(folder)
        (folder / "tensor_0" / "out").write_bytes(b"")


def test_linked_folders_are_read_as_data(tmp_path: Path, folder: Path) -> None:
    os.rename(folder / "tensor_0", tmp_path / "moved")
    (folder / "tensor_0").symlink_to(tmp_path / "moved")
    (tmp_path / "latest").symlink_to(folder)
    assert np.array_equal(read_oneflow_directory(tmp_path / "latest")["x"], VALUES)


def test_a_tensor_of_many_names_is_read_once(tmp_path: Path) -> None:
    """20,000 names in 400 KB would otherwise make 40 GB of 2 MB."""
    many = OrderedDict((f"x{number}", Parameter()) for number in range(20_000))
    folder = directory(tmp_path / "saved", dumps(many))
    (folder / "tensor_0" / "meta").write_text(dims(500_000))
    (folder / "tensor_0" / "out").write_bytes(bytes(2_000_000))
    loaded = read_oneflow_directory(folder)
    assert len(loaded) == 20_000
    assert len({id(array) for array in loaded.values()}) == 1


def test_what_is_not_such_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkdir(tmp_path / "piped")
    os.mkfifo(tmp_path / "piped" / "pickled_data")
    for name in ("empty", "file", "none", "piped"):
        assert "pickled_data" in refusal(tmp_path / name)


def test_recognition_covers_every_architecture() -> None:
    """Two of the same tensors could not be told apart."""
    weights = [snapshot(build_model(arch, (1, 28, 28), 10)) for arch in ARCHITECTURES]
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in weights]
    assert all(shapes.count(shape) == 1 for shape in shapes)
