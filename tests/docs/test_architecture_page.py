"""The rooms, functions and paths in docs/architecture.md and CONTRIBUTING.md are those of the code."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.architecture_image import IMAGE, PLACES, arrows, draw, reachable, read_imports
from tests.test_architecture import PACKAGE, ROOMS, imports, room_of
from tests.tools import ROOT

PAGE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FUNCTIONS = re.findall(r"^\| `([\w/]+\.py): ([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_image_shows_the_imports_of_today() -> None:
    assert IMAGE.read_text(encoding="utf-8") == draw(read_imports()), "scripts/architecture draws it again"


def test_every_import_between_rooms_follows_from_the_arrows() -> None:
    drawn: dict[str, set[str]] = {room: set() for room in PLACES}
    for room, other in arrows(read_imports()):
        drawn[room].add(other)
    assert drawn.keys() == set(ROOMS)
    for path in PACKAGE:
        modules = [module.split(".") for module, _ in imports(path)]
        imported = {parts[1] for parts in modules if parts[0] == "kdtrain" and len(parts) > 1} & drawn.keys()
        room = room_of(path)
        assert room not in drawn or imported <= reachable(drawn, room) | {room}, path


def test_an_import_that_points_upward_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="kdtrain/data imports kdtrain/engine"):
        draw(read_imports() | {"data": {"engine"}})


def test_both_ways_are_on_the_page() -> None:
    assert {"Trainer._step", "Loader.epoch", "soft_target_loss"} <= {function for _, function in FUNCTIONS}


@pytest.mark.parametrize(("file", "function"), FUNCTIONS)
def test_function_of_the_page_exists(file: str, function: str) -> None:
    body = ast.parse((ROOT / "kdtrain" / file).read_text(encoding="utf-8")).body
    for name in function.split("."):
        named = [
            node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        ]
        assert named, f"kdtrain/{file} has no {function}"
        body = named[0].body


def test_contributing_lists_the_rooms_in_their_order() -> None:
    assert re.findall(r"^\| `(\w+)(?:/|\.py)` \|", CONTRIBUTING, re.MULTILINE) == ROOMS


def test_every_path_in_contributing_exists() -> None:
    quoted = re.findall(r"`([\w.]+/[\w./-]*|[\w.]+\.(?:py|toml))`", CONTRIBUTING)
    paths = [
        path for path in quoted if "NAME" not in path and path.rstrip("/").removesuffix(".py") not in ROOMS
    ]
    paths += re.findall(r"\]\(([^)#]+)", CONTRIBUTING)
    assert "kdtrain/models/registry.py" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["architecture.md", "benchmarks.md", "oneflow.md", "reliability.md"])
def test_modules_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    modules = re.findall(r"`([\w/]+\.py)[`:]", text)
    assert [
        name for name in modules if not any((root / name).exists() for root in (ROOT, ROOT / "kdtrain"))
    ] == []
