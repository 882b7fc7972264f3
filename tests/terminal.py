"""Commands on a terminal, and what the terminal shows of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from collections.abc import Sequence
from pathlib import Path

from tests import warm
from tests.tools import ROOT


def show_on_terminal(
    *words: str | Path,
    cwd: Path,
    columns: int = 80,
    rows: int = 24,
    code: int = 0,
    program: Sequence[str] = ("-m", "kdtrain"),
) -> tuple[str, str]:
    """Runs kdtrain with a terminal for stderr; returns what the terminal shows, and stdout."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command, shown = [sys.executable, *program, *map(str, words)], b""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with (
        tempfile.TemporaryFile("w+") as out,
        warm.Popen(command, cwd=cwd, env=variables, stdout=out, stderr=end) as process,
    ):
        os.close(end)
        with contextlib.suppress(OSError):  # how Linux reports that nobody has the other end open any more
            while part := os.read(terminal, 4096):
                shown += part
        assert process.wait() == code
        out.seek(0)
        answer = out.read()
    os.close(terminal)
    return shown.decode(), answer


def lines_left(shown: str) -> list[str]:
    """What a terminal shows at last: carriage returns, cursor moves up and erasures are carried out."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|[\r\n]|[^\x1b\r\n]+", shown):
        if part == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif part == "\r":
            column = 0
        elif part in ("\x1b[J", "\x1b[K"):
            rows[row:] = [rows[row][:column], *(rows[row + 1 :] if part == "\x1b[K" else [])]
        elif part[0] == "\x1b":
            assert part[-1] == "A", part
            row -= int(part[2:-1])
        else:
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in rows if line.strip()]
