"""The time that a command still takes, from its planned fits and the epochs that have finished.

The figures lie in memory that the command shares with its forked children. Each child writes the figures of
its own fit. Any process computes the estimate. An estimate never fails: without figures it is an empty text.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import mmap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_DONE, _MEASURED, _SECONDS, _SINCE, _ENDED = range(5)  # the columns of the table, float64
_COLUMNS = 5
_STEPS = ((60.0, 5.0), (600.0, 10.0), (float("inf"), 60.0))  # seconds: below a limit, a rounding


@dataclass(frozen=True)
class PlannedFit:
    """A fit that a command is going to carry out.

    Attributes:
        key: its name in the plan, unique.
        kind: fits of one kind have epochs that take equally long.
        epochs: its number of epochs, at most.
        cores: number of cores that it uses.
        begun: number of epochs that it has behind it when it starts.
    """

    key: str
    kind: str
    epochs: int
    cores: int = 1
    begun: int = 0


class Plan:
    """The fits of a command in stages: those of a stage run side by side, the stages one after another.

    Args:
        stages: the fits of each stage, in the order in which they start.
        cores: number of cores that the fits share.
        at_most: whether fits may stop before their last epoch.
        deadline: value of ``time.monotonic()`` at which the command ends in any case; None without one.
        paces: measured epochs and their seconds by kind, from an earlier plan of this command.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[PlannedFit]],
        cores: int = 1,
        *,
        at_most: bool = False,
        deadline: float | None = None,
        paces: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.stages = [list(stage) for stage in stages]
        self.cores, self.at_most, self.deadline = cores, at_most, deadline
        self._paces = dict(paces or {})
        fits = [fit for stage in self.stages for fit in stage]
        self._rows = {fit.key: _COLUMNS * number for number, fit in enumerate(fits)}
        self._table = memoryview(mmap.mmap(-1, max(1, len(fits)) * _COLUMNS * 8)).cast("d")
        for fit in fits:
            self._table[self._rows[fit.key] + _DONE] = fit.begun

    def begin(self, key: str, epochs: int) -> None:
        """Notes that a fit begins with ``epochs`` behind it: more than 0 if it is resumed."""
        if (row := self._rows.get(key)) is not None:
            self._table[row + _DONE] = epochs
            self._table[row + _SINCE] = time.monotonic()

    def finish_epoch(self, key: str) -> None:
        """Notes the end of an epoch, which began at the end of the one before."""
        if (row := self._rows.get(key)) is not None:
            now = time.monotonic()
            self._table[row + _SECONDS] += now - self._table[row + _SINCE]
            self._table[row + _MEASURED] += 1
            self._table[row + _DONE] += 1
            self._table[row + _SINCE] = now

    def end(self, key: str) -> None:
        """Notes the end of a fit."""
        if (row := self._rows.get(key)) is not None:
            self._table[row + _ENDED] = 1

    def paces(self) -> dict[str, tuple[float, float]]:
        """Returns measured epochs and their seconds by kind."""
        sums = dict(self._paces)
        for fit in (fit for stage in self.stages for fit in stage):
            epochs, seconds = sums.get(fit.kind, (0.0, 0.0))
            row = self._rows[fit.key]
            sums[fit.kind] = (epochs + self._table[row + _MEASURED], seconds + self._table[row + _SECONDS])
        return {kind: (epochs, seconds) for kind, (epochs, seconds) in sums.items() if epochs > 0}

    def text(self) -> str:
        """Returns the time left, such as ``about 3 min left``; empty if nothing is known or left."""
        seconds, is_lower_bound = self._estimate()
        limit = 0.0 if self.deadline is None else self.deadline - time.monotonic()
        if limit > 0 and (seconds is None or is_lower_bound or seconds > limit):
            return f"at most {duration(limit)} left"
        if seconds is None or seconds < 0.5 or (is_lower_bound and self.at_most):
            return ""
        word = "more than" if is_lower_bound else "at most" if self.at_most else "about"
        return f"{word} {duration(seconds)} left"

    def line(self) -> str:
        """Returns the finished fits and the time left, for one line; empty if nothing is known or left."""
        text = self.text()
        ended = sum(self._has_ended(fit) for stage in self.stages for fit in stage)
        if not text or len(self._rows) < 2:
            return text
        return f"{ended} of {len(self._rows)} fits done, {text}"

    def _estimate(self) -> tuple[float | None, bool]:
        """Returns the seconds left, None if unknown, and whether fits of unknown length come on top."""
        paces = {kind: seconds / epochs for kind, (epochs, seconds) in self.paces().items()}
        begun = [n for n, stage in enumerate(self.stages) if any(map(self._has_begun, stage))]
        left = [
            [fit for fit in stage if not self._has_ended(fit)]
            for stage in self.stages[max(begun, default=0) :]
        ]
        fits = [fit for stage in left for fit in stage]
        if not fits or not any(fit.kind in paces for fit in fits):
            return None, False
        seconds = sum(self._stage_seconds(stage, paces) for stage in left)
        return seconds, any(fit.kind not in paces for fit in fits)

    def _stage_seconds(self, fits: Sequence[PlannedFit], paces: Mapping[str, float]) -> float:
        """Returns the seconds until the last fit ends; fits start as in ``processes.run_jobs``."""
        now = time.monotonic()
        ends: list[tuple[float, int]] = []  # seconds from now, cores
        waiting: list[tuple[float, int]] = []
        for fit in fits:
            pace, row = paces.get(fit.kind, 0.0), self._rows[fit.key]
            seconds = max(0.0, fit.epochs - self._table[row + _DONE]) * pace
            if self._has_begun(fit):
                seconds -= min(seconds, pace, now - self._table[row + _SINCE])
                heapq.heappush(ends, (seconds, fit.cores))
            else:
                waiting.append((seconds, fit.cores))
        free, clock, last = self.cores - sum(cores for _, cores in ends), 0.0, 0.0
        for seconds, cores in waiting:
            while ends and free < cores:
                clock, freed = heapq.heappop(ends)
                last, free = max(last, clock), free + freed
            heapq.heappush(ends, (clock + seconds, cores))
            free -= cores
        return max([last, *(end for end, _ in ends)])

    def _has_begun(self, fit: PlannedFit) -> bool:
        row = self._rows[fit.key]
        return self._table[row + _SINCE] > 0 or self._table[row + _ENDED] > 0

    def _has_ended(self, fit: PlannedFit) -> bool:
        return self._table[self._rows[fit.key] + _ENDED] > 0


