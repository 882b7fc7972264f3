"""Hooks of MkDocs for the site of docs/: the API reference, the stars in ``nav``, links, the search.

MkDocs calls ``on_config``, ``on_files`` and ``on_page_markdown``; griffe, which reads the docstrings, uses
``SettingsExtension``. Both are in .venv-docs only, where OneFlow is not.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

TITLES = {
    "experiment": "Commands",
    "deploy": "Trained models",
    "data": "Data",
    "models": "Networks",
    "nn": "Layers",
    "engine": "Trainer and events",
    "callbacks": "Callbacks",
    "metrics": "Metrics",
    "report": "Comparisons",
    "store": "Model files",
    "runtime": "Files and the terminal",
    "errors": "Errors",
}
"""The pages of the reference: the title of each room's public names."""
_STUB = re.compile(r"^from \.(\w+)[\w.]* import (\w+) as \2$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^][]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(?<![\[`])`(\w+)`(?!`)")
_RANKS = {"reference": 2.0, "decisions": 0.2}
"""The rank of a folder's pages among the results of a search; 1 for others."""


def public_names() -> dict[str, list[str]]:
    """Returns the public names of each room, but for ``flow``: OneFlow has documentation of its own.

    Raises:
        KeyError: a room has no title here.
    """
    names: dict[str, list[str]] = {room: [] for room in TITLES}
    for room, name in _STUB.findall((ROOT / "kdtrain" / "__init__.pyi").read_text(encoding="utf-8")):
        if name != "flow":
            names[room].append(name)
    return names


def reference_pages() -> dict[str, str]:
    """Returns the Markdown of each page of the reference, by its path below docs/."""
    return {
        f"reference/{room}.md": "\n\n".join([f"# {TITLES[room]}", *map(_entry, names)])
        for room, names in public_names().items()
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of a folder where ``nav`` has a star: those of the reference, and all decisions."""
    decisions = sorted(path.name for path in Path(config.docs_dir, "decisions").glob("0*.md"))
    pages = {"reference/*": list(reference_pages()), "decisions/*": [f"decisions/{n}" for n in decisions]}
    config.nav = _expanded(config.nav, pages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the reference."""
    from mkdocs.structure.files import File

    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the page as the site has it.

    Files outside of docs/ are not in the site: the words of a link stay, with the path of the file. A class
    or function of kdtrain in the text gets a link to the reference. Words that are names of commands too,
    such as ``fit``, get none.
    """
    folder = page.file.src_uri.partition("/")[0]
    page.meta["search"] = {"boost": _RANKS.get(folder, 1)}
    if folder == "reference":
        return markdown
    names = {name for room in public_names().values() for name in room if not name.islower() or "_" in name}
    linked = _CODE.sub(
        lambda code: f"[{code[0]}][kdtrain.{code[1]}]" if code[1] in names else code[0], markdown
    )
    return _LINK.sub(lambda link: _of_site(link, Path(config.docs_dir), page.file.src_uri), linked)


def _entry(name: str) -> str:
    """Returns the Markdown of a name's entry; the settings are members that FitConfig inherits."""
    options = "\n    options: {inherited_members: true, show_signature: false}" if name == "FitConfig" else ""
    return f"::: kdtrain.{name}{options}"


def _expanded(nav: Any, pages: dict[str, list[str]]) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(item, pages) for title, item in nav.items()}
    if isinstance(nav, list):
        return [page for item in nav for page in pages.get(str(item), [_expanded(item, pages)])]
    return nav


def _of_site(link: re.Match[str], docs: Path, page: str) -> str:
    """Returns a link of a page, or its words if it leads to a file outside of docs/."""
    target = Path(os.path.normpath(docs / Path(page).parent / link[2]))
    if target.is_relative_to(docs) or not target.exists():
        return link[0]
    name = str(target.relative_to(ROOT))
    return link[1] if name in link[1] else f"{link[1]} (`{name}`)"


try:
    import griffe
except ImportError:  # tests read the names above
    pass
else:

    class SettingsExtension(griffe.Extension):
        """Reads ``name: type = setting(default, help)`` as an attribute with that default and docstring."""

        def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
            """Changes the attributes of the class that declares the settings."""
            module = pkg["experiment.settings"]
            for setting in module["Settings"].attributes.values():
                default, text = map(str, setting.value.arguments[:2])
                used = [node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
                constants = {name: ast.literal_eval(str(module[name].value)) for name in used}
                setting.value = default
                setting.docstring = griffe.Docstring(eval(text, constants), parent=setting)
