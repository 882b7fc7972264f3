"""Checkpoints are read as they were written, or refused by name; reading never runs code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdtrain.errors import CheckpointError
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import (
    Weights,
    load_model,
    load_tensors,
    load_weights,
    save_model,
    save_tensors,
    snapshot,
)
from tests.refusals import Bomb, damaged, refusal_by

DTYPES = (np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)
HEADERS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
).filter(lambda header: "sha256" not in header)

CARD = ModelCard(
    mode="student_kd",
    arch="student_mlp",
    dataset="mnist",
    image_shape=(1, 28, 28),
    classes=tuple("0123456789"),
    mean=(0.13066,),
    std=(0.3081,),
    metrics={"val/accuracy": 0.9876543210123456, "val/cross_entropy": 1 / 3},
    versions={"kdtrain": "0.1.0", "oneflow": "0.9.0"},
    temperature=4.0,
)


def same(left: Weights, right: Weights) -> bool:
    """Whether names, types, shapes and bits are the same."""
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape, left[name].tobytes())
        == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name in left
    )


refusal = refusal_by(load_model, CheckpointError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path: Path, student: flow.nn.Module) -> Path:
    save_model(path, snapshot(student), CARD)
    return path


def test_model_comes_back_bit_for_bit_with_its_card(saved: Path, student: flow.nn.Module) -> None:
    loaded = load_model(saved)
    assert loaded.path == saved
    assert loaded.card == CARD
    assert same(loaded.weights, snapshot(student))
    rebuilt = loaded.build("cpu")
    assert same(snapshot(rebuilt), snapshot(student))
    assert not rebuilt.training


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.dictionaries(st.text(min_size=1), ARRAYS, max_size=4), header=HEADERS)
@example(tensors={"transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T}, header={})
def test_tensors_and_header_come_back(path: Path, tensors: Weights, header: dict[str, Any]) -> None:
    tensors.pop("__metadata__", None)  # the one name that safetensors keeps for itself
    save_tensors(path, tensors, header)
    loaded, loaded_header = load_tensors(path)
    assert same(loaded, tensors)
    assert json.dumps(loaded_header, sort_keys=True) == json.dumps(header, sort_keys=True)  # NaN, too


def test_numbered_entries_of_a_header_come_back_under_text(path: Path) -> None:
    numbered: Any = dict.fromkeys((1, 10, 2), "x")
    save_tensors(path, {}, {"entries": numbered})
    assert load_tensors(path)[1] == {"entries": {"1": "x", "10": "x", "2": "x"}}


def test_equal_content_makes_equal_files(tmp_path: Path, saved: Path, student: flow.nn.Module) -> None:
    turned = dict(reversed(snapshot(student).items()))
    card = dataclasses.replace(CARD, metrics=dict(reversed(CARD.metrics.items())))
    save_model(tmp_path / "turned.safetensors", turned, card)
    assert saved.read_bytes() == (tmp_path / "turned.safetensors").read_bytes()


def test_other_programs_can_read_the_weights(saved: Path, student: flow.nn.Module) -> None:
    assert same(safetensors.numpy.load_file(saved), snapshot(student))


def test_snapshot_does_not_change_under_later_steps(student: flow.nn.Module) -> None:
    optimizer = flow.optim.SGD(student.parameters(), lr=0.5)
    before = snapshot(student)
    kept = {name: array.tobytes() for name, array in before.items()}
    for _ in range(3):
        optimizer.zero_grad()
        student(flow.ones(4, 1, 28, 28)).sum().backward()
        optimizer.step()
    after = snapshot(student)
    assert {name: array.tobytes() for name, array in before.items()} == kept
    assert all(after[name].tobytes() != kept[name] for name in ("fc3.weight", "fc3.bias"))


def test_loaded_weights_are_the_networks_own(student: flow.nn.Module) -> None:
    weights = snapshot(student)
    load_weights(student, weights, "here")
    weights["fc3.bias"].fill(1.0)
    assert not np.array_equal(snapshot(student)["fc3.bias"], weights["fc3.bias"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(path: Path, student: flow.nn.Module, value: float) -> None:
    weights = snapshot(student)
    weights["fc2.weight"][3, 5] = value
    save_model(path, weights, CARD)
    with pytest.raises(CheckpointError, match=r"cannot be used: fc2\.weight holds NaN or infinity"):
        load_model(path).build()


def test_everything_that_does_not_fit_is_listed(student: flow.nn.Module) -> None:
    weights = snapshot(student)
    before = snapshot(student)
    del weights["fc1.bias"], weights["fc2.bias"]
    weights["fc1.weight"] = np.zeros((128, 100), np.float32)
    weights["fc3.bias"] = np.zeros((), np.float32)
    weights["fc3.weight"] = weights["fc3.weight"].astype(np.float64)
    weights["conv1.weight"] = weights["conv2.weight"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as caught:
        load_weights(student, weights, "FILE (student_mlp)")
    assert str(caught.value) == (
        "the weights in FILE (student_mlp) do not fit the network: missing fc1.bias; missing fc2.bias; "
        "unexpected conv1.weight; unexpected conv2.weight; fc1.weight is 128x100 instead of 128x784; "
        "fc3.weight is 10x64 of float64 instead of 10x64; fc3.bias is a scalar instead of 10."
    )
    assert same(snapshot(student), before), "nothing is loaded when anything is wrong"


def test_weights_of_another_network_are_refused_when_it_is_built(path: Path) -> None:
    teacher = build_model("teacher_cnn", (1, 28, 28), 10)
    save_model(path, snapshot(teacher), CARD)
    with pytest.raises(CheckpointError, match=rf"{path} \(student_mlp\).*unexpected conv1\.weight"):
        load_model(path).build("cpu")


def test_model_is_found_among_what_a_resumed_fit_needs(path: Path, student: flow.nn.Module) -> None:
    weights = snapshot(student)
    tensors = {f"model/{name}": array for name, array in weights.items()}
    tensors["optimizer/0/exp_avg"] = np.ones(3, np.float32)
    save_tensors(path, tensors, {"model": dataclasses.asdict(CARD), "epoch": 3})
    assert same(load_model(path).weights, weights)
    assert load_model(path).card == CARD


# What is not a checkpoint


def header_of(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"not a checkpoint at all, but a line of text\n",
        np.random.default_rng(0).bytes(5000),
        header_of(10_000_000_000, b"{}"),
        header_of(2**64 - 1, b"{}"),
        header_of(100_000, b"[" * 100_000),
        header_of(2, b"{}"),
    ],
)
def test_what_is_no_checkpoint_is_refused_at_once(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 50_000, f"took {grown} KB to see that"


def test_what_is_no_file_is_named(tmp_path: Path, path: Path) -> None:
    assert "there is no checkpoint" in refusal(path)
    os.mkfifo(path)
    assert "it is a pipe, not a file" in refusal(path)
    for impossible in (tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(CheckpointError):
            load_model(impossible)


def test_a_header_nested_as_deep_as_can_be_read_is_refused(path: Path) -> None:
    """Somewhere there is a depth that JSON's reader bears and its writer does not."""
    deepest = sys.getrecursionlimit()
    for depth in range(deepest - 150, deepest):
        text = '{"sha256": "0", "a": ' + "[" * depth + "]" * depth + "}"
        safetensors.numpy.save_file({}, path, {"kdtrain": text})
        assert "damaged" in refusal(path)


