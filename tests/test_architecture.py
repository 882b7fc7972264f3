"""The order of rooms, other rules for imports, and limits of the length of files and functions."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdtrain
from tests.tools import ROOT

PACKAGE = sorted((ROOT / "kdtrain").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
ROOMS = [
    "errors",
    *("runtime", "metrics", "data", "nn", "models", "store"),
    *("engine", "cluster", "report", "deploy", "callbacks", "experiment", "cli"),
]
"""Each may import those before it."""
MOST_LINES = 500
"""Raise it for a longer file that holds one idea; split a file that holds two."""
MOST_LINES_OF_A_FUNCTION = 40
MOST_MODULES_OF_A_FIT = 110

SMALL, MOST_SMALL_MODULES = 60, 13
"""Lines below which a module is small, and how many are: a split always passes the limits above, so that
without this one a house of a hundred rooms with a line each would pass. ``__init__`` files say what a room
holds, and do not count."""
MOST_MODULES_AT_A_LEVEL = 21
"""Of one folder: as many as a newcomer reads through. A folder with more wants a wing. ``cli`` has as many: a
module for each command, found by its name."""
MOST_NAMES_DEFINED_TWICE = 5
"""Public classes and functions at the top of modules: a name that means two things is read wrongly once.
``run`` and ``add_flags``, which every command has, are two of them."""

MOST_FLOORS = 9
"""Of ``experiment``: from a module that imports none of its room to the one that nothing there imports."""

FLOORS = (
    ("settings",),
    ("teachers", "loaders", "modes"),
    ("fit",),
    ("session",),
    ("student",),
    ("compare", "tune"),
    ("api",),
)
"""Of ``experiment``: each may import those before it, and what stands beside it."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, at_once: bool = False) -> Iterator[tuple[str, str | None]]:
    """Every import of a file: the module, and the name taken from it.

    ``at_once`` leaves out those inside of functions, and those for types alone.
    """
    tree = tree_of(path)
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "kdtrain").parts[0].removesuffix(".py")


def dependencies(path: Path, *, at_once: bool = False) -> set[Path]:
    """Returns the files of the package that a file imports, as ``imports`` does."""
    files = set()
    for module, name in imports(path, at_once=at_once):
        place = ROOT.joinpath(*module.split("."))
        candidates = [place / f"{name}.py", place / str(name) / "__init__.py"] if name else []
        candidates += [place.with_suffix(".py"), place / "__init__.py"]
        files |= {next((file for file in candidates if file in PACKAGE), path)}
    return files - {path}


def test_there_is_something_to_look_at() -> None:
    assert ROOT / "kdtrain" / "engine" / "trainer.py" in PACKAGE
    assert ROOT / "plugins" / "grad_norm.py" in PLUGINS
    assert ("kdtrain.errors", "KdtrainError") in imports(ROOT / "kdtrain" / "runtime" / "files.py")


def test_the_package_holds_its_rooms_and_nothing_else() -> None:
    entries = {path.name for path in (ROOT / "kdtrain").iterdir()} - {"__pycache__"}
    files = {"errors.py", "__init__.py", "__init__.pyi", "__main__.py", "_version.py", "py.typed"}
    assert entries == files | set(ROOMS) - {"errors"}


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_imports_point_to_earlier_rooms_or_stay_in_their_own(path: Path) -> None:
    if path.parent == ROOT / "kdtrain" and path.name != "errors.py":
        return  # the package's face and its way in, which nothing imports
    room = room_of(path)
    for module, _ in imports(path):
        if module == "kdtrain" or module.startswith("kdtrain."):
            other = module.removeprefix("kdtrain").lstrip(".").partition(".")[0]
            assert other == "_version" or ROOMS.index(other) <= ROOMS.index(room), f"{module} is above {room}"


def test_no_imports_go_round_in_circles() -> None:
    """A file that imports nothing that is left imports nothing that leads back to it."""
    left = {path: dependencies(path) for path in PACKAGE}
    while ground := [path for path, below in left.items() if not below & left.keys()]:
        for path in ground:
            del left[path]
    assert not left, "these files import each other"


def test_experiment_has_few_floors() -> None:
    """A module stands one floor above the highest of those in its room that it imports."""
    left = {path: dependencies(path) for path in PACKAGE if room_of(path) == "experiment"}
    floors = 0
    while left:
        ground = [path for path, below in left.items() if not below & left.keys()]
        left = {path: below for path, below in left.items() if path not in ground}
        floors += 1
    assert floors <= MOST_FLOORS


