"""The rates of the warning of ``kdtrain infer``: false alarms on MNIST's test images, and hits on others.

The test images were not used to choose the thresholds. The others are made of them and of the fonts that
come with matplotlib.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from kdtrain.data.datasets import load_dataset
from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.deploy.predict.infer import doubt
from kdtrain.deploy.predict.opening import open_model
from kdtrain.deploy.predict.predictor import Predictor
from kdtrain.errors import DataError

FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSans-Oblique", "DejaVuSansMono")
ENLARGED = 4  # pixels of an enlarged image for one of MNIST's

Digits = npt.NDArray[np.uint8]


def main() -> None:
    """Prints a row for each kind of images and a column for each model, as Markdown."""
    parser = argparse.ArgumentParser(prog="scripts/doubt", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="models of MNIST")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="pairs and small images [300]")
    options = parser.parse_args()
    models = [open_model(path) for path in options.models]
    data = load_dataset("mnist")
    held_out, test = data.train.images[-5000:], data.test.images
    kinds = {"digits, 28 x 28, test images": [(digit, (28, 28)) for digit in test]}
    kinds["digits, 28 x 28, training images"] = [(digit, (28, 28)) for digit in held_out]
    for kind, images in made_up(test[:, 0], options.images).items():
        kinds[kind] = [(network_input(image), image.size) for image in images]
    print("| images | number |", *(f"{model.path.stem} |" for model in models))
    print("|---|---|" + "---|" * len(models))
    for kind, prepared in kinds.items():
        shares = [f"{share_of_warnings(model, prepared):.2%} |" for model in models]
        print(f"| {kind} | {len(prepared):,} |", *shares)


def network_input(image: Image.Image) -> Digits:
    """Returns an image as (1, 28, 28) uint8; empty if no digit is found in it, which is an error in use."""
    try:
        return to_mnist(image)[np.newaxis]
    except DataError:
        return np.zeros((1, 28, 28), np.uint8)


def share_of_warnings(model: Predictor, images: list[tuple[Digits, tuple[int, int]]]) -> float:
    """Returns the share of images, 0..1, that are refused or that the warning is printed for.

    Args:
        model: the model.
        images: each (1, 28, 28) uint8, the network's input, with width and height of its file.
    """
    logits = model.logits(np.stack([pixels for pixels, _ in images])).astype(np.float64)
    warnings = [
        doubt(model.card, pixels, answer, size) for (pixels, size), answer in zip(images, logits, strict=True)
    ]
    refused = [not pixels.any() for pixels, _ in images]
    return sum(map(bool, np.logical_or(refused, [text is not None for text in warnings]))) / len(images)


def made_up(digits: Digits, number: int) -> dict[str, list[Image.Image]]:
    """Returns images by kind, dark ink on white.

    Args:
        digits: (N, 28, 28), bright ink on black.
        number: how many images of pairs, enlarged and small digits.
    """
    draws = np.random.default_rng(0)
    pairs = [(digits[first], digits[second]) for first, second in draws.integers(0, len(digits), (number, 2))]
    side = 5
    return {
        "digits, enlarged": [enlarged(digit) for digit in digits[:number]],
        "printed digits": list(printed(string.digits)),
        "two digits, 4 pixels apart": [enlarged(side_by_side(*pair, 4)) for pair in pairs],
        "two digits, 1 pixel apart": [enlarged(side_by_side(*pair, 1)) for pair in pairs],
        "two digits, touching": [enlarged(side_by_side(*pair, -1)) for pair in pairs],
        "printed letters, A to Z": list(printed(string.ascii_uppercase)),
        "printed letters, a to z": list(printed(string.ascii_lowercase)),
        f"digits, {side} x {side}": [
            ImageOps.invert(Image.fromarray(digit)).resize((side, side), Image.Resampling.BOX)
            for digit in digits[:number]
        ],
    }


def side_by_side(first: Digits, second: Digits, gap: int) -> Digits:
    """Returns two digits in one image, with ``gap`` columns between their ink; negative: they overlap."""
    left, right = (digit[:, np.flatnonzero(digit.max(axis=0) >= 64)] for digit in (first, second))
    field = np.zeros((28, left.shape[1] + gap + right.shape[1] + 8), np.uint8)
    field[:, 4 : 4 + left.shape[1]] = left
    place = field[:, 4 + left.shape[1] + gap :][:, : right.shape[1]]
    np.maximum(place, right, out=place)
    return field


def enlarged(digit: Digits) -> Image.Image:
    """Returns bright ink on black, (H, W), as a larger image of dark ink on white."""
    image = ImageOps.invert(Image.fromarray(digit))
    return image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.BICUBIC)


def printed(characters: str) -> Iterator[Image.Image]:
    """Yields each character in each font."""
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    for name in FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", 64)
        for character in characters:
            image = Image.new("L", (112, 112), 255)
            ImageDraw.Draw(image).text((56, 56), character, fill=0, font=font, anchor="mm")
            yield image


if __name__ == "__main__":
    main()
