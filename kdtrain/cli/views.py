"""The command ``kdtrain views``: a picture of training images in the variants that ``--augment`` makes."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from kdtrain.cli.flags import add_setting_flag, settings_in
from kdtrain.cli.output import Stdout
from kdtrain.errors import UsageError
from kdtrain.experiment.settings.load import new_config
from kdtrain.experiment.settings.schema import NO_RECIPE
from kdtrain.runtime.files import write_bytes
from kdtrain.runtime.signals import defer_signals

if TYPE_CHECKING:  # the help needs this file, but no NumPy
    import numpy as np
    import numpy.typing as npt

_IMAGES, _VIEWS = 8, 8
_SIDE, _GAP = 96, 4  # pixels of the sheet: an image is at least so high, and so far from the next


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        f"Draw {_IMAGES} training images, each in a row of {_VIEWS} views, as --augment makes them. The "
        "first view is the image itself; mixup and cutmix mix it too."
    )
    for name in ("dataset", "data_dir", "image_size", "skip_corrupt", "augment", "data_seed"):
        add_setting_flag(parser, name)
    parser.add_argument(
        "--output", type=Path, default=Path("views.png"), metavar="FILE", help="PNG file to write [views.png]"
    )


def run(options: argparse.Namespace) -> int:
    """Draws the sheet."""
    with defer_signals():  # an interrupted import may come out as another error
        import numpy as np

        from kdtrain.experiment.loaders import prepare, read_data
    given = {"mode": "student", "recipe": NO_RECIPE, "val_size": 0, "views": _VIEWS}
    config = new_config(given | settings_in(options))
    if config.augment_for("student") == "none":
        raise UsageError("the changes are missing: give them, such as --augment shift=2,flip.")
    data = prepare(read_data(config), config, "student", config.seed, "cpu")
    train, norm = data.train, data.dataset.normalization
    chosen = np.unique(np.linspace(0, train.num_images - 1, _IMAGES).astype(np.int64))
    batches = [train.batch(chosen, np.full(len(chosen), view)) for view in range(_VIEWS)]
    views = np.stack([batch.inputs.numpy().copy() for batch in batches], axis=1)
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (norm.mean, norm.std))
    pixels = np.rint(255 * (views * std + mean)).clip(0, 255).astype(np.uint8)
    write_bytes(options.output, _sheet(pixels))
    Stdout().sentence(
        f"{options.output}: {len(chosen)} training images in {_VIEWS} views each; a row is an image."
    )
    return 0


def _sheet(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Returns a PNG file of images in rows and columns, each enlarged by whole pixels.

    Args:
        pixels: (rows, columns, C, H, W).
    """
    import numpy as np
    from PIL import Image

    rows, columns, _, height, width = pixels.shape
    times = -(-_SIDE // height)
    tall, wide = height * times + _GAP, width * times + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * tall + _GAP), "white")
    for row, column in np.ndindex(rows, columns):
        picture = np.broadcast_to(pixels[row, column], (3, height, width)).transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(picture))
        image = image.resize((width * times, height * times), Image.Resampling.NEAREST)
        sheet.paste(image, (_GAP + column * wide, _GAP + row * tall))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
