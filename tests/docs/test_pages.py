"""Every command on the pages in docs/ works, and every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import RunKdtrain
from tests.tools import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OWN_TESTS = {"writing-a-plugin.md", "models.md", "data.md", "tutorial.md", "serving.md"}
"""Pages whose blocks build on each other more than this test can follow."""

TINY = ("--limit-train", "1024", "--val-size", "256", "--epochs", "1")


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's ``sh`` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


WITH_COMMANDS = [page for page in PAGES if commands(page) and name_of(page) not in OWN_TESTS]


def test_there_is_something_to_try() -> None:
    assert DOCS / "concepts" / "distillation.md" in WITH_COMMANDS


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_work_one_after_another(page: Path, tmp_path: Path, run_kdtrain: RunKdtrain) -> None:
    for program, *words in commands(page):
        assert program == "scripts/kdtrain"
        small = TINY if words[0] == "fit" and "--resume" not in words else ()
        done = run_kdtrain(*words, *small, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/-]+\.md", site))
    decisions = {name_of(page) for page in PAGES if page.parent.name == "decisions"}
    assert {name_of(page) for page in PAGES} - decisions == listed - {"decisions/README.md"}
