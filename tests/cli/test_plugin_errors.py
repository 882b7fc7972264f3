"""Errors in the user's code: the message names the code, its file and line, and OneFlow's cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Call, assert_explained
from tests.tools import read_result

CODE = """
from kdtrain import Callback, flow

class Product(Callback):
    def configure(self, objective):
        return objective.add("own", self.term)
    def term(self, batch, output):
        return flow.matmul(output.logits, output.logits).mean()

class Vector(Product):
    def term(self, batch, output):
        return output.logits.sum(dim=1)

class Nothing(Product):
    def term(self, batch, output):
        output.logits.sum()

class Number(Product):
    def term(self, batch, output):
        return output.logits.mean().item()

class Detached(Callback):
    def configure(self, objective):
        return objective.replace("task", lambda batch, output: output.logits.detach().mean())

class Bound(Callback):
    def configure(self, objective):
        return objective.with_constraint(self.bound)
    def bound(self):
        raise ValueError("out of bounds")

class Configure(Callback):
    def configure(self, objective):
        raise ZeroDivisionError("two left hands")

class Hook(Callback):
    def on_eval(self, run, event):
        return event.metrics["loss/nothing"]

class State(Callback):
    def state_dict(self):
        return {"value": self.value}

class Net(flow.nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.linear = flow.nn.Linear(inputs, classes)
    def forward(self, images):
        images = images.reshape(len(images), -1)
        return self.linear(images[:, 1:] if self.training else images)

def network(image_shape, num_classes):
    return Net(144, num_classes)

def broken(image_shape, num_classes):
    return Net(144, num_classes / 0)

def data():
    return {"x_train": [][0]}
"""


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(CODE.splitlines(), 1) if text in line)


CASES: dict[str, tuple[str, int | None, tuple[str, ...]]] = {
    "term": ("--plugin mine.py:Product", line_of("matmul"), ("mine.py:Product", "'own'", "4 vs 64")),
    "term of many numbers": (
        "--plugin mine.py:Vector",
        line_of("class Vector") + 1,
        ("mine.py:Vector", "'own'", "(64,)", ".mean()"),
    ),
    "term of nothing": ("--plugin mine.py:Nothing", line_of("class Nothing") + 1, ("nothing",)),
    "term of a number": ("--plugin mine.py:Number", line_of("class Number") + 1, ("float",)),
    "term without gradient": ("--plugin mine.py:Detached", None, ("gradient", "task")),
    "term of mixed images": (
        "--plugin mine.py:Nothing --augment mixup=0.4",
        None,
        ("mine.py:Nothing", "'own'"),
    ),
    "constraint": ("--plugin mine.py:Bound", line_of("bounds"), ("mine.py:Bound", "constraint")),
    "configuration": (
        "--plugin mine.py:Configure",
        line_of("two left hands"),
        ("Configure.configure", "ZeroDivisionError: two left hands"),
    ),
    "hook": ("--plugin mine.py:Hook", line_of("nothing"), ("mine.py:Hook", "Hook.on_eval", "KeyError")),
    "state": ("--plugin mine.py:State", line_of("self.value"), ("mine.py:State", "State.state_dict")),
    "network in training": (
        "--student-arch mine.py:network",
        line_of("[:, 1:]"),
        ("mine.py:Net", "143 vs 144"),
    ),
    "network": ("--student-arch mine.py:broken", line_of("/ 0"), ("mine.py:broken", "ZeroDivisionError")),
}
"""Flags, the line of CODE that is named, and other words of the message."""


@pytest.mark.parametrize("case", CASES)
def test_the_message_names_code_and_line(case: str, tiles: Path, call: Call, tmp_path: Path) -> None:
    flags, line, words = CASES[case]
    (tmp_path / "mine.py").write_text(CODE)
    quick = ("--recipe=none", "--data-dir", tiles, "--batch-size=64", "--limit-train=128", "--epochs=1")
    finished = call.any_code("fit", "--mode", "student", *quick, *flags.split())
    if line is not None:
        words += (f"line {line}",)
    assert_explained(finished, 2 if case == "network" else 1, *words)
    if case in ("network", "configuration"):
        assert not (tmp_path / "logs/student").exists()
    else:  # training had begun, and result.json has the same words
        reason = read_result(tmp_path / "logs/student/version_0")["reason"]
        assert all(word in reason for word in words)


def test_a_data_function_is_named_with_its_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    finished = call.any_code("fit", "--mode", "student", "--dataset", "mine.py:data")
    assert_explained(finished, 1, "mine.py:data", f"line {line_of('[0]')}", "IndexError")


def test_the_file_is_named_where_another_one_is_to_blame(
    tiles: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper_of_mine.py").write_text("\n\ndef count(output):\n    return 1 / 0\n")
    (tmp_path / "mine.py").write_text(
        "from kdtrain import Callback\nfrom helper_of_mine import count\n"
        "class Own(Callback):\n    def configure(self, objective):\n"
        "        return objective.add('own', lambda batch, output: count(output))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = (
        *("--mode=student", "--recipe=none", f"--data-dir={tiles}", "--limit-train=64"),
        "--plugin=mine.py:Own",
    )
    finished = call.any_code("fit", *words, "--epochs", "1")
    assert_explained(finished, 1, "'own'", "helper_of_mine.py", "line 4", "ZeroDivisionError")
