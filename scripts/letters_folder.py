"""A folder of letters and digits in hundreds of typefaces; a family of typefaces is in one part alone.

Families whose names begin with the same word, or whose letters look the same, are one group: a typeface of a
test image is in no training image, under no name. Each family gives its upright style and its bold one.
Styles that lack a character, or in which two characters look the same, are left out.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import io
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

PACKAGES = Path(__file__).with_name("letters_packages.txt").read_text(encoding="utf-8").split()
"""Debian's packages of typefaces with Latin letters under free licences."""

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIDE = 64  # pixels of an image
_INK, _WIDEST = 50, 60  # pixels from the highest to the lowest point of all characters, and across the widest
_SHARES = {"test": 0.2, "val": 0.1}
_ALIKE = 0.95  # correlation of the pixels of two families' characters
_SAME = 0.985  # cosine of the ink of two characters of a style
_LARGE = 0.05  # share of the images from which on a group is for training
_SLANTED = re.compile(r"ital|obli|slant|kursiv|cursive", re.IGNORECASE)
_BOLD = re.compile(r"^\s*bold\s*$", re.IGNORECASE)
_UPRIGHT = re.compile(r"^\s*(|regular|normal|book|roman|medium|10 regular|\w+ regular)\s*$", re.IGNORECASE)

Glyphs = npt.NDArray[np.uint8]
"""(62, SIDE, SIDE): the characters of one style, black on white."""


@dataclasses.dataclass
class Family:
    """A family of typefaces.

    Attributes:
        name: its name.
        package: the package that it is from.
        styles: the pictures of its styles, by ``regular`` and ``bold``.
    """

    name: str
    package: str
    styles: dict[str, Glyphs]


def main() -> None:
    """Builds the folder that the command line names, and prints its contents."""
    parser = argparse.ArgumentParser(prog="scripts/letters", description=(__doc__ or "").replace("\n", " "))
    parser.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    parser.add_argument(
        "--classes", type=int, choices=(62, 36), default=62,
        help="62: digits, capitals and small letters; 36: both cases of a letter are one class [62]",
    )  # fmt: skip
    options = parser.parse_args()
    folder: Path = options.folder
    if folder.exists():
        _fail(f"{folder} exists: name a new folder, or remove it.")
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            _fail(f"{program} is not installed: the typefaces come from packages of Debian or Ubuntu.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        versions = unpack(Path(work, "packages"))
        families = read_families(Path(work, "packages"), options.classes)
        parts = divide(families)
        built = Path(work, "folder")
        counts = write(built, families, parts, options.classes)
        _write_lists(built, families, parts, versions, Path(work, "packages"))
        built.rename(folder)  # an interrupted run leaves no folder that lacks images
    groups = len({group for group, _ in parts.values()})
    print(f"{folder}: {len(families)} families in {groups} groups, {options.classes} classes")
    for part, number in counts.items():
        print(f"  {part:<5}  {number:>6,} images")
    print(f"  families and licences are in {folder}/families.csv and LICENCES.md, a sample in samples.png")


def unpack(folder: Path) -> dict[str, str]:
    """Downloads and unpacks the packages; returns their versions."""
    archives = folder / "archives"
    archives.mkdir(parents=True)
    print(f"downloading {len(PACKAGES)} packages, 240 MB", file=sys.stderr)
    words = ["apt-get", "download", "--quiet=2", *PACKAGES]
    done = subprocess.run(words, cwd=archives, capture_output=True, text=True, check=False)
    if done.returncode:
        _fail(f"apt-get has not downloaded the packages: {done.stderr.strip().splitlines()[-1]}")
    versions = {}
    for archive in sorted(archives.iterdir()):
        name, version, _ = archive.name.split("_")
        subprocess.run(["dpkg-deb", "--extract", archive, folder / name], check=True)
        versions[name] = version.replace("%3a", ":")
    shutil.rmtree(archives)
    return versions


def read_families(folder: Path, classes: int) -> list[Family]:
    """Returns the families in unpacked packages whose characters can be told apart, by name."""
    families: dict[str, Family] = {}
    left_out: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".ttf", ".otf") or path.is_symlink():
            continue
        try:
            name, style = _names(path)
            kind = "" if style is None else style
            family = families.setdefault(name, Family(name, path.relative_to(folder).parts[0], {}))
            if not kind or kind in family.styles:
                continue
            glyphs = draw(path)
            check(glyphs, classes)
            family.styles[kind] = glyphs
        except (ValueError, OSError, TTLibError, AssertionError, KeyError) as error:
            left_out[str(error) if isinstance(error, ValueError) else type(error).__name__] += 1
    for reason, number in left_out.most_common():
        print(f"left out {number} styles: {reason}", file=sys.stderr)
    return sorted((family for family in families.values() if family.styles), key=lambda family: family.name)


