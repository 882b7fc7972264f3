"""What people read of an exception: its cause, on one line; and suggestions that are near."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from kdtrain.cli.flags import add_setting_flags
from kdtrain.cli.parser import COMMANDS
from kdtrain.errors import DataError, did_you_mean, listed, one_line, os_reason
from kdtrain.runtime import flow

ONES = flow.ones(4, 10)

CAUSES: dict[str, tuple[Callable[[], object], str]] = {
    "product": (lambda: flow.matmul(ONES, ONES), "RuntimeError: sizes do not match: 10 vs 4"),
    "layer": (lambda: flow.nn.Linear(5, 2)(ONES), "RuntimeError: sizes do not match: 10 vs 5"),
    "broadcast": (lambda: ONES + flow.ones(3, 10), "RuntimeError: The size of tensor a (4) must match"),
    "reshape": (lambda: ONES.reshape(3, 3), "RuntimeError: shape '(3,3)' is invalid for input of size 40"),
    "argument": (lambda: flow.matmul(ONES), "TypeError: matmul(): missing required argument other"),
    "arguments": (
        lambda: flow.sum(ONES, dim="a"),
        "TypeError: reduce_sum(): received an invalid combination",
    ),
    "kernel": (lambda: flow.softmax(ONES.long(), dim=0), "op_type_name: softmax DeviceType_Name: kCPU"),
    "no gradient": (lambda: ONES.sum().backward(), "Exception: element 0 of tensors does not require grad"),
    "no scalar": (
        lambda: ONES.item(),
        "RuntimeError: can only convert a tensor of size 1 to a Python scalar",
    ),
}


@pytest.mark.parametrize("kind", CAUSES)
def test_oneflows_cause_is_shown_without_its_stack(kind: str) -> None:
    cause, expected = CAUSES[kind]
    with pytest.raises(Exception) as caught:  # noqa: PT011  # oneflow raises several types
        cause()
    text = one_line(caught.value)
    assert expected in text
    for noise in ("\n", "\x1b", ".cpp", "Error Type", "Error: Error"):
        assert noise not in text


def test_any_text_becomes_one_line_of_some_length() -> None:
    assert one_line(ValueError("two\nlines.\n")) == "ValueError: two lines"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(DataError("it is damaged.")) == "it is damaged."
    assert len(one_line(ValueError("x" * 10_000))) < 600
    assert "\x1b" not in one_line(ValueError("\x1b]0;title"))


def flags() -> list[str]:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    return list(parser._option_string_actions)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("--moed", "--mode"), ("--epcohs", "--epochs"), ("--batchsize", "--batch-size")),
        *(("--temprature", "--temperature"), ("--temp", "--temperature"), ("--val", "--val-size")),
        *(("--alfa", "--alpha"), ("--plguin", "--plugin"), ("--log-dir", "--logdir")),
        *(("--early-stop", "--early-stopping"), ("--student-arc", "--student-arch"), ("trian", None)),
        *(("--quiet", None), ("--verbose", None), ("--silent", None), ("--gpu", None), ("--workers", None)),
        *(("--output", None), ("--patience", None), ("--zebra", None), ("--steps", None), ("-x", None)),
    ],
)
def test_a_flag_is_suggested_only_where_it_is_near(typed: str, meant: str | None) -> None:
    assert did_you_mean(typed, flags()) == (f" (did you mean {meant!r}?)" if meant else "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *(("fitt", "fit"), ("evaluate", "eval"), ("doctr", "doctor"), ("conf", "config"), ("train", None)),
        *(("run", "runs"), ("start", None)),
    ],
)
def test_a_command_is_suggested_only_where_it_is_near(typed: str, meant: str | None) -> None:
    assert did_you_mean(typed, COMMANDS) == (f" (did you mean {meant!r}?)" if meant else "")


def test_a_long_list_says_how_many_more_there_are() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2, "; ") == "a; b; and 2 more"


def test_a_reason_is_never_empty() -> None:
    assert os_reason(FileNotFoundError(2, "No such file", "x")) == "No such file"
    assert [os_reason(ValueError("a")), os_reason(MemoryError())] == ["a", "MemoryError"]
