"""The drawing of a prediction: the network's input, its probabilities, and the softened probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from kdtrain.metrics.probabilities import tempered_softmax
from kdtrain.report.style import BAR, GREY, HIGHLIGHT, house_style

_MOST_BARS = 10
_LONGEST_NAME = 18
ORIGINAL_PIXELS = 600
"""The longest side of an original in the drawing."""
_INSIDE = 0.8  # a longer bar has its label inside


def prediction_figure(
    network_input: npt.NDArray[np.uint8],
    logits: npt.ArrayLike,
    classes: Sequence[str],
    temperature: float,
    title: str,
    original: PIL.Image.Image | None = None,
    truth: str | None = None,
    *,
    original_size: tuple[int, int] | None = None,
    warning: str | None = None,
) -> Figure:
    """Returns three panels: the image, the probabilities at T=1, and those at ``temperature``.

    Both panels of probabilities have one axis, from 0 to 1. With more than 10 classes, the bars are the
    10 most probable classes in descending order, and the true class.

    Args:
        network_input: (H, W), (1, H, W) or (3, H, W) uint8, the network's input, pixels 0..255.
        logits: (classes,) the network's logits.
        classes: the classes' names.
        temperature: T of the third panel.
        title: the line above the panels.
        original: the photo or scan that the input was made from, shown above it.
        truth: the true class, if it is known.
        original_size: width and height of the photo in pixels, if ``original`` is a reduced copy of it.
        warning: a sentence below the title.

    Raises:
        ValueError: the image's shape, the number of names or the temperature is wrong.
        KdtrainError: a logit is not finite.
    """
    plain, soft = tempered_softmax(logits, 1.0), tempered_softmax(logits, temperature)
    if plain.shape != (len(classes),):
        raise ValueError(f"{len(classes)} class names do not go with outputs of shape {plain.shape}")
    shown = _shown_classes(np.asarray(logits, dtype=np.float64), classes, truth)
    names = [_label(classes[index], truth) for index in shown]
    winner = shown.index(int(np.argmax(plain)))
    with house_style():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        images, bars = figure.subfigures(1, 2, width_ratios=[1, 2.3])
        _draw_images(images, _channels_last(network_input), original, original_size)
        _draw_bars(bars.add_subplot(1, 2, 1), names, plain[shown], winner)
        _draw_bars(bars.add_subplot(1, 2, 2), names, soft[shown], winner)
        few = "" if len(shown) == len(classes) else f", top {_MOST_BARS} of {len(classes)}"
        bars.axes[0].set_title(f"probabilities, T = 1{few}")
        bars.axes[1].set_title(f"softened, T = {temperature:g}")
        figure.suptitle(title if warning is None else f"{title}\n{warning}", fontsize=12)
    return figure


def _shown_classes(logits: npt.NDArray[np.float64], classes: Sequence[str], truth: str | None) -> list[int]:
    if len(classes) <= _MOST_BARS:
        return list(range(len(classes)))
    shown: list[int] = np.argsort(-logits, kind="stable")[:_MOST_BARS].tolist()
    if truth in classes and classes.index(truth) not in shown:
        shown.append(classes.index(truth))
    return shown


def _label(name: str, truth: str | None) -> str:
    short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
    return f"(true) {short}" if name == truth else short


def _channels_last(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns an image as (H, W) or (H, W, 3) uint8, which matplotlib draws."""
    if image.ndim == 3 and image.shape[0] in (1, 3):
        return image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 2)
    if image.ndim != 2:
        raise ValueError(f"an image must be (H, W), (1, H, W) or (3, H, W), got {image.shape}")
    return image


def _draw_images(
    figure: SubFigure,
    image: npt.NDArray[np.uint8],
    original: PIL.Image.Image | None,
    original_size: tuple[int, int] | None,
) -> None:
    height, width = image.shape[:2]
    title = f"network input, {width} x {height}"
    if original is None:
        _draw_image(figure.add_subplot(1, 1, 1), image, title)
        return
    photo_width, photo_height = original_size or original.size
    original_title = f"original, {photo_width} x {photo_height}"
    _draw_image(figure.add_subplot(2, 1, 1), _displayable(original), original_title)
    _draw_image(figure.add_subplot(2, 1, 2), image, title)


def _draw_image(axes: Axes, image: npt.NDArray[np.uint8], name: str) -> None:
    # Photos are smoothed when they are reduced; small images are enlarged without smoothing.
    smooth = "antialiased" if max(image.shape) > 128 else "nearest"
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_anchor("NW")
    axes.set_title(name)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _displayable(original: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    """Returns a reduced copy of an image of any mode as (H, W, 3) uint8; transparent parts are white."""
    image = original
    if image.mode.startswith(("I", "F")):
        deep = np.asarray(image, dtype=np.float64)
        reach = max(float(deep.max() - deep.min()), 1.0)
        image = PIL.Image.fromarray(((deep - deep.min()) * (255 / reach)).astype(np.uint8))
    image = image.convert("RGBA")
    image.thumbnail((ORIGINAL_PIXELS, ORIGINAL_PIXELS))
    return np.asarray(PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image))[..., :3]


def _draw_bars(axes: Axes, names: Sequence[str], values: npt.NDArray[np.float64], winner: int) -> None:
    rows = range(len(names))
    colours = [HIGHLIGHT if row == winner else BAR for row in rows]
    bars = axes.barh(rows, values, color=colours, height=0.72)
    labels = axes.bar_label(bars, [percent(value) for value in values], padding=3, fontsize=9)
    for label, value in zip(labels, values, strict=True):
        if value > _INSIDE:  # beside the bar it would leave the axis
            label.set(position=(-3, 0), ha="right", color="white")
    axes.set_yticks(rows, names)
    axes.get_yticklabels()[winner].set(color=HIGHLIGHT, fontweight="bold")
    axes.set_ylim(max(len(names), 5) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0, colors=GREY, labelcolor="black")


def percent(value: float) -> str:
    """Returns a probability with one decimal, and never "0.0 %" or "100.0 %", which would be rounded."""
    if value < 0.001:
        return "<0.1 %"
    return ">99.9 %" if value > 0.999 else f"{100 * value:.1f} %"
