"""Hostile files: no code in them is run, no size is believed; and calls that kdtrain must not make."""

from __future__ import annotations

import ast
import gzip
import json
import os
import pickle
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain.cli import main
from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.data.idx import read_idx
from kdtrain.data.images.image_file import read_grey
from kdtrain.engine.events import EpochEnd
from kdtrain.engine.resume import load_state, save_state
from kdtrain.errors import CheckpointError, DataError, KdtrainError
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, load_model, load_tensors, save_tensors
from kdtrain.store.oneflow_directory import read_oneflow_directory
from tests.cli.conftest import Call, assert_explained
from tests.faults.limits import limited
from tests.refusals import Bomb
from tests.tools import ROOT, write_digits, write_tiles

PACKAGE = sorted([*(ROOT / "kdtrain").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset, spawn: Call) -> Path:
    """Where a student was trained on small images, with the umask that systems come with."""
    folder = tmp_path_factory.mktemp("hostile")
    write_tiles(folder / "tiles", mnist)
    (folder / "tmp").mkdir()
    flags = ("--recipe=none", "--mode=student", "--data-dir=tiles", "--val-size=300", "--epochs=2")
    before = os.umask(0o022)
    try:
        fit = spawn.any_code("fit", *flags, cwd=folder, TMPDIR=str(folder / "tmp"))
    finally:
        os.umask(before)
    assert fit.returncode == 0, fit.stderr
    return folder


# Code in files


def test_pickles_are_never_run(folder: Path, tmp_path: Path, call: Call) -> None:
    target, run = tmp_path / "exploded", tmp_path / "logs/student/version_0"
    bomb = pickle.dumps({"protocol_version": 1, "data": Bomb(os.system, f"touch '{target}'")})
    pickle.loads(bomb)
    assert target.exists(), "the bomb works"
    target.unlink()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "pickled_data").write_bytes(bomb)
    (tmp_path / "model.safetensors").write_bytes(bomb)
    shutil.copytree(folder / "logs/student/version_0", run)
    (run / "checkpoints/last.safetensors").write_bytes(bomb)
    (tmp_path / "tiles").symlink_to(folder / "tiles")
    taught = (
        *("fit", "--recipe=none", "--mode=student_kd", "--data-dir=tiles", "--val-size=300"),
        "--teacher-checkpoint",
    )
    for words, file in (
        (("eval", "saved"), "saved/pickled_data"),
        ((*taught, "saved"), "saved/pickled_data"),
        (("infer", "--picture-index", "0", "--checkpoint", "model.safetensors"), "model.safetensors"),
        (("fit", "--resume", run.relative_to(tmp_path)), "last.safetensors"),
    ):
        done = call.any_code(*words)
        assert done.returncode == 1
        assert file in done.stderr.splitlines()[-1]
    assert not target.exists()


# Sizes in headers


def tensors_of_ten_gigabytes() -> bytes:
    entry = {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}
    text = json.dumps({"__metadata__": {"kdtrain": "{}"}, "x": entry}).encode()
    return struct.pack("<Q", len(text)) + text


def png(width: int, height: int) -> bytes:
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + bytes(150)


def tiff(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 150), (278, height)]
    entries.append((279, min(width * height, 2**32 - 1)))
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(50)


CLAIMS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "safetensors, its header": (load_model, struct.pack("<Q", 10_000_000_000) + b"{" * 192),
    "safetensors, its tensor": (load_model, tensors_of_ten_gigabytes()),
    "idx": (read_idx, struct.pack(">HBBII", 0, 8, 2, 100_000, 100_000) + bytes(188)),
    "gzipped idx": (read_idx, gzip.compress(struct.pack(">HBBII", 0, 8, 2, 100_000, 100_000) + bytes(188))),
    "png": (read_grey, png(100_000, 100_000)),
    "png, as large as is allowed": (read_grey, png(7_000, 7_000)),
    "tiff": (read_grey, tiff(100_000, 100_000)),
    "tiff, as large as is allowed": (read_grey, tiff(7_000, 7_000)),
    "gif": (read_grey, b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + bytes(180)),
    "bmp": (read_grey, b"BM" + struct.pack("<IIIIiiHH6I", 200, 0, 54, 40, 99_999, 99_999, 1, 24, *[0] * 6)),
    "ppm": (read_grey, b"P6\n60000 60000\n255\n" + bytes(180)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_file_of_200_bytes_that_claims_gigabytes_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    read, content = CLAIMS[kind]
    assert len(content) < 300
    (tmp_path / "file").write_bytes(content)
    with limited(0.5, 125), pytest.raises(KdtrainError, match=str(tmp_path / "file")):
        read(tmp_path / "file")


def test_a_oneflow_tensor_of_24_bytes_that_claims_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    flow.save({"x": flow.zeros(2, 3)}, str(tmp_path / "saved"))
    (meta,) = (tmp_path / "saved").glob("*/meta")
    meta.write_text(meta.read_text().replace("dim: 3", "dim: 1250000000"))
    with limited(0.5, 125), pytest.raises(CheckpointError, match="24 bytes"):
        read_oneflow_directory(tmp_path / "saved")


def test_a_gzip_bomb_is_refused_though_it_holds_what_it_claims(tmp_path: Path) -> None:
    header = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 600 << 20))
    (tmp_path / "bomb").write_bytes(header + gzip.compress(bytes(1 << 20)) * 600)
    with limited(0.5, 125), pytest.raises(DataError, match=r"64 MiB .* 6\d\d,\d\d\d bytes"):
        read_idx(tmp_path / "bomb")


