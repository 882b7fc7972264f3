"""The image of accuracy over size, from the files ``compare.json`` of comparisons."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kdtrain.errors import KdtrainError
from scripts.size_plot import SizePanel, size_figure
from kdtrain.report.style import save_figure

IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "accuracy-over-size.png"


def main() -> None:
    """Draws the image; the panels have the order of the arguments."""
    parser = argparse.ArgumentParser(prog="scripts/accuracy-over-size", description=__doc__)
    parser.add_argument(
        "comparisons", nargs="+", metavar="TITLE=FILE", help="a panel's title, and its compare.json"
    )
    parser.add_argument(
        "--output", type=Path, default=IMAGE, help="the PNG [docs/images/accuracy-over-size.png]"
    )
    options = parser.parse_args()
    try:
        save_figure(size_figure([_panel(argument) for argument in options.comparisons]), options.output)
    except (KdtrainError, OSError, ValueError) as error:
        parser.error(str(error))
    print(options.output)


def _panel(argument: str) -> SizePanel:
    title, equals, file = argument.partition("=")
    if not equals:
        raise ValueError(f"{argument}: write TITLE=FILE")
    return SizePanel.from_json(title, json.loads(Path(file).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
