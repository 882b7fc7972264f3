"""The loader of plugins: by name or file, with arguments; its errors are one sentence."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from kdtrain.callbacks.plugins import list_plugins, load_plugin
from kdtrain.cli import main
from kdtrain.engine.callback import Callback
from kdtrain.errors import KdtrainError
from tests.cli.conftest import Call
from tests.tools import ROOT

PLUGIN = '''
"""A file with plugins."""
from __future__ import annotations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional, Union
from kdtrain import Callback, Objective, UsageError
if TYPE_CHECKING:
    from decimal import Decimal

class Watch(Callback):
    """Watches.

    And more.
    """

    def __init__(self, every: int = 50, rate: float = 0.5, on: bool = False, name: str = "x",
                 path: Path = Path("p"), limit: int | None = None, mode: Literal["max", "min"] = "max",
                 either: Union[int, str] = 0, maybe: Optional[float] = None) -> None:
        self.__dict__.update({key: value for key, value in locals().items() if key != "self"})

    def on_batch(self, run, event): ...
    def configure(self, objective: Objective) -> Objective: return objective

class Carded(Callback):
    """Has a card.

    Card:
        Copies: nothing,
            as ``all`` see.
        Cost: 3.

    Args:
        rate: how fast: 2 is fast,
            3 faster.
        layer: which.
    """

    def __init__(self, layer: str, rate: float = 0.5, *, hidden: int | None = None) -> None: ...

class Plain(Callback):
    pass

class Untyped(Callback):
    def __init__(self, every=50, rate=0.5, on=False, name=None):
        self.every, self.rate, self.on, self.name = every, rate, on, name

class Needs(Callback):
    def __init__(self, first: int, second: str, *rest: int, third: float, fourth: int = 4, **more: int):
        self.values = first, second, third, fourth

class Refuses(Callback):
    def __init__(self, every: int = 1, how: str = "") -> None:
        if how == "usage":
            raise UsageError(f"every={every}: it must be at least 1.")
        if how == "value":
            raise ValueError("no\\n  good.")
        if how == "exit":
            raise SystemExit(0)

class Hidden(Callback):
    def __init__(self, amount: Decimal) -> None: ...

class Later(Callback):
    def __init__(self, numbers: list[int] = []) -> None: ...

class NoCallback:
    pass

def function() -> None: ...
number = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_plugin.py"
    path.write_text(PLUGIN)
    return path


def refusal(spec: str, exit_code: int = 2) -> str:
    with pytest.raises(KdtrainError) as caught:
        load_plugin(spec)
    assert caught.value.exit_code == exit_code
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files


def test_class_in_a_file_is_made_with_its_defaults_at_each_load(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    for path in (file, file.name):
        callback: Any = load_plugin(f"{path}:Watch")
        assert issubclass(type(callback), Callback)
        assert (callback.every, callback.rate, callback.on, callback.limit) == (50, 0.5, False, None)
        assert type(load_plugin(f"{path}:Plain")).__name__ == "Plain"
        assert load_plugin(f"{path}:Plain") is not load_plugin(f"{path}:Plain")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        *(("every=10", "every", 10), ("every=-1", "every", -1), ("rate=2", "rate", 2.0)),
        *(("rate=1e-3", "rate", 1e-3), ("on=true", "on", True), ("on=False", "on", False)),
        *(("name=10", "name", "10"), ("name=", "name", ""), ("name=a=b", "name", "a=b")),
        *(("path=a/b", "path", Path("a/b")), ("limit=7", "limit", 7), ("limit=none", "limit", None)),
        *(("mode=min", "mode", "min"), ("either=3", "either", 3), ("either=three", "either", "three")),
        *(("maybe=3", "maybe", 3.0), ("maybe=None", "maybe", None)),
    ],
)
def test_arguments_get_the_types_of_the_signature(file: Path, words: str, name: str, value: object) -> None:
    argument = getattr(load_plugin(f"{file}:Watch,{words}"), name)
    assert (argument, type(argument)) == (value, type(value))


def test_arguments_without_types_get_those_of_their_defaults(file: Path) -> None:
    callback: Any = load_plugin(f"{file}:Untyped,every=3,rate=1,on=true,name=5")
    assert (callback.every, callback.rate, callback.on, callback.name) == (3, 1.0, True, "5")
    assert type(callback.rate) is float


def test_keyword_only_arguments_work(file: Path) -> None:
    callback: Any = load_plugin(f"{file}:Needs,third=1,second=a,first=2")
    assert callback.values == (2, "a", 1.0, 4)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (":Watch,evry=3", "there is no argument 'evry' (did you mean 'every'?); there are: every, rate, on"),
        (":Watch,every", "'every' should be key=value"),
        (":Watch,", "'' should be key=value"),
        (":Watch,every=3,every=4", "every is given twice"),
        (":Watch,every=2.5", "every=2.5 is not of type int"),
        (":Watch,every=", "every= is not of type int"),
        (":Watch,rate=fast", "rate=fast is not of type float"),
        (":Watch,on=yes", "on=yes is not of type bool"),
        (":Watch,limit=few", "limit=few is not of type int"),
        (":Watch,mode=mean", "mode=mean is not of type"),
        (":Later,numbers=1", "numbers=1 is not of type list"),
        (":Plain,every=3", "there is no argument 'every'; there are: none"),
        (":Needs,first=1", "it needs second=…, third=…"),
        (":Needs,first=1,second=a,third=1,more=2", "there is no argument 'more'"),
        (":Refuses,how=usage,every=0", "every=0: it must be at least 1."),
        (":Refuses,how=value", "Refuses cannot be made: ValueError: no good."),
        (":Refuses,how=exit", "Refuses cannot be made: SystemExit: 0."),
        (":Hidden,amount=3", "its arguments are unknown: NameError: name 'Decimal' is not defined"),
        (":NoCallback", "it is not a subclass of kdtrain.Callback"),
        (":function", "it is not a subclass of kdtrain.Callback"),
        (":number", "it is not a subclass of kdtrain.Callback"),
        (":watch", "there is no callback class 'watch' (did you mean 'Watch'?); there are: Watch, Carded, "),
        (":", "say which class, as my_plugin.py:CLASS"),
        ("", "say which class, as my_plugin.py:CLASS"),
    ],
)
def test_plugin_that_cannot_be_made_is_refused_in_one_sentence(file: Path, spec: str, expected: str) -> None:
    text = refusal(f"{file}{spec}")
    assert text.startswith(f"--plugin {file}")
    assert expected in text
    assert "Callback," not in text, "a hint lists only classes that the file defines"
    assert not text.endswith("..")


def test_missing_files_and_other_files_than_python_are_refused(tmp_path: Path) -> None:
    missing = f"{tmp_path}/none.py"
    assert refusal(f"{missing}:X") == f"--plugin {missing}:X: there is no file {missing}."
    assert "there is no file" in refusal(f"{tmp_path}:X")
    assert "there is no file" in refusal(f"{'x' * 300}.py:X")
    (tmp_path / "notes.txt").write_text("class X: pass")
    assert "it is not a Python file" in refusal(f"{tmp_path}/notes.txt:X")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import no_such", ", line 1, cannot be imported: ModuleNotFoundError: No module named 'no_such'"),
        ("class X(:\n", " cannot be imported: SyntaxError: "),
        ("\nraise SystemExit(0)", ", line 2, cannot be imported: SystemExit: 0."),
        ("def f():\n    1 / 0\nf()", ", line 2, cannot be imported: ZeroDivisionError: division by zero."),
        (
            "from kdtrain import Callback\nclass X(Callback):\n    def on_epoc_end(self, run, event): ...",
            ", line 2, cannot be imported: TypeError: X.on_epoc_end: there is no hook 'on_epoc_end' "
            "(did you mean 'on_epoch_end'?)",
        ),
    ],
)
def test_errors_of_an_import_have_line_and_reason(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(content)
    text = refusal(f"{path}:X", exit_code=1)
    assert text.startswith(f"the plugin {path}{reason}")
    assert "kdtrain_plugin_broken" not in sys.modules


# Entry points


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder with an installed distribution of good and bad plugins."""
    folder = tmp_path / "site"
    about = folder / "mine-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[kdtrain.plugins]\n"
        "watch = kdtrain_test_plugins:Watch\n"
        "plain = kdtrain_test_plugins:Plain\n"
        "broken = kdtrain_test_broken:X\n"
        "exits = kdtrain_test_exits:X\n"
        "absent = kdtrain_test_plugins:Absent\n"
        "function = kdtrain_test_plugins:function\n"
    )
    (folder / "kdtrain_test_plugins.py").write_text(PLUGIN)
    (folder / "kdtrain_test_broken.py").write_text("import no_such_module")
    (folder / "kdtrain_test_exits.py").write_text("raise SystemExit('no\\nthank you')")
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if name.startswith("kdtrain_test_"):
            del sys.modules[name]


