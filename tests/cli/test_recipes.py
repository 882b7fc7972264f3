"""``kdtrain recipes`` lists the recipes, and prints each as a file that --config reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from kdtrain.experiment.settings.config import read_recipe
from kdtrain.experiment.settings.schema import RECIPE_NAMES
from tests.cli.conftest import Call, assert_explained, run_python
from tests.tools import ROOT


def test_the_list_has_every_recipe(call: Call) -> None:
    finished = call("recipes")
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert [line.split()[0] for line in lines[2 : lines.index("", -4)] if line[:1].isalpha()] == RECIPE_NAMES
    first = read_recipe(RECIPE_NAMES[0])
    for text in (first.title, first.measured):
        assert text.split()[0] in finished.stdout


def test_json_has_the_settings_too(call: Call) -> None:
    entries = json.loads(call("recipes", "--json").stdout)
    assert [entry["name"] for entry in entries] == RECIPE_NAMES
    for entry in entries:
        assert entry["settings"] == read_recipe(entry["name"]).settings
        assert entry["measured"]
    (sample,) = json.loads(call("recipes", "sample", "--json").stdout)
    assert sample in entries


@pytest.mark.parametrize("name", ["pictures", "patient"])
def test_a_printed_recipe_is_the_recipe_for_any_data(name: str, call: Call, tmp_path: Path) -> None:
    printed = call("recipes", name)
    assert printed.stderr == ""
    (tmp_path / "mine.toml").write_text(printed.stdout)
    by_file = call("config", "--config", "mine.toml")
    by_name = call("config", "--recipe", name)
    assert by_file.stdout == by_name.stdout
    assert tomli.loads(by_name.stdout)["recipe"] == name


def test_an_unknown_recipe_is_explained(call: Call) -> None:
    assert_explained(call.any_code("recipes", "picture"), 2, "no recipe 'picture' (did you mean 'pictures'?)")


def test_a_fit_names_its_recipe_and_files_it(tiles: Path, call: Call, tmp_path: Path) -> None:
    few = ("--limit-train", "64", "--val-size", "100", "--epochs", "1", "--student-arch", "student_mlp")
    for number, (flags, said) in enumerate(
        (
            ((), "Recipe: pictures, chosen for these data ("),
            (("--recipe", "hinton2015"), "Recipe: hinton2015 ("),
            (("--recipe", "none"), ""),
        )
    ):
        words = ("--mode", "student", "--data-dir", tiles, "--augment", "none", *few, *flags)
        finished = call("fit", *words)
        lines = [line for line in finished.stderr.splitlines() if line.startswith("Recipe")]
        assert [line[: len(said)] for line in lines] == ([said] if said else [])
        config = tomli.loads((tmp_path / f"logs/student/version_{number}/config.toml").read_text())
        assert config["recipe"] == ("pictures", "hinton2015", "none")[number]
        assert (config["epochs"], config["teacher_epochs"]) == (1, 1)
        call("fit", "--resume", f"logs/student/version_{number}")


def test_the_samples_script_is_its_recipe() -> None:
    script = (ROOT / "scripts" / "train.sh").read_text()
    flags = {line.strip().partition("=")[0] for line in script.splitlines() if line.startswith("    --")}
    assert flags == {"--recipe", "--model_type", "--model_save_dir", "--image_save_name"}


def test_the_recipe_is_chosen_without_oneflow() -> None:
    code = (
        "import sys\nfrom kdtrain.cli import main\n"
        f"assert main(['config', '--data-dir', '{ROOT}/kdtrain/data/mnist']) == 0\n"
        "assert 'oneflow' not in sys.modules\n"
        "assert main(['fit', '--alpha', '2']) == 2\nassert 'oneflow' not in sys.modules\n"
    )
    finished = run_python(code)
    assert finished.returncode == 0, finished.stderr
    assert 'recipe = "mnist"' in finished.stdout
