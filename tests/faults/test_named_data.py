"""The data set that a model's file names is a text: nothing is opened because of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path

import onnx
import pytest

from kdtrain.cli import main
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.onnx_reader import METADATA
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import save_model, snapshot
from tests.cli.conftest import CallKdtrain, assert_explained
from tests.faults.limits import limited
from tests.tools import write_digits

NAMES = (
    "npz:/dev/zero",
    "npz:pipe",
    "npz:data.npz",
    "folder:pets",
    "folder:/",
    "folder:DIR",
    "npz:FILE",
    "code.py:make",
    "FILE.py:FACTORY",
    "os:getcwd",
    "../digits",
    "/etc",
    "mnist ",
    "",
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


@pytest.mark.parametrize("model", [("safetensors", name) for name in NAMES], indirect=True)
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_opened_because_a_checkpoint_names_it(
    call_kdtrain: CallKdtrain, command: str, model: Path
) -> None:
    words = [model.name if word == "MODEL" else word for word in COMMANDS[command]]
    with limited(10, 300):
        done = call_kdtrain(*words, cwd=model.parent)
    assert_explained(done, 2, model.name, "--data")


@pytest.mark.parametrize("model", [("onnx", name) for name in NAMES[:4]], indirect=True)
@pytest.mark.parametrize("command", ["eval", "infer", "bench"])
def test_nothing_is_opened_because_an_onnx_file_names_it(
    call_kdtrain: CallKdtrain, command: str, model: Path
) -> None:
    test_nothing_is_opened_because_a_checkpoint_names_it(call_kdtrain, command, model)


@pytest.mark.parametrize("model", [("safetensors", "folder:my pets; rm -rf ~")], indirect=True)
def test_the_flag_that_names_the_data_can_be_copied(call_kdtrain: CallKdtrain, model: Path) -> None:
    stderr = call_kdtrain("eval", model, cwd=model.parent).stderr
    flag = stderr[stderr.index("--dataset ") :].partition("\n")[0].rpartition(". ")[0]
    assert shlex.split(flag) == ["--dataset", "folder:my pets; rm -rf ~"]


@pytest.mark.parametrize("model", [("safetensors", "folder:gone")], indirect=True)
def test_data_that_the_user_names_are_opened(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["eval", model.name, "--data-dir", "digits"]) == 0
    assert main(["eval", model.name, "--dataset", "npz:gone.npz"]) == 1
