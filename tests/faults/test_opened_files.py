"""Files that kdtrain opens: regular ones only, and none because a model's file names it as its data."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from kdtrain.cli import main
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.onnx.reader import METADATA
from kdtrain.runtime import flow
from kdtrain.runtime.regular_files import open_regular, read_bytes, read_text
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import save_model, snapshot
from tests.cli.conftest import Call, Finished, assert_explained
from tests.faults.limits import limited
from tests.tools import ROOT, write_digits, write_tiles

DATA = ("--data-dir", "tiles", "--val-size", "300", "--recipe=none")
RUN = Path("logs/student/version_0")

SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset, spawn: Call) -> Path:
    """Where a student was trained on small images."""
    folder = tmp_path_factory.mktemp("special")
    write_tiles(folder / "tiles", mnist)
    words = ("fit", "--mode", "student", *DATA, "--epochs", "2", "--plugin", "csv")
    spawn(*words, cwd=folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for a test to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def assert_refused(finished: Finished, file: str) -> None:
    """Asserts that a command failed with a message that names the file."""
    assert finished.returncode in (1, 2), finished.stderr
    assert "unexpected" not in finished.stderr
    assert "Traceback" not in finished.stderr
    assert file in finished.stderr.splitlines()[-1]


READ = {
    "settings.toml": ("config", "--config", "settings.toml"),
    "model.safetensors": ("eval", "model.safetensors"),
    "model.onnx": ("eval", "model.onnx"),
    "served.onnx": ("serve", "served.onnx", "--port", "0"),
    "exported.safetensors": ("export", "exported.safetensors"),
    "photo.png": ("infer", "photo.png", "--checkpoint", RUN / "checkpoints/best.safetensors"),
    "data.npz": ("models", "--dataset", "npz:data.npz"),
    "data.py": ("models", "--dataset", "data.py:make"),
    "network.py": ("models", "network.py:make"),
    "plugin.py": ("fit", "--mode", "student", *DATA, "--plugin", "plugin.py:Mine"),
    "teacher.safetensors": ("fit", "--mode=student_kd", *DATA, "--teacher-checkpoint=teacher.safetensors"),
    "saved/pickled_data": ("eval", "saved"),
    "tiles/t10k-labels-idx1-ubyte": ("models", "--data-dir", "tiles"),
    "cifar-10-python.tar.gz": ("models", "--dataset", "cifar10", "--data-dir", "."),
    "models/first.safetensors": ("bench", "--model-save-dir", "models"),
    "logs/models/student.safetensors": ("infer", "--picture-index=0", "--model-type=student"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", READ)
def test_what_a_command_reads_must_be_a_file(copy: Path, call: Call, name: str, kind: str) -> None:
    file = copy / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    file.with_name(f"{file.name}.gz").unlink(missing_ok=True)
    SPECIAL[kind](file)
    with limited():
        done = call.any_code(*READ[name], cwd=copy)
    assert_refused(done, file.name)


IN_A_RUN = (
    *("config.toml", "metrics.jsonl", "metrics.csv", "checkpoints/last.safetensors"),
    "events.out.tfevents.1.host.1",
)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", IN_A_RUN)
def test_what_lies_in_a_resumed_run_must_be_a_file(copy: Path, call: Call, name: str, kind: str) -> None:
    (copy / RUN / name).unlink(missing_ok=True)
    SPECIAL[kind](copy / RUN / name)
    best = (copy / RUN / "checkpoints/best.safetensors").read_bytes()
    with limited(10):
        done = call.any_code("fit", "--resume", RUN, cwd=copy)
    assert_refused(done, name)
    assert (copy / RUN / "checkpoints/best.safetensors").read_bytes() == best


def test_a_link_to_a_file_is_as_good_as_the_file(copy: Path, call: Call) -> None:
    for name in IN_A_RUN[:4]:
        file = copy / RUN / name
        file.rename(copy / file.name)
        file.symlink_to(copy / file.name)
    call("fit", "--resume", RUN, cwd=copy)


def test_a_file_becomes_a_pipe_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks what a path is, and opens it afterwards, may open something else."""
    (tmp_path / "file").write_bytes(b"x")
    opens = os.open

    def swap(path: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return opens(path, flags)

    monkeypatch.setattr(os, "open", swap)
    with limited(10), pytest.raises(OSError, match="pipe"):
        open_regular(tmp_path / "file")


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("äb")
    assert (read_bytes(file, 3), read_text(file, 3)) == ("äb".encode(), "äb")
    with pytest.raises(OSError, match=r"3 bytes.* 2"):
        read_text(file, 2)
    os.truncate(file, 1 << 40)  # sparse
    with limited(10, 20), pytest.raises(OSError, match="1,000"):
        read_bytes(file, 1000)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_every_file_is_opened_in_one_place() -> None:
    """A call that opens a file by its name, and so may wait for a pipe, stands nowhere else."""
    words = (".read_text(", ".read_bytes(", '.open("rb")', "np.load(", "ZipFile(path", "tarfile.open(path")
    allowed = {
        "kdtrain/runtime/regular_files.py",
        # /proc:
        "kdtrain/cli/doctor.py",
        "kdtrain/deploy/onnx/worker.py",
        "kdtrain/runtime/files.py",
        "kdtrain/cluster/launch.py",
        "kdtrain/runtime/processor.py",
        "kdtrain/runtime/watchdog.py",
        # what kdtrain has just written:
        "kdtrain/cli/fit.py",
        "kdtrain/experiment/compare.py",
        "kdtrain/experiment/fit.py",
        "kdtrain/experiment/dry_run.py",
    }
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted([*(ROOT / "kdtrain").rglob("*.py"), *(ROOT / "plugins").glob("*.py")])
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(word in line for word in words) and str(path.relative_to(ROOT)) not in allowed
    ]
    assert found == []


