"""Fenced blocks of the documents: the commands that they show, and the files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.tools import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
_BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, kind: str) -> list[str]:
    """Returns the blocks of a kind (``sh``, ``python``) that have no title."""
    return [text for found, title, text in _BLOCK.findall(text_of(page)) if found == kind and not title]


def files(page: Path) -> dict[str, str]:
    """Returns the blocks with a title, which is the name of a file."""
    return {title: text for _, title, text in _BLOCK.findall(text_of(page)) if title}


def commands(page: Path, kind: str = "sh") -> list[list[str]]:
    """Returns the words of each command in the blocks of a kind; a backslash continues a line."""
    joined = [block.replace("\\\n", " ") for block in blocks(page, kind)]
    return [shlex.split(line, comments=True) for block in joined for line in block.splitlines() if line]
