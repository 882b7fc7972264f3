"""Results on stdout: tables and text."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

_WIDTH_ELSEWHERE = 120  # columns in a file or a pipe


class Output(Console):
    """A console that prints tables and text to stdout, and takes nothing in them for markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_ELSEWHERE
        super().__init__(width=width, highlight=False, markup=False, emoji=False)

    def text(self, text: object) -> None:
        """Prints one line without wrapping, so that a path in it can be copied."""
        self.print(text, soft_wrap=True)

    def sentence(self, text: str | Text) -> None:
        """Prints text, wrapped between words on a terminal, and not wrapped elsewhere."""
        self.print(text, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which ``main`` handles: rich would exit with 1."""
        raise BrokenPipeError