def test_every_truncation_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for length in (1, 7, 8, 9, 100, 1500, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        assert "damaged" in refusal(saved)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_reads_the_same(path: Path, data: st.DataObject) -> None:
    tensors: Weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}
    header = dataclasses.asdict(CARD)
    save_tensors(path, tensors, header)
    path.write_bytes(damaged(path.read_bytes(), data))
    try:
        loaded, loaded_header = load_tensors(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 (raising or not, both are right)
    else:
        assert same(loaded, tensors)
        assert loaded_header == json.loads(json.dumps(header))


def test_every_single_bit_of_the_weights_counts(path: Path) -> None:
    save_tensors(path, {"a": np.zeros(4, np.float32)}, {})
    content = path.read_bytes()
    for bit in range(4 * 32):
        flipped = bytearray(content)
        flipped[len(content) - 16 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert "checksum" in refusal(path)


def test_safetensors_of_others_are_told_apart(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, path, metadata)
        assert "is a safetensors file that kdtrain did not write" in refusal(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "F7"])
def test_types_that_numpy_lacks_are_refused(path: Path, dtype: str) -> None:
    tensor = {"dtype": dtype, "shape": [1 if dtype == "BF16" else 2], "data_offsets": [0, 2]}
    text = json.dumps({"__metadata__": {"kdtrain": "{}"}, "x": tensor}).encode()
    path.write_bytes(header_of(len(text), text) + b"ab")
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '{"sha256": null}'])
def test_metadata_that_is_no_header_is_refused(path: Path, text: str) -> None:
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, path, {"kdtrain": text})
    assert "damaged" in refusal(path)


