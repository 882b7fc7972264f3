"""``csv:FILE``: a table names image files with their classes, and each fault with its line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import DataError, UsageError
from tests.data.test_folder import fill, noise, save
from tests.refusals import refusal_by


def load(table: Path, **options: Any) -> Dataset:
    return load_dataset(f"csv:{table}", cache_dir=table.parent / ".cache", **options)


refusal = refusal_by(load, DataError)


def write(folder: Path, *lines: str) -> Path:
    table = folder / "labels.csv"
    table.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return table


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    """The rows of a table of 16 images, path and label."""
    fill(tmp_path / "pictures", 8)
    paths = sorted(tmp_path.glob("pictures/*/*.png"))
    return [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in paths]


def test_a_table_of_a_folders_images_gives_the_folders_data_set(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / "pictures" / split, count)
    paths = tmp_path.glob("pictures/*/*/*.png")
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name},{path.parts[-3]}" for path in paths]
    random.Random(0).shuffle(lines)
    table, folder = load(write(tmp_path, "path,label,split", *lines)), tmp_path / "pictures"
    expected = load_dataset(f"folder:{folder}")
    assert table.name == f"csv:{tmp_path}/labels.csv"
    assert (table.fingerprint, table.classes) == (expected.fingerprint, expected.classes)
    assert table.validation is not None
    assert len(table.validation) == 4
    assert table.test.names is not None
    assert table.test.names[0] == "pictures/test/cats/000.png"


def test_a_fifth_of_each_class_is_for_testing_in_any_order_of_lines(tmp_path: Path, rows: list[str]) -> None:
    table = load(write(tmp_path, "path,label", *rows))
    assert table.fingerprint == load_dataset(f"folder:{tmp_path / 'pictures'}").fingerprint
    assert load(write(tmp_path, "path,label", *reversed(rows))).fingerprint == table.fingerprint


def test_quotes_spaces_blank_lines_a_byte_order_mark_and_other_columns_are_read(
    tmp_path: Path, rows: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdtrain")
    save(tmp_path / "a, b.png", noise(100))
    lines = ['"a, b.png", "cats",test ,x', "", *(f"{row},train,x" for row in rows)]
    table = load(write(tmp_path, "\ufeffpath,label,split,note", *lines))
    assert (len(table.train), table.test.names, table.test.labels.tolist()) == (16, ("a, b.png",), [0])
    assert caplog.messages[-1].endswith("line 1: only path, label and split are used, not note.")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pictures/cats/000.png", "1 cells, but line 1 names 3 columns"),
        ("a.png,cats,train,x", "4 cells"),
        (",cats,train", "the path is empty"),
        ("a.png, ,train", "the label is empty"),
        ("a.png,cats,", "the split '' is not train, val or test"),
        ("a.png,cats,tets", "(did you mean 'test'?)"),
        ("a.png,owls,test", "no training image has the label 'owls'"),
        ("a.png,ow\x1bls,train", r"the name 'ow\x1bls' cannot be shown"),
        ("pictures/../pictures/cats/001.png,cats,test", "named twice, before in {table}, line 3"),
        ("nowhere.png,cats,train", "nowhere.png"),
        ("text.png,cats,train", "text.png"),
        ('"a.png,cats,train', "unexpected end of data"),
        ("pictures,cats,train", "pictures"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path: Path, rows: list[str], line: str, words: str) -> None:
    (tmp_path / "text.png").write_text("text")
    table = write(tmp_path, "path,label,split", *(f"{row},train" for row in rows), line)
    text = refusal(table)
    assert text.startswith(f"{table}, line 18: ")
    assert words.format(table=table) in text


def test_what_cannot_be_read_is_left_out_by_flag(tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "text.png").write_text("text")
    table = write(tmp_path, "path,label", *rows, "text.png,cats", "nowhere.png,dogs")
    data = load(table, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 16


@pytest.mark.parametrize(
    "names", ["path;label", "", "path,class", "path,path,label", "path,label,split,split"]
)
def test_the_first_line_names_the_columns(tmp_path: Path, rows: list[str], names: str) -> None:
    table = write(tmp_path, names, *rows)
    assert refusal(table).startswith(f"{table}, line 1: the columns are '")


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    assert "has 0 classes of training images" in refusal(write(tmp_path))
    (tmp_path / "latin.csv").write_bytes(b"path,label\n\xff.png,cats\n")
    assert "'utf-8' codec" in refusal(tmp_path / "latin.csv")
    assert "No such file" in refusal(tmp_path / "nowhere.csv")
    assert "cannot be read" in refusal(tmp_path)
    with pytest.raises(UsageError, match=r"use --dataset csv:labels\.csv"):
        load_dataset("labels.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet='pathlbes,";\n\r \x00\ufeff', max_size=30), max_size=5))
def test_any_text_is_refused_with_one_line(tmp_path: Path, lines: list[str]) -> None:
    text = refusal(write(tmp_path, "path,label,split", *lines))
    assert "\n" not in text.replace(str(tmp_path), "")
