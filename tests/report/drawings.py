"""Readers of drawings and tables that kdtrain has made."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console, RenderableType


def assert_is_drawing(path: Path) -> None:
    """Asserts that a file is a PNG of at least 1,000 pixels in width that is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        assert np.asarray(image.convert("L")).std() > 5


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def printed(*renderables: RenderableType, width: int = 80) -> str:
    """Returns what a terminal of this width shows."""
    text = io.StringIO()
    Console(file=text, width=width).print(*renderables)
    return text.getvalue()
