"""The style and the series of all charts: colours, lines, fonts; and the function that saves a PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from kdtrain.runtime.files import make_folder, write_bytes

DPI = 120
GREY = "#5f5f5f"
BAR = "#b8bec6"
HIGHLIGHT = "#0072B2"


@dataclass(frozen=True, eq=False)
class EpochSeries:
    """A figure over the E epochs that every one of S seeds reached; made by ``EpochSeries.of``.

    Attributes:
        epochs: (E,) int64, counted from 1, in order.
        values: (S, E) float64, in the unit of the figure.
    """

    epochs: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @classmethod
    def of(cls, histories: Sequence[Mapping[int, float]]) -> EpochSeries:
        """Returns the series of ``histories``, which hold each seed's figure by epoch.

        Epochs that some seed did not reach are left out: the mean would jump where a seed stopped early.
        """
        epochs = sorted(set(histories[0]).intersection(*histories[1:])) if histories else []
        values = [[history[epoch] for epoch in epochs] for history in histories]
        return cls(np.array(epochs, np.int64), np.array(values, np.float64))

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """(E,) float64, over the seeds."""
        return np.asarray(self.values.mean(axis=0))


@dataclass(frozen=True)
class LineStyle:
    """The style of a model's curve; models differ in colour, marker and dashes."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[int, ...]]
    face: str


# Okabe and Ito's palette: its colours stay distinct under the common kinds of colour blindness.
LINES = {
    "teacher": LineStyle("#009E73", "s", "--", "#009E73"),
    "student_kd": LineStyle("#0072B2", "o", "-", "#0072B2"),
    "student": LineStyle("#D55E00", "^", "-.", "white"),
    "student_ls": LineStyle("#CC79A7", "v", (0, (1, 1)), "white"),
    "student_hard": LineStyle("#E69F00", "D", (0, (5, 1, 1, 1, 1, 1)), "white"),
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
    # A class or a file may be called "$1": names are text, not formulas.
    "text.parse_math": False,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Applies matplotlib's defaults and this module's style inside the block, and no matplotlibrc."""
    with matplotlib.style.context(_RC, after_reset=True):
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG of ``figsize * DPI`` pixels; the same figure gives the same bytes.

    Raises:
        KdtrainError: the file cannot be written.
    """
    buffer = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes; the warning about them is of no use.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    make_folder(path.parent)
    write_bytes(path, buffer.getvalue())


def picture_path(folder: Path | None, name: Path | None, default: Path) -> Path:
    """Returns the path of an image; a name without a folder is a path, as in the sample."""
    if name is None:
        return (folder or Path()) / default
    return folder / name if folder is not None else name
