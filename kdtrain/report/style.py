"""The look that all pictures share, and the one way to save them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from kdtrain.runtime.files import make_folder, write_bytes

DPI = 120
GREY = "#5f5f5f"
BAR = "#b8bec6"
HIGHLIGHT = "#0072B2"


@dataclass(frozen=True)
class Line:
    """How one model's curve is drawn: told apart by colour, marker and dashes."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[int, ...]]
    face: str


# Okabe and Ito's palette, which the common kinds of colour-blindness leave distinct.
LINES = {
    "teacher": Line("#009E73", "s", "--", "#009E73"),
    "student_kd": Line("#0072B2", "o", "-", "#0072B2"),
    "student": Line("#D55E00", "^", "-.", "white"),
    "student_ls": Line("#CC79A7", "v", (0, (1, 1)), "white"),
}

_RC = {
    "figure.dpi": DPI,
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.formatter.useoffset": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # A class or a file may well be called "$1": names are text, not formulas.
    "text.parse_math": False,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draws what is inside with matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(_RC, after_reset=True):
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG of ``figsize * DPI`` pixels; the same figure gives the same bytes.

    Raises:
        KdtrainError: the file cannot be written.
    """
    buffer = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        # Names in a script that the font lacks come out as boxes: no reason to lose the picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    make_folder(path.parent)
    write_bytes(path, buffer.getvalue())
