"""Words of the documents: their length, what they must not hold, and names that the code must have."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from kdtrain import Batch, BatchEnd, EpochEnd, EvalEnd, FitEnd, Output, Run, Status
from kdtrain.cli.parser import COMMANDS, command_parser
from tests.documents import DOCS, README, blocks, text_of
from tests.tools import ROOT

MOST_WORDS = 600
"""Words of the README, counted as ``wc -w`` does."""
WITH_COMMITS = {DOCS / "benchmarks.md", DOCS / "methods.md"}
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.parent.name != "decisions"]
REFERENCE = DOCS / "plugin-reference.md"
TROUBLE = DOCS / "troubleshooting.md"
COMMAND_PAGE = DOCS / "commands.md"
GLOSSARY = DOCS / "glossary.md"
SHORTEST = 5
"""Characters of a part of a message that is looked for in the code."""


def test_readme_is_short() -> None:
    assert len(text_of(README).split()) < MOST_WORDS


def test_readme_shows_commands_in_80_columns() -> None:
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    assert lines
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_commits_are_in_the_benchmarks_alone(page: Path) -> None:
    hashes = re.findall(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7,40}\b", text_of(page))
    assert hashes == [] or page in WITH_COMMITS


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_every_heading_has_text(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "block", text_of(page), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line]
    levels = [len(line) - len(line.lstrip("#")) for line in lines] + [1]
    pairs = zip(lines, levels, levels[1:], strict=False)
    assert [line for line, level, following in pairs if level and 0 < following <= level] == []


def test_pages_have_the_names_of_figures() -> None:
    assert [page.name for page in PAGES if "eval/" in text_of(page)] == []


def section(page: Path, heading: str) -> str:
    """Returns the text from a heading of any level to the next one."""
    (found,) = re.findall(
        rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text_of(page), re.MULTILINE | re.DOTALL
    )
    return str(found)


@pytest.mark.parametrize("kind", [Batch, Output, BatchEnd, EvalEnd, EpochEnd, FitEnd, Run])
def test_every_public_field_is_in_the_reference(kind: type) -> None:
    fields = {*getattr(kind, "__annotations__", ()), *vars(kind)}
    named = set(re.findall(r"`(\w+)[`(]", section(REFERENCE, kind.__name__)))
    assert {name for name in fields if not name.startswith("_")} - named == set()


def test_every_status_is_in_the_reference() -> None:
    assert {status.name for status in Status} <= set(re.findall(r"`(\w+)`", section(REFERENCE, "FitEnd")))


def texts_of_the_code() -> str:
    """Returns all texts in kdtrain/, and the messages of scripts/bootstrap and of the stubs."""
    texts = [(ROOT / "kdtrain/runtime/cuda_stubs/stub.c").read_text()]
    texts += [re.sub(r"[\"'] \\\n *[\"']", " ", (ROOT / "scripts/bootstrap").read_text())]
    for file in sorted((ROOT / "kdtrain").rglob("*.py")):
        tree = ast.parse(file.read_text())
        nodes = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        texts += [value for value in nodes if isinstance(value, str)]
    return "\n".join(texts)


def test_messages_of_the_troubleshooting_page_are_the_code_s() -> None:
    messages = re.findall(r"\*\*`([^`]+)`", text_of(TROUBLE))
    parts = [part.strip() for message in messages for part in message.split("…")]
    code = texts_of_the_code()
    assert len(messages) > 30
    assert [part for part in parts if len(part) >= SHORTEST and part not in code] == []


def test_every_command_has_a_row() -> None:
    rows = re.findall(r"^\| `kdtrain (\w+)` \|", text_of(COMMAND_PAGE), re.MULTILINE)
    assert set(COMMANDS) <= set(rows)


def joined(block: str) -> str:
    """Returns a block with each command on one line."""
    return block.replace("\\\n", " ")


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_commands_that_are_shown_are_understood(page: Path) -> None:
    """Those in ``sh`` blocks are run by test_pages.py; the others are only parsed."""
    lines = [line for block in blocks(page, "bash") for line in joined(block).splitlines()]
    for program, *words in (shlex.split(line, comments=True) for line in lines if line.strip()):
        if program == "scripts/kdtrain":
            command_parser(words[0]).parse_args(words[1 : words.index(">") if ">" in words else None])


def test_glossary_is_in_order_and_says_something_of_each_term() -> None:
    terms = re.findall(r"^### (.+)\n\n(.+)$", text_of(GLOSSARY), re.MULTILINE)
    names = [name for name, _ in terms]
    assert names == sorted(names, key=str.lower)
    assert len(names) == text_of(GLOSSARY).count("### ")