def test_plugin_is_found_by_name(site: Path) -> None:
    callback: Any = load_plugin("watch,every=7,mode=min")
    assert (type(callback).__name__, callback.every, callback.mode) == ("Watch", 7, "min")
    assert type(load_plugin("plain")).__name__ == "Plain"


def test_unknown_names_are_refused(site: Path) -> None:
    text = refusal("wach,every=7")
    assert text.startswith("there is no plugin 'wach' (did you mean 'watch'?); there are: ")
    assert "plain" in text
    assert "there is no plugin ''" in refusal("")


def test_installed_plugins_that_cannot_be_used_are_refused_with_the_reason(site: Path) -> None:
    assert refusal("broken", exit_code=1) == (
        f"the plugin broken (kdtrain_test_broken:X), {site}/kdtrain_test_broken.py line 1, "
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'."
    )
    assert refusal("exits", exit_code=1).endswith("cannot be imported: SystemExit: no thank you.")
    assert "has no attribute 'Absent'" in refusal("absent", exit_code=1)
    assert "it is not a subclass of kdtrain.Callback" in refusal("function")


def test_the_list_includes_broken_plugins(site: Path) -> None:
    listed = {info.name: info for info in list_plugins()}
    assert list(listed) == sorted(listed)
    watch = listed["watch"]
    assert (watch.source, watch.summary) == ("mine (kdtrain_test_plugins:Watch)", "Watches.")
    assert watch.hooks == ("configure", "on_batch")
    assert watch.arguments.startswith("every: int = 50, rate: float = 0.5, on: bool = False")
    assert (listed["plain"].arguments, listed["plain"].hooks, listed["plain"].summary) == ("", (), "")
    assert listed["broken"].summary == (
        "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert listed["exits"].summary == "cannot be loaded: SystemExit: no thank you"
    assert listed["function"].summary == "cannot be used: it is not a subclass of kdtrain.Callback"


def test_the_command_lists_plugins_even_if_some_are_broken(
    site: Path,
    spawn: Call,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = os.pathsep.join([str(site), str(ROOT)])
    listed = spawn("plugins", cwd=site, PYTHONPATH=path)
    assert listed.stderr == ""
    text = " ".join(listed.stdout.split())
    assert "watch Watches. every=50, rate=0.5, on=False, name=x," in text
    assert "broken cannot be loaded: ModuleNotFoundError: No module named 'no_such_module' (mine" in text
    assert main(["plugins", "--json"]) == 0
    plugins = {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert plugins["watch"]["hooks"] == ["configure", "on_batch"]
    assert plugins["watch"]["source"] == "mine (kdtrain_test_plugins:Watch)"
    assert plugins["broken"]["summary"].startswith("cannot be loaded")


def test_the_command_describes_plugins_by_name_and_by_file(
    file: Path, capsys: pytest.CaptureFixture[str], site: Path
) -> None:
    assert main(["plugins", f"{file}:Carded", "watch", "broken"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line and not line.startswith("─")]
    assert shown[: shown.index("watch")] == [
        *(
            f"{file}:Carded",
            "Group Observers, which change nothing in a fit",
            "What Has a card.",
            "Copies nothing, as all see.",
            "Cost 3.",
        ),
        *(
            "option default meaning",
            "layer - which.",
            "rate 0.5 how fast: 2 is fast, 3 faster.",
            "hidden None",
        ),
        f"Use: kdtrain fit --mode student_kd --plugin {file}:Carded,layer=...",
    ]
    assert {"mode max", "every 50", "Use: kdtrain fit --mode student_kd --plugin watch"} <= set(shown)
    assert shown[-1] == "What cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"

    assert main(["plugins", "--json", f"{file}:Carded"]) == 0
    [described] = json.loads(capsys.readouterr().out)
    assert described["card"] == {"Copies": "nothing, as ``all`` see.", "Cost": "3."}
    assert [list(option.values()) for option in described["options"]] == [
        ["layer", None, "which."],
        ["rate", "0.5", "how fast: 2 is fast, 3 faster."],
        ["hidden", "None", ""],
    ]


def test_a_plugin_that_is_not_there_is_refused_by_the_command(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in (
        ("wach", "there is no plugin 'wach' (did you mean 'watch'?); there are: "),
        ("nowhere.py:X", "--plugin nowhere.py:X: "),
    ):
        assert main(["plugins", "watch", name]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err


# kdtrain's own plugins

LAYERS = {
    **dict.fromkeys(
        ("attention", "fitnet", "pkt", "rkd", "similarity", "srrl", "vid"), ",student_layer=a,teacher_layer=b"
    ),
    "review_kd": ",student_layers=a+b,teacher_layers=a+b",
}


def declared() -> dict[str, str]:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry_points: dict[str, str] = project["entry-points"]["kdtrain.plugins"]
    return entry_points


def test_declared_plugins_are_in_their_folder() -> None:
    layout = configparser.ConfigParser()
    layout.read(ROOT / "setup.cfg")
    assert layout["options"]["package_dir"].split() == ["kdtrain_plugins", "=", "plugins"]
    files = {path.stem for path in (ROOT / "plugins").glob("*.py")} - {"__init__"}
    assert set(declared()) == files
    for name, target in declared().items():
        module, _, cls = target.partition(":")
        assert module == f"kdtrain_plugins.{name}"
        layers = LAYERS.get(name, "")
        assert type(load_plugin(f"{ROOT}/plugins/{name}.py:{cls}{layers}")).__name__ == cls


def test_each_method_has_a_card_of_at_most_ten_lines_and_each_option_is_explained() -> None:
    for name, target in declared().items():
        [info] = list_plugins(f"{ROOT}/plugins/{name}.py:{target.partition(':')[2]}")
        assert all(option.meaning for option in info.options), name
        if info.kind in ("soft targets", "layers") or name == "label_smoothing":
            assert list(info.card) == ["Copies", "Helps", "Hurts", "Cost", "Measured"], name
            source = (ROOT / "plugins" / f"{name}.py").read_text()
            card = source.partition("    Card:\n")[2].partition("\n\n")[0]
            assert 5 <= len(card.splitlines()) <= 10, name
        else:
            assert not info.card, name


INSTALLED = any(package.name == "kdtrain" for package in importlib.metadata.distributions())


@pytest.mark.skipif(not INSTALLED, reason="kdtrain is not installed in this environment")
def test_installed_kdtrain_has_its_own_plugins() -> None:
    assert type(load_plugin("grad_norm,every=7")).__module__ == "kdtrain_plugins.grad_norm"
    smoothing: Any = load_plugin("label_smoothing,epsilon=0.2")
    assert smoothing.epsilon == 0.2
    listed = {info.name: info for info in list_plugins()}
    for name, target in declared().items():
        assert name in listed, f"{name} is in pyproject.toml, and not installed: run scripts/bootstrap --dev"
        assert listed[name].source == f"kdtrain ({target})"
    assert listed["grad_norm"].hooks == ("on_fit_start", "on_batch", "on_fit_end")
    assert listed["label_smoothing"].hooks == ("configure",)
    assert listed["label_smoothing"].arguments == "epsilon: float = 0.1"