def test_the_fit_of_one_network_imports_neither_reports_nor_what_is_deployed() -> None:
    """Such as a comparison's sentences, or the reader of a teacher's ONNX file, before one is needed."""
    known = {ROOT / "kdtrain/experiment/student.py"}
    left = list(known)
    while left:
        new = dependencies(left.pop(), at_once=True) - known
        known |= new
        left += new
    assert not {room_of(path) for path in known} & {"report", "deploy"}
    assert len({path for path in known if path.name != "__init__.py"}) <= MOST_MODULES_OF_A_FIT


@pytest.mark.parametrize("path", PACKAGE + PLUGINS, ids=name_of)
def test_a_module_title_is_a_noun_phrase(path: Path) -> None:
    title = ast.get_docstring(tree_of(path)) or ""
    questions = ("What", "How", "Whether", "Which", "Who", "From", "When", "Where")
    verbs = (
        *("Carries", "Finds", "Has", "Makes", "Prints", "Puts", "Raises", "Reads", "Runs", "Starts"),
        "Writes",
    )
    assert title
    assert title.split()[0] not in questions + verbs


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_the_package_imports_no_plugin(path: Path) -> None:
    roots = {module.partition(".")[0] for module, _ in imports(path)}
    assert not roots & {"plugins", "kdtrain_plugins"}


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugins_use_the_public_api_only(path: Path) -> None:
    for module, name in imports(path):
        assert not module.startswith((".", "plugins", "kdtrain_plugins")), "each plugin is one file"
        assert module != "oneflow", "it comes as kdtrain.flow, imported with care"
        if module.partition(".")[0] == "kdtrain":
            assert module == "kdtrain", f"{module} is not public"
            assert name in kdtrain.__all__, f"{name} is not public"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_only_runtime_imports_oneflow(path: Path) -> None:
    roots = {module.partition(".")[0] for module, _ in imports(path)}
    assert "oneflow" not in roots or path.parent == ROOT / "kdtrain" / "runtime"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_nothing_needs_a_display(path: Path) -> None:
    assert not any("pyplot" in (module + str(name)) for module, name in imports(path))


@pytest.mark.parametrize("path", PACKAGE + PLUGINS, ids=name_of)
def test_nothing_relies_on_the_context_of_an_autograd_function(path: Path) -> None:
    names = [node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)]
    assert "Function" not in names, "its context frees what is kept there: see nn/layers.py"


@pytest.mark.parametrize("path", PACKAGE + PLUGINS, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MOST_LINES, f"it has {lines} lines: move a part to a module of its own"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None
            first, last = node.body[1 if documented and len(node.body) > 1 else 0], node.body[-1]
            assert last.end_lineno is not None
            lines = last.end_lineno - first.lineno + 1  # of code: a long docstring is no fault
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


def test_few_modules_are_small() -> None:
    modules = [path for path in PACKAGE if path.name != "__init__.py"]
    small = [path for path in modules if len(path.read_text(encoding="utf-8").splitlines()) < SMALL]
    assert len(small) <= MOST_SMALL_MODULES, (
        f"{len(small)} modules have fewer than {SMALL} lines: move the new one to the module that uses it"
    )


@pytest.mark.parametrize("folder", sorted({path.parent for path in PACKAGE}), ids=name_of)
def test_a_folder_is_read_through_at_once(folder: Path) -> None:
    assert len({path.name for path in folder.glob("*.py")} - {"__init__.py"}) <= MOST_MODULES_AT_A_LEVEL


def test_few_public_names_mean_two_things() -> None:
    names = Counter(
        node.name
        for path in PACKAGE
        for node in tree_of(path).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
    )
    twice = sorted(name for name, count in names.items() if count > 1)
    assert len(twice) <= MOST_NAMES_DEFINED_TWICE, f"rename one of each: {', '.join(twice)}"


@pytest.mark.parametrize("path", sorted((ROOT / "kdtrain" / "experiment").rglob("*.py")), ids=name_of)
def test_the_way_through_experiment_leads_down(path: Path) -> None:
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}

    def wing_of(file: Path) -> str:
        parts = file.relative_to(ROOT / "kdtrain").parts
        return parts[1].removesuffix(".py") if parts[0] == "experiment" else ""

    own = wing_of(path)
    for other in map(wing_of, dependencies(path)):
        if own in floors and other in floors:
            assert floors[other] <= floors[own], f"{other} is above {own}"
        if own == "history":
            assert other in ("", "history", "settings", "result"), "history reads what fits have written"


def test_public_names_are_there() -> None:
    assert len(kdtrain.__all__) == 92
    for name in kdtrain.__all__:
        assert getattr(kdtrain, name) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        getattr(kdtrain, "Nonsense")  # noqa: B009 (the type checker knows that there is none)
