"""``kdtrain models`` lists networks with their sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from kdtrain.models.registry import ARCHITECTURES
from tests.cli.conftest import Call


def test_table_has_every_network_and_its_figures(call: Call) -> None:
    finished = call("models")
    assert finished.stderr == ""
    rows = re.findall(r"^(\S+) +([\d,]+) +([\d,]+)$", finished.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == list(ARCHITECTURES)
    assert rows[1] == ("student_mlp", "109,386", "109,184")
    assert finished.stdout.startswith("Images of 1x28x28 in 10 classes")
    assert "kdtrain models 'flowvision:*'" in finished.stdout


def test_json_has_the_same_for_names_patterns_and_files(call: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from kdtrain.models.networks import StudentMlp as make")
    words = ("flowvision:shufflenet_v2_x0*", "net.py:make", "student_mlp", "--image-shape", "3,32,32")
    finished = call("models", *words, "--json")
    assert finished.stderr == ""
    zoo, own, student = json.loads(finished.stdout)
    assert zoo == {
        **{"arch": "flowvision:shufflenet_v2_x0_5", "parameters": 352_042},
        **{"multiply_adds": zoo["multiply_adds"], "error": None},
    }
    assert 5e6 < zoo["multiply_adds"] < 5e7
    assert own == student | {"arch": "net.py:make"}
    assert student["multiply_adds"] == 3072 * 128 + 128 * 64 + 64 * 10


def test_images_and_classes_are_those_of_the_data(tiles: Path, call: Call) -> None:
    words = ("student_mlp", "flowvision:squeezenet1_1", "--data-dir", tiles)
    finished = call("models", *words)
    assert finished.stdout.startswith("Images of 1x12x12 in 4 classes")
    assert f"{144 * 128 + 128 * 64 + 64 * 4:,}" in finished.stdout
    assert "squeezenet1_1 needs images of at least 28x28 pixels" in finished.stdout