WRONG_ENTRIES: list[tuple[str, Any]] = [
    *[(field.name, None) for field in dataclasses.fields(CARD)],
    ("epochs", True),
    ("temperature", 4),
    ("mode", 3),
    ("arch", ["student_mlp"]),
    ("image_shape", "123"),
    ("image_shape", [1, 28, 28.0]),
    ("classes", "0123456789"),
    ("classes", list(range(10))),
    ("mean", {"a": 0.1}),
    ("std", ["0.3"]),
    ("metrics", {"val/accuracy": "0.9"}),
    ("versions", {"kdtrain": 1}),
]


@pytest.mark.parametrize(("name", "value"), WRONG_ENTRIES)
def test_wrong_types_in_the_card_are_named(
    path: Path, student: flow.nn.Module, name: str, value: Any
) -> None:
    save_tensors(path, snapshot(student), {**dataclasses.asdict(CARD), name: value})
    assert refusal(path).endswith(f"no valid {name}.")


HUGE = {"image_shape": (64, 64, 64), "mean": (0.1,) * 64, "std": (0.1,) * 64}


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": (1, 28)},
        {"image_shape": (1, 0, 28)},
        {"image_shape": (1, -28, -28)},
        {"image_shape": (1, 30_000, 30_000)},
        {**HUGE, "arch": "hinton_1200"},  # 1.3 GB
        {**HUGE, "arch": "flowvision:resnet18"},
        {"arch": "net.py:make\n\x1b[2J"},  # would garble a terminal
        {"classes": ("only one",)},
        {"mean": (0.1, 0.2)},
        {"mean": (float("nan"),)},
        {"mean": (10**400,)},
        {"std": (0.0,)},
        {"std": (float("inf"),)},
        {"std": ()},
        {"temperature": -1.0},
        {"temperature": float("nan")},
    ],
)
def test_cards_that_cannot_be_are_refused_before_a_network_is_built(
    path: Path, student: flow.nn.Module, changes: dict[str, Any]
) -> None:
    save_model(path, snapshot(student), dataclasses.replace(CARD, **changes))
    assert "its header contradicts itself" in refusal(path)


def test_tensors_without_a_model_are_no_model(path: Path) -> None:
    save_tensors(path, {"logits": np.zeros((3, 10), np.float32)}, {"teacher": "abc", "data": "def"})
    assert "is not a model" in refusal(path)
    for header in ({"model": 5}, {"model": None}, {"model": "student_mlp"}):
        save_tensors(path, {}, header)
        assert "is not a model" in refusal(path)


def test_a_pickle_under_our_name_runs_nothing(tmp_path: Path, path: Path) -> None:
    target = tmp_path / "exploded"
    order = Bomb(os.mkdir, str(target))
    bomb = pickle.dumps(order)
    pickle.loads(bomb)
    assert target.exists(), "the bomb works"
    target.rmdir()
    for content in (bomb, header_of(len(bomb), bomb), struct.pack("<Q", 2) + b"{}" + bomb):
        path.write_bytes(content)
        assert re.search("damaged|kdtrain did not write", refusal(path))
    array: npt.NDArray[Any] = np.array([order], dtype=object)
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    os.replace(tmp_path / "array.npy", path)
    refusal(path)
    assert not target.exists()


