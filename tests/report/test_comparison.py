"""The comparison: its figures, sentences, tables, file and chart."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text
from msgspec.structs import replace

from kdtrain import KdtrainError
from kdtrain.report.comparison_plot import comparison_figure
from kdtrain.report.comparison_table import comparison_tables
from kdtrain.report.style import save_figure
from kdtrain.report.verdict import evidence, gap_sentence, headline, verdict
from kdtrain.store.record import (
    VERSION,
    Comparison,
    EpochPoint,
    ModelResult,
    plain,
    read_record,
    write_record,
)
from tests.report.comparisons import HELPED, IMAGES, compare, result, three
from tests.report.drawings import assert_is_drawing, printed, texts


def rendered(comparison: Comparison, width: int = 80) -> str:
    return printed(*comparison_tables(comparison), width=width)


def heights(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_ydata(), dtype=np.float64)


def test_gain_is_the_paired_difference_of_the_students() -> None:
    comparison = compare(HELPED)
    gains = np.array([19.0, 17.0, 14.0, 20.0, 21.0]) / IMAGES * 100
    half = 2.77644511 * gains.std(ddof=1) / np.sqrt(5)
    assert comparison.distillation.gain.mean == pytest.approx(gains.mean())
    assert comparison.distillation.gain.low == pytest.approx(gains.mean() - half)
    assert comparison.distillation.gain.high == pytest.approx(gains.mean() + half)
    assert comparison.distillation.errors_removed == pytest.approx(18.2)
    assert comparison.distillation.errors_removed_percent == pytest.approx(100 * 18.2 / 171)
    assert comparison.gap_closed == pytest.approx(18.2 / (171 - 98.6))
    assert comparison.distillation.outcome == "helped"


def test_pairs_go_by_seed_not_by_order() -> None:
    assert compare(HELPED[::-1]).distillation == compare(HELPED).distillation


def test_a_loss_is_reported_as_a_loss() -> None:
    comparison = compare(three([90, 90, 90], [171, 166, 172], [152, 149, 158]))
    assert comparison.distillation.outcome == "hurt"
    assert (comparison.gap_closed or 0) < 0


def test_one_seed_compares_two_networks_and_has_no_spread() -> None:
    comparison = compare(three([98], [153], [171]))
    test = comparison.distillation.one_seed
    assert test is not None
    assert (test.only_model, test.only_baseline) == (18, 0)
    assert comparison.distillation.outcome == "undecided"
    assert comparison.distillation.gain.sd is None
    assert evidence(comparison) == (
        "One seed: +0.18 points, 95 % interval 0.09 to 0.27 over the test images. These two networks differ "
        "on such images (McNemar's exact p < 0.0001), which says nothing yet of the method."
    )
    assert "±" not in rendered(comparison) + " ".join(texts(comparison_figure(comparison)))
    assert "seeds" not in rendered(comparison)
    row = next(line for line in rendered(comparison).splitlines() if "student_kd - student" in line)
    assert row.split()[3:] == ["+0.18", "0.09", "to", "0.27", "18", "(10.5", "%)", "<", "0.0001"]


def test_two_networks_that_differ_by_chance_are_undecided() -> None:
    comparison = compare(three([98], [168], [171]))
    told_apart = "These two networks cannot be told apart on such images (McNemar's exact p = 0.25)"
    assert told_apart in evidence(comparison)
    assert compare(three([98, 99], [153, 152], [171, 172])).distillation.one_seed is None


def test_share_of_the_gap() -> None:
    def gap(teacher: list[int], distilled: list[int], plain: list[int]) -> str:
        return gap_sentence(compare(three(teacher, distilled, plain)))

    points = "points between student and teacher"
    undecided = f"That is 29 % of the 0.73 {points}, with the same doubt."
    ahead = f"That is 151 % of the 0.73 {points}: the student is ahead of its teacher."
    behind = f"The student falls behind by a further 13 % of the 0.74 {points}."
    none = "There is no gap to close: the teacher (98.29 %) is no better than the student (98.29 %)."
    assert gap([98, 98], [149, 151], [170, 172]) == undecided
    assert gap([98, 98], [61, 60], [171, 172]) == ahead
    assert gap([98, 98], [181, 182], [171, 173]) == behind
    assert gap([171, 171], [150, 152], [171, 171]) == none


def with_smoothing() -> list[ModelResult]:
    return HELPED + [
        result("student_ls", seed, errors) for seed, errors in enumerate([160, 161, 159, 165, 158])
    ]


def test_smoothed_labels_are_compared_with_both_other_students() -> None:
    comparison = compare(with_smoothing())
    pairs: Any = [(pair.model, pair.baseline, pair.gains) for pair in comparison.differences]
    assert pairs == [
        ("student_kd", "student", pytest.approx({0: 0.19, 1: 0.17, 2: 0.14, 3: 0.20, 4: 0.21})),
        ("student_ls", "student", pytest.approx({0: 0.11, 1: 0.05, 2: 0.13, 3: 0.05, 4: 0.18})),
        ("student_kd", "student_ls", pytest.approx({0: 0.08, 1: 0.12, 2: 0.01, 3: 0.15, 4: 0.03})),
    ]
    assert verdict(comparison) == verdict(compare(HELPED))
    text = rendered(comparison)
    assert text.count("student_ls") == 4
    assert any("student_ls 98.39 ± 0.03 %" in title for title in texts(comparison_figure(comparison)))
    with pytest.raises(KdtrainError, match=r"student_ls has the seeds \[0, 1, 2, 3\], student has"):
        compare(with_smoothing()[:-1])


def with_controls() -> list[ModelResult]:
    return with_smoothing() + [
        result("student_hard", seed, errors) for seed, errors in enumerate([155, 160, 161, 157, 162])
    ]


def test_hard_labels_are_compared_with_the_plain_and_the_distilled_student() -> None:
    comparison = compare(with_controls())
    assert comparison.differences[:3] == compare(with_smoothing()).differences
    pairs: Any = [(pair.model, pair.baseline, pair.gains) for pair in comparison.differences[3:]]
    assert pairs == [
        ("student_hard", "student", pytest.approx({0: 0.16, 1: 0.06, 2: 0.11, 3: 0.13, 4: 0.14})),
        ("student_kd", "student_hard", pytest.approx({0: 0.03, 1: 0.11, 2: 0.03, 3: 0.07, 4: 0.07})),
    ]
    assert rendered(comparison).count("student_hard") == 4
    alone = compare([model for model in with_controls() if model.model != "student_ls"])
    assert [pair.model for pair in alone.differences] == ["student_kd", "student_hard", "student_kd"]
    with pytest.raises(KdtrainError, match=r"student_hard has the seeds \[0, 1, 2, 3\], student has"):
        compare(with_controls()[:-1])


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("seeds", [1, 5])
def test_tables_fit_a_terminal(width: int, seeds: int) -> None:
    few = [model for model in with_controls() if model.seed < seeds]
    text = rendered(compare(few), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert not {"\x1b", "…"} & set(text)


def test_a_perfect_student_and_a_worse_teacher_leave_no_ratio() -> None:
    comparison = compare(three([9, 8], [0, 0], [0, 0]))
    assert comparison.distillation.errors_removed_percent is None
    assert comparison.gap_closed is None


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no result of teacher"),
        (HELPED[:-5], "no result of student"),
        (HELPED[:-1], r"student_kd has the seeds \[0, 1, 2, 3, 4\], student has \[0, 1, 2, 3\]"),
        ([*HELPED, HELPED[-1], HELPED[9]], "each seed is needed once"),
        ([*HELPED[:-1], result("student", 4, 17, images=1000)], "tested on 1000 images"),
        ([*HELPED[:-1], replace(HELPED[-1], cross_entropy=np.nan)], "diverged"),
        ([*HELPED[:-1], replace(HELPED[-1], history=(EpochPoint(1, 0.1, np.inf),))], "diverged"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(results: list[ModelResult], message: str) -> None:
    with pytest.raises(KdtrainError, match=message):
        compare(results)


def test_tables_hold_every_figure() -> None:
    lines = rendered(compare(HELPED)).splitlines()
    rows = [number for number, line in enumerate(lines) if line.split()[:1] == ["student_kd"]]
    test, cost, difference = rows
    assert lines[test].split() == ["student_kd", "98.47", "152.8", "0.0458", "0.46", "98.47", "0.0306"]
    spreads = [lines[test + 1].split()[i] for i in range(1, 12, 2)]
    assert spreads == ["0.04", "3.7", "0.0011", "0.01", "0.04", "0.0007"]
    epochs = [run.best_epoch or 0 for run in HELPED if run.model == "student_kd"]
    best = f"{min(epochs)}-{max(epochs)}"
    assert lines[cost].split() == ["student_kd", "109,386", "1,093,860", "42", "±", "2", best]
    assert lines[difference].split()[3:] == ["+0.18", "0.15", "to", "0.22", "18.2", "(10.6", "%)"]
    assert any("mean ± sd over 5 seeds" in line for line in lines)


def test_table_has_a_note_if_all_students_had_one_teacher() -> None:
    shared = rendered(compare(HELPED[:1] + HELPED[5:]))
    assert "same teacher" in " ".join(shared.split())
    lines = shared.splitlines()
    row = next(number for number, line in enumerate(lines) if line.split()[:1] == ["teacher"])
    assert lines[row + 1].split()[:1] == ["student_kd"]  # no spread of a single teacher
    assert "same teacher" not in rendered(compare(HELPED))


def test_json_is_plain_and_exact(tmp_path: Path) -> None:
    comparison = compare(HELPED)
    write_record(tmp_path, comparison)
    assert read_record(tmp_path / "compare.json", Comparison) == comparison
    back = json.loads((tmp_path / "compare.json").read_text())
    assert (back["version"], back["kind"]) == (VERSION, "comparison")
    assert back["differences"][0]["gain_percentage_points"] == dataclasses.asdict(
        comparison.distillation.gain
    )
    assert [gain["seed"] for gain in back["differences"][0]["gains"]] == [0, 1, 2, 3, 4]
    assert back["verdict"] == verdict(comparison)
    assert back["headline"] == headline(comparison)
    assert back["evidence"] == evidence(comparison)
    assert back["gap"] == gap_sentence(comparison)
    assert back["outcome"] == "helped"
    assert back["summaries"]["student"]["test_errors"]["mean"] == 171
    assert back["summaries"]["teacher"]["parameters"] == 1_199_882
    assert back["summaries"]["teacher"]["test_agreement_percent"] is None
    assert back["summaries"]["student"]["test_calibration_error_percent"]["mean"] == pytest.approx(0.513)
    assert back["differences"][0]["one_seed"] is None
    assert len(back["models"]) == 15
    for written, given in zip(back["models"], HELPED, strict=True):
        assert (written["model"], written["seed"]) == (given.model, given.seed)
        assert written["test_accuracy_fraction"] == given.accuracy
        curve = [tuple(point.values()) for point in written["held_out_history"]]
        assert curve == [(p.epoch, p.accuracy, p.cross_entropy) for p in given.history]
    back = plain(compare(three([98], [153], [171])))
    test = back["differences"][0]["one_seed"]
    assert (test["only_model_right"], test["only_baseline_right"]) == (18, 0)
    assert 0 < test["low_percentage_points"] < 0.18 < test["high_percentage_points"]


def test_chart_has_the_figures_and_names_of_the_lines() -> None:
    figure = comparison_figure(compare(HELPED), "mnist, T = 4")
    (title,) = [text for text in texts(figure) if "test accuracy" in text]
    assert "teacher 99.01 ± 0.02 %" in title
    assert "student_kd 98.47 ± 0.04 %" in title
    assert "student 98.29 ± 0.04 %" in title
    assert "+0.18 points, 95 % interval 0.15 to 0.22 over 5 seeds" in title
    assert title.endswith("\nmnist, T = 4")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["teacher", "student_kd", "student", "teacher's last epoch"]
    assert "5 seeds" in legend.get_title().get_text()
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines[:3]]
    assert all(len(set(look)) == 3 for look in zip(*looks, strict=True))


def test_curves_are_means_over_seeds_within_their_range() -> None:
    axes = comparison_figure(compare(HELPED)).axes[0]
    accuracies = 100 * np.array([[p.accuracy for p in r.history] for r in HELPED if r.model == "student"])
    np.testing.assert_allclose(heights(axes.lines[2]), accuracies.mean(axis=0))
    corners = np.asarray(axes.collections[2].get_paths()[0].vertices)
    assert corners[:, 1].min() == pytest.approx(accuracies.min())
    assert corners[:, 1].max() == pytest.approx(accuracies.max())


def test_axes_make_the_difference_of_the_students_visible() -> None:
    figure = comparison_figure(compare(HELPED))
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ends = [heights(line)[-1] for line in axes.lines]
        assert all(low < end < high for end in ends)
        assert abs(ends[1] - ends[2]) > 0.1 * (high - low)
    assert figure.axes[0].get_ylim()[0] > 97
    assert "off the axis: down to 94" in texts(figure)


def test_a_stray_dip_does_not_flatten_the_curves() -> None:
    history = list(HELPED[7].history)
    history[15] = EpochPoint(16, 0.5, 9.0)
    results = [*HELPED[:7], replace(HELPED[7], history=tuple(history)), *HELPED[8:]]
    figure = comparison_figure(compare(results))
    assert figure.axes[0].get_ylim()[0] > 97
    assert figure.axes[1].get_ylim()[1] < 0.2


def test_seeds_that_stopped_early_shorten_the_mean() -> None:
    results = [*HELPED[:14], replace(HELPED[14], history=HELPED[14].history[:12])]
    axes = comparison_figure(compare(results)).axes[0]
    assert [len(heights(line)) for line in axes.lines[:3]] == [3, 20, 12]


def constant(accuracy: float, loss: float) -> list[ModelResult]:
    errors = round((1 - accuracy) * IMAGES)
    return [
        replace(r, history=tuple(EpochPoint(p.epoch, accuracy, loss) for p in r.history))
        for r in three([errors] * 2, [errors] * 2, [errors] * 2)
    ]


CASES = {
    "five seeds": HELPED,
    "four models": with_smoothing(),
    "five models": with_controls(),
    "one seed": three([98], [153], [171]),
    "one epoch": three([98], [153], [171], epochs=1),
    "two epochs": three([98], [153], [171], epochs=2),
    "ten epochs": three([98, 99], [153, 152], [171, 180], epochs=10),
    "equal": constant(0.98, 0.06),
    "perfect": constant(1.0, 0.0),
    "hopeless": constant(0.0, 1e4),
    "teacher from elsewhere": [replace(r, history=()) for r in HELPED[:5]] + HELPED[5:],
    "no histories": [replace(r, history=()) for r in HELPED],
}


@pytest.mark.parametrize("case", CASES)
def test_file_is_a_png_of_1000_pixels_or_more_that_is_not_blank(case: str, tmp_path: Path) -> None:
    path = tmp_path / "compare.png"
    figure = comparison_figure(compare(CASES[case]), case)
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert all(low <= heights(line)[-1] <= high for line in axes.lines)
    assert max(figure.axes[0].get_yticks()) <= 100
    assert min(figure.axes[1].get_yticks()) >= 0
    save_figure(figure, path)
    assert_is_drawing(path)
    (title,) = [text for text in figure.findobj(Text) if text.get_text().startswith("test accuracy")]
    assert figure.bbox.x0 < title.get_window_extent().x0
    assert title.get_window_extent().x1 < figure.bbox.x1


def test_drawing_needs_neither_pyplot_nor_oneflow() -> None:
    code = (
        "import sys, kdtrain.report.comparison_plot, kdtrain.report.prediction, kdtrain.report.evaluation; "
        "print([name for name in ('matplotlib.pyplot', 'oneflow', 'flowvision') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
