"""Tables of a comparison for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from kdtrain.metrics.calibration import BINS
from kdtrain.metrics.statistics import CONFIDENCE, Interval
from kdtrain.report.comparison import Comparison, Difference, Model
from kdtrain.report.grid_result import GridResult
from kdtrain.report.verdict import count_text, difference_bounds, difference_text, gain_text, p_value_text


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Returns the tables of the grid, of the test figures, of the cost and of the differences."""
    grid = [_grid_table(comparison.grid)] if comparison.grid else []
    teachers = [_teacher_table(comparison)] if comparison.teachers else []
    figures = [_test_table(comparison), _cost_table(comparison), _difference_table(comparison)]
    return [*grid, *teachers, *figures]


def table_of(title: str, *headers: str, caption: str | None = None) -> Table:
    """Returns an empty table whose columns are right-justified, except for the first one."""
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _test_table(comparison: Comparison) -> Table:
    seeds, teachers = comparison.distillation.gain.n, comparison.summaries["teacher"].accuracy.n
    over = f", mean ± sd over {seeds} seeds" if seeds > 1 else ""
    recipe = f", recipe {comparison.recipe}" if comparison.recipe else ""
    caption = (
        f"ECE: expected calibration error, {BINS} bins.\n"
        "Agreement: with the teacher's classes. KL: in nats, T=1."
    )
    if teachers == 1 < seeds:
        caption += "\nAll students had the same teacher: the spread is that of\nstudents, not of teachers."
    table = table_of(
        f"On {comparison.test_images:,} test images{over}{recipe}",
        *("model", "accuracy\n%", "errors", "cross-\nentropy", "ECE\n%", "agreement\n%", "KL from\nteacher"),
        caption=f"{caption}\n",
    )
    for model, summary in comparison.summaries.items():
        table.add_row(
            model,
            _mean_and_sd(summary.accuracy, 2),
            _mean_and_sd(summary.errors, 0 if summary.errors.n == 1 else 1),
            _mean_and_sd(summary.cross_entropy, 4),
            _mean_and_sd(summary.calibration_error, 2),
            _mean_and_sd(summary.agreement, 2),
            _mean_and_sd(summary.divergence, 4),
        )
    return table


def _teacher_table(comparison: Comparison) -> Table:
    """Returns the table of several teachers, with their mean as the last row."""
    headers = ("teacher", "share\n%", "accuracy\n%", "errors", "cross-\nentropy", "parameters")
    table = table_of(f"Teachers, on {comparison.test_images:,} test images", *headers)
    for member in comparison.teachers:
        table.add_row(
            f"{member.name}: {member.arch}" if member.arch != member.name else member.name,
            f"{100 * member.weight:.0f}",
            f"{100 * member.test.accuracy:.2f}",
            f"{member.test.errors:,}",
            f"{member.test.cross_entropy:.4f}",
            _count(member.parameters),
        )
    table.add_section()
    mean = comparison.summaries["teacher"]
    figures = (f"{mean.accuracy.mean:.2f}", f"{mean.errors.mean:,.0f}", f"{mean.cross_entropy.mean:.4f}")
    table.add_row("mean of their probabilities", "100", *figures, _count(mean.parameters))
    return table


def _count(number: int) -> str:
    """Returns a number as text; a dash for one that is unknown."""
    return f"{number:,}" if number else "-"


def _cost_table(comparison: Comparison) -> Table:
    table = table_of(
        "Cost",
        *("model", "network", "parameters", "multiply-adds\nper image", "training\ntime, s", "best\nepoch"),
    )
    table.columns[1].justify, table.columns[1].no_wrap, table.columns[1].overflow = "left", False, "fold"
    for model, summary in comparison.summaries.items():
        seconds = summary.seconds
        table.add_row(
            model,
            summary.arch,
            _count(summary.parameters),
            _count(summary.multiply_adds),
            _mean_and_sd(seconds, 1 if seconds.mean < 10 else 0).replace("\n", " ") if seconds.mean else "-",
            range_text([result.best_epoch for result in comparison.results if result.model == model]),
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
    headers = ["difference", "points", f"{100 * CONFIDENCE:.0f} % interval\n{over}", "errors\nremoved"]
    table = table_of("Differences in accuracy", *headers, *(["McNemar's\nexact p"] if gain.n == 1 else []))
    for difference in comparison.differences:
        table.add_row(*_difference_row(difference))
    return table


def _difference_row(difference: Difference) -> list[str]:
    percent = difference.errors_removed_percent
    removed = count_text(difference.errors_removed) + ("" if percent is None else f" ({percent:.1f} %)")
    row = [difference_text(difference), gain_text(difference.gain), difference_bounds(difference), removed]
    if difference.one_seed is not None:
        row.append(p_value_text(difference.one_seed.mcnemar.p_value).removeprefix("= "))
    return row


def _grid_table(grid: Mapping[Model, GridResult]) -> Table:
    names = list(dict.fromkeys(name for result in grid.values() for name in result.best.settings))
    headers = ("model", *names, "held-out\naccuracy %", "cross-\nentropy", "")
    table = table_of("Grid, chosen by held-out images", *headers)
    for model, result in grid.items():
        for candidate in result.candidates:
            settings = candidate.settings
            values = [f"{settings[name]:g}" if name in settings else "-" for name in names]
            figures = [f"{100 * candidate.accuracy:.2f}", f"{candidate.cross_entropy:.4f}"]
            table.add_row(model, *values, *figures, "chosen" if candidate is result.best else "")
        table.add_section()
    return table


def _mean_and_sd(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "-"
    spread = "" if interval.sd is None else f"\n± {interval.sd:,.{digits}f}"
    return f"{interval.mean:,.{digits}f}{spread}"
