"""examples/notebook, run cell by cell in a kernel of its own, and what a kernel shows of a fit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from tests.tools import ROOT

NOTEBOOK = ROOT / "examples" / "notebook" / "kdtrain.ipynb"
SMALLER = {
    'recipe="quick", labels=500': (
        'recipe="quick", labels=100, limit_train=500, seeds=2, epochs=2, teacher_epochs=1'
    ),
    "limit_train=5000, val_size=1000": "limit_train=1000, val_size=250",
    "epochs=4": "epochs=1",
}
"""Texts of the notebook, and what they are replaced by to save time."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")


def text_of(cell: Any, kind: str) -> str:
    """Returns what a cell printed on a stream, or the text of its last value."""
    texts = [
        output["text"] if output["output_type"] == "stream" else output.get("data", {}).get("text/plain", "")
        for output in cell["outputs"]
        if kind in (output["output_type"], output.get("name"))
    ]
    return "".join(texts)


def bars_of(cell: Any) -> list[str]:
    """Returns the texts of a cell's outputs that are replaced as a fit goes on."""
    return [
        output["data"]["text/plain"] for output in cell["outputs"] if output["output_type"] == "display_data"
    ]


def test_notebook_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs or cell.execution_count for cell in code] == [None] * len(code)


def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for many, few in SMALLER.items():
        assert any(many in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(many, few)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    by_source = {cell.source: cell for cell in notebook.cells if cell.cell_type == "code"}

    def cell_with(words: str) -> Any:
        return next(cell for source, cell in by_source.items() if words in source)

    compared = cell_with("kdtrain.compare(")
    assert text_of(compared, "execute_result").startswith("<ComparisonRun student_kd - student: ")
    printed = text_of(compared, "stderr")
    assert re.search(r"^teacher/0 +1/1  loss ", printed, re.MULTILINE), "a forked child's lines arrive"
    lines = re.findall(r"^(?:student|student_kd)/[01] .*", printed, re.MULTILINE)
    assert len(lines) == 4, "one for each fit"
    assert "\r" not in printed, "bars are replaced, so that the notebook's file keeps none"
    assert bars_of(compared) == [""], "the bars of a cell have one output"
    assert "image/png" in cell_with("comparison.picture").outputs[-1]["data"]
    assert text_of(cell_with("distil("), "execute_result").startswith("[0.")
    assert "the same figures again: True" in text_of(cell_with("distil("), "stdout")
    assert bars_of(cell_with("distil(")) == [""], "those of a loop in the kernel's process too"
    assert list((tmp_path / "logs/first").glob("events.*"))
    assert "load_plugin" in text_of(cell_with("dir(kdtrain)"), "execute_result")
    assert "student.int8.onnx" in text_of(cell_with("kdtrain.export("), "execute_result")
    assert (tmp_path / "prediction.png").is_file()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


LONG_FIT = """
import logging, kdtrain
logging.basicConfig(level=logging.INFO, format="%(message)s")
kdtrain.fit("student", recipe="none", limit_train=2000, epochs=1000)
"""


def test_stop_button_ends_a_fit_and_leaves_the_kernel(
    kernel: tuple[KernelManager, BlockingKernelClient], tmp_path: Path
) -> None:
    manager, client = kernel
    # Otherwise the kernel aborts what it is asked to run right after an error.
    number = client.execute(LONG_FIT, stop_on_error=False)
    drawn = ""
    while not re.match(r"student ([3-9]|\d\d+)/1000:", drawn):  # not every epoch is drawn
        message = client.get_iopub_msg(timeout=60)
        drawn = message["content"].get("data", {}).get("text/plain", "")
    began = time.monotonic()
    manager.interrupt_kernel()
    message = client.get_shell_msg(timeout=30)
    while message["parent_header"]["msg_id"] != number:  # wait_for_ready may have asked more than once
        message = client.get_shell_msg(timeout=30)
    reply = message["content"]
    assert time.monotonic() - began < 5
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert str(tmp_path / "logs/student/version_0") in reply["evalue"]
    answers: list[str] = []
    client.execute_interactive(
        "print(6 * 7)",
        timeout=30,
        output_hook=lambda message: answers.append(message["content"].get("text", "")),
    )
    assert "42" in "".join(answers)
