"""An error in code of the user's names it, its file and the line, and oneflow's cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import CallKdtrain, assert_explained

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


def plugin(name: str) -> tuple[str, ...]:
    return ("--plugin", f"mine.py:{name}")


CASES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "term": (
        plugin("Product"),
        1,
        (f"mine.py:Product, term 'own', line {line_of('matmul')}: ", "sizes do not match: "),
    ),
    "term of many numbers": (
        plugin("Vector"),
        1,
        (f"mine.py:Vector, term 'own', line {line_of('dim=1') - 1}: ", "shape (64,)", "add .mean()"),
    ),
    "term of nothing": (
        plugin("Nothing"),
        1,
        (f"line {line_of('class Nothing') + 1}: ", "it returned nothing"),
    ),
    "term of a number": (plugin("Number"), 1, (f"line {line_of('class Number') + 1}: ", "a float")),
    "term without gradient": (plugin("Detached"), 1, ("no gradient flows from task",)),
    "term of mixed images": (
        (*plugin("Nothing"), "--augment", "mixup=0.4"),
        1,
        ("mine.py:Nothing, term 'own'", "it returned nothing"),
    ),
    "constraint": (plugin("Bound"), 1, (f"mine.py:Bound, a constraint, line {line_of('bounds')}: ",)),
    "hook": (
        plugin("Hook"),
        1,
        (f"mine.py:Hook, line {line_of('nothing')}: Hook.on_eval raised KeyError: ",),
    ),
    "state": (plugin("State"), 1, (f"mine.py:State, line {line_of('self.value')}: State.state_dict raised",)),
    "network in training": (
        ("--student-arch", "mine.py:network"),
        1,
        (f"the network mine.py:Net, line {line_of('[:, 1:]')}: ", "sizes do not match: 143 vs 144"),
    ),
    "network": (
        ("--student-arch", "mine.py:broken"),
        2,
        (f"mine.py:broken, line {line_of('/ 0')}: ", "ZeroDivisionError"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_named_with_its_line(case: str, tiles: Path, call_kdtrain: CallKdtrain, tmp_path: Path) -> None:
    flags, code, words = CASES[case]
    (tmp_path / "mine.py").write_text(CODE)
    quick = (
        "--mode",
        "student",
        "--data-dir",
        tiles,
        "--batch-size",
        "64",
        "--limit-train",
        "128",
        "--epochs",
        "1",
    )
    finished = call_kdtrain("fit", *quick, *flags, cwd=tmp_path)
    assert_explained(finished, code, *words)
    if code == 1:  # the run was under way, and tells the same
        result = json.loads((tmp_path / "logs/student/version_0/result.json").read_text())
        assert words[0].rstrip() in result["reason"]


def test_a_data_function_is_named_with_its_line(call_kdtrain: CallKdtrain, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    finished = call_kdtrain("fit", "--mode", "student", "--dataset", "mine.py:data", cwd=tmp_path)
    assert_explained(finished, 1, f"--dataset mine.py:data, line {line_of('[0]')}: ", "IndexError")


def test_the_file_is_named_where_another_one_is_to_blame(
    tiles: Path, call_kdtrain: CallKdtrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper_of_mine.py").write_text("\n\ndef count(output):\n    return 1 / 0\n")
    (tmp_path / "mine.py").write_text(
        "from kdtrain import Callback\nfrom helper_of_mine import count\n"
        "class Own(Callback):\n    def configure(self, objective):\n"
        "        return objective.add('own', lambda batch, output: count(output))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("--mode", "student", "--data-dir", tiles, "--limit-train", "64", "--epochs", "1", *plugin("Own"))
    assert_explained(
        call_kdtrain("fit", *words, cwd=tmp_path),
        1,
        "term 'own', helper_of_mine.py line 4: ZeroDivisionError",
    )
