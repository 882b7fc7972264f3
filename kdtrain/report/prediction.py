"""The inference picture: what the network saw, its probabilities, and the softened ones it teaches with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from kdtrain.metrics.probabilities import probabilities
from kdtrain.report.style import BAR, GREY, HIGHLIGHT, house_style

_MOST_BARS = 10
_LONGEST_NAME = 18
_ORIGINAL_PIXELS = 600


def prediction_figure(
    network_input: npt.NDArray[np.uint8],
    logits: npt.ArrayLike,
    classes: Sequence[str],
    temperature: float,
    title: str,
    original: PIL.Image.Image | None = None,
    truth: str | None = None,
) -> Figure:
    """Returns three panels: the image, the probabilities at T=1, and those at ``temperature``.

    With more than 10 classes the bars are the 10 most probable, in that order, and the truth.

    Args:
        network_input: (H, W), (1, H, W) or (3, H, W) uint8, the image as the network saw it.
        logits: (classes,) the network's outputs.
        classes: the classes' names.
        temperature: T of the third panel.
        title: the line above the panels.
        original: the photo or scan that the image was made from, shown above it.
        truth: name of the true class, if known.

    Raises:
        ValueError: the image's shape, the number of names or the temperature is wrong.
        KdtrainError: a logit is not finite.
    """
    plain, soft = probabilities(logits, 1.0), probabilities(logits, temperature)
    if plain.shape != (len(classes),):
        raise ValueError(f"{len(classes)} class names do not go with outputs of shape {plain.shape}")
    shown = _shown_classes(np.asarray(logits, dtype=np.float64), classes, truth)
    names = [_label(classes[index], truth) for index in shown]
    winner = shown.index(int(np.argmax(plain)))
    with house_style():
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        images, bars = figure.subfigures(1, 2, width_ratios=[1, 2.3])
        _draw_images(images, _as_picture(network_input), original)
        _draw_bars(bars.add_subplot(1, 2, 1), names, plain[shown], winner, full_scale=True)
        _draw_bars(bars.add_subplot(1, 2, 2), names, soft[shown], winner, full_scale=False)
        few = "" if len(shown) == len(classes) else f", top {_MOST_BARS} of {len(classes)}"
        bars.axes[0].set_title(f"probabilities, T = 1{few}")
        bars.axes[1].set_title(f"softened, T = {temperature:g}")
        figure.suptitle(title, fontsize=12)
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


def _as_picture(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(H, W) or (H, W, 3), as matplotlib wants it."""
    if image.ndim == 3 and image.shape[0] in (1, 3):
        return image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 2)
    if image.ndim != 2:
        raise ValueError(f"an image must be (H, W), (1, H, W) or (3, H, W), got {image.shape}")
    return image


def _draw_images(figure: SubFigure, picture: npt.NDArray[np.uint8], original: PIL.Image.Image | None) -> None:
    height, width = picture.shape[:2]
    seen = f"what the network saw, {width} x {height}"
    if original is None:
        _draw_image(figure.add_subplot(1, 1, 1), picture, seen)
        return
    name = f"original, {original.width} x {original.height}"
    _draw_image(figure.add_subplot(2, 1, 1), _displayable(original), name)
    _draw_image(figure.add_subplot(2, 1, 2), picture, seen)


def _draw_image(axes: Axes, picture: npt.NDArray[np.uint8], name: str) -> None:
    # Reduced photos are smoothed, enlarged pixels stay pixels.
    smooth = "antialiased" if max(picture.shape) > 128 else "nearest"
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_anchor("NW")
    axes.set_title(name)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def _displayable(original: PIL.Image.Image) -> npt.NDArray[np.uint8]:
    """(H, W, 3) of a reduced copy, whatever the mode; transparent parts are white."""
    image = original
    if image.mode.startswith(("I", "F")):
        deep = np.asarray(image, dtype=np.float64)
        reach = max(float(deep.max() - deep.min()), 1.0)
        image = PIL.Image.fromarray(((deep - deep.min()) * (255 / reach)).astype(np.uint8))
    image = image.convert("RGBA")
    image.thumbnail((_ORIGINAL_PIXELS, _ORIGINAL_PIXELS))
    return np.asarray(PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image))[..., :3]


def _draw_bars(
    axes: Axes, names: Sequence[str], values: npt.NDArray[np.float64], winner: int, full_scale: bool
) -> None:
    rows = range(len(names))
    colours = [HIGHLIGHT if row == winner else BAR for row in rows]
    bars = axes.barh(rows, 100 * values, color=colours, height=0.72)
    axes.bar_label(bars, [_percent(value) for value in values], padding=3, fontsize=9)
    axes.set_yticks(rows, names)
    axes.get_yticklabels()[winner].set(color=HIGHLIGHT, fontweight="bold")
    axes.set_ylim(max(len(names), 5) - 0.4, -0.6)
    # The softened ones are compared with each other, so they fill their panel.
    axes.set_xlim(0, 1.22 * (100.0 if full_scale else 100 * values.max()))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0, colors=GREY, labelcolor="black")


def _percent(value: float) -> str:
    """One decimal, and neither "0.0" for what is possible nor "100.0" for what is not certain."""
    if value < 0.001:
        return "<0.1 %"
    return ">99.9 %" if value > 0.999 else f"{100 * value:.1f} %"
