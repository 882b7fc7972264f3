"""``scripts/letters`` divides typefaces by family, and leaves out those whose characters look the same."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kdtrain.data.datasets import load_dataset
from scripts.letters_folder import CHARACTERS, PACKAGES, SIDE, Family, check, class_of, divide, draw, write
from tests.tools import ROOT

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SANS, BOLD, SERIF = (FONTS / f"{name}.ttf" for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif"))


def test_characters_stand_on_one_baseline_and_fit() -> None:
    glyphs = draw(SANS)
    assert glyphs.shape == (62, SIDE, SIDE)
    ink = glyphs < 128
    lowest = {character: np.flatnonzero(ink[i].any(axis=1)).max() for i, character in enumerate(CHARACTERS)}
    assert abs(lowest["E"] - lowest["x"]) <= 1
    assert lowest["p"] > lowest["x"] + 5, "p has a descender"
    assert ink[CHARACTERS.index("O")].sum() > 1.3 * ink[CHARACTERS.index("o")].sum(), "size tells the case"
    assert not ink[:, [0, -1]].any()
    assert not ink[:, :, [0, -1]].any()
    check(glyphs, 62)


def test_a_style_with_one_shape_for_two_characters_is_left_out() -> None:
    glyphs = draw(SANS)
    glyphs[CHARACTERS.index("a")] = glyphs[CHARACTERS.index("A")]
    with pytest.raises(ValueError, match="look the same"):
        check(glyphs, 62)
    check(glyphs, 36)
    glyphs[CHARACTERS.index("0")] = glyphs[CHARACTERS.index("O")]
    with pytest.raises(ValueError, match="look the same"):
        check(glyphs, 36)
    glyphs[5] = 255
    with pytest.raises(ValueError, match="empty"):
        check(glyphs, 36)


@pytest.mark.parametrize("classes", [62, 36])
def test_names_of_classes_differ_where_case_does_not_count(classes: int) -> None:
    names = {class_of(character, classes) for character in CHARACTERS}
    assert len(names) == len({name.lower() for name in names}) == classes


def test_a_family_and_what_looks_like_it_are_in_one_part(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    families = [
        Family(f"Type{number} Sans", "fonts-x", {"regular": random.integers(0, 255, (62, 64, 64), np.uint8)})
        for number in range(100)
    ]
    families += [Family(f"Type{number} Serif", "fonts-x", {"bold": draw(SERIF)}) for number in (3, 4)]
    families.append(Family("Copy of 7", "fonts-y", dict(families[7].styles)))
    parts = divide(families)
    assert parts["Type3 Sans"] == parts["Type3 Serif"] == parts["Type4 Serif"] == parts["Type4 Sans"]
    assert parts["Copy of 7"] == parts["Type7 Sans"]
    assert divide(families[::-1]).keys() == parts.keys()
    counts = Counter(part for _, part in parts.values())
    assert 15 < counts["test"] < 26
    assert 8 < counts["val"] < 16


def test_the_folder_is_a_data_set(tmp_path: Path) -> None:
    families = [
        Family("Deja Sans", "fonts-x", {"regular": draw(SANS), "bold": draw(BOLD)}),
        Family("Vu Serif", "fonts-x", {"regular": draw(SERIF)}),
    ]
    parts = {"Deja Sans": ("a", "train"), "Vu Serif": ("b", "test")}
    assert write(tmp_path / "letters", families, parts, 36) == {"train": 124, "test": 62}
    dataset = load_dataset(f"folder:{tmp_path / 'letters'}", cache_dir=tmp_path)
    assert (dataset.num_classes, dataset.image_shape) == (36, (1, SIDE, SIDE))
    assert (len(dataset.train), len(dataset.test)) == (124, 62)
    picture = np.asarray(Image.open(tmp_path / "letters/test/letter_Q/Vu_Serif-regular-lower.png"))
    np.testing.assert_array_equal(picture, draw(SERIF)[CHARACTERS.index("q")])


def test_packages_are_named_once_and_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    assert len(set(PACKAGES)) == len(PACKAGES) > 150
    script: list[str | Path] = [sys.executable, ROOT / "scripts/letters_folder.py", tmp_path]
    finished = subprocess.run(script, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr == f"scripts/letters: {tmp_path} exists: name a new folder, or remove it.\n"