_LINE_SECONDS = 0.5  # for which a line is kept: with thousands of fits the estimate takes milliseconds

_line = ("", 0.0)  # the text, and when it was made
_plan: Plan | None = None  # of the command that runs
_key: str | None = None  # of the fit that this process carries out


def set_plan(plan: Plan | None) -> None:
    """Sets the plan of the command that runs; None for none."""
    global _plan, _line
    _plan, _line = plan, ("", 0.0)


def paces() -> dict[str, tuple[float, float]]:
    """Returns the epochs that the command's plan has measured, and their seconds, by kind."""
    return {} if _plan is None else _plan.paces()


@contextlib.contextmanager
def carrying_out(key: str) -> Iterator[None]:
    """Makes the fit in the block the plan's fit ``key``; a key that no plan has is no error."""
    global _key
    before, _key = _key, key
    try:
        yield
    finally:
        _key = before


def skip(keys: Iterable[str]) -> None:
    """Takes fits out of the time left that are done already."""
    for key in keys:
        if _plan is not None:
            _plan.end(key)


def note_begin(epochs: int) -> None:
    """Notes that this process's fit begins with ``epochs`` behind it."""
    if _plan is not None and _key is not None:
        _plan.begin(_key, epochs)


def note_epoch() -> None:
    """Notes that this process's fit has finished an epoch."""
    if _plan is not None and _key is not None:
        _plan.finish_epoch(_key)


def note_end() -> None:
    """Notes that this process's fit has ended."""
    if _plan is not None and _key is not None:
        _plan.end(_key)


def fit_text() -> str:
    """Returns the time that the command still takes, for a line of this process's fit; or an empty text."""
    return "" if _key is None else _safely(lambda plan: plan.text())


def line() -> str:
    """Returns the line with the finished fits and the time left; or an empty text."""
    global _line
    if time.monotonic() > _line[1] + _LINE_SECONDS:
        _line = (_safely(lambda plan: plan.line()), time.monotonic())
    return _line[0]


def _safely(text: Callable[[Plan], str]) -> str:
    """Returns a text of the plan; an empty one if there is no plan, or if the estimate fails."""
    if _plan is None:
        return ""
    try:
        return text(_plan)
    except Exception:  # an estimate must not end a fit
        logger.debug("the time left cannot be estimated", exc_info=True)
        return ""


def duration(seconds: float) -> str:
    """Returns a duration in words, rounded: ``40 s``, ``3 min 20 s``, ``12 min`` or ``1 h 20 min``."""
    step = next(step for limit, step in _STEPS if seconds < limit)
    whole = max(1, round(seconds)) if seconds < 10 else round(seconds / step) * round(step)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value)
