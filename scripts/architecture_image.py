"""The image of docs/architecture.md: the rooms of kdtrain, and the imports between them, as SVG."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kdtrain"
IMAGE = ROOT / "docs" / "images" / "architecture.svg"

COLUMN, GUTTER, GAP, MARGIN = 250, 24, 40, 16
"""Widths of a column and of the space between two, and heights of the space below a row, in pixels."""
LETTERS = 34
"""Letters of a description that fit into a line of one column."""

STYLE = """
svg { color-scheme: light dark; font-family: system-ui, sans-serif; font-size: 13px }
.paper { fill: #ffffff } .box { fill: #eef3f8; stroke: #7b8fa6 }
text { fill: #3b4754 } .room { fill: #12202e; font-size: 16px; font-weight: 600 }
.import { stroke: #4a6480; stroke-width: 1.5 } .head { fill: #4a6480 }
@media (prefers-color-scheme: dark) {
.paper { fill: #161b22 } .box { fill: #222c38; stroke: #64788f }
text { fill: #b9c4cf } .room { fill: #f2f6fa }
.import { stroke: #9bb3cc } .head { fill: #9bb3cc }
}"""


class Place(NamedTuple):
    """A room's place: its row from the top, and its first and last column."""

    row: int
    first: int
    last: int


class Box(NamedTuple):
    """A room as it is drawn: its edges in pixels, and the lines of its description."""

    left: int
    right: int
    top: int
    bottom: int
    lines: list[str]


PLACES = {
    "cli": Place(0, 0, 2),
    "experiment": Place(1, 0, 2),
    "callbacks": Place(2, 0, 0),
    "cluster": Place(2, 1, 1),
    "engine": Place(3, 0, 1),
    "deploy": Place(3, 2, 2),
    "report": Place(4, 1, 2),
    "store": Place(5, 0, 2),
    "models": Place(6, 1, 2),
    "metrics": Place(7, 0, 0),
    "data": Place(7, 1, 1),
    "nn": Place(7, 2, 2),
    "runtime": Place(8, 0, 2),
    "errors": Place(9, 0, 2),
}


def _modules(tree: ast.Module) -> Iterator[str]:
    """Yields the name of every imported module, also of those imported inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def read_imports() -> dict[str, set[str]]:
    """Returns the rooms that each room imports, read from the source."""
    imports: dict[str, set[str]] = {room: set() for room in PLACES}
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in imports:  # and not __init__, __main__ or _version
            modules = [module.split(".") for module in _modules(ast.parse(file.read_text(encoding="utf-8")))]
            imports[room] |= {parts[1] for parts in modules if parts[0] == "kdtrain" and len(parts) > 1}
    return {room: imported & PLACES.keys() - {room} for room, imported in imports.items()}


def reachable(imports: dict[str, set[str]], room: str) -> set[str]:
    """Returns the rooms that ``room`` imports, directly or through others."""
    return imports[room].union(*(reachable(imports, other) for other in imports[room]))


def arrows(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Returns the imports that do not follow from others: (importing room, imported room)."""
    return [
        (room, other)
        for room in PLACES
        for other in PLACES
        if other in imports[room] and not any(other in reachable(imports, way) for way in imports[room])
    ]


def _description(room: str) -> str:
    file = PACKAGE / room / "__init__.py"
    tree = ast.parse((file if file.exists() else PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").splitlines()[0].replace("``", "")


def _boxes() -> dict[str, Box]:
    """Returns every room's box; a row is as high as its longest description needs."""
    boxes: dict[str, Box] = {}
    top = MARGIN
    for row in range(max(place.row for place in PLACES.values()) + 1):
        rooms = {room: place for room, place in PLACES.items() if place.row == row}
        spans = {room: 1 + place.last - place.first for room, place in rooms.items()}
        texts = {room: textwrap.wrap(_description(room), LETTERS * spans[room]) for room in rooms}
        bottom = top + 36 + 16 * max(map(len, texts.values()))
        for room, place in rooms.items():
            left = MARGIN + place.first * (COLUMN + GUTTER)
            right = MARGIN + place.last * (COLUMN + GUTTER) + COLUMN
            boxes[room] = Box(left, right, top, bottom, texts[room])
        top = bottom + GAP
    return boxes


def _drawn(room: str, box: Box) -> Iterator[str]:
    width, height = box.right - box.left, box.bottom - box.top
    yield f'<rect class="box" x="{box.left}" y="{box.top}" width="{width}" height="{height}" rx="6"/>'
    yield f'<text class="room" x="{box.left + 12}" y="{box.top + 23}">{room}</text>'
    for number, line in enumerate(box.lines):
        yield f'<text x="{box.left + 12}" y="{box.top + 42 + 16 * number}">{escape(line)}</text>'


def _arrow(importing: Box, imported: Box) -> str:
    """Returns a line from one box down to another: vertical where they overlap, else between near corners."""
    left, right = max(importing.left, imported.left), min(importing.right, imported.right)
    start = end = (left + right) // 2
    if left > right:
        start, end = (right - 30, left + 30) if importing.left < imported.left else (left + 30, right - 30)
    ends = f'x1="{start}" y1="{importing.bottom}" x2="{end}" y2="{imported.top - 2}"'
    return f'<line class="import" {ends} marker-end="url(#head)"/>'


def draw(imports: dict[str, set[str]]) -> str:
    """Returns the image as SVG.

    Args:
        imports: the rooms that each room imports.

    Raises:
        ValueError: an import points upward, which the image cannot show.
    """
    for room, place in PLACES.items():
        for other in imports[room]:
            if place.row >= PLACES[other].row:
                raise ValueError(
                    f"kdtrain/{room} imports kdtrain/{other}, which is not below it in the image"
                )
    boxes = _boxes()
    width = max(box.right for box in boxes.values()) + MARGIN
    height = max(box.bottom for box in boxes.values()) + MARGIN
    size = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>',
        f"<style>{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="paper" {size} rx="8"/>',
    ]
    for room, box in boxes.items():
        lines += _drawn(room, box)
    lines += [_arrow(boxes[room], boxes[other]) for room, other in arrows(imports)]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    IMAGE.write_text(draw(read_imports()), encoding="utf-8")
    print(IMAGE.relative_to(ROOT))