NAMES = (
    *("npz:/dev/zero", "npz:pipe", "npz:data.npz", "folder:pets", "folder:/", "folder:DIR", "npz:FILE"),
    *("csv:/dev/zero", "csv:pipe", "csv:labels.csv"),
    *("code.py:make", "FILE.py:FACTORY", "os:getcwd", "../digits", "/etc", "mnist ", ""),
    "folder:pets; rm -rf ~",
)
COMMANDS = {
    "eval": ("eval", "MODEL"),
    "infer": ("infer", "--picture-index", "0", "--checkpoint", "MODEL"),
    "bench": ("bench", "MODEL"),
    "export": ("export", "MODEL"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    """A folder for models, with what their names of data may lead to."""
    folder = tmp_path_factory.mktemp("named")
    os.mkfifo(folder / "pipe")
    (folder / "code.py").write_text("raise SystemExit('this was run')\n")
    (folder / "pets").mkdir()
    write_digits(folder / "digits", mnist)
    return folder


@pytest.fixture
def model(models: Path, card: ModelCard, student: flow.nn.Module, request: pytest.FixtureRequest) -> Path:
    kind, name = request.param
    named = dataclasses.replace(card, dataset=name)
    path = models / f"model.{kind}"
    if kind == "onnx":
        file = onnx.load_model_from_string(to_onnx(student.eval(), card))
        about = json.loads(file.metadata_props[0].value)
        onnx.helper.set_model_props(file, {METADATA: json.dumps(about | {"dataset": name})})
        path.write_bytes(file.SerializeToString())
    else:
        save_model(path, snapshot(student), named)
    return path


@pytest.mark.parametrize(
    ("command", "model"),
    [
        *((command, ("safetensors", name)) for command in COMMANDS for name in NAMES),
        *((command, ("onnx", name)) for command in ("eval", "infer", "bench") for name in NAMES[:4]),
    ],
    indirect=["model"],
)
def test_nothing_is_opened_because_a_models_file_names_it(call: Call, command: str, model: Path) -> None:
    words = [model.name if word == "MODEL" else word for word in COMMANDS[command]]
    with limited(10, 300):
        done = call.any_code(*words, cwd=model.parent)
    assert_explained(done, 2, model.name, "--data")


@pytest.mark.parametrize("model", [("safetensors", "folder:my pets; rm -rf ~")], indirect=True)
def test_the_flag_that_names_the_data_can_be_copied(call: Call, model: Path) -> None:
    stderr = call.any_code("eval", model, cwd=model.parent).stderr
    flag = stderr[stderr.index("--dataset ") :].partition("\n")[0].rpartition(". ")[0]
    assert shlex.split(flag) == ["--dataset", "folder:my pets; rm -rf ~"]


@pytest.mark.parametrize("model", [("safetensors", "folder:gone")], indirect=True)
def test_data_that_the_user_names_are_opened(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["eval", model.name, "--data-dir", "digits"]) == 0
    assert main(["eval", model.name, "--dataset", "npz:gone.npz"]) == 1
