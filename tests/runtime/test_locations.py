"""Names that hold paths stand for the same file from every folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import absolute_paths, load_config, resumed_config
from kdtrain.runtime.locations import absolute_name, missing_path_text, short_name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; its name has what plugins' arguments are separated by."""
    folder = tmp_path / "a, b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_paths_in_names_become_absolute_and_all_else_stays(here: Path) -> None:
    for name, expected in {
        "folder:pics": f"folder:{here}/pics",
        "folder:../pics/": f"folder:{here.parent}/pics",
        "npz:x.npz": f"npz:{here}/x.npz",
        "data.py:make": f"{here}/data.py:make",
        "net.py:make": f"{here}/net.py:make",
        "sub/my.py:Watch,every=2,file=x.py:y": f"{here}/sub/my.py:Watch,every=2,file=x.py:y",
        "/x/my.py:Watch": "/x/my.py:Watch",
        "mnist": "mnist",
        "flowvision:resnet18": "flowvision:resnet18",
        "package.module:make": "package.module:make",
        "dkd,alpha=1": "dkd,alpha=1",
    }.items():
        assert absolute_name(name) == expected
        assert absolute_name(expected) == expected
        assert short_name(expected) == short_name(name)


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(here: Path) -> None:
    assert missing_path_text("x/y") == f"x/y (looked for at {here}/x/y)"
    assert missing_path_text(Path("/x/y")) == "/x/y"


def test_every_path_of_a_configuration_becomes_absolute(here: Path) -> None:
    config = FitConfig(
        dataset="folder:pics",
        data_dir=Path("d"),
        student_arch="net.py:make",
        teacher_checkpoint=(Path("t.safetensors"),),
        plugin=("my.py:Watch,every=2", "ema"),
        image_save_dir=Path("shots"),
        image_save_name=Path("one.png"),
    )
    again = absolute_paths(config)
    assert (again.dataset, again.student_arch) == (f"folder:{here}/pics", f"{here}/net.py:make")
    assert again.plugin == (f"{here}/my.py:Watch,every=2", "ema")
    assert (again.data_dir, again.teacher_checkpoint) == (here / "d", (here / "t.safetensors",))
    assert (again.logdir, again.models) == (here / "logs", here / "logs/models")
    assert (again.image_save_dir, again.image_save_name) == (here / "shots", Path("one.png"))


def test_a_log_directory_that_was_moved_takes_its_paths_along(here: Path) -> None:
    begun = absolute_paths(FitConfig(mode="student_kd", teacher_checkpoint=(Path("logs/models/teacher.st"),)))
    run = here / "moved/student_kd/version_0"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(begun.to_toml())
    config = resumed_config({}, run)
    assert (config.logdir, config.teacher_checkpoint) == (here / "moved", (here / "moved/models/teacher.st",))
    assert resumed_config({"logdir": Path("moved")}, run).logdir == here / "moved"


def test_a_run_that_was_begun_with_relative_paths_goes_on_in_its_folder(here: Path) -> None:
    run = here / "logs/student/version_0"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(FitConfig(mode="student", dataset="folder:pics").to_toml())
    for flags in ({}, {"dataset": "folder:pics"}, {"dataset": f"folder:{here}/pics"}):
        assert resumed_config(flags, Path("logs/student/version_0")).dataset == f"folder:{here}/pics"


def test_a_printed_configuration_keeps_paths_as_they_were_given(here: Path) -> None:
    assert 'logdir = "logs"' in load_config({"dataset": "folder:pics"}).to_toml()
