"""The drawing of a prediction: panels, bars, labels and the file."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
from matplotlib.figure import Figure

from kdtrain.metrics.probabilities import tempered_softmax
from kdtrain.report.prediction import prediction_figure
from kdtrain.report.style import save_figure
from tests.report.drawings import assert_is_drawing, texts

DIGITS = [str(digit) for digit in range(10)]
LOGITS = np.array([-4.0, 1.0, 0.5, -1.0, 2.0, 0.0, 9.0, -7.0, 3.0, 1.5])
IMAGE = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)


def bar_widths(figure: Figure, panel: int) -> list[float]:
    axes = [axes for axes in figure.axes if axes.patches][panel]
    return [float(patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]


def test_bars_are_the_probabilities_at_both_temperatures() -> None:
    figure = prediction_figure(IMAGE, LOGITS, DIGITS, 4.0, "test image 7", truth="8")
    assert bar_widths(figure, 0) == pytest.approx(tempered_softmax(LOGITS, 1.0).tolist())
    assert bar_widths(figure, 1) == pytest.approx(tempered_softmax(LOGITS, 4.0).tolist())
    shown = texts(figure)
    for text in ("test image 7", "probabilities, T = 1", "softened, T = 4", "network input, 28 x 28"):
        assert text in shown
    assert f"{100 * tempered_softmax(LOGITS, 4.0)[6]:.1f} %" in shown
    assert "<0.1 %" in shown
    for axes in figure.axes[1:]:
        assert [label.get_text() for label in axes.get_yticklabels()] == [*DIGITS[:8], "(true) 8", "9"]


@pytest.mark.parametrize("logits", [LOGITS, 9 * LOGITS, 0 * LOGITS])
def test_both_panels_have_one_axis_and_labels_stay_inside_it(logits: npt.NDArray[np.float64]) -> None:
    figure = prediction_figure(IMAGE, logits, DIGITS, 4.0, "")
    figure.draw_without_rendering()
    for axes in figure.axes[1:]:
        assert axes.get_xlim() == (0, 1)
        assert max(label.get_window_extent().x1 for label in axes.texts) <= axes.bbox.x1


def test_warning_is_below_the_title() -> None:
    figure = prediction_figure(IMAGE, LOGITS, DIGITS, 4.0, "7.png: 6", warning="Probably no single digit.")
    assert "7.png: 6\nProbably no single digit." in texts(figure)


def test_predicted_class_alone_is_highlighted() -> None:
    figure = prediction_figure(IMAGE, LOGITS, DIGITS, 4.0, "")
    for axes in figure.axes[1:]:
        colours = [patch.get_facecolor() for patch in axes.patches]
        assert colours.count(colours[6]) == 1
        assert [label.get_fontweight() for label in axes.get_yticklabels()].count("bold") == 1
        assert axes.get_yticklabels()[6].get_fontweight() == "bold"


def test_probabilities_are_not_rounded_to_0_or_100() -> None:
    figure = prediction_figure(IMAGE, [20.0, 0.0], ["cat", "dog"], 1.0, "")
    assert texts(figure).count(">99.9 %") == 2
    assert texts(figure).count("<0.1 %") == 2


def test_many_classes_show_the_ten_most_probable_and_the_truth() -> None:
    logits = np.random.default_rng(0).normal(size=100)
    names = [f"class {number}" for number in range(100)]
    worst = int(np.argmin(logits))
    figure = prediction_figure(np.zeros((3, 32, 32), np.uint8), logits, names, 2.0, "", truth=names[worst])
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    best = sorted(range(100), key=lambda number: -logits[number])[:10]
    assert labels == [names[number] for number in best] + [f"(true) {names[worst]}"]
    assert bar_widths(figure, 0)[0] == pytest.approx(tempered_softmax(logits, 1.0).max())
    assert "probabilities, T = 1, top 10 of 100" in texts(figure)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 28, 28)])
def test_panel_shows_the_pixels_of_the_network_input(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    figure = prediction_figure(image, LOGITS, DIGITS, 4.0, "")
    shown = np.asarray(figure.axes[0].images[0].get_array())
    expected = image.reshape(28, 28) if image.size == 28 * 28 else image.transpose(1, 2, 0)
    np.testing.assert_array_equal(shown, expected)


def test_image_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 28, 28\)"):
        prediction_figure(np.zeros((2, 28, 28), np.uint8), LOGITS, DIGITS, 4.0, "")
    with pytest.raises(ValueError, match="9 class names"):
        prediction_figure(IMAGE, LOGITS, DIGITS[:9], 4.0, "")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_original_of_any_mode_is_shown(mode: str, tmp_path: Path) -> None:
    original = PIL.Image.new(mode, (900, 300))
    figure = prediction_figure(IMAGE, LOGITS, DIGITS, 4.0, "a scan", original=original)
    assert "original, 900 x 300" in texts(figure)
    picture = np.asarray(figure.axes[0].images[0].get_array())
    assert picture.shape == (200, 600, 3)
    if mode in ("LA", "RGBA"):
        assert (picture == 255).all()
    assert original.size == (900, 300)


def test_original_of_16_bits_uses_the_whole_range() -> None:
    ramp = np.tile(np.linspace(1000, 60_000, 256).astype(np.uint16), (10, 1))
    figure = prediction_figure(IMAGE, LOGITS, DIGITS, 4.0, "", original=PIL.Image.fromarray(ramp))
    shown: npt.NDArray[np.uint8] = np.asarray(figure.axes[0].images[0].get_array())
    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown[0, :, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_file_is_a_png_of_1000_pixels_or_more_that_is_not_blank(classes: int, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "prediction.png"
    names = ["猫", "$a_{$", *(f"a class with a long name {number}" for number in range(classes - 2))]
    logits = np.linspace(5, -5, classes)
    save_figure(prediction_figure(IMAGE, logits, names, 4.0, "$\\broken{$ title", truth="猫"), path)
    assert_is_drawing(path)


def test_drawing_does_not_depend_on_the_users_matplotlibrc(tmp_path: Path) -> None:
    def draw(path: Path) -> bytes:
        save_figure(prediction_figure(IMAGE, LOGITS, DIGITS, 4.0, "title", truth="6"), path)
        return path.read_bytes()

    plain = draw(tmp_path / "plain.png")
    odd = {"font.size": 30, "figure.facecolor": "black", "savefig.dpi": 30, "text.usetex": True}
    with matplotlib.rc_context(odd):
        assert draw(tmp_path / "odd.png") == plain
        assert matplotlib.rcParams["font.size"] == 30