# States of a fit that are not one


@pytest.fixture
def last(tmp_path: Path, card: ModelCard) -> Path:
    """The state of a small fit, after a step."""
    model = flow.nn.Linear(3, 2)
    optimizer = flow.optim.Adam(model.parameters(), lr=0.1)
    model(flow.ones(4, 3)).sum().backward()
    optimizer.step()
    end = EpochEnd(1, 1, {"val/accuracy": 0.5}, 10, 1.0, 1.0, 0.1)
    path = tmp_path / "last.safetensors"
    save_state(path, card, [model], optimizer, {"EarlyStopping": {"best": 0.5}}, "data", end)
    return path


def resume(last: Path, make: Callable[..., Any] = flow.optim.Adam) -> None:
    """Goes on from a file; of what is refused, nothing is put anywhere."""
    state = load_state(last)
    model = flow.nn.Linear(3, 2)
    optimizer = make(model.parameters(), lr=0.1)
    state.restore([model], optimizer)
    model(flow.ones(4, 3)).sum().backward()
    optimizer.step()


FIRST, SECOND = "optimizer/0/exp_avg", "optimizer/0/exp_avg_sq"
Edit = Callable[[Weights, Any], object]
WRONG: dict[str, tuple[Edit, str]] = {
    "too short": (lambda t, h: t.update({FIRST: t[FIRST][:1]}), r"exp_avg .*\(1, 3\)"),
    "flat": (lambda t, h: t.update({FIRST: t[FIRST].ravel()}), r"exp_avg .*\(6,\)"),
    "other type": (lambda t, h: t.update({FIRST: t[FIRST].astype(np.float64)}), r"\(float64\)"),
    "missing": (lambda t, h: t.pop(SECOND), "0/exp_avg_sq"),
    "renamed": (lambda t, h: t.update({"optimizer/0/x": t.pop(FIRST)}), "0/exp_avg"),
    "of no parameter": (lambda t, h: t.update({"optimizer/7/exp_avg": t.pop(FIRST)}), "optimizer: 7"),
    "of no number": (lambda t, h: t.update({"optimizer/x/exp_avg": t.pop(FIRST)}), "'x'"),
    "weights missing": (lambda t, h: t.pop("model/bias"), "bias"),
    "weights too short": (lambda t, h: t.update({"model/bias": t["model/bias"][:1]}), "bias"),
    "step, a text": (lambda t, h: h["optimizer"].update(step="1"), "step is '1'"),
    "step, negative": (lambda t, h: h["optimizer"].update(step=-1), "step is -1"),
    "step, enormous": (lambda t, h: h["optimizer"].update(step=2**70), "step is"),
    "no step": (lambda t, h: h["optimizer"].pop("step"), "'step'"),
    "no options": (lambda t, h: h["optimizer"].pop("param_groups"), "'param_groups'"),
    "two sets of options": (lambda t, h: h["optimizer"].update(param_groups=[{}, {}]), "optimizer"),
    "option, a text": (lambda t, h: h["optimizer"]["param_groups"][0].update(lr="fast"), "lr is 'fast'"),
    "option, a list": (lambda t, h: h["optimizer"]["param_groups"][0].update(betas=[0.9]), "betas is"),
    "option, NaN": (lambda t, h: h["optimizer"]["param_groups"][0].update(eps=float("nan")), "eps is nan"),
    "no optimizer": (lambda t, h: h.pop("optimizer"), "'optimizer'"),
    "no end": (lambda t, h: h.pop("end"), "'end'"),
    "epoch, a half": (lambda t, h: h["end"].update(epoch=1.5), "epoch is 1.5"),
    "metric, a text": (lambda t, h: h["end"]["metrics"].update(x="y"), "x is 'y'"),
    "callbacks, a list": (lambda t, h: h.update(callbacks=[1]), "callbacks is"),
    "callback, a number": (lambda t, h: h["callbacks"].update(EarlyStopping=1), "EarlyStopping is 1"),
    "data, a number": (lambda t, h: h.update(data=1), "data is 1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_state_that_does_not_fit_is_refused_though_its_checksum_is_right(last: Path, fault: str) -> None:
    resume(last)
    tensors, header = load_tensors(last)
    edit, said = WRONG[fault]
    edit(tensors, header)
    save_tensors(last, tensors, header)
    with pytest.raises(CheckpointError, match=said) as caught:
        resume(last)
    assert str(last) in str(caught.value)


def test_a_state_is_refused_by_another_optimizer(last: Path) -> None:
    for make in (flow.optim.SGD, flow.optim.Adadelta):
        with pytest.raises(CheckpointError, match="optimizer"):
            resume(last, make)


def test_a_parameter_without_gradient_has_no_state_and_needs_none(tmp_path: Path, card: ModelCard) -> None:
    def network() -> flow.nn.Module:
        return flow.nn.ModuleDict({"used": flow.nn.Linear(3, 2), "idle": flow.nn.Linear(3, 2)})

    def step(model: flow.nn.Module, optimizer: flow.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model["used"](flow.ones(4, 3)).sum().backward()
        optimizer.step()

    for make in (flow.optim.Adam, lambda parameters, lr: flow.optim.SGD(parameters, lr, momentum=0.9)):
        model = network()
        optimizer = make(model.parameters(), lr=0.1)
        step(model, optimizer)
        end = EpochEnd(1, 1, {}, 10, 1.0, 1.0, 0.1)
        save_state(tmp_path / "last.safetensors", card, [model], optimizer, {}, "data", end)
        step(model, optimizer)
        again = network()
        optimizer = make(again.parameters(), lr=0.1)
        load_state(tmp_path / "last.safetensors").restore([again], optimizer)
        step(again, optimizer)
        for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
            assert np.array_equal(ours.numpy(), theirs.numpy())


def test_the_command_refuses_such_a_state_and_leaves_the_run_as_it_was(
    folder: Path, tmp_path: Path, call: Call
) -> None:
    run = tmp_path / "logs/student/version_0"
    shutil.copytree(folder / "logs/student/version_0", run)
    (tmp_path / "tiles").symlink_to(folder / "tiles")
    last = run / "checkpoints/last.safetensors"
    tensors, header = load_tensors(last)
    tensors["optimizer/0/exp_avg"] = tensors["optimizer/0/exp_avg"][:1]
    header["end"]["epoch"] = header["end"]["step"] = 1
    save_tensors(last, tensors, header)
    best = (run / "checkpoints/best.safetensors").read_bytes()
    done = call.any_code("fit", "--resume", run.relative_to(tmp_path))
    assert done.returncode == 1
    assert "0/exp_avg" in done.stderr
    assert (run / "checkpoints/best.safetensors").read_bytes() == best


# Checkpoints from elsewhere

# The sample, with kdtrain's import of OneFlow: saves its teacher, and what that thinks of the test images.
SAMPLE = """
import sys
import numpy as np
from kdtrain.runtime import flow
sys.path.insert(0, sys.argv[1])
from sample import Teacher
flow.manual_seed(0)
teacher = Teacher()
flow.save(teacher.state_dict(), "teacher")
with flow.no_grad():
    logits = teacher.eval()(flow.tensor(np.load("images.npy")))
np.save("predicted.npy", logits.numpy().argmax(1))
state = teacher.state_dict()
state["fc3.weight"] = state.pop("conv1.bias")
state["fc2.bias"] = flow.zeros(7)
flow.save(state, "other")
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    """A folder with images, checkpoints that OneFlow 0.9.0 itself wrote, and the sample's own answers."""
    folder = tmp_path_factory.mktemp("sample")
    test = load_dataset(data_dir=write_digits(folder / "digits", mnist)).test
    np.save(folder / "images.npy", ((test.images / 255.0 - 0.1307) / 0.3081).astype(np.float32))
    np.save(folder / "labels.npy", test.labels)
    command = [sys.executable, "-c", SAMPLE, str(ROOT / "scripts/benchmarks")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_a_checkpoint_of_the_sample_itself_is_tested_and_teaches(sample: Path, call: Call) -> None:
    predicted, labels = np.load(sample / "predicted.npy"), np.load(sample / "labels.npy")
    data = ("--data-dir", "digits")
    done = call("eval", "teacher", *data, "--json", cwd=sample)
    assert json.loads(done.stdout)["errors"] == (predicted != labels).sum()

    for directory in ("teacher", "."):  # the checkpoint, and the folder that it is in
        flags = ("--picture-index", "7", "--model_load_dir", directory, "--model-type", "teacher")
        done = call("infer", *flags, *data, "--json", cwd=sample)
        assert json.loads(done.stdout)[0]["prediction"] == str(predicted[7])

    teacher = ("--load_teacher_checkpoint_dir", "teacher", "--val-size", "300", "--limit-train", "128")
    done = call("fit", "--mode", "student_kd", *teacher, *data, "--epochs", "1", cwd=sample)
    assert "The teacher is teacher." in done.stderr


def test_weights_that_do_not_fit_are_listed_by_name(sample: Path, call: Call) -> None:
    taught = ("fit", "--recipe=none", "--mode=student_kd", "--data-dir", "digits", "--val-size=300")
    for words in (
        ("eval", "other", "--data-dir", "digits"),
        ("infer", "--picture-index", "0", "--checkpoint", "other", "--model-type", "teacher"),
        (*taught, "--teacher-checkpoint", "other"),
    ):
        done = call.any_code(*words, cwd=sample)
        names = ("teacher_cnn", "conv1.bias", "fc3.weight", "fc2.bias", "7", "10")
        assert_explained(done, 1, "other", *names)


# Texts in files


def test_names_in_a_file_cannot_command_the_terminal(
    tmp_path: Path, card: ModelCard, capfd: pytest.CaptureFixture[str]
) -> None:
    escape = "\x1b]0;owned\x07\x1b[2J\x9b"
    flow.save({f"{escape}": flow.zeros(2, 3)}, str(tmp_path / "saved"))
    assert main(["eval", str(tmp_path / "saved")]) == 1
    err = capfd.readouterr().err
    assert "unexpected \\x1b]0;owned\\x07\\x1b[2J\\x9b." in err
    assert not set(escape) & set("\x1b\x07\x9b") & set(err)
    header = {**vars(card), "mode": f"student{escape}", "classes": [escape, *card.classes[1:]]}
    save_tensors(tmp_path / "model.safetensors", {}, header)
    loaded = load_model(tmp_path / "model.safetensors").card
    harmless = "\\x1b]0;owned\\x07\\x1b[2J\\x9b"
    assert (loaded.mode, loaded.classes[0]) == (f"student{harmless}", harmless)


# kdtrain's own surface


def called(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, by the words before its parentheses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


UNPICKLING = {
    *("kdtrain/runtime/child.py", "kdtrain/runtime/processes.py", "kdtrain/data/cifar.py"),
    "kdtrain/store/oneflow_directory.py",
}
"""Messages between kdtrain's own processes, and unpicklers that admit next to nothing."""

NAMES_A_SHELL = {"shtab.complete": {"shell"}}
"""Functions whose ``shell`` is the name of one to write a script for; they start none."""

FORBIDDEN = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*)|"
    r"subprocess\.get\w+|(flow|np|numpy|torch|yaml|marshal|joblib|dill)\.(load|loads|unsafe_load)|shelve\.open"
)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_becomes_a_command_or_code(path: Path) -> None:
    unpickles = str(path.relative_to(ROOT)) in UNPICKLING
    for name, call in called(path):
        assert not FORBIDDEN.fullmatch(name)
        assert unpickles or name == "pickle.dumps" or not name.startswith("pickle."), (
            name
        )  # dumps runs nothing
        keywords = {word.arg for word in call.keywords} - NAMES_A_SHELL.get(name, set())
        assert not keywords & {"shell", "allow_pickle"}, name
        if name.startswith("subprocess."):
            assert isinstance(call.args[0], ast.List), "words, not a line for a shell"


def test_nothing_that_a_fit_makes_can_be_written_by_others(folder: Path) -> None:
    made = [path for part in ("logs", "tmp", "log") for path in (folder / part).rglob("*")]
    assert len([path for path in made if path.is_file()]) >= 6
    open_to_others = [str(path) for path in made if path.lstat().st_mode & (stat.S_IWOTH | stat.S_IWGRP)]
    assert open_to_others == []
