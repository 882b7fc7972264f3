"""A check of drawings that kdtrain has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def assert_is_drawing(path: Path) -> None:
    """Asserts that a file is a PNG of at least 1,000 pixels in width that is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        assert np.asarray(image.convert("L")).std() > 5
