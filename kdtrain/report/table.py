"""The one style of tables on a terminal: columns are sized, wrapped and left out until each line fits.

Figures are never wrapped. Names and sentences are wrapped between words, and a word that is longer than
its column is shortened in its middle. A table that does not fit without its less important columns either
is printed as lines of "name: value".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

Cell = str | Text

_NARROWEST = 12  # columns of wrapped text
_WIDEST = 36  # columns of wrapped text, before less important columns are left out
_LINES = 4  # lines of a wrapped cell, before that
_SHORTEST_WORD = 20  # columns of a shortened word, before the table becomes lines


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: text of one or more lines.
        words: whether the cells are names or sentences, which may be wrapped; other cells are figures.
        drop: the column's turn to be left out where the table does not fit, 1 first; 0: never.
        note: a sentence below the table that explains the column, and is left out with it.
    """

    heading: str
    words: bool = False
    drop: int = 0
    note: str = ""

    @property
    def name(self) -> str:
        """The heading in one line."""
        return self.heading.replace("-\n", "-").replace("\n", " ")


@dataclass
class _Section:
    title: str
    rows: list[tuple[Text, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """The columns that are shown, by number, with their widths, and the blanks between them."""

    widths: dict[int, int]
    gap: int


class Table:
    """A table for ``rich``, which fits the width that it is printed in.

    Args:
        columns: the first one names a row, and is always shown.
        title: a line above the table.
        caption: lines below the table.
    """

    def __init__(self, *columns: Column, title: str = "", caption: str = "") -> None:
        self.columns = columns
        self.title = title
        self.caption = caption
        self._sections = [_Section("")]

    def row(self, *cells: Cell) -> None:
        """Adds a row: a cell for each column."""
        texts = tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells)
        self._sections[-1].rows.append(texts)

    def section(self, title: str = "") -> None:
        """Separates the rows that follow from those before, by a title or an empty line."""
        self._sections.append(_Section(title))

    def fits(self, width: int) -> bool:
        """Returns whether the table has all its columns in a terminal of this many columns."""
        layout = self._layout(width)
        return layout is not None and len(layout.widths) == len(self.columns)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the title, the rows and what is said below them."""
        width = options.max_width
        if self.title:
            yield Text(self.title, "bold")
        layout = self._layout(width)
        if layout is None:
            yield from self._lines(width)
            shown = set(range(len(self.columns)))
        else:
            yield from self._grids(layout)
            shown = set(layout.widths)
        yield from self._below(shown, width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Returns the width of the table, so that it can stand in a frame that is no wider."""
        layout = self._layout(options.max_width)
        if layout is None or self.title or any(self._below(set(layout.widths), options.max_width)):
            return Measurement(options.max_width, options.max_width)
        width = sum(layout.widths.values()) + layout.gap * (len(layout.widths) - 1)
        return Measurement(width, width)

    def _below(self, shown: set[int], width: int) -> Iterator[Text]:
        notes = [column.note for number, column in enumerate(self.columns) if number in shown and column.note]
        lines = [self.caption] * bool(self.caption) + notes
        hidden = [column.name for number, column in enumerate(self.columns) if number not in shown]
        if hidden:
            lines.append(f"Not shown in {width} columns: {', '.join(dict.fromkeys(hidden))}.")
        if lines:
            yield Text("\n".join(lines), "dim")

    def _grids(self, layout: _Layout) -> Iterator[Grid | Text]:
        """Yields a grid for each section, with the headings above the first one."""
        for position, section in enumerate(self._sections):
            yield from self._separation(position)
            grid = Grid(
                box=box.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
                padding=(0, layout.gap - 1, 0, 0),  # the box has a blank between two columns, too
                show_header=not position,
            )
            for number, width in layout.widths.items():
                column = self.columns[number]
                grid.add_column(
                    Text(column.heading), width=width, justify="left" if column.words else "right"
                )
            for row in section.rows:
                grid.add_row(*(_shortened(row[number], width) for number, width in layout.widths.items()))
            if section.rows or not position:
                yield grid

    def _separation(self, position: int) -> Iterator[Text]:
        """Yields what separates a section from one before that has rows, and the section's title."""
        if position and self._sections[position - 1].rows:
            yield Text()
        if self._sections[position].title:
            yield Text(self._sections[position].title, "bold")

    def _lines(self, width: int) -> Iterator[Text | Padding]:
        """Yields the first cell of each row, and below it a line of "name: value" for each other cell."""
        for position, section in enumerate(self._sections):
            yield from self._separation(position)
            for row in section.rows:
                name = _shortened(row[0], width)
                name.stylize("bold")
                yield name
                for column, cell in zip(self.columns[1:], row[1:], strict=True):
                    value = Text(" ").join(cell.split("\n"))
                    if value.plain.strip():
                        line = Text.assemble(f"{column.name}: ", value)
                        yield Padding(_shortened(line, width - 2), (0, 0, 0, 2), expand=False)

    def _layout(self, width: int) -> _Layout | None:
        """Returns the layout with the most columns that fits; None if no layout does."""
        turns = sorted({0} | {column.drop for column in self.columns})
        for word, turn, gap in itertools.product((_WIDEST, _SHORTEST_WORD), turns, (2, 1)):
            shown = [n for n, column in enumerate(self.columns) if column.drop == 0 or column.drop > turn]
            widths = self._widths(shown, width - gap * (len(shown) - 1), word)
            if widths is not None:
                return _Layout(dict(zip(shown, widths, strict=True)), gap)
        return None

    def _widths(self, shown: Sequence[int], room: int, word: int) -> list[int] | None:
        """Returns a width for each column; None if they do not fit.

        Args:
            shown: the columns, by number.
            room: columns of the terminal for all of them.
            word: words that are longer than this many columns may be shortened.
        """
        sizes = [self._sizes(number, word) for number in shown]
        widths = [least for least, _ in sizes]
        rest = room - sum(widths)
        if rest < 0:
            return None
        while rest:
            growing = [n for n, (_, natural) in enumerate(sizes) if widths[n] < natural]
            if not growing:
                break
            widths[max(growing, key=lambda n: sizes[n][1] / widths[n])] += 1  # the one with the most lines
            rest -= 1
        return widths

    def _sizes(self, number: int, word: int) -> tuple[int, int]:
        """Returns the least and the natural width of a column."""
        column = self.columns[number]
        cells = [row[number].plain for section in self._sections for row in section.rows]
        lines = [line for text in (column.heading, *cells) for line in text.split("\n")]
        natural = max(map(cell_len, lines), default=0)
        if not column.words:
            return natural, natural
        longest = max((cell_len(part) for line in lines for part in line.split()), default=0)
        least = max(_NARROWEST, min(word, longest), min(_WIDEST, -(-natural // _LINES)))
        return min(natural, least), natural


def _shortened(text: Text, width: int) -> Text:
    """Returns text in which each word that is longer than a line has "…" in its middle."""
    result = text.copy()
    for match in reversed(list(re.finditer(r"\S+", text.plain))):
        if cell_len(match.group()) > width:
            start, end = match.span()
            result = Text.assemble(result[:start], shorten(match.group(), width), result[end:])
    return result


def shorten(word: str, width: int) -> str:
    """Returns a word of at most ``width`` columns, with "…" in the place of its middle."""
    if cell_len(word) <= width:
        return word
    head = set_cell_size(word, width // 2).rstrip()
    tail, room = "", width - cell_len(head) - 1
    for letter in reversed(word):
        if cell_len(letter + tail) > room:
            break
        tail = letter + tail
    return f"{head}…{tail}"
