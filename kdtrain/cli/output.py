"""The answers on stdout."""

from __future__ import annotations

import sys

from rich.console import Console

_WIDTH_ELSEWHERE = 120  # in a file or a pipe nothing has to be cut off to fit


class Output(Console):
    """Prints tables and text to stdout; paths and names in them are text, not markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_ELSEWHERE
        super().__init__(width=width, highlight=False, markup=False, emoji=False)

    def text(self, text: object) -> None:
        """Prints one line, however long: a path that is broken in two cannot be copied."""
        self.print(text, soft_wrap=True)

    def sentence(self, text: str) -> None:
        """Prints text that is broken between words on a terminal, and not at all elsewhere."""
        self.print(text, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Leaves it to ``main`` that nobody reads on, as after ``| head``: rich would exit with 1."""
        raise BrokenPipeError
