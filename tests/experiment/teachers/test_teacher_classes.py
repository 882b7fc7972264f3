"""The classes of a teacher are matched with those of the data, by name, by position or as it is asked."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kdtrain.errors import CheckpointError, UsageError
from kdtrain.experiment.teachers.classes import match_classes

PETS = ("cat", "dog", "fish")
DIGITS = ("0", "1", "2")


def match(
    wanted: tuple[str, ...],
    names: tuple[str, ...] | None,
    number: int | None = None,
    asked: str | None = None,
) -> tuple[int, ...] | None:
    return match_classes(wanted, names, number or len(names or ()), asked, "teacher.onnx")


@pytest.mark.parametrize(
    ("wanted", "names", "number", "expected"),
    [
        (PETS, PETS, 3, None),
        (PETS, ("fish", "cat", "dog"), 3, (1, 2, 0)),
        (PETS, ("ant", "fish", "bee", "cat", "dog"), 5, (3, 4, 1)),
        (PETS, None, 3, None),
        (PETS, DIGITS, 3, None),
        (DIGITS, PETS, 3, None),
        (PETS, ("Katze", "Hund", "Fisch"), 3, None),
        (DIGITS, ("2", "1", "0"), 3, (2, 1, 0)),
    ],
)
def test_names_win_where_both_sides_have_them_and_else_the_position(
    wanted: tuple[str, ...], names: tuple[str, ...] | None, number: int, expected: tuple[int, ...] | None
) -> None:
    assert match(wanted, names, number) == expected


def test_what_does_not_match_is_listed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kdtrain"):
        match(PETS, ("ant", "fish", "bee", "cat", "dog"))
        match(PETS, ("Katze", "Hund", "Fisch"))
    by_name, by_position = caplog.messages
    assert "the data have no ant, bee" in by_name
    assert "by position: it has Katze for cat, Hund for dog, Fisch for fish" in by_position
    with pytest.raises(
        CheckpointError, match=r"has 4 classes, the data have 3, and it has no dog, fish.*--teacher-c"
    ):
        match(PETS, ("cat", "Hund", "Fisch", "Maus"))
    with pytest.raises(
        CheckpointError, match="has 1000 classes, the data have 3, and its file does not name them"
    ):
        match(PETS, None, 1000)


@pytest.mark.parametrize("names", [("bird", "cat", "dog"), ("cat", "dog", "bird"), ("x", "cat", "y")])
def test_a_name_on_both_sides_contradicts_positions(names: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"it has no .*fish, but .*cat.*--teacher-classes"):
        match(PETS, names)
    assert match(PETS, names, asked="1,2,0") == (1, 2, 0)


def test_a_json_list_is_the_teacher_s_own_names_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text('["ant", "fish", "cat, small", "dog", "cat"]')
    assert match(PETS, None, 5, asked=str(file)) == (4, 3, 1)
    assert match(PETS, (*DIGITS, "3", "4"), asked=str(file)) == (4, 3, 1)
    for content, number, reason in (
        ('["fish", "dog", "cat"]', 4, "the list has 3 names, 3 of them different, and teacher.onnx has 4"),
        ('["fish", "dog", "fish"]', 3, "the list has 3 names, 2 of them different"),
    ):
        file.write_text(content)
        with pytest.raises(UsageError, match=reason):
            match(PETS, None, number, asked=str(file))
    file.write_text('["bird", "cat", "dog"]')
    with pytest.raises(CheckpointError, match="it has no fish, but cat, dog"):
        match(PETS, None, 3, asked=str(file))


def test_a_name_with_a_comma_is_in_quotes() -> None:
    names = ("tench, Tinca", "pug", "carp")
    assert match(PETS, names, asked='pug, "tench, Tinca",2') == (1, 0, 2)
    assert match(PETS, names, asked='{"cat": "tench, Tinca", "dog": 1, "fish": "carp"}') == (0, 1, 2)


def test_a_list_or_a_mapping_chooses(tmp_path: Path) -> None:
    names = ("tabby", "pug", "carp", "owl")
    assert match(PETS, names, asked="tabby, pug,2") == (0, 1, 2)
    assert match(PETS, None, 4, asked="3,0,0") == (3, 0, 0)
    file = tmp_path / "classes.json"
    file.write_text('{"fish": "carp", "cat": 0, "dog": "pug"}')
    assert match(PETS, names, asked=str(file)) == (0, 1, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"fish": "carp", "cat": 0}', "no entry for dog"),
        ('{"fish": "carp", "cat": 0, "dgo": 1}', "dog"),
        ('{"fish": "crap", "cat": 0, "dog": 1}', "carp"),
        ("[0, 1, 2]", "object"),
        ("{", "cannot be read"),
        ('{"fish": "%s", "cat": 0, "dog": 1}' % ("9" * 5000), "no class|no 'class|there is no class"),
        ('{"fish": 1.5, "cat": 0, "dog": 1}', "names or numbers"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "classes.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=reason):
        match(PETS, ("tabby", "pug", "carp"), asked=str(file))


@pytest.mark.parametrize("asked", ["0,1", "0,1,3", "0,1,-1", "a,b,c", "", "0,1,2,0", f"0,1,{'9' * 5000}"])
def test_a_list_that_does_not_fit_is_refused(asked: str) -> None:
    with pytest.raises(UsageError, match="--teacher-classes"):
        match(PETS, None, 3, asked=asked)


def test_a_mapping_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read: No such file"):
        match(PETS, PETS, asked="none.json")
