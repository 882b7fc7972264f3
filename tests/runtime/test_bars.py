"""Progress bars: those of parallel jobs on a terminal, and messages elsewhere."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest

from kdtrain.runtime.bars import JobRow, progress_bar
from tests.terminal import lines_left, show_on_terminal

JOBS = """
import logging, os, signal, time
from kdtrain.runtime.bars import command_bar, count_epochs, expect_epochs, progress_bar
from kdtrain.runtime.console import log_to_stderr
from kdtrain.runtime.oneflow import import_oneflow
from kdtrain.runtime.processes import Job, run_jobs

def job(name, skipped, last=lambda: None):
    def fit():
        count_epochs(skipped=skipped)
        with progress_bar(f"{name} 1/9", 30, "step") as bar:
            for step in range(1, 31):
                bar.set_postfix_str("loss 0.1234, accuracy 98.76%", refresh=False)
                bar.update()
                time.sleep(0.05)
                count_epochs(trained=step % 10 == 0)
        logging.getLogger("kdtrain.test").info(f"{name} is done.")
        last()
        time.sleep(0.3)
    return Job(name, fit)

def fail():
    raise RuntimeError

def interrupt():
    os.kill(os.getppid(), signal.SIGINT)

import_oneflow()
with log_to_stderr(), command_bar():
    expect_epochs(14)
    try:
        run_jobs([job("one", 0), job("two", 5), job("three", 0, SOMETHING)])
    except BaseException as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("last", "columns", "error"),
    [("lambda: None", 80, ""), ("fail", 80, "RuntimeError\n"), ("interrupt", 50, "KeyboardInterrupt\n")],
)
def test_bars_of_jobs_fit_the_terminal_and_are_gone_in_the_end_with_whole_messages_above_them(
    last: str, columns: int, error: str, tmp_path: Path
) -> None:
    program = ("-c", JOBS.replace("SOMETHING", last))
    began = time.monotonic()
    shown, printed = show_on_terminal(cwd=tmp_path, columns=columns, program=program)
    frames = re.findall(r"\x1b\[J([^\x1b]*%\|[^\x1b]*)", shown)
    assert len(frames) <= 10 * (time.monotonic() - began)
    lines = "\n".join(frames).splitlines()
    assert all(len(line) < columns for line in lines)
    for bar in ("one 1/9", "two 1/9", "three 1/9", "all epochs [1-8]/9"):
        assert any(re.match(rf"{bar}: +\d+%\|", line) for line in lines), (bar, lines)
    assert any(re.search(r", 00:\d\d left$", line) for line in lines)
    assert sorted(lines_left(shown)) == ["one is done.", "three is done.", "two is done."]
    assert printed == error


def test_of_more_jobs_than_lines_the_last_line_stays(tmp_path: Path) -> None:
    program = ("-c", JOBS.replace("SOMETHING", "fail"))
    shown, _ = show_on_terminal(cwd=tmp_path, rows=3, program=program)
    assert re.search(r"\x1b\[J\.\.\. and 2 more\r\nall epochs ", shown)


def test_a_bar_that_is_being_written_is_shown_as_before() -> None:
    row = JobRow("a job", is_claimable=False)
    assert str(row) == "a job ..."
    row.write({"n": 1, "total": 4, "elapsed": 2.0, "prefix": "a bar"})
    shown = str(row)
    assert shown.startswith("a bar:  25%|")
    row._figures[5:10] = b"\xff" * 5
    assert str(row) == shown
    row.write(None)
    assert str(row) == "a job ..."


def test_elsewhere_a_bar_that_takes_long_is_a_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kdtrain"), progress_bar("test set", 4, "batch", mininterval=0) as bar:
        bar.update()
        bar.update(2)
    assert len(caplog.messages) == 2
    assert re.fullmatch(r"test set: 3 of 4 \(75 %\), 00:00 left", caplog.messages[-1])
    with progress_bar("test set", 4, "batch", mininterval=0) as bar:
        bar.update()
    assert len(caplog.messages) == 2, "none without a level of messages"