# Checkpoints that name code

NET = """
from pathlib import Path
Path({witness!r}).touch()
from kdtrain.models.networks import StudentMlp as make
"""


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that is there once the code in net.py has run."""
    return tmp_path / "it ran"


@pytest.fixture
def names_code(tmp_path: Path, witness: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that is for net.py:make."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.format(witness=str(witness)))
    return save_for("net.py:make")


def save_for(arch: str) -> Path:
    model = build_model("student_mlp", (1, 28, 28), 10)
    save_model(Path("model.safetensors"), snapshot(model), dataclasses.replace(CARD, arch=arch))
    return Path("model.safetensors")


def test_code_is_refused_with_how_to_allow_it(names_code: Path, witness: Path) -> None:
    text = refusal(names_code)
    assert text.endswith("--arch net.py:make.")
    assert "no code is run" in text
    assert refusal(names_code, flag="--teacher-arch").endswith("--teacher-arch net.py:make.")
    assert not witness.exists()


def test_code_that_is_allowed_by_name_is_run_to_build(names_code: Path, witness: Path) -> None:
    saved = load_model(names_code, arch="net.py:make")
    assert not witness.exists(), "reading needs no code"
    model = saved.build("cpu")
    assert witness.exists()
    weights = snapshot(model)
    assert all(np.array_equal(weights[name], array) for name, array in saved.weights.items())


def test_other_code_than_what_the_card_names_is_refused(names_code: Path, witness: Path) -> None:
    Path("other.py").write_text(NET.format(witness=str(witness)))
    for arch in ("other.py:make", "student_mlp", "net.py:other"):
        text = refusal(names_code, arch=arch)
        assert "net.py:make" in text
        assert f"--arch is {arch}" in text
    assert not witness.exists()


@pytest.mark.parametrize("arch", ["os:getcwd", "net:make", "net.py", "/tmp/net.py:make", "a b.py:make"])
def test_every_spelling_of_code_is_refused(names_code: Path, arch: str) -> None:
    text = refusal(save_for(arch))
    assert "no code is run" in text
    assert text.endswith(("'a b.py:make'.", f" {arch}."))


@pytest.mark.parametrize(
    "arch",
    ["", "student_mlpp", "flowvision:", "flowvision:ModelCreator", "flowvision:vit_gigantic_patch14_224"],
)
def test_what_is_no_classifier_is_refused(names_code: Path, arch: str) -> None:
    assert repr(arch) in refusal(save_for(arch))


def test_a_classifier_of_flowvisions_comes_back(path: Path) -> None:
    flow.manual_seed(0)
    arch = "flowvision:shufflenet_v2_x0_5"
    model = build_model(arch, (1, 28, 28), 10)
    model(flow.randn(4, 1, 28, 28))  # moves its running means
    save_model(path, snapshot(model), dataclasses.replace(CARD, arch=arch))
    images = flow.randn(3, 1, 28, 28)
    again = load_model(path).build("cpu")
    assert np.array_equal(again(images).numpy(), model.eval()(images).numpy())


def test_directory_is_taken_for_what_the_user_says(card: ModelCard, tmp_path: Path) -> None:
    flow.save(build_model("student_mlp", (1, 28, 28), 10).state_dict(), str(tmp_path / "saved"))
    assert load_model(tmp_path / "saved", card).card.arch == "student_mlp"
    taken = load_model(tmp_path / "saved", card, arch="hinton_800")
    with pytest.raises(CheckpointError, match="do not fit the network"):
        taken.build("cpu")


@pytest.mark.parametrize(("temperature", "softening"), [(0.0, 4.0), (1.0, 4.0), (2.5, 2.5)])
def test_softened_probabilities_are_softer_than_hard_ones(
    temperature: float, softening: float, card: ModelCard
) -> None:
    assert dataclasses.replace(card, temperature=temperature).softening == softening
