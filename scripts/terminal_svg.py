"""The image of a terminal in docs/index.md: commands of kdtrain and what they print, as SVG."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "docs" / "images" / "terminal.svg"
COLUMNS, ROWS = 80, 50
COMMANDS = ("kdtrain fit --mode compare --quick", "kdtrain infer --picture-index 18")
LEFT_OUT = ("Cost", "Differences in accuracy")
"""First line of a table that is left out, and of the next one."""


def main() -> None:
    """Runs the commands in an empty folder, one after another, and draws their output."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            lines = _shortened(_output(command, Path(folder)).split("\n"))
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi("\n".join(lines).rstrip() + "\n"))
    # A web font is not loaded by an SVG in a page; without it the text has the reader's monospaced font.
    svg = console.export_svg(title="kdtrain", unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    IMAGE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    print(f"{IMAGE}: {IMAGE.stat().st_size:,} bytes")


def _output(command: str, folder: Path) -> str:
    """Returns what a command prints on a terminal, with its colours. Its progress is not shown.

    Raises:
        SystemExit: the command failed.
    """
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    words = [sys.executable, "-m", *shlex.split(command)]
    with tempfile.TemporaryFile("w+") as notes:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=terminal, stderr=notes)
        os.close(terminal)
        content = b"".join(_read(master))
        if process.wait():
            notes.seek(0)
            raise SystemExit(f"{command}: exit {process.returncode}\n{notes.read()}")
    return content.decode().replace("\r\n", "\n")


def _read(master: int) -> Sequence[bytes]:
    """Returns everything that is written to a terminal until its last writer closes it."""
    parts = []
    while True:
        try:
            parts.append(os.read(master, 1 << 16))
        except OSError:  # Linux: EIO at the end
            os.close(master)
            return parts


def _shortened(lines: Sequence[str]) -> list[str]:
    """Leaves one of the tables out, and says so by a line with an ellipsis."""
    plain = [Text.from_ansi(line).plain.strip() for line in lines]
    if not all(title in plain for title in LEFT_OUT):
        return list(lines)
    first, next_one = map(plain.index, LEFT_OUT)
    return [*lines[:first], "…", "", *lines[next_one:]]


if __name__ == "__main__":
    main()
