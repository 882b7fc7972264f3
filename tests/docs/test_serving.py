"""What docs/serving.md tells people to do works as it is written there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import RunKdtrain
from tests.deploy.serve.conftest import encoded, serve
from tests.tools import ROOT

TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
TINY = ("--teacher-arch", "student_mlp", "--limit-train", "300", "--val-size", "50", "--epochs", "1")


def test_commands_work_one_after_another(tmp_path: Path, photo: Image.Image, run_kdtrain: RunKdtrain) -> None:
    fit, *exports, serving = (words[1:] for words in COMMANDS if words[0] == "scripts/kdtrain")
    for words in ([*fit, *TINY], *exports):
        done = run_kdtrain(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (tmp_path / "digit.png").write_bytes(encoded(photo))
    assert serving[0] == "serve"
    words = [str(tmp_path / word) if word.endswith(".onnx") else word for word in serving[1:]]
    with serve(*words) as service:
        predicted, refused, model, health = (
            curl(words, tmp_path, service.port) for words in COMMANDS if words[0] == "curl"
        )
    (shown,) = re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert set(predicted) == set(json.loads(shown))
    assert set(predicted["predictions"][0]) == set(json.loads(shown)["predictions"][0])
    assert predicted["predictions"][0]["temperature"] == 4
    assert f"`{json.dumps(refused)}`" in TEXT
    assert (model["model"], model["teacher"]["arch"]) == ("student_kd", "student_mlp")
    assert health == {"status": "ok"}


def curl(words: list[str], folder: Path, port: int) -> Any:
    command = [word.replace(":8000/", f":{port}/") for word in words]
    done = subprocess.run([*command, "--silent"], cwd=folder, capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_everything_on_the_page_is_tried_here() -> None:
    assert [words[0] for words in COMMANDS] == 4 * ["scripts/kdtrain"] + 4 * ["curl"]