def _names(path: Path) -> tuple[str, str | None]:
    """Returns the family of a font file and its style: regular, bold, or None for another.

    Raises:
        ValueError: it lacks a character.
    """
    with TTFont(path, lazy=True) as font:
        table, characters = font["name"], font.getBestCmap() or {}
        name = table.getDebugName(16) or table.getDebugName(1) or path.stem
        style = table.getDebugName(17) or table.getDebugName(2) or ""
        if _SLANTED.search(f"{style} {path.stem}"):
            return name, None
        if not all(ord(character) in characters for character in CHARACTERS):
            raise ValueError("a character is missing")
    if _BOLD.match(style):
        return name, "bold"
    return name, "regular" if _UPRIGHT.match(style) else None


def draw(path: Path) -> Glyphs:
    """Returns the characters of a font file on one baseline, each in the middle, at the size that just fits.

    Raises:
        ValueError: the characters are empty or cannot be drawn.
    """
    reference = ImageFont.truetype(path, 100)
    boxes = [reference.getbbox(character, anchor="ls") for character in CHARACTERS]
    height = max(box[3] for box in boxes) - min(box[1] for box in boxes)
    width = max(box[2] - box[0] for box in boxes)
    if min(box[2] - box[0] for box in boxes) <= 0 or height <= 0:
        raise ValueError("a character is empty")
    size = 100 * min(_INK / height, _WIDEST / width)
    font = ImageFont.truetype(path, size)
    boxes = [font.getbbox(character, anchor="ls") for character in CHARACTERS]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    baseline = (SIDE - (bottom - top)) / 2 - top
    glyphs = np.empty((len(CHARACTERS), SIDE, SIDE), np.uint8)
    for number, (character, box) in enumerate(zip(CHARACTERS, boxes, strict=True)):
        image = Image.new("L", (SIDE, SIDE), 255)
        left = (SIDE - (box[2] - box[0])) / 2 - box[0]
        ImageDraw.Draw(image).text((round(left), round(baseline)), character, 0, font, anchor="ls")
        glyphs[number] = image
    return glyphs


def check(glyphs: Glyphs, classes: int) -> None:
    """Raises ValueError if a character is empty, or looks like one of another class."""
    if (glyphs.min(axis=(1, 2)) > 128).any():
        raise ValueError("a character is empty")
    ink = 255.0 - glyphs.reshape(len(glyphs), -1)
    ink /= np.linalg.norm(ink, axis=1, keepdims=True)
    for first, second in np.argwhere(np.triu(ink @ ink.T > _SAME, 1)).tolist():
        if class_of(CHARACTERS[first], classes) != class_of(CHARACTERS[second], classes):
            raise ValueError("two characters look the same")


def class_of(character: str, classes: int) -> str:
    """Returns the name of a character's class, which no two folders share where case does not count."""
    if character in string.digits:
        return f"digit_{character}"
    if classes == 36:
        return f"letter_{character.upper()}"
    return f"{'upper' if character.isupper() else 'lower'}_{character.upper()}"


