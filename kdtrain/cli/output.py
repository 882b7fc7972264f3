"""Results on stdout: tables and text."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from kdtrain.runtime.locations import with_commands

_WIDTH_ELSEWHERE = 120  # columns in a file or a pipe


class Output(Console):
    """A console that prints tables and text to stdout, and does not interpret markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_ELSEWHERE
        super().__init__(width=width, highlight=False, markup=False, emoji=False)

    def text(self, text: object) -> None:
        """Prints one line without wrapping, so that a path or a command in it can be copied."""
        self.print(with_commands(str(text)), soft_wrap=True)

    def sentence(self, text: str | Text) -> None:
        """Prints text, wrapped between words on a terminal, and not wrapped elsewhere."""
        shown = with_commands(text) if isinstance(text, str) else text
        self.print(shown, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError, which ``main`` handles: rich would exit with 1."""
        raise BrokenPipeError


@contextlib.contextmanager
def only_json() -> Iterator[Callable[[Any], None]]:
    """Keeps stdout for one JSON document: whatever else is printed in the block goes to stderr.

    This includes the output of plugins, of C libraries and of forked processes.

    Yields:
        The function that prints the document.
    """
    sys.stdout.flush()
    document: list[Any] = []
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield document.append
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    for values in document:
        print(json.dumps(values, indent=2))
