"""The tables of a comparison: the teachers, the test figures, the cost and the differences."""

from __future__ import annotations

from collections.abc import Sequence

from kdtrain.metrics.names import CONFIDENCE, Interval
from kdtrain.metrics.probabilities import BINS
from kdtrain.report.table import Column, Table
from kdtrain.report.verdict import count_text, difference_bounds, difference_text, gain_text, p_value_text
from kdtrain.store.record import Comparison, Difference


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Returns the tables of several teachers, of the test figures, of the cost and of the differences."""
    teachers = [_teacher_table(comparison)] if comparison.teachers else []
    figures = [_test_table(comparison), _cost_table(comparison), _difference_table(comparison)]
    return [*teachers, *figures]


def _test_table(comparison: Comparison) -> Table:
    seeds, teachers = comparison.distillation.gain.n, comparison.summaries["teacher"].accuracy.n
    over = f", mean ± sd over {seeds} seeds" if seeds > 1 else ""
    recipe = f", recipe {comparison.recipe}" if comparison.recipe else ""
    caption = "All students had the same teacher: the spread is that of students, not of teachers."
    table = Table(
        Column("model", words=True),
        Column("accuracy\n%"),
        *_balanced_columns(comparison),
        Column("errors", drop=5),
        Column("cross-\nentropy", drop=3),
        Column("ECE\n%", drop=2, note=f"ECE: expected calibration error, {BINS} bins."),
        Column("agreement\n%", drop=4, note="Agreement: with the teacher's classes."),
        Column("KL from\nteacher", drop=1, note="KL: in nats, T=1."),
        title=f"On {comparison.test_images:,} test images{over}{recipe}",
        caption=caption if teachers == 1 < seeds else "",
    )
    shown = {
        model: (summary.balanced_accuracy, summary.macro_f1) if comparison.conditions.uneven else ()
        for model, summary in comparison.summaries.items()
    }
    for model, summary in comparison.summaries.items():
        table.row(
            model,
            _mean_and_sd(summary.accuracy, 2),
            *(_mean_and_sd(figure, 2) for figure in shown[model]),
            _mean_and_sd(summary.errors, 0 if summary.errors.n == 1 else 1),
            _mean_and_sd(summary.cross_entropy, 4),
            _mean_and_sd(summary.calibration_error, 2),
            _mean_and_sd(summary.agreement, 2),
            _mean_and_sd(summary.divergence, 4),
        )
    return table


def _balanced_columns(comparison: Comparison) -> list[Column]:
    """Returns the columns in which each class counts equally, for uneven classes."""
    if not comparison.conditions.uneven:
        return []
    note = "Balanced accuracy and macro-F1: means over the classes, each counted once."
    return [Column("balanced\n%", note=note), Column("macro-\nF1 %", drop=6)]


def _teacher_table(comparison: Comparison) -> Table:
    """Returns the table of several teachers, with their mean as the last row."""
    table = Table(
        Column("teacher", words=True),
        Column("share\n%", drop=2),
        Column("accuracy\n%"),
        Column("errors", drop=4),
        Column("cross-\nentropy", drop=1),
        Column("parameters", drop=3),
        title=f"Teachers, on {comparison.test_images:,} test images",
    )
    for member in comparison.teachers:
        table.row(
            f"{member.name}: {member.arch}" if member.arch != member.name else member.arch,
            f"{100 * (member.share or 0):.0f}",
            f"{100 * member.accuracy:.2f}",
            f"{member.errors:,}",
            f"{member.cross_entropy:.4f}",
            _count(member.parameters),
        )
    table.section()
    mean = comparison.summaries["teacher"]
    figures = (f"{mean.accuracy.mean:.2f}", f"{mean.errors.mean:,.0f}", f"{mean.cross_entropy.mean:.4f}")
    table.row("mean of their probabilities", "100", *figures, _count(mean.parameters))
    return table


def _count(number: int) -> str:
    """Returns a number as text; a dash for one that is unknown."""
    return f"{number:,}" if number else "-"


def _cost_table(comparison: Comparison) -> Table:
    table = Table(
        Column("model", words=True),
        Column("network", words=True, drop=2),
        Column("parameters"),
        Column("multiply-adds\nper image", drop=1),
        Column("training\ntime, s"),
        Column("best\nepoch", drop=3),
        title="Cost",
    )
    for model, summary in comparison.summaries.items():
        seconds = summary.seconds
        table.row(
            model,
            summary.arch,
            _count(summary.parameters),
            _count(summary.multiply_adds),
            _mean_and_sd(seconds, 1 if seconds.mean < 10 else 0).replace("\n", " ") if seconds.mean else "-",
            range_text([result.best_epoch for result in comparison.models if result.model == model]),
        )
    return table


def range_text(epochs: Sequence[int | None]) -> str:
    """Returns the best epochs of a model's seeds, ``"87"`` or ``"61-98"``; a dash for unknown ones."""
    known = [epoch for epoch in epochs if epoch is not None]
    if not known:
        return "-"
    return f"{min(known)}" if len(set(known)) == 1 else f"{min(known)}-{max(known)}"


def _difference_table(comparison: Comparison) -> Table:
    gain = comparison.distillation.gain
    over = f"over {gain.n} seeds, paired" if gain.n > 1 else "over images"
    table = Table(
        Column("difference", words=True),
        Column("points"),
        Column(f"{100 * CONFIDENCE:.0f} % interval\n{over}"),
        Column("errors\nremoved", drop=1),
        *([Column("McNemar's\nexact p", drop=2)] if gain.n == 1 else []),
        title="Differences in accuracy",
    )
    for difference in comparison.differences:
        table.row(*_difference_row(difference))
    return table


def _difference_row(difference: Difference) -> list[str]:
    percent = difference.errors_removed_percent
    removed = count_text(difference.errors_removed) + ("" if percent is None else f" ({percent:.1f} %)")
    row = [difference_text(difference), gain_text(difference.gain), difference_bounds(difference), removed]
    if difference.one_seed is not None:
        row.append(p_value_text(difference.one_seed.p_value).removeprefix("= "))
    return row


def _mean_and_sd(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "-"
    spread = "" if interval.sd is None else f"\n± {interval.sd:,.{digits}f}"
    return f"{interval.mean:,.{digits}f}{spread}"