def divide(families: Sequence[Family]) -> dict[str, tuple[str, str]]:
    """Returns the group and the part of each family, by its name."""
    group = {family.name: family.name for family in families}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    by_word: dict[str, str] = {}
    for family in families:
        word = re.split(r"[\s_-]+", family.name.strip().lower())[0]
        group[root(family.name)] = root(by_word.setdefault(word, family.name))
    for first, second in _alike(families):
        group[root(first)] = root(second)
    sizes: Counter[str] = Counter()
    for family in families:
        sizes[root(family.name)] += len(family.styles)
    parts, filled, total = dict.fromkeys(sizes, "train"), Counter[str](), sum(sizes.values())
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        part = next((part for part, share in _SHARES.items() if filled[part] < share * total), "train")
        if sizes[name] < _LARGE * total:
            parts[name] = part
            filled[part] += sizes[name]
    return {name: (root(name), parts[root(name)]) for name in group}


def _alike(families: Sequence[Family]) -> Iterator[tuple[str, str]]:
    """Yields the pairs of families that have a style whose characters look the same."""
    names = [family.name for family in families for _ in family.styles]
    glyphs = [glyphs for family in families for glyphs in family.styles.values()]
    small = np.stack([each.reshape(-1, 16, 4, 16, 4).mean(axis=(2, 4)).ravel() for each in glyphs])
    small -= small.mean(axis=1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    for first, second in np.argwhere(np.triu(small @ small.T > _ALIKE, 1)).tolist():
        yield names[first], names[second]


def write(
    folder: Path, families: Sequence[Family], parts: dict[str, tuple[str, str]], classes: int
) -> Counter[str]:
    """Writes ``folder/PART/CLASS/FAMILY-STYLE-CHARACTER.png``; returns the number of images of each part."""
    counts: Counter[str] = Counter()
    for family in families:
        part, stem = parts[family.name][1], re.sub(r"\W+", "_", family.name)
        for style, glyphs in family.styles.items():
            for character, glyph in zip(CHARACTERS, glyphs, strict=True):
                place = folder / part / class_of(character, classes)
                place.mkdir(parents=True, exist_ok=True)
                case = "lower" if character.islower() else "upper"
                Image.fromarray(glyph).save(place / f"{stem}-{style}-{case}.png")
                counts[part] += 1
    return counts


def _write_lists(
    folder: Path,
    families: Sequence[Family],
    parts: dict[str, tuple[str, str]],
    versions: dict[str, str],
    packages: Path,
) -> None:
    """Writes ``families.csv``, ``LICENCES.md`` and ``samples.png``."""
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(("family", "group", "part", "styles", "package", "version"))
    by_package: dict[str, list[str]] = defaultdict(list)
    for family in families:
        group, part = parts[family.name]
        styles = " ".join(sorted(family.styles))
        table.writerow((family.name, group, part, styles, family.package, versions[family.package]))
        by_package[family.package].append(family.name)
    (folder / "families.csv").write_text(rows.getvalue(), encoding="utf-8")
    lines = [
        "# Licences",
        "",
        "As Debian's copyright files have them; the pictures are drawings of these fonts.",
        "",
    ]
    for package, names in sorted(by_package.items()):
        licences = ", ".join(_licences(packages / package / "usr/share/doc" / package / "copyright"))
        lines.append(f"- {package} {versions[package]}: {licences}. {', '.join(names)}.")
    (folder / "LICENCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    chosen = [families[index] for index in np.linspace(0, len(families) - 1, 16).astype(int)]
    characters = [CHARACTERS.index(character) for character in "0123456789AaBbGgQqRr"]
    sheet = [np.concatenate(list(next(iter(each.styles.values()))[characters]), axis=1) for each in chosen]
    Image.fromarray(np.concatenate(sheet)).save(folder / "samples.png")


def _licences(path: Path) -> Iterable[str]:
    """Returns the names of the licences in a copyright file of Debian's."""
    if not path.is_file():
        return ["see the package"]
    named = re.findall(
        r"^License:[ \t]*(\S.*)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    return sorted({name.strip().rstrip(".") for name in named}) or ["see its copyright file"]


def _fail(text: str) -> NoReturn:
    sys.exit(f"scripts/letters: {text}")


if __name__ == "__main__":
    main()
